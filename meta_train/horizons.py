"""How long an episode lasts: the number of its inner steps, drawn when it begins."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch

from lopt.errors import InvalidInput
from meta_train.arguments import check_whole
from tasks.arguments import is_number


class Horizon(ABC):
    """A distribution over horizons, which may change from one meta-step to the next."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """No horizon is longer than this, in inner steps."""

    @abstractmethod
    def draw(self, generator: torch.Generator, iteration: int) -> float:
        """The horizon of an episode that begins at meta-step `iteration`, in inner steps."""


class Fixed(Horizon):
    """The same horizon always.

    Args:
        steps: inner steps, above 0.
    """

    def __init__(self, steps: int) -> None:
        _check_range(steps, steps)
        self.steps = steps

    @property
    def longest(self) -> int:
        return self.steps

    def draw(self, generator: torch.Generator, iteration: int) -> float:
        return self.steps


class LogUniform(Horizon):
    """A horizon whose logarithm is uniform, so that short and long runs are learned alike.

    Args:
        low, high: the range, in inner steps.

    >>> horizon = LogUniform(100, 1000)
    >>> [round(horizon.draw(torch.Generator().manual_seed(seed), 0)) for seed in range(3)]
    [933, 115, 827]
    """

    def __init__(self, low: int, high: int) -> None:
        _check_range(low, high)
        self.low, self.high = low, high

    @property
    def longest(self) -> int:
        return self.high

    def draw(self, generator: torch.Generator, iteration: int) -> float:
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
        return self.low * math.exp(share * math.log(self.high / self.low))


class Growing(Horizon):
    """A horizon that grows from `low` to `high`, by the same factor at every meta-step, and then stays.

    Short horizons first are a curriculum: their meta-gradients are less noisy, and there are more of them.

    Args:
        low, high: the first and the last horizon, in inner steps.
        over: meta-steps until it is `high`.

    >>> [round(Growing(100, 400, over=100).draw(torch.Generator(), iteration)) for iteration in (0, 50, 100, 900)]
    [100, 200, 400, 400]
    """

    def __init__(self, low: int, high: int, over: int) -> None:
        _check_range(low, high)
        check_whole(**{"horizon.over": over})
        self.low, self.high, self.over = low, high, over

    @property
    def longest(self) -> int:
        return self.high

    def draw(self, generator: torch.Generator, iteration: int) -> float:
        return self.low * (self.high / self.low) ** min(1.0, iteration / self.over)


def as_horizon(horizon: int | Horizon, truncation: int) -> Horizon:
    """A number as a fixed horizon.

    Raises:
        InvalidInput: it is not a multiple of the truncation, or a horizon may be shorter than one truncation.
    """
    if isinstance(horizon, Horizon):
        if horizon.longest < truncation:
            raise InvalidInput(
                f"estimator.horizon: at most {horizon.longest} inner steps with a truncation of {truncation}; the "
                "horizon must be no shorter than the truncation"
            )
        return horizon
    check_whole(**{"estimator.horizon": horizon})
    if horizon < truncation or horizon % truncation:
        near = max(1, round(horizon / truncation)) * truncation
        raise InvalidInput(
            f"estimator.horizon: {horizon} inner steps with a truncation of {truncation}; the horizon must be a "
            f"multiple of the truncation and no shorter. Try horizon={near}"
        )
    return Fixed(horizon)


def truncations(horizon: float, truncation: int) -> int:
    """A horizon as the nearest whole number of truncations, at least one."""
    return max(1, round(horizon / truncation))


def _check_range(low: float, high: float) -> None:
    if not (is_number(low) and is_number(high) and 0 < low <= high < math.inf):
        raise InvalidInput(f"horizon: {low} to {high} inner steps; the first must be above 0, and the last no smaller")
