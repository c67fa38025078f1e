"""Wrong labels."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lopt.errors import InvalidInput
from tasks.arguments import check_range
from tasks.augmentations.wrapper import ChangedBatch, Wrapper, inputs_and_targets, log_uniform
from tasks.task import Batch, Split, Task, TaskFamily


class LabelNoise(Wrapper):
    """Tasks where a share of the training targets is replaced by targets of other rows, anew in every batch.

    So a wrong label comes as often as the label itself, and the number of classes need not be known. Where a row has
    several targets (characters, pixels), each is replaced on its own. The share is drawn once a task, its logarithm
    uniform from low to high. Validation and test stay clean.

    Args:
        family: of tasks whose batches are inputs and targets.
        low, high: the range of the share, at most 1.

    Raises:
        InvalidInput: an argument cannot be used; or, when a task is sampled, its batches have another form.
    """

    name: ClassVar[str] = "label_noise"

    def __init__(self, family: TaskFamily, low: float = 0.05, high: float = 0.5) -> None:
        super().__init__(family)
        check_range("low, high", low, high)
        if high > 1:
            raise InvalidInput(f"high={high}: a share of the labels is at most 1")
        self.low, self.high = low, high

    def around(self, family: TaskFamily) -> TaskFamily:
        return LabelNoise(family, self.low, self.high)

    def wrap(self, task: Task, generator: torch.Generator) -> Task:
        inputs_and_targets(task, "LabelNoise")
        return NoisyLabels(task, log_uniform(self.low, self.high, generator))


class Mislabelled(NamedTuple):
    """What is drawn for a batch: its rows, other rows, and which targets are taken from those."""

    inner: Batch
    other: Batch
    wrong: Tensor  # like the targets of a batch


class NoisyLabels(ChangedBatch):
    """A task with wrong labels; see `LabelNoise`."""

    def __init__(self, inner: Task, share: float) -> None:
        super().__init__(inner)
        self.share, self.optimum = share, inner.optimum
        targets = inner.batch("train", torch.Generator().manual_seed(0))[1]
        self._shape, self._device = targets.shape, targets.device

    def draw(self, split: Split, generator: torch.Generator) -> Mislabelled:
        rows, other = self.inner.draw(split, generator), self.inner.draw(split, generator)
        chance = torch.rand(self._shape, generator=generator, device=generator.device)
        share = self.share if split == "train" else 0.0
        return Mislabelled(rows, other, (chance < share).to(self._device))

    def gather(self, split: Split, drawn: Mislabelled) -> tuple[Tensor, Tensor]:
        inputs, targets = self.inner.gather(split, drawn.inner)
        _, others = self.inner.gather(split, drawn.other)
        return inputs, torch.where(drawn.wrong, others, targets)

    def evaluation_batch(self, split: Split) -> tuple[Tensor, Tensor]:
        return self.inner.evaluation_batch(split)
