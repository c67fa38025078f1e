"""Tuning of hyper-parameters: a grid that grows while its winner lies on its edge.

It is given validation losses and nothing else; test data cannot reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmark.grids import Grid, Setting, edges, settings_of, widened
from benchmark.measures import Array, diverged, final_loss

WIDEN_BY = 2  # values added at a time


class Tuning(NamedTuple):
    """What came out of a grid."""

    settings: tuple[Setting, ...]  # all that were run, in the order of the grid
    losses: tuple[float, ...]  # mean final validation loss over seeds; inf where a seed diverged
    diverged: tuple[int, ...]  # seeds that diverged on validation data
    chosen: int  # index of the winner
    widenings: int

    @property
    def setting(self) -> dict[str, Any]:
        """The winner."""
        return dict(self.settings[self.chosen])

    @property
    def lr(self) -> float:
        """The learning rate of the winner."""
        return self.setting["lr"]

    @property
    def grid(self) -> Grid:
        """The values of each hyper-parameter that were run."""
        names = [name for name, _ in self.settings[0]]
        values = {name: dict.fromkeys(dict(setting)[name] for setting in self.settings) for name in names}
        return {name: tuple(kept) for name, kept in values.items()}

    @property
    def on_edge(self) -> bool:
        """Whether the winner lies on an edge that could be widened: a better one may lie outside."""
        return bool(edges(self.grid, self.settings[self.chosen]))

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that were run with all else as in the winner."""
        return tuple(rate for rate, _ in self.slice)

    @property
    def slice(self) -> list[tuple[float, float]]:
        """Learning rate and loss, with all else as in the winner."""
        others = {**self.setting, "lr": None}
        pairs = zip(self.settings, self.losses, strict=True)
        return [(dict(s)["lr"], loss) for s, loss in pairs if {**dict(s), "lr": None} == others]


def untuned(setting: Setting, validation: Array) -> Tuning:
    """What is known of the one setting that a contender has; validation losses are (1, S, E)."""
    broken = int(diverged(validation).sum())
    return Tuning((setting,), tuple(tuning_losses(validation).tolist()), (broken,), 0, 0)


def tuning_losses(validation: Array) -> Array:
    """The loss that a setting is judged by: (L, S, E) -> (L,). A seed that diverged makes it infinite."""
    return np.where(diverged(validation), np.inf, final_loss(validation)).mean(axis=-1)


def tune(grid: Mapping[str, Sequence[Any]], run: Callable[[Sequence[Setting]], Array], max_widenings: int) -> Tuning:
    """Runs a grid, and widens it while its winner lies on an edge, at most `max_widenings` times.

    Args:
        grid: values of each hyper-parameter; those of scales in rising order. A single combination is run, not tuned.
        run: trains at the given settings and returns their validation curves, (L, S, E). Only new ones are run.

    Returns:
        The outcome. When every setting diverges the first wins, so that the grid grows downward.
    """
    axes = {name: tuple(values) for name, values in grid.items()}
    losses: dict[Setting, float] = {}
    broken: dict[Setting, int] = {}
    widenings = 0
    while True:
        everything = settings_of(axes)
        new = [setting for setting in everything if setting not in losses]
        validation = run(new)
        losses |= zip(new, tuning_losses(validation).tolist(), strict=True)
        broken |= zip(new, diverged(validation).sum(axis=-1).tolist(), strict=True)
        chosen = int(np.argmin([losses[setting] for setting in everything]))
        at = edges(axes, everything[chosen])
        if not at or widenings == max_widenings:
            return Tuning(
                tuple(everything),
                tuple(losses[s] for s in everything),
                tuple(broken[s] for s in everything),
                chosen,
                widenings,
            )
        widenings += 1
        for name, upward in at.items():
            axes[name] = tuple(sorted([*axes[name], *widened(axes[name], upward, WIDEN_BY)]))
