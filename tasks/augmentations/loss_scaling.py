"""Random scales of the loss: an optimizer must not learn how large the losses of its tasks happen to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from tasks.arguments import check_range
from tasks.augmentations.wrapper import Valued, ValuedTask, Wrapper, log_uniform
from tasks.task import Task, TaskFamily


class LossScaling(Wrapper):
    """Tasks whose loss is multiplied by a factor, drawn once a task: its logarithm is uniform from low to high.

    Args:
        family: whose tasks are changed.
        low, high: the range of the factor.

    Raises:
        InvalidInput: an argument cannot be used.
    """

    name: ClassVar[str] = "loss_scaling"

    def __init__(self, family: TaskFamily, low: float = 0.1, high: float = 10.0) -> None:
        super().__init__(family)
        check_range("low, high", low, high)
        self.low, self.high = low, high

    def around(self, family: TaskFamily) -> TaskFamily:
        return LossScaling(family, self.low, self.high)

    def wrap(self, task: Task, generator: torch.Generator) -> Task:
        example = next(iter(task.init(torch.Generator(generator.device).manual_seed(0)).values()))
        return ScaledLoss(task, example.new_tensor(log_uniform(self.low, self.high, generator)))


class ScaledLoss(ValuedTask):
    """The loss times a factor; see `LossScaling`. The value is the factor, ()."""

    def __init__(self, inner: Task, values: Tensor) -> None:
        super().__init__(inner, values)
        self.optimum = inner.optimum

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self.inner.init(generator)

    def loss(self, params: Mapping[str, Tensor], batch: Valued) -> Tensor:
        return batch.values * self.inner.loss(params, batch.inner)
