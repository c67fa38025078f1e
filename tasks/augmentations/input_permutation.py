"""Inputs in another order."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lopt.errors import InvalidInput
from tasks.arguments import check_positive
from tasks.augmentations.wrapper import ChangedBatch, Wrapper, inputs_and_targets
from tasks.task import Batch, Split, Task, TaskFamily

_SEED = 1611


class InputPermutation(Wrapper):
    """Tasks whose inputs are permuted, in one way a task: columns of a table (B, F), pixels of an image (B, C, H, W).

    All channels of an image are permuted alike. A task draws one of `count` permutations that are the same everywhere;
    so only its number travels in what the task draws.

    Args:
        family: of tasks whose batches are inputs, of real numbers, and targets.
        count: how many permutations there are.

    Raises:
        InvalidInput: an argument cannot be used; or, when a task is sampled, its batches have another form.
    """

    name: ClassVar[str] = "input_permutation"

    def __init__(self, family: TaskFamily, count: int = 64) -> None:
        super().__init__(family)
        check_positive("count", count)
        self.count = count

    def around(self, family: TaskFamily) -> TaskFamily:
        return InputPermutation(family, self.count)

    def wrap(self, task: Task, generator: torch.Generator) -> Task:
        inputs, _ = inputs_and_targets(task, "InputPermutation")
        if not inputs.is_floating_point():
            raise InvalidInput(f"family: the inputs of {task.name!r} are no real numbers, and cannot be permuted")
        first = min(inputs.dim() - 1, 2)  # columns, or pixels behind the channels
        table = _permutations(self.count, inputs.shape[first:].numel(), inputs.device)
        number = torch.randint(self.count, (), generator=generator, device=generator.device)
        return PermutedInputs(task, table, number.to(inputs.device), first)


class Permuted(NamedTuple):
    """What is drawn for a batch, with the number of the task's permutation."""

    inner: Batch
    number: Tensor  # ()


class PermutedInputs(ChangedBatch):
    """A task with permuted inputs; see `InputPermutation`. The axes from `first` on are permuted as one."""

    def __init__(self, inner: Task, table: Tensor, number: Tensor, first: int) -> None:
        super().__init__(inner)
        self.table, self.number, self.first = table, number, first

    @property
    def population(self) -> Hashable:
        return type(self), len(self.table), self.inner.population

    def draw(self, split: Split, generator: torch.Generator) -> Permuted:
        return Permuted(self.inner.draw(split, generator), self.number)

    def gather(self, split: Split, drawn: Permuted) -> tuple[Tensor, Tensor]:
        inputs, targets = self.inner.gather(split, drawn.inner)
        return self._permute(inputs, drawn.number), targets

    def evaluation_batch(self, split: Split) -> tuple[Tensor, Tensor]:
        inputs, targets = self.inner.evaluation_batch(split)
        return self._permute(inputs, self.number), targets

    def _permute(self, inputs: Tensor, number: Tensor) -> Tensor:
        flat = inputs.flatten(self.first)
        return flat[..., self.table[number]].reshape(inputs.shape)


@functools.cache
def _permutations(count: int, size: int, device: torch.device) -> Tensor:
    """The same permutations (count, size) in every process."""
    generator = torch.Generator().manual_seed(_SEED)
    return torch.stack([torch.randperm(size, generator=generator) for _ in range(count)]).to(device)
