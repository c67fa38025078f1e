"""The table and the picture of how well masked networks learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from examples.common import mean_and_error, mean_text, sizes_text
from examples.make_classifiers import ClassifierSet
from examples.winning_tickets.task import TITLES

Results = Mapping[str, Sequence[Mapping[str, Any]]]  # method -> what each seed found


def table(results: Results, found: ClassifierSet, sparsity: float, epochs: int) -> str:
    """For every method what its networks reach over the seeds, in Markdown."""
    lines = ["| mask | test accuracy, % | test loss | of the ticket, % |", "| --- | ---: | ---: | ---: |"]
    for method, runs in results.items():
        figures = [
            mean_text([100 * run["test"] for run in runs], 2),
            mean_text([run["loss"] for run in runs], 3),
            mean_text([100 * run["overlap"] for run in runs], 1),
        ]
        lines.append(f"| {TITLES[method]} | {' | '.join(figures)} |")
    lines.append("")
    lines.append(
        f"{found.config['data']}, {found.config['network']} {found.config['hidden']}, sparsity {100 * sparsity:g} %: "
        f"{sizes_text(found.splits)} networks, {epochs} epochs; mean over the test networks, and standard error over "
        "the seeds."
    )
    return "\n".join(lines)


def draw(path: Path, results: Results, sparsity: float) -> None:
    """A bar for the test accuracy of every method."""
    figure = Figure(figsize=(7, 0.45 * len(results) + 1.2), dpi=120, layout="constrained")
    axis = figure.subplots()
    means = [mean_and_error([100 * run["test"] for run in runs])[0] for runs in results.values()]
    bars = axis.barh([TITLES[method] for method in results], means)
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.margins(x=0.12)  # room for the figures
    axis.invert_yaxis()
    axis.set(xlabel="test accuracy, %")
    figure.suptitle(f"networks trained with {100 * (1 - sparsity):g} % of their weights")
    figure.savefig(path)
