"""curves.png: test loss against steps, and how the learning rates were tuned.

Contenders differ in colour (Okabe and Ito's palette), in line style and in marker, and are named at the end of their
line: so the picture can be read in grey and by colour-blind people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmark.measures import best_loss, mean_curve, settled
from benchmark.race import Entry, Result
from benchmark.standings import standings

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES: tuple[Any, ...] = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LOG_ABOVE = 4.0  # highest over lowest median loss from which the axis is logarithmic
GREY = "#555555"


class Style(NamedTuple):
    """How one contender is drawn."""

    colour: str
    line: Any
    marker: str


class Line(NamedTuple):
    """A line and its name."""

    end: float  # where it meets the right edge
    label: str
    style: Style


BEST = Style(GREY, (0, (2, 2)), "")  # the reference's best loss


def draw_race(result: Result, path: Path) -> None:
    """Draws the curves, with the median and the 10 to 90 % band over seeds, beside the tuning; writes a PNG."""
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    curves, tuning = figure.subplots(1, 2, width_ratios=(1.7, 1))
    styles = styles_of([entry.label for entry in result.entries])
    if result.entries:
        _draw_curves(curves, result, styles)
    _draw_tuning(tuning, [entry for entry in result.entries if entry.contender.tuned], styles)
    for axes in (curves, tuning):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
    # No date and no version in the file: the same race gives the same picture.
    figure.savefig(path, dpi=160, metadata={"Software": None})


def _draw_curves(axes: Axes, result: Result, styles: dict[str, Style]) -> None:
    steps = np.asarray(result.steps)
    medians = {entry.label: _finite(np.median(settled(entry.curves.test), axis=0)) for entry in result.entries}
    for number, entry in enumerate(result.entries):
        style = styles[entry.label]
        low, high = np.percentile(_finite(settled(entry.curves.test)), (10, 90), axis=0)
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.12, linewidth=0)
        # Markers of different contenders stand at different steps, so that close curves do not hide them.
        every = max(len(steps) // 8, 1)
        first = (number * every // len(result.entries)) % every
        axes.plot(
            steps,
            medians[entry.label],
            color=style.colour,
            linestyle=style.line,
            marker=style.marker,
            markevery=(first, every),
            markersize=4.5,
            linewidth=1.6,
        )
    reference = result.reference
    best = float(best_loss(mean_curve(reference.curves.test))) if reference else math.nan
    _scale(axes, [*medians.values()], best)
    axes.set_xlim(0, result.steps[-1])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if math.isfinite(best):
        axes.axhline(best, color=BEST.colour, linewidth=0.9, linestyle=BEST.line, zorder=1)
    ends = [Line(medians[row.label][-1], row.label, styles[row.label]) for row in standings(result)]
    target = [Line(best, f"best mean test loss of {result.target}", BEST)] if reference else []
    _name_lines(axes, [*ends, *target])
    axes.set_title(f"{literal(result.task)}: median of {len(result.seeds)} seeds, band from 10 to 90 %", loc="left",
                   fontsize=11)  # fmt: skip
    axes.set_xlabel("steps")
    axes.set_ylabel("test loss")


def _draw_tuning(axes: Axes, entries: Sequence[Entry], styles: dict[str, Style]) -> None:
    axes.set_title("Learning rates tried (large: chosen)", loc="left", fontsize=11)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("mean final validation loss")
    if not entries:
        axes.text(0.5, 0.5, "no learning rate was tuned", ha="center", transform=axes.transAxes, color=GREY)
        return
    for entry in entries:
        style, tuning = styles[entry.label], entry.tuning
        rates, losses = zip(*tuning.slice, strict=True)
        losses = _finite(np.asarray(losses))
        axes.plot(
            rates,
            losses,
            color=style.colour,
            linestyle=style.line,
            marker=style.marker,
            markersize=3.5,
            linewidth=1.2,
        )
        axes.plot(
            tuning.lr,
            losses[rates.index(tuning.lr)],
            style.marker,
            color=style.colour,
            markersize=9,
            markeredgecolor="white",
            zorder=3,
        )
    axes.set_xscale("log")
    _scale(axes, [_finite(np.array([loss for _, loss in entry.tuning.slice])) for entry in entries])


def _scale(axes: Axes, curves: Sequence[np.ndarray], *others: float) -> None:
    """Limits from the medians alone, so that a run that exploded does not flatten the rest; log where they span far."""
    # Above twice the first losses lies only what diverged.
    ceiling = 2 * float(np.nanmax([curve[0] for curve in curves])) if others else math.inf
    values = np.concatenate([*curves, np.asarray(others)])
    values = values[np.isfinite(values) & (values <= ceiling)]
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > LOG_ABOVE:
        axes.set_yscale("log")
        axes.set_ylim(low / (high / low) ** 0.06, high * (high / low) ** 0.04)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.06 * (high - low or 1.0)
        axes.set_ylim(low - margin, high + margin)


def _name_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Names at the right, in the order of the ends of the lines, spread out where these lie close together."""
    height = 0.062  # of one name, as a fraction of the axes
    to_fraction = axes.transData + axes.transAxes.inverted()
    ends = [float(to_fraction.transform((0, line.end))[1]) if math.isfinite(line.end) else 1.0 for line in lines]
    order = sorted(range(len(lines)), key=ends.__getitem__)
    at: list[float] = []
    for index in order:
        at.append(max(ends[index], at[-1] + height if at else 0.0))
    top = 1.0
    for place in reversed(range(len(at))):  # too many for the room above: push down from the top
        at[place] = min(at[place], top)
        top = at[place] - height
    for index, y in zip(order, at, strict=True):
        _, label, style = lines[index]
        axes.plot((1.015, 1.075), (y, y), color=style.colour, linestyle=style.line, linewidth=1.6,
                  transform=axes.transAxes, clip_on=False)  # fmt: skip
        axes.plot(1.045, y, style.marker, color=style.colour, markersize=4.5, transform=axes.transAxes, clip_on=False)
        axes.text(1.09, y, literal(label), fontsize=8.5, va="center", transform=axes.transAxes)


def styles_of(labels: Sequence[str]) -> dict[str, Style]:
    """A style for each contender, by its place. Where the colours begin again, lines and markers are shifted."""
    styles = {}
    for place, label in enumerate(labels):
        again, colour = divmod(place, len(COLOURS))
        shifted = (colour + again) % len(LINES)
        styles[label] = Style(COLOURS[colour], LINES[shifted], MARKERS[shifted])
    return styles


def _finite(values: np.ndarray) -> np.ndarray:
    """The values, with gaps in the line where they are not finite."""
    return np.where(np.isfinite(values), values, np.nan)


def literal(text: str) -> str:
    """Text in which matplotlib finds no mathematics."""
    return text.replace("$", r"\$")
