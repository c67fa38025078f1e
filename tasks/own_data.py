"""A user's own module on their own table of inputs and targets, as a task family of one task."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from lopt.errors import InvalidInput
from lopt.tracing import trace
from lopt.weight_space import WeightSpace
from tasks.arguments import check_positive
from tasks.supervised import Supervised
from tasks.tables import split_rows
from tasks.task import Split, Task, TaskFamily

# Copies are trained side by side by `torch.func.vmap`: what a copy does must follow from its weights and batch alone.
_REMEDY = (
    "Layers in training mode that draw random numbers or keep statistics, such as Dropout and BatchNorm, cannot take "
    "part: call module.eval() first, or use GroupNorm or LayerNorm instead. What a forward pass computes must follow "
    "from the weights and the batch alone."
)


class OwnData(TaskFamily):
    """Fits `module` to a table that is split once, by a fixed shuffle, into 60 % train, 20 % validation, 20 % test.

    Args:
        module: inputs (B, ...) -> outputs (B, ...); its layers must have `reset_parameters`. A copy of it is used: it
            keeps its weights.
        inputs, targets: (N, ...) each, on the device.
        loss_function: (outputs, targets) -> ().
        batch_size: rows of a training batch, drawn with replacement.
        weight_space: of the module; by default what `lopt.trace` finds and verifies.

    Raises:
        InvalidInput: fewer than 5 rows, or inputs and targets of different length; a loss that is not one number, or a
            module that draws random numbers or writes to its buffers: then its copies cannot be trained side by side.

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
        module = copy.deepcopy(module)  # every draw of initial weights resets it
        params = dict(module.named_parameters())
        space = weight_space or trace(module, inputs[:2], training=module.training)
        space.check(params)
        parts: dict[Split, Tensor] = {split: part.to(inputs.device) for split, part in split_rows(count).items()}
        x: dict[Split, Tensor] = {split: inputs[part] for split, part in parts.items()}
        y: dict[Split, Tensor] = {split: targets[part] for split, part in parts.items()}
        rows: dict[Split, range] = {split: range(len(part)) for split, part in parts.items()}
        self.task = Supervised(self.name, module, space, x, y, rows, batch_size, loss_function=loss_function)
        _check_pure(self.task)

    def sample(self, generator: torch.Generator) -> Task:
        return self.task


def _check_pure(task: Supervised) -> None:
    """Takes the loss of one training batch and its gradient for two copies side by side, as races and unrolls do."""
    batch = task.batch("train", torch.Generator().manual_seed(0))
    params = {name: p.detach().to(batch[0].device) for name, p in task.module.named_parameters()}
    before = {name: buffer.clone() for name, buffer in task.module.named_buffers()}
    with torch.no_grad():
        try:
            loss = task.loss(params, batch)
        except Exception as error:  # whatever a loss of somebody else does
            raise InvalidInput(
                f"loss_function: it cannot take the outputs of the module and the targets, {_shape(batch[1])} "
                f"({_cause(error)}). It is called as loss_function(outputs, targets)."
            ) from error
    if not isinstance(loss, Tensor) or loss.shape:
        raise InvalidInput(
            f"loss_function: it returns {_shape(loss)}; give one that returns the mean over a batch, a tensor (): "
            "reduction='mean' in those of PyTorch, or lambda outputs, targets: loss(outputs, targets).mean()."
        )
    if changed := [name for name, buffer in task.module.named_buffers() if not torch.equal(buffer, before[name])]:
        raise InvalidInput(f"module: a forward pass changes its buffers {', '.join(changed)}. {_REMEDY}")
    pairs = {name: p.expand(2, *p.shape) for name, p in params.items()}
    try:
        vmap(grad(task.loss), in_dims=(0, None))(pairs, batch)
    except Exception as error:  # PyTorch raises many kinds here, in words about its transforms
        raise InvalidInput(
            f"module: copies of it cannot be trained side by side ({_cause(error)}). {_REMEDY}"
        ) from error


def _shape(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _cause(error: Exception) -> str:
    """The kind of an error and its first sentence: PyTorch adds pages."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0].partition('. ')[0]}"
