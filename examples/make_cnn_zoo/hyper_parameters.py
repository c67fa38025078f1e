"""What differs between the networks of a zoo, besides the seed: the hyper-parameters of their training.

Legend of shapes: P networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lopt.errors import InvalidInput
from tasks.arguments import check_at_least, check_positive, check_range


@dataclass(frozen=True)
class Ranges:
    """What hyper-parameters are drawn from, for each network on its own.

    Args:
        scale: ends of a log-uniform range: the standard deviation of the initial weights, over √(1 / inputs).
        lr: the same, of Adam's learning rate.
        weight_decay: the same, of the decoupled weight decay.
        dropout: the highest rate, of the features that are pooled; half of the networks have none.
        fractions: of the train images that a network sees, all equally likely.
        steps: ends of a log-uniform range.

    Raises:
        InvalidInput: what is no range, rate or fraction.
    """

    scale: tuple[float, float]
    lr: tuple[float, float]
    weight_decay: tuple[float, float]
    dropout: float
    fractions: tuple[float, ...]
    steps: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("scale", "lr", "weight_decay", "steps"):
            if len(ends := getattr(self, name)) != 2:
                raise InvalidInput(f"{name}={list(ends)}: give the two ends of a range, as [0.1, 1.0]")
            check_range(name, *ends)
        for steps in self.steps:
            check_positive("steps", steps)
        check_at_least("dropout", self.dropout, 0.0)
        if self.dropout >= 1:
            raise InvalidInput(f"dropout={self.dropout}: give a rate below 1")
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise InvalidInput(f"fractions={list(self.fractions)}: give at least one, all above 0 and at most 1")


@dataclass(frozen=True)
class HyperParameters:
    """Those of P networks, a number [P] each. `tanh` says whether the activation is tanh, else it is ReLU; `uniform`
    whether initial weights are drawn from a uniform distribution, else from a normal one."""

    tanh: Tensor
    uniform: Tensor
    scale: Tensor
    lr: Tensor
    weight_decay: Tensor
    dropout: Tensor
    fraction: Tensor
    steps: Tensor

    def rows(self, rows: Tensor | slice) -> HyperParameters:
        return HyperParameters(**{name: x[rows] for name, x in self.columns().items()})

    def columns(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def draw(count: int, ranges: Ranges, generator: torch.Generator) -> HyperParameters:
    """The hyper-parameters of `count` networks.

    >>> ranges = Ranges((0.5, 2.0), (1e-3, 1e-2), (1e-3, 1.0), 0.5, (0.1, 1.0), (10, 20))
    >>> drawn = draw(100, ranges, torch.Generator().manual_seed(0))
    >>> drawn.steps.min() >= 10, drawn.steps.max() <= 20, drawn.fraction.unique().tolist()
    (tensor(True), tensor(True), [0.10000000149011612, 1.0])
    """

    def coins() -> Tensor:
        return torch.rand(count, generator=generator) < 0.5

    def log_uniform(low: float, high: float) -> Tensor:
        return low * (torch.rand(count, generator=generator) * math.log(high / low)).exp()

    low, high = ranges.steps
    return HyperParameters(
        tanh=coins(),
        uniform=coins(),
        scale=log_uniform(*ranges.scale),
        lr=log_uniform(*ranges.lr),
        weight_decay=log_uniform(*ranges.weight_decay),
        dropout=coins() * torch.rand(count, generator=generator) * ranges.dropout,
        fraction=torch.tensor(ranges.fractions)[torch.randint(len(ranges.fractions), (count,), generator=generator)],
        steps=log_uniform(low, high).round().long().clamp(low, high),
    )
