"""The table and the picture of the test accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.classify_inrs.task import PUBLISHED
from examples.common import mean_and_error, mean_text, sizes_text
from examples.common.methods import TITLES
from examples.make_inrs import InrSet

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # method -> what each seed found


def table(data: str, results: Results, found: InrSet, epochs: int) -> str:
    """The test accuracy of every method over its seeds, with the published ones, in Markdown."""
    lines = ["| method | test accuracy, % | parameters | seeds |", "| --- | ---: | ---: | ---: |"]
    for method, runs in results.items():
        figure = mean_text([100 * run["test"] for run in runs], 2)
        lines.append(f"| {TITLES[method]} | {figure} | {runs[0]['parameters']:,} | {len(runs)} |")
    for name, value in PUBLISHED.get(data, {}).items():
        lines.append(f"| {name}, published | {value} | | |")
    lines.append("")
    lines.append(f"{data}: {sizes_text(found.splits)} INRs, {epochs} epochs; mean and standard error over the seeds.")
    return "\n".join(lines)


def draw(path: Path, data: str, results: Results) -> None:
    """The validation accuracy over the epochs, mean over the seeds, with the test accuracy in the legend."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axis = figure.subplots()
    for method, runs in results.items():
        curves = zip(*([100 * epoch["score"] for epoch in run["curve"]] for run in runs), strict=True)
        means = [sum(values) / len(values) for values in curves]
        test, _ = mean_and_error([100 * run["test"] for run in runs])
        axis.plot(range(1, len(means) + 1), means, label=f"{TITLES[method]}: {test:.1f}")
    axis.set(xlabel="epoch", ylabel="validation accuracy, %", title=f"{data}: the class of an INR from its weights")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(title="test accuracy, %")
    figure.savefig(path)
