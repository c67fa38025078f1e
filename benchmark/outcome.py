"""What came out of a suite: the race on every task with what its steps cost, and the figures over all tasks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeGuard

import numpy as np

from benchmark.profiles import Profile, performance_profiles, profile_area
from benchmark.race import Result
from benchmark.standings import Row, standings
from benchmark.step_cost import StepCosts

PROFILE_END = 4.0  # the times the best up to which a profile is scored, as in AlgoPerf


@dataclass(frozen=True)
class Race:
    """One task."""

    result: Result
    costs: StepCosts

    @property
    def rows(self) -> Sequence[Row]:
        """One for each contender that ran, best first."""
        return standings(self.result)

    def row(self, label: str) -> Row | None:
        """That of a contender; None: it raised."""
        return next((row for row in self.rows if row.label == label), None)

    def raised(self, label: str) -> bool:
        """Whether a contender raised."""
        return any(failure.label == label for failure in self.result.failures)

    def clock(self, row: Row) -> float | None:
        """The factor to the reference's best loss in time: that in steps, times the ratio of the times of a step."""
        theirs, ours = (self.costs.training_step(label) for label in (self.result.target, row.label))
        return None if row.factor is None or theirs is None or ours is None else row.factor * theirs / ours


class Summary(NamedTuple):
    """One contender over a suite. Means are geometric."""

    label: str
    tasks: int  # on which it ran
    targets: int  # of these, where the reference sets a loss to reach
    reached: int  # of these, where it reaches the reference's best loss, but for what it reaches at once
    factor: float | None  # mean of the factors to the reference's best loss; None: somewhere never
    factor_where_reached: float | None  # the same over `reached` tasks
    final_factor: float | None  # mean of the factors to the reference's final loss
    faster: int  # tasks on which the factor is above 1, significantly
    slower: int  # tasks on which it is below 1, or the loss is never reached, significantly
    clock: float | None  # mean of the factors in time
    clock_where_reached: float | None  # the same over `reached` tasks
    diverged: float  # share of runs
    raised: int  # tasks on which it raised
    profile: Profile
    score: float  # area under the profile


@dataclass(frozen=True)
class Outcome:
    """A whole suite."""

    suite: str
    races: tuple[Race, ...]
    reference: str

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """All contenders, in the order that they were given in."""
        seen: dict[str, None] = {}
        for race in self.races:
            everyone = [*race.result.entries, *race.result.failures]
            seen |= dict.fromkeys(each.label for each in everyone)
        return tuple(seen)

    @cached_property
    def summaries(self) -> tuple[Summary, ...]:
        """One for each contender, by the area under its profile, best first."""
        costs = [[_steps_to_target(race, label) for race in self.races] for label in self.labels]
        profiles = performance_profiles(costs)
        found = [self._summary(label, profile) for label, profile in zip(self.labels, profiles, strict=True)]
        return tuple(sorted(found, key=lambda summary: -summary.score))

    @property
    def flawless(self) -> bool:
        """Whether no contender raised, and no run that is shown diverged."""
        return not any(race.result.failures or any(row.diverged for row in race.rows) for race in self.races)

    def _summary(self, label: str, profile: Profile) -> Summary:
        pairs = [(race, row) for race in self.races if (row := race.row(label)) is not None]
        rows = [row for _, row in pairs]
        there = [(race, row) for race, row in pairs if _counts(row.factor)]
        runs = sum(len(row.seed_factors) for row in rows)
        told = [row for row in rows if row.significant]
        return Summary(
            label,
            len(rows),
            sum(row.speed is not None for row in rows),
            len(there),
            _geometric([row.factor for row in rows]),
            _geometric([row.factor for _, row in there]),
            _geometric([row.final_factor for row in rows]),
            sum(row.factor is not None and row.factor > 1 for row in told),
            sum(row.factor is None or row.factor < 1 for row in told),
            _geometric([race.clock(row) for race, row in pairs]),
            _geometric([race.clock(row) for race, row in there]),
            sum(row.diverged for row in rows) / runs if runs else math.nan,
            sum(race.raised(label) for race in self.races),
            profile,
            profile_area(profile, PROFILE_END),
        )


def _steps_to_target(race: Race, label: str) -> float:
    row = race.row(label)
    return math.inf if row is None or row.speed is None or row.speed.steps is None else row.speed.steps


def _counts(factor: float | None) -> TypeGuard[float]:
    """Whether it can be part of a geometric mean: not where the target was never reached, or at once."""
    return factor is not None and bool(np.isfinite(factor)) and factor > 0


def _geometric(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if _counts(value)]
    return statistics.geometric_mean(known) if known and len(known) == len(values) else None
