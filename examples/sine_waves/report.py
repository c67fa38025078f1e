"""Tables and pictures of the three questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from sklearn.manifold import TSNE
from torch import Tensor

from examples.common import mean_and_error, mean_text

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # method -> what each seed found

# DWSNets (arXiv 2301.12780): mean squared error of a linear probe for (a, b); accuracy on the target domain, %.
PROBED = {"DWS": 1.39, "MLP": 7.39, "MLP, permutation augmentation": 5.65, "MLP, after alignment": 4.47}
ADAPTED = {
    "no adaptation": 60.92,
    "DWS": 71.36,
    "MLP": 64.33,
    "MLP, permutation augmentation": 64.69,
    "MLP, after alignment": 67.66,
}


def table_by_size(results: Mapping[int, Results], titles: Mapping[str, str]) -> str:
    """The test error of every method for every number of train networks, in Markdown."""
    methods = list(next(iter(results.values())))
    lines = [
        "| train networks | " + " | ".join(titles[method] for method in methods) + " |",
        "| ---: | " + " | ".join("---:" for _ in methods) + " |",
    ]
    for size, found in results.items():
        errors = [mean_text([run["test"] for run in found[method]], 3) for method in methods]
        lines.append(f"| {size:,} | {' | '.join(errors)} |")
    return "\n".join(lines)


def table(
    results: Results, titles: Mapping[str, str], what: str, published: Mapping[str, float], scale: float, places: int
) -> str:
    """One figure for every method, beside the published one, in Markdown."""
    lines = [f"| method | {what} | parameters | seeds | DWSNets' paper |", "| --- | ---: | ---: | ---: | ---: |"]
    for method, runs in results.items():
        title, count = titles[method], runs[0]["parameters"]
        figure, beside = mean_text([scale * run["test"] for run in runs], places), published.get(title, "")
        lines.append(f"| {title} | {figure} | {count:,} | {len(runs)} | {beside} |")
    return "\n".join(lines)


def draw_by_size(path: Path, results: Mapping[int, Results], titles: Mapping[str, str]) -> None:
    """The test error over the number of train networks."""
    figure = Figure(figsize=(6, 4.2), dpi=110, layout="constrained")
    axis = figure.subplots()
    for method in next(iter(results.values())):
        found = [mean_and_error([run["test"] for run in of_size[method]]) for of_size in results.values()]
        means, errors = [mean for mean, _ in found], [error or 0.0 for _, error in found]
        axis.errorbar(list(results), means, errors, marker="o", capsize=3, label=titles[method])
    axis.set(xscale="log", yscale="log", xlabel="networks to learn from", ylabel="mean squared test error")
    axis.set_xticks(list(results), [f"{size:,}" for size in results])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.set_title("the frequency of a sine wave, from the weights of its network", fontsize=10)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path)


def draw_embeddings(path: Path, results: Results, titles: Mapping[str, str], wave: Tensor) -> None:
    """The embeddings of the first seed in two dimensions by t-SNE, coloured by amplitude and by frequency."""
    figure = Figure(figsize=(3.2 * len(results), 5.6), dpi=100, layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False)
    points = None
    for column, (method, runs) in enumerate(results.items()):
        embedded = np.array(runs[0]["embedded"])
        near = min(30.0, (len(embedded) - 1) / 3)
        flat = TSNE(perplexity=near, init="pca", random_state=0).fit_transform(embedded)
        for row, colour in enumerate(wave.T.numpy()):
            axis = axes[row, column]
            points = axis.scatter(flat[:, 0], flat[:, 1], c=colour, s=8, cmap="viridis")
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(f"{titles[method]}: {runs[0]['test']:.2f}", fontsize=9)
    for row, name in enumerate(("amplitude", "frequency")):
        axes[row, 0].set_ylabel(f"coloured by {name}")
    if points is not None:
        figure.colorbar(points, ax=axes.ravel().tolist(), shrink=0.6)
    figure.savefig(path)


def draw_accuracies(path: Path, results: Results, titles: Mapping[str, str]) -> None:
    """The accuracy of every method on the target domain, with standard errors."""
    found = [mean_and_error([100 * run["test"] for run in runs]) for runs in results.values()]
    figure = Figure(figsize=(6, 0.4 * len(results) + 0.9), dpi=110, layout="constrained")
    axis = figure.subplots()
    names, means = [titles[method] for method in results], [mean for mean, _ in found]
    axis.errorbar(means, names, xerr=[error or 0.0 for _, error in found], fmt="o", capsize=3)
    axis.invert_yaxis()
    axis.margins(y=0.2)
    axis.grid(axis="x", alpha=0.4)
    axis.set_xlabel("accuracy on the target domain, %")
    figure.savefig(path)
