"""The pictures of a suite: performance profiles, and what each contender gains against what its steps cost."""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmark.outcome import PROFILE_END, Outcome
from benchmark.plots import GREY, literal, styles_of


def draw_profiles(outcome: Outcome, path: Path) -> None:
    """rho(tau) of each contender from the fastest to `PROFILE_END` times the fastest; writes a PNG."""
    figure, axes = _figure()
    styles = styles_of(outcome.labels)
    for number, summary in enumerate(outcome.summaries):
        style, profile = styles[summary.label], summary.profile
        inside = [(r, s) for r, s in zip(profile.ratios, profile.shares, strict=True) if r <= PROFILE_END]
        ratios, shares = zip(*inside, strict=True)
        # A hair apart, so that equal profiles can all be seen.
        lift = 0.004 * number
        axes.step([*ratios, PROFILE_END], [share + lift for share in (*shares, shares[-1])], where="post",
                  color=style.colour, linestyle=style.line, linewidth=1.6,
                  label=literal(f"{summary.label} ({summary.score:.2f})"))  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(1, PROFILE_END)
    _plain_ticks(axes, "x")
    axes.set_ylim(0, 1.05)
    axes.set_xlabel(f"steps to the best test loss of {literal(outcome.reference)}, times those of the fastest")
    axes.set_ylabel("share of tasks")
    axes.set_title(f"Performance profiles over {len(outcome.races)} tasks (area)", loc="left", fontsize=11)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8.5)
    _save(figure, path)


def draw_gains(outcome: Outcome, path: Path) -> None:
    """A point for each task and contender: the factor in steps over the time of a training step; writes a PNG.

    Above the dashed line a contender gains more in steps than its steps cost in time. At the foot: never.
    """
    figure, axes = _figure()
    styles = styles_of(outcome.labels)
    points: dict[str, list[tuple[float, float | None]]] = {label: [] for label in outcome.labels}
    for race in outcome.races:
        base = race.costs.training_step(race.result.target)
        for row in race.rows:
            own = race.costs.training_step(row.label)
            if base and own and row.label != race.result.target:
                points[row.label].append((own / base, row.factor))
    reached = [y for pairs in points.values() for _, y in pairs if y is not None and math.isfinite(y) and y > 0]
    foot = min([*reached, 1.0]) / 1.6
    for label, pairs in points.items():
        if pairs:
            style = styles[label]
            ys = [foot if y is None or not math.isfinite(y) or y <= 0 else y for _, y in pairs]
            axes.plot([x for x, _ in pairs], ys, style.marker, color=style.colour, markersize=6, alpha=0.8,
                      label=literal(label))  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    costs = [x for pairs in points.values() for x, _ in pairs] or [1.0]
    low, high = min([*costs, 1.0]) / 1.2, max([*costs, 1.0]) * 1.2
    axes.set_xlim(low, high)
    axes.plot((low, high), (low, high), color=GREY, linestyle=(0, (4, 3)), linewidth=0.9, zorder=1)
    axes.axhline(1, color=GREY, linewidth=0.6, zorder=1)
    axes.set_ylim(foot / 1.15, max([*reached, 1.0]) * 1.25)
    for axis in ("x", "y"):
        _plain_ticks(axes, axis)
    axes.set_xlabel(f"time of a training step, times that of {literal(outcome.reference)}")
    axes.set_ylabel("factor in steps (foot: never)")
    axes.set_title("What is gained against what it costs (dashed: even on the clock)", loc="left", fontsize=11)
    if any(points.values()):
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8.5)
    _save(figure, path)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _plain_ticks(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=160, metadata={"Software": None})
