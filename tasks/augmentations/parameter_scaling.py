"""Random scales of parameters: an optimizer must not learn how large the weights of its tasks happen to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from tasks.arguments import check_range, pick
from tasks.augmentations.wrapper import Valued, ValuedTask, Wrapper, log_uniform
from tasks.task import Task, TaskFamily

LEVELS = {"tensor": True, "global": False}  # whether every tensor has a scale of its own


class ParameterScaling(Wrapper):
    r"""Tasks in other units: the parameters are w', and the loss sees w = s w' (Celo, arXiv 2501.12670).

    $$ L'(w') = L(s \odot w'), \quad w'_0 = w_0 / s $$

    with the logarithm of s uniform from low to high. So a gradient is s times as large, and a step of a size does s
    times as much. The scales are drawn once a task, and the initial loss stays what it was. (The paper also draws a
    scale for every single weight, which would travel in every batch: not here.)

    Args:
        family: whose tasks are changed.
        low, high: the range of s. The paper draws from 0.001 to 1000, 0.01 to 100, or 0.1 to 10.
        level: "tensor" for a scale a tensor, "global" for one in all.

    Raises:
        InvalidInput: an argument cannot be used.
    """

    name: ClassVar[str] = "parameter_scaling"

    def __init__(self, family: TaskFamily, low: float = 0.1, high: float = 10.0, level: str = "tensor") -> None:
        super().__init__(family)
        check_range("low, high", low, high)
        pick("level", level, LEVELS)
        self.low, self.high, self.level = low, high, level

    def around(self, family: TaskFamily) -> TaskFamily:
        return ParameterScaling(family, self.low, self.high, self.level)

    def wrap(self, task: Task, generator: torch.Generator) -> Task:
        example = task.init(torch.Generator(generator.device).manual_seed(0))
        common = log_uniform(self.low, self.high, generator)
        scales = {
            name: p.new_tensor(log_uniform(self.low, self.high, generator) if LEVELS[self.level] else common)
            for name, p in example.items()
        }
        return ScaledParameters(task, scales)


class ScaledParameters(ValuedTask):
    """L(s w'); see `ParameterScaling`. The values are the scales by parameter name, () each."""

    def __init__(self, inner: Task, values: dict[str, Tensor]) -> None:
        super().__init__(inner, values)
        if inner.optimum is not None:
            self.optimum = {name: w / values[name] for name, w in inner.optimum.items()}

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: w / self.values[name] for name, w in self.inner.init(generator).items()}

    def loss(self, params: Mapping[str, Tensor], batch: Valued) -> Tensor:
        return self.inner.loss({name: batch.values[name] * w for name, w in params.items()}, batch.inner)
