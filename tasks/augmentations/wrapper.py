"""How a family is made of another: `Wrapper`, and two kinds of tasks that pass on what they leave as it is.

What differs from task to task (its values: scales, levels) travels in what the task draws, so that tasks with different
values run as one population. A `ValuedTask` changes the loss, and adds its values to every batch; a `ChangedBatch`
changes the batch, and leaves its form as it is.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.errors import InvalidInput
from tasks.task import Batch, Sizes, Split, Task, TaskFamily


class Wrapper(TaskFamily):
    """A family whose tasks are those of another, changed.

    Args:
        family: the other one.
    """

    def __init__(self, family: TaskFamily) -> None:
        if not isinstance(family, TaskFamily):
            raise InvalidInput(f"family={family!r}: give a task family")
        self.family = family

    @abstractmethod
    def wrap(self, task: Task, generator: torch.Generator) -> Task:
        """A task, changed; what is random about the change is drawn from the generator."""

    @abstractmethod
    def around(self, family: TaskFamily) -> TaskFamily:
        """The same change of another family."""

    def member(self, generator: torch.Generator) -> TaskFamily:
        member = self.family.member(generator)
        return self if member is self.family else self.around(member)

    def sample(self, generator: torch.Generator) -> Task:
        return self.wrap(self.family.sample(generator), generator)


class Valued(NamedTuple):
    """A batch, or what is drawn for it, with the values of its task."""

    inner: Batch
    values: Batch


class ValuedTask(Task):
    """A task whose loss and initial weights depend on the values that come with every batch."""

    def __init__(self, inner: Task, values: Batch) -> None:
        self.inner, self.values = inner, values
        self.name, self.module, self.weight_space = inner.name, inner.module, inner.weight_space

    @property
    def population(self) -> Hashable:
        return type(self), self.inner.population

    @property
    def sizes(self) -> Sizes | None:
        return self.inner.sizes

    @abstractmethod
    def init(self, generator: torch.Generator) -> dict[str, Tensor]: ...

    @abstractmethod
    def loss(self, params: Mapping[str, Tensor], batch: Valued) -> Tensor: ...

    def draw(self, split: Split, generator: torch.Generator) -> Valued:
        return Valued(self.inner.draw(split, generator), self.values)

    def gather(self, split: Split, drawn: Valued) -> Valued:
        return Valued(self.inner.gather(split, drawn.inner), drawn.values)

    def evaluation_batch(self, split: Split) -> Valued:
        return Valued(self.inner.evaluation_batch(split), self.values)


class ChangedBatch(Task):
    """A task with other batches of the same form."""

    def __init__(self, inner: Task) -> None:
        self.inner = inner
        self.name, self.module, self.weight_space = inner.name, inner.module, inner.weight_space

    @property
    def population(self) -> Hashable:
        return type(self), self.inner.population

    @property
    def sizes(self) -> Sizes | None:
        return self.inner.sizes

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self.inner.init(generator)

    def loss(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return self.inner.loss(params, batch)

    @abstractmethod
    def draw(self, split: Split, generator: torch.Generator) -> Batch: ...

    @abstractmethod
    def gather(self, split: Split, drawn: Batch) -> Batch: ...

    @abstractmethod
    def evaluation_batch(self, split: Split) -> Batch: ...


def log_uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A number between `low` and `high` whose logarithm is uniform."""
    share = float(torch.rand((), generator=generator, device=generator.device, dtype=torch.float64))
    return low * math.exp(share * math.log(high / low))


def inputs_and_targets(task: Task, wrapper: str) -> tuple[Tensor, Tensor]:
    """The evaluation batch of the validation split, if it is a pair of tensors; else an `InvalidInput`."""
    batch = task.evaluation_batch("validation")
    if type(batch) is not tuple or len(batch) != 2:
        raise InvalidInput(
            f"family: {wrapper} wants tasks whose batches are inputs and targets; those of {task.name!r} are not. Put "
            "it around the family itself, and other augmentations around it"
        )
    return batch
