"""What meta-training minimises: one number for each particle and truncation, made of the losses in it.

An objective is a weighted mean over the truncations of an episode: `measure` says what is looked at in one of them, and
`weight` how much it counts. The weights of an episode add up to its number of truncations, so the mean over truncations
is the objective whatever the estimator cuts an episode into.

Legend of shapes: T steps of a truncation, P particles.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from lopt.errors import InvalidInput
from meta_train.arguments import check_whole
from tasks.arguments import is_number


class Objective(ABC):
    """A meta-objective; lower is better."""

    name: ClassVar[str]
    validates: ClassVar[bool] = False  # whether it looks at validation data

    @abstractmethod
    def measure(self, losses: Tensor, validation: Tensor | None) -> Tensor:
        """Training losses (T, P), and the validation loss (P,) after them if it `validates`, -> (P,)."""

    def weight(self, left: Tensor, length: Tensor) -> Tensor:
        """What a truncation counts that has `left` truncations of `length` to go, itself included; of their shape."""
        return torch.ones_like(left)


class OverTime(Objective):
    r"""A mean over the horizon in which the truncation k of n has the weight (k / n)^late, but for a constant.

    Args:
        late: 0 counts all alike: fast progress as much as a good end. The larger, the more the end counts.
    """

    def __init__(self, late: float = 0.0) -> None:
        if not (is_number(late) and 0 <= late < math.inf):
            raise InvalidInput(f"objective.late: {late}; give a power of time, 0 or above")
        self._late = late  # not a part of what is measured: the reference keeps its curves by the public ones

    def weight(self, left: Tensor, length: Tensor) -> Tensor:
        if self._late == 0:
            return torch.ones_like(left)
        place = torch.arange(1, int(length.max()) + 1, device=length.device).to(torch.float64)
        n = length[..., None]
        parts = torch.where(place <= n, (place / n) ** self._late, 0.0)
        return ((length - left + 1) / length) ** self._late * length / parts.sum(-1)


def ceiling(initial: Tensor, clip: float) -> Tensor:
    """The largest loss that counts: `clip` times the initial one, where that is positive.

    A loss below zero may rise by as much as a positive one of the same size. Where the initial loss is
    not finite, nothing is known, and the ceiling is 0.

    >>> ceiling(torch.tensor([2.0, -10.0, 0.5, float("nan")]), 2.0)
    tensor([4., 0., 1., 0.])
    """
    return (initial + (clip - 1) * initial.abs()).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def clipped(losses: Tensor, highest: Tensor) -> Tensor:
    """Losses no higher than a `ceiling`; one that is not finite counts as that."""
    return torch.where(losses.isfinite(), torch.minimum(losses, highest), highest)


class MeanLoss(OverTime):
    """The mean training loss over the whole horizon."""

    name: ClassVar[str] = "mean"

    def measure(self, losses: Tensor, validation: Tensor | None) -> Tensor:
        return losses.mean(0)


class FinalLoss(Objective):
    """The mean training loss of the last steps before the horizon: only the end counts.

    Args:
        last: how many steps; the loss of a single batch is mostly noise. No more than a truncation has.
    """

    name: ClassVar[str] = "final"

    def __init__(self, last: int = 10) -> None:
        check_whole(**{"objective.last": last})
        self.last = last

    def measure(self, losses: Tensor, validation: Tensor | None) -> Tensor:
        return losses[-self.last :].mean(0)

    def weight(self, left: Tensor, length: Tensor) -> Tensor:
        return torch.where(left == 1, length, torch.zeros_like(length))


class ValidationLoss(OverTime):
    """The loss on a batch of validation data after every truncation: what generalises counts."""

    name: ClassVar[str] = "validation"
    validates: ClassVar[bool] = True

    def measure(self, losses: Tensor, validation: Tensor | None) -> Tensor:
        assert validation is not None
        return validation
