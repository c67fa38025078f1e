"""Fitting a module to a table of inputs and targets: the task that every family on such data shares.

Legend of shapes: N rows of the table, of all data sets of a family; B rows of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from lopt.weight_space import WeightSpace
from tasks.task import Sizes, Split, Task, init_module


class Supervised(Task):
    """The loss of a module's outputs against targets, on its share of the rows of a table.

    Tasks that hold the same module and the same tables run as one population, each on rows of its own: what a task
    draws are positions in the whole table.

    Args:
        name: for reports.
        module: inputs (B, ...) -> outputs (B, ...). It lends its structure; its weights are never used.
        weight_space: of the module's parameters.
        inputs, targets: for every split a table (N, ...), on the device.
        rows: for every split this task's rows of the table, as range(start, stop).
        batch_size: B.
        evaluation: for every split the rows that measure its loss; by default all of this task's.
        loss_function: (outputs, targets) -> (), such as those of torch.nn.functional.
        l2: adds l2 / 2 times the sum of the squared parameters to the loss.
        optimum: the parameters of the least loss on the evaluation rows of "train", where they are known.
        overlap: how many rows begin before one of them ends, such as the stretches of a text: they are one example.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        weight_space: WeightSpace,
        inputs: Mapping[Split, Tensor],
        targets: Mapping[Split, Tensor],
        rows: Mapping[Split, range],
        batch_size: int,
        evaluation: Mapping[Split, range] | None = None,
        loss_function: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        l2: float = 0.0,
        optimum: Mapping[str, Tensor] | None = None,
        overlap: int = 1,
    ) -> None:
        self.name, self.module, self.weight_space = name, module, weight_space
        self.inputs, self.targets, self.rows = inputs, targets, rows
        self.batch_size, self.loss_function, self.l2 = batch_size, loss_function, l2
        self.evaluation = rows if evaluation is None else evaluation
        self.optimum, self.overlap = optimum, overlap

    @property
    def sizes(self) -> Sizes:
        return Sizes(max(1, len(self.rows["train"]) // self.overlap), self.batch_size)

    def part(self, count: int, first: int) -> Supervised:
        """The same task, trained on the rows from the `first`-th on that hold so many examples."""
        part, train = copy.copy(self), self.rows["train"][first : first + count * self.overlap]
        own: dict[Split, range] = {"train": train}
        measured: dict[Split, range] = {"train": train[:: self.overlap][: len(self.evaluation["train"])]}
        part.rows, part.evaluation = {**self.rows, **own}, {**self.evaluation, **measured}
        part.optimum = None  # that of other rows
        return part

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        device = self.inputs["train"].device
        return {name: p.to(device) for name, p in init_module(self.module, generator).items()}

    def loss(self, params: Mapping[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        loss = self.loss_function(functional_call(self.module, dict(params), (inputs,)), targets)
        if self.l2:
            loss = loss + self.l2 / 2 * torch.stack([p.square().sum() for p in params.values()]).sum()
        return loss

    def draw(self, split: Split, generator: torch.Generator) -> Tensor:
        """Positions (B,) in the table, with replacement."""
        rows = self.rows[split]
        drawn = torch.randint(rows.start, rows.stop, (self.batch_size,), generator=generator, device=generator.device)
        return drawn.to(self.targets[split].device)

    def gather(self, split: Split, drawn: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[split][drawn], self.targets[split][drawn]

    def evaluation_batch(self, split: Split) -> tuple[Tensor, Tensor]:
        rows = self.evaluation[split]
        chosen = slice(rows.start, rows.stop, rows.step)
        return self.inputs[split][chosen], self.targets[split][chosen]
