"""One run by itself, as a person would write it: for optimizers that are not elementwise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmark.contenders import Contender
from benchmark.grids import Setting
from tasks.task import Batch, Task


class Alone:
    """A population of one particle under an optimizer of `torch.optim`.

    An optimizer with `train()` and `eval()`, as the schedule-free ones have, is in its evaluation mode whenever its
    weights are looked at.
    """

    def __init__(self, contender: Contender, task: Task, initial: dict[str, Tensor], setting: Setting) -> None:
        self.task = task
        self.params = {name: torch.nn.Parameter(value.clone()) for name, value in initial.items()}
        self.optimizer = contender.make(list(self.params.items()), setting, task.weight_space)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def train(self, drawn: Batch, factors: Sequence[float]) -> Tensor:
        """Makes T steps on batches (T, 1, ...); returns the loss before each, (T, 1)."""
        self._mode("train")
        losses = []
        with torch.enable_grad():
            for t, factor in enumerate(factors):
                batch = pytree.tree_map(lambda leaf, t=t: leaf[t, 0], drawn)
                loss = self.task.loss(self.params, self.task.gather("train", batch))
                self.optimizer.zero_grad()
                loss.backward()
                for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                    group["lr"] = rate * factor
                self.optimizer.step()
                losses.append(loss.detach())
        self._mode("eval")
        return torch.stack(losses)[:, None]

    def weights(self, particle: int) -> dict[str, Tensor]:
        """The weights that it would be judged by."""
        return {name: value.detach() for name, value in self.params.items()}

    def _mode(self, name: str) -> None:
        switch = getattr(self.optimizer, name, None)
        if callable(switch):
            switch()
