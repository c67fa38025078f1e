"""A user's own module on their own table of inputs and targets, as a task family of one task."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lopt.errors import InvalidInput
from lopt.tracing import trace
from lopt.weight_space import WeightSpace
from tasks.arguments import check_positive
from tasks.supervised import Supervised
from tasks.tables import split_rows
from tasks.task import Split, Task, TaskFamily


class OwnData(TaskFamily):
    """Fits `module` to a table that is split once, by a fixed shuffle, into 60 % train, 20 % validation, 20 % test.

    Args:
        module: inputs (B, ...) -> outputs (B, ...); its layers must have `reset_parameters`.
        inputs, targets: (N, ...) each, on the device.
        loss_function: (outputs, targets) -> ().
        batch_size: rows of a training batch, drawn with replacement.
        weight_space: of the module; by default what `lopt.trace` finds and verifies.

    Raises:
        InvalidInput: fewer than 5 rows, or inputs and targets of different length.

    >>> family = OwnData(nn.Linear(3, 1), torch.randn(50, 3), torch.randn(50, 1), F.mse_loss, batch_size=8)
    >>> task = family.sample(torch.Generator())
    >>> task.batch("train", torch.Generator())[0].shape
    torch.Size([8, 3])
    """

    name: ClassVar[str] = "own_data"

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        loss_function: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        batch_size: int = 64,
        weight_space: WeightSpace | None = None,
    ) -> None:
        count = len(inputs)
        if count < 5 or len(targets) != count:
            raise InvalidInput(
                f"inputs, targets: {count} and {len(targets)} rows; give equally many, at least 5 for three splits"
            )
        check_positive("batch_size", batch_size)
        params = dict(module.named_parameters())
        space = weight_space or trace(module, inputs[:2], training=module.training)
        space.check(params)
        parts: dict[Split, Tensor] = {split: part.to(inputs.device) for split, part in split_rows(count).items()}
        x: dict[Split, Tensor] = {split: inputs[part] for split, part in parts.items()}
        y: dict[Split, Tensor] = {split: targets[part] for split, part in parts.items()}
        rows: dict[Split, range] = {split: range(len(part)) for split, part in parts.items()}
        self.task = Supervised(self.name, module, space, x, y, rows, batch_size, loss_function=loss_function)

    def sample(self, generator: torch.Generator) -> Task:
        return self.task
