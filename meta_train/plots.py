"""The picture of a run: meta-loss against Adam's, the meta-gradient and its noise, and who diverged."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meta_train.saving import write_atomically

SMOOTHED_OVER = 25  # meta-steps of a moving mean, once there are a few times as many
SIZE, DPI = (10.0, 6.5), 120

Records = Sequence[Mapping[str, float]]


def draw_run(records: Records, path: Path) -> None:
    """Draws the metrics of a run, one record a meta-step, into a PNG file; nothing where there are no records.

    Raises:
        OSError: the file cannot be written.
    """
    if not records:
        return
    figure = Figure(figsize=SIZE)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.08, top=0.94, wspace=0.22, hspace=0.18)
    axes = figure.subplots(2, 2, sharex=True).flatten()
    for name, label, colour in (("meta_loss", "learned rule", "C0"), ("adam", "tuned Adam", "C1")):
        _curve(axes[0], records, name, label, colour)
    for name, label, colour in (("validation", "learned rule", "C0"), ("validation_adam", "tuned Adam", "C1")):
        _points(axes[1], records, name, label, colour)
    _curve(axes[2], records, "meta_gradient_norm", "norm of the meta-gradient", "C2")
    _curve(axes[2], records, "meta_gradient_snr", "signal to noise", "C3")
    _curve(axes[3], records, "diverged", "share of particles", "C4")
    titles = ("Tasks of meta-training", "Held-out tasks", "Meta-gradient", "Diverged")
    labels = (_scale(records, "adam"), _scale(records, "validation_adam"), "", "")
    for axis, title, label in zip(axes, titles, labels, strict=True):
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        if axis.lines:
            axis.legend(frameon=False, fontsize=8)
    axes[2].set_yscale("log")
    axes[3].set_ylim(-0.02, 1.02)
    for axis in axes[2:]:
        axis.set_xlabel("meta-step")
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI, format="png")
    write_atomically(path, content.getvalue())


def _scale(records: Records, adam: str) -> str:
    """What a meta-loss is measured in: Adam's progress where Adam was measured, else what the tasks measure."""
    known = any(adam in record for record in records)
    return "meta-loss (0: Adam's loss at the horizon)" if known else "meta-loss"


def _series(records: Records, name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    kept = np.isfinite(values)
    return steps[kept], values[kept]


def _curve(axis: Axes, records: Records, name: str, label: str, colour: str) -> None:
    """The values, faint, and their moving mean."""
    steps, values = _series(records, name)
    if not len(steps):
        return
    if len(values) < 3 * SMOOTHED_OVER:
        axis.plot(steps, values, color=colour, label=label)
        return
    axis.plot(steps, values, color=colour, alpha=0.2, linewidth=0.7)
    mean = np.convolve(values, np.full(SMOOTHED_OVER, 1 / SMOOTHED_OVER), mode="valid")
    axis.plot(steps[SMOOTHED_OVER - 1 :], mean, color=colour, label=label)


def _points(axis: Axes, records: Records, name: str, label: str, colour: str) -> None:
    steps, values = _series(records, name)
    if len(steps):
        axis.plot(steps, values, "o-", markersize=3, color=colour, label=label)
