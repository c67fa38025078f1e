"""What is measured of a race: pure functions on arrays.

Legend of shapes: S seeds, E evaluation points. A loss that is not finite counts as infinite everywhere, so that a run
which broke is never better than one which did not, and is never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]

DIVERGED_ABOVE = 2.0  # a run that ends above this many times its first loss has diverged; below zero, see `diverged`
SIGNIFICANT = 2.0  # standard errors
DRAWS = 1000  # of a bootstrap
CENTRAL = (0.025, 0.975)


class Spread(NamedTuple):
    """A mean over seeds and its standard error; (inf, nan) where a seed's loss is not finite."""

    mean: float
    error: float


class Difference(NamedTuple):
    """The mean of paired differences over seeds, its standard error, and its bootstrap interval."""

    mean: float
    error: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the mean is more than two standard errors from zero, and zero outside the bootstrap interval."""
        return abs(self.mean) > SIGNIFICANT * self.error and not self.low <= 0 <= self.high


def settled(curves: ArrayLike) -> Array:
    """The losses with every value that is not finite made infinite."""
    values = np.asarray(curves, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.inf)


def diverged(curves: ArrayLike, factor: float = DIVERGED_ABOVE) -> NDArray[np.bool_]:
    """Which runs ended with a loss that is not finite, or above `factor` times their first: (..., E) -> (...).

    A loss may be negative, as a likelihood is: what counts is its rise, over (factor - 1) times the size of the first.

    >>> diverged([[1.0, 0.5], [1.0, 2.5], [1.0, float("nan")]]).tolist()
    [False, True, True]
    """
    losses = settled(curves)
    first, last = losses[..., 0], losses[..., -1]
    return ~np.isfinite(last) | (last > first + (factor - 1) * np.abs(first))


def final_loss(curves: ArrayLike) -> Array:
    """The last loss of each run: (..., E) -> (...)."""
    return settled(curves)[..., -1]


def best_loss(curves: ArrayLike) -> Array:
    """The lowest loss of each run: (..., E) -> (...)."""
    return settled(curves).min(axis=-1)


def area_under_curve(curves: ArrayLike, steps: ArrayLike) -> Array:
    """The mean loss over the run, by the trapezoidal rule: (..., E) -> (...).

    >>> float(area_under_curve([4.0, 2.0, 2.0], [0, 10, 30]))
    2.3333333333333335
    """
    losses, at = settled(curves), np.asarray(steps, dtype=np.float64)
    return ((losses[..., 1:] + losses[..., :-1]) / 2 * np.diff(at)).sum(-1) / (at[-1] - at[0])


def mean_curve(curves: ArrayLike) -> Array:
    """The mean over seeds, infinite where a seed's loss is not finite: (S, E) -> (E,)."""
    return settled(curves).mean(axis=0)


def spread(values: ArrayLike) -> Spread:
    """Mean and standard error, std(values) / sqrt(S) with S - 1 degrees of freedom: (S,) -> two numbers.

    >>> spread([1.0, 2.0, 3.0])
    Spread(mean=2.0, error=0.5773502691896258)
    """
    losses = settled(values)
    if not np.isfinite(losses).all():
        return Spread(math.inf, math.nan)
    return Spread(float(losses.mean()), float(losses.std(ddof=1) / math.sqrt(losses.size)))


def paired_difference(ours: ArrayLike, theirs: ArrayLike) -> Difference | None:
    """`ours - theirs` seed by seed, its mean and standard error; None where a loss is not finite.

    >>> paired_difference([1.0, 2.0], [2.0, 5.0])
    Difference(mean=-2.0, error=1.0, low=-3.0, high=-1.0)
    """
    ours, theirs = settled(ours), settled(theirs)
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return None
    differences = ours - theirs
    interval = bootstrap(len(differences), lambda some: float(differences[some].mean()))
    return Difference(*spread(differences), *interval)


class Interval(NamedTuple):
    """Where the middle 95 % of a bootstrap lie."""

    low: float
    high: float


def bootstrap(seeds: int, measure: Callable[[NDArray[np.intp]], float], draws: int = DRAWS) -> Interval:
    """The percentile bootstrap over seeds: `measure` of as many seeds, drawn with replacement, again and again.

    Pass it indices for both sides of a comparison, and the comparison is paired. The draws are the same every time.

    >>> values = np.array([1.0, 1.0, 1.0])
    >>> bootstrap(3, lambda some: values[some].mean())
    Interval(low=1.0, high=1.0)
    """
    drawn = np.random.default_rng(0).integers(seeds, size=(draws, seeds))
    # Order statistics, not interpolated ones: a measure may be infinite.
    low, high = np.quantile([measure(some) for some in drawn], CENTRAL, method="inverted_cdf")
    return Interval(float(low), float(high))


def steps_to_reach(curve: ArrayLike, steps: ArrayLike, target: float) -> float | None:
    """Steps until the loss is first at or below `target`, with straight lines between evaluation points.

    Args:
        curve, steps: (E,) losses, and the steps at which they were measured.

    Returns:
        None when the target is never reached. Coming from a loss that is not finite, the evaluation point itself.

    >>> steps_to_reach([3.0, 2.0, 1.0], [0, 10, 20], 1.5)
    15.0
    """
    losses, at = settled(curve), np.asarray(steps, dtype=np.float64)
    reached = np.flatnonzero(losses <= target)
    if not reached.size or not math.isfinite(target):
        return None
    index = int(reached[0])
    if index == 0 or not math.isfinite(losses[index - 1]):
        return float(at[index])
    before, after = losses[index - 1], losses[index]
    # before > target >= after, so the fraction lies in (0, 1] and is exactly 1 on the evaluation point itself.
    return float(at[index - 1] + (at[index] - at[index - 1]) * ((before - target) / (before - after)))
