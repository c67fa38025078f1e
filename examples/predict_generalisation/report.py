"""The table and the picture of what was predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from examples.common import mean_text, sizes_text
from examples.make_cnn_zoo import Zoo
from examples.predict_generalisation.task import PUBLISHED, TITLES

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # method -> what each seed found


def table(data: str, results: Results, zoo: Zoo, epochs: int) -> str:
    """Kendall's tau of every method over its seeds, with the published ones, in Markdown."""
    lines = ["| method | Kendall's τ | parameters | seeds |", "| --- | ---: | ---: | ---: |"]
    for method, runs in results.items():
        figure, count = mean_text([run["test"] for run in runs], 3), runs[0]["parameters"]
        lines.append(f"| {TITLES[method]} | {figure} | {'' if count is None else f'{count:,}'} | {len(runs)} |")
    for name, value in PUBLISHED.items():
        lines.append(f"| {name}, published, another zoo | {value} | | |")
    lines.append("")
    lines.append(f"{data}: {sizes_text(zoo.splits)} networks, {epochs} epochs; mean and standard error over the seeds.")
    return "\n".join(lines)


def draw(path: Path, data: str, results: Results, zoo: Zoo) -> None:
    """What the first seed of every method predicts for each test network, against what the network reaches."""
    actual = 100 * zoo.splits["test"].accuracy
    ends = [float(actual.min()), float(actual.max())]
    figure = Figure(figsize=(2.6 * len(results), 2.9), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (method, runs) in zip(axes, results.items(), strict=True):
        axis.plot(ends, ends, color="grey", linewidth=0.8)
        axis.scatter(actual.numpy(), [100 * x for x in runs[0]["predicted"]], s=3)
        axis.set_title(f"{TITLES[method]}\nτ = {runs[0]['test']:.3f}", fontsize=9)
    axes[0].set_ylabel("predicted, %")
    figure.supxlabel(f"{data}: test accuracy of a network, %", fontsize=9)
    figure.savefig(path)
