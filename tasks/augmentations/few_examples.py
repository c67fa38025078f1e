"""Small data sets."""

from __future__ import annotations

from typing import ClassVar

import torch

from lopt.errors import InvalidInput
from tasks.arguments import check_range
from tasks.augmentations.wrapper import Wrapper, log_uniform
from tasks.supervised import Supervised
from tasks.task import Task, TaskFamily


class FewExamples(Wrapper):
    """Tasks that train on a part of their examples, and are validated and tested as before.

    How many is drawn once a task, its logarithm uniform from low to high, and at most all; then which: as many as
    follow one another in the table, from a place that is drawn, too.

    Args:
        family: of tasks on a table of inputs and targets.
        low, high: the range of how many examples.

    Raises:
        InvalidInput: an argument cannot be used; or, when a task is sampled, it is not on a table.

    >>> from tasks import Tabular
    >>> FewExamples(Tabular("digits"), 100, 100).sample(torch.Generator()).sizes
    Sizes(dataset=100, batch=32)
    """

    name: ClassVar[str] = "few_examples"

    def __init__(self, family: TaskFamily, low: float = 100, high: float = 3000) -> None:
        super().__init__(family)
        check_range("low, high", low, high)
        if low < 1:
            raise InvalidInput(f"low={low}: give at least 1 example")
        self.low, self.high = low, high

    def around(self, family: TaskFamily) -> TaskFamily:
        return FewExamples(family, self.low, self.high)

    def wrap(self, task: Task, generator: torch.Generator) -> Task:
        if not isinstance(task, Supervised):
            raise InvalidInput(
                f"family: FewExamples wants tasks on a table of inputs and targets; {task.name!r} is a "
                f"{type(task).__name__}. Give such a family, as ImageMLP or Tabular, and put other augmentations "
                "around FewExamples"
            )
        count = min(round(log_uniform(self.low, self.high, generator)), task.sizes.dataset)
        spare = max(0, len(task.rows["train"]) - count * task.overlap)
        first = torch.randint(spare + 1, (), generator=generator, device=generator.device)
        return task.part(count, int(first))
