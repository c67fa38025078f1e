"""How many times sooner a curve gets where a reference gets: the headline figures of a race.

Two targets are in use. To the reference's *best* test loss (GradMetaNet, arXiv 2507.01649): the steps that the
reference takes to it over the steps that ours takes; nothing where ours never reaches it. To the reference's *final*
loss (after VeLO, arXiv 2211.09760, Figure 1, which asks how long tuned Adam takes to the loss that ours ends with):
curves are smoothed, made monotone and interpolated; where ours ends above the reference, the target is our final loss.

Legend of shapes: S seeds, E evaluation points.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmark.measures import Array, Interval, best_loss, bootstrap, mean_curve, settled, steps_to_reach

SMOOTHING = 5  # evaluation points in the window of a mean


class Speed(NamedTuple):
    """How soon a curve reaches a reference's best loss."""

    target: float  # the reference's best loss
    reference_steps: float  # steps of the reference to its best
    steps: float | None  # steps to reach it; None: never
    factor: float | None  # reference_steps / steps; above 1 is faster; inf: reached before the first step


def speed(curve: ArrayLike, reference: ArrayLike, steps: ArrayLike) -> Speed | None:
    """How many times sooner `curve` reaches the best loss of `reference`; None when the reference is never finite.

    >>> speed([3.0, 1.0, 1.0], [3.0, 2.0, 1.0], [0, 10, 20]).factor
    2.0
    """
    target = float(best_loss(reference))
    reference_steps = steps_to_reach(reference, steps, target)
    if reference_steps is None:
        return None
    ours = steps_to_reach(curve, steps, target)
    if ours is None:
        return Speed(target, reference_steps, None, None)
    return Speed(target, reference_steps, ours, _ratio(reference_steps, ours))


def _ratio(theirs: float, ours: float) -> float:
    if ours == 0:
        return 1.0 if theirs == 0 else math.inf
    return theirs / ours


def smoothed(curve: ArrayLike, window: int = SMOOTHING) -> Array:
    """The mean over a centred window, narrower at both ends, made monotone by the running minimum: (E,) -> (E,).

    >>> smoothed([4.0, 1.0, 1.0, 4.0, 1.0], 3).tolist()
    [4.0, 2.0, 2.0, 2.0, 1.0]
    """
    losses, half = settled(curve), window // 2
    reach = [min(half, i, len(losses) - 1 - i) for i in range(len(losses))]
    means = np.array([losses[i - r : i + r + 1].mean() for i, r in enumerate(reach)])
    return np.minimum.accumulate(means)


def final_factor(curve: ArrayLike, reference: ArrayLike, steps: ArrayLike, window: int = SMOOTHING) -> float | None:
    """How many times sooner `curve` reaches the final loss of `reference`, both smoothed and made monotone.

    Where ours ends above the reference, the steps that the reference takes to our final loss over the length of the run
    (VeLO's figure); else the steps that the reference takes to its final loss over those that ours takes to it. None
    where either has no finite loss.

    >>> steps = [0, 10, 20, 30, 40]
    >>> fast, slow, poor = [5, 3, 1, 1, 1], [5, 4, 3, 2, 1], [5, 4, 3, 3, 3]
    >>> [final_factor(curve, slow, steps, window=1) for curve in (fast, slow, poor)]
    [2.0, 1.0, 0.5]
    """
    ours, theirs = smoothed(curve, window), smoothed(reference, window)
    reference_steps = steps_to_reach(theirs, steps, float(theirs[-1]))
    if reference_steps is None or not math.isfinite(ours[-1]):
        return None
    reached = steps_to_reach(ours, steps, float(theirs[-1]))
    if reached is not None:
        return _ratio(reference_steps, reached)
    behind = steps_to_reach(theirs, steps, float(ours[-1]))
    return None if behind is None else behind / float(np.asarray(steps)[-1])


def factor_interval(curves: Array, reference: Array, steps: ArrayLike) -> Interval | None:
    """The paired bootstrap over seeds of `speed` on mean curves; never counts as 0. None without a finite reference.

    Args:
        curves, reference: (S, E), row by row of the same seed.
    """
    if speed(curves[0], mean_curve(reference), steps) is None:
        return None

    def measure(some: NDArray[np.intp]) -> float:
        each = speed(mean_curve(curves[some]), mean_curve(reference[some]), steps)
        return 0.0 if each is None or each.factor is None else each.factor

    return bootstrap(len(curves), measure)
