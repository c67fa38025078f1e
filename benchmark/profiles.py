"""Performance profiles over a suite: who is near the best, and how often.

Dolan and Moré, 2002; AlgoPerf, arXiv 2306.07179.

Legend of shapes: C contenders, T tasks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from benchmark.measures import Array


class Profile(NamedTuple):
    """For one contender the share of tasks on which it costs at most so many times the best."""

    ratios: tuple[float, ...]  # rising, from 1
    shares: tuple[float, ...]  # from each ratio on


def performance_profiles(costs: ArrayLike) -> list[Profile]:
    """The profile of each contender: rho(tau) = share of tasks with cost <= tau * the least cost of any contender.

    Args:
        costs: (C, T), the steps or time to a task's target; inf where it was never reached.

    Returns:
        The corners of each step function. A task that nobody solves counts against everybody.

    >>> performance_profiles([[10, 30], [20, 10]])
    [Profile(ratios=(1.0, 3.0), shares=(0.5, 1.0)), Profile(ratios=(1.0, 2.0), shares=(0.5, 1.0))]
    """
    values: Array = np.asarray(costs, dtype=np.float64)
    best = values.min(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.where(np.isfinite(values), values / best, np.inf)
    ratios = np.where(values == best, np.where(np.isfinite(best), 1.0, np.inf), ratios)  # 0 / 0 is a tie
    profiles = []
    for row in ratios:
        corners = sorted({1.0, *row[np.isfinite(row)].tolist()})
        profiles.append(Profile(tuple(corners), tuple(float((row <= corner).mean()) for corner in corners)))
    return profiles


def profile_area(profile: Profile, end: float) -> float:
    """The area under a profile on a logarithmic axis from 1 to `end`, as a share of all: AlgoPerf's score.

    >>> profile_area(Profile((1.0, 2.0), (0.5, 1.0)), end=4.0)
    0.75
    """
    area, last = 0.0, np.log(end)
    corners = [min(float(np.log(ratio)), last) for ratio in profile.ratios] + [last]
    for begin, stop, share in zip(corners, corners[1:], profile.shares, strict=False):
        area += share * (stop - begin)
    return float(area / last)
