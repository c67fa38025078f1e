"""From curves to figures: one row for each contender, best first, and the comparison of two of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from benchmark.measures import (
    Array,
    Difference,
    Interval,
    Spread,
    area_under_curve,
    best_loss,
    diverged,
    final_loss,
    mean_curve,
    paired_difference,
    spread,
)
from benchmark.race import Entry, Result
from benchmark.speeds import Speed, factor_interval, final_factor, speed


@dataclass(frozen=True)
class Row:
    """What is said of one contender; losses are on test data, over seeds."""

    entry: Entry
    final: Spread
    best: Spread
    area: Spread  # under the curve: the mean loss over the run
    speed: Speed | None  # to the reference's best loss, on the mean curves
    interval: Interval | None  # of that factor; 0: never
    final_factor: float | None  # to the reference's final loss, on the smoothed mean curves
    seed_factors: tuple[float | None, ...]  # `speed` seed by seed, against the reference's run with that seed
    diverged: int

    @property
    def label(self) -> str:
        return self.entry.label

    @property
    def lr_kind(self) -> str:
        """Where the learning rate comes from."""
        contender = self.entry.contender
        if contender.tuned:
            return "tuned"
        return "default" if self.entry.tuning.lr == contender.default_lr else "set"

    @property
    def reached(self) -> int:
        """Seeds that reached the best loss of the reference's run with the same seed."""
        return sum(factor is not None for factor in self.seed_factors)

    @property
    def factor(self) -> float | None:
        """To the reference's best loss; None: never, or there is no reference."""
        return self.speed.factor if self.speed else None

    @property
    def significant(self) -> bool:
        """Whether the factor differs from 1 by its bootstrap interval."""
        return self.interval is not None and not self.interval.low <= 1 <= self.interval.high


@functools.lru_cache(maxsize=128)
def standings(result: Result) -> tuple[Row, ...]:
    """One row for each contender that ran, from the lowest mean final test loss to the highest."""
    reference = result.reference
    rows = [_row(entry, reference.curves.test if reference else None, result.steps) for entry in result.entries]
    return tuple(sorted(rows, key=lambda row: row.final.mean))


def _row(entry: Entry, reference: Array | None, steps: tuple[int, ...]) -> Row:
    test = entry.curves.test
    if reference is None:
        fast, interval, last, seeds = None, None, None, [None] * len(test)
    else:
        fast = speed(mean_curve(test), mean_curve(reference), steps)
        interval = factor_interval(test, reference, steps)
        last = final_factor(mean_curve(test), mean_curve(reference), steps)
        seeds = [speed(ours, theirs, steps) for ours, theirs in zip(test, reference, strict=True)]
    return Row(
        entry,
        final=spread(final_loss(test)),
        best=spread(best_loss(test)),
        area=spread(area_under_curve(test, steps)),
        speed=fast,
        interval=interval,
        final_factor=last,
        seed_factors=tuple(each.factor if each else None for each in seeds),
        diverged=int(np.sum(diverged(test))),
    )


def compare(result: Result, label: str, other: str) -> Difference | None:
    """Final test loss of `label` less that of `other`, paired over seeds; None where one is not finite, or raised."""
    entries = {entry.label: entry for entry in result.entries}
    if label not in entries or other not in entries:
        return None
    return paired_difference(final_loss(entries[label].curves.test), final_loss(entries[other].curves.test))
