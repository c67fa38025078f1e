"""Many runs at once: particles of one task, each at a setting of its own, trained side by side under `vmap`.

`RulePopulation` advances an update rule by the unroll of meta-training; `ElementwisePopulation` an optimizer that has a
pure update (`elementwise.py`), all weights of a particle in one row. Either trains a piece of the run at a time.

Legend of shapes: L settings, S seeds, P = L * S particles (setting-major), T steps of a piece, N weights of a particle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.utils import _pytree as pytree

from benchmark.elementwise import Elementwise, first_memory, hyper_parameters
from lopt.rules.rule import UpdateRule
from meta_train.unroll import sizes_of, start, unroll
from tasks.task import Batch, Task


class Population(Protocol):
    """Particles in training."""

    def train(self, drawn: Batch, factors: Sequence[float]) -> Tensor:
        """Makes T steps on batches drawn for each seed, (T, S, ...); returns the loss before each, (T, P)."""
        ...

    def weights(self, particle: int) -> dict[str, Tensor]:
        """The present weights of one particle."""
        ...


class RulePopulation:
    """An update rule at several learning rates. It is told the length of the run, as a schedule is, and the size of
    the data set.

    Args:
        steps: of the whole run.
    """

    def __init__(
        self,
        rule: UpdateRule,
        task: Task,
        initial: Sequence[dict[str, Tensor]],
        settings: Sequence[Mapping[str, Any]],
        steps: int,
    ) -> None:
        self.rule, self.task, self.count = rule, task, len(settings)
        self.theta = {name: parameter.detach() for name, parameter in rule.named_parameters()}
        self.population = start(rule, task, [*initial] * len(settings))
        first = next(iter(initial[0].values()))
        rates = torch.tensor([float(s["lr"]) for s in settings], dtype=first.dtype, device=first.device)
        self.lr = rates.repeat_interleave(len(initial))  # (P,)
        self.horizon = torch.full_like(self.lr, float(steps))
        self.sizes = sizes_of([task] * len(self.lr), self.lr)

    def train(self, drawn: Batch, factors: Sequence[float]) -> Tensor:
        lr = torch.tensor(factors, dtype=self.lr.dtype, device=self.lr.device)[:, None] * self.lr
        batches = _for_each_setting(drawn, self.count)
        self.population, losses = unroll(
            self.rule,
            self.theta,
            self.task,
            self.population,
            batches,
            lr,
            horizon=self.horizon,
            sizes=self.sizes,
        )
        return losses

    def weights(self, particle: int) -> dict[str, Tensor]:
        return {name: value[particle] for name, value in self.population.params.items()}


class ElementwisePopulation:
    """An optimizer with a pure update at several settings."""

    def __init__(
        self,
        optimizer: type,
        known: Elementwise,
        arguments: Mapping[str, Any],
        task: Task,
        initial: Sequence[dict[str, Tensor]],
        settings: Sequence[Mapping[str, Any]],
    ) -> None:
        self.task, self.known, self.count, self.seeds = task, known, len(settings), len(initial)
        self.shapes = {name: value.shape for name, value in initial[0].items()}
        rows = torch.stack([torch.cat([w[name].flatten() for name in self.shapes]) for w in initial])
        self.matrix = rows.repeat(len(settings), 1)  # (P, N)
        each = [setting for setting in settings for _ in initial]
        self.hyper = hyper_parameters(optimizer, known, arguments, each, rows)
        self.memory = first_memory(known, self.matrix)
        self.done = 0

    def train(self, drawn: Batch, factors: Sequence[float]) -> Tensor:
        # With one seed all particles see the same batch, which is then held and multiplied once.
        shared = self.seeds == 1
        batches = pytree.tree_map(lambda leaf: leaf[:, 0], drawn) if shared else _for_each_setting(drawn, self.count)

        def loss(params: dict[str, Tensor], drawn: Batch) -> Tensor:
            return self.task.loss(params, self.task.gather("train", drawn))

        gradients = vmap(grad_and_value(loss), in_dims=(0, None if shared else 0))
        losses = []
        for t, factor in enumerate(factors):
            batch = pytree.tree_map(lambda leaf, t=t: leaf[t], batches)
            grads, values = gradients(_split(self.matrix, self.shapes), batch)
            g = torch.cat([grads[name].flatten(1) for name in self.shapes], 1)
            hyper = {**self.hyper, "lr": self.hyper["lr"] * factor}
            self.done += 1
            self.matrix, self.memory = self.known.update(self.matrix, g, self.memory, self.done, hyper)
            losses.append(values)
        return torch.stack(losses)

    def weights(self, particle: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in _split(self.matrix[particle : particle + 1], self.shapes).items()}


def _split(matrix: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Rows (P, N) as views (P, *shape), by name."""
    parts = matrix.split([shape.numel() for shape in shapes.values()], 1)
    return {name: part.unflatten(1, shape) if shape else part[:, 0]
            for (name, shape), part in zip(shapes.items(), parts, strict=True)}  # fmt: skip


def _for_each_setting(drawn: Batch, settings: int) -> Batch:
    """Batches (T, S, ...) repeated to (T, P, ...)."""
    return pytree.tree_map(lambda leaf: leaf.repeat(1, settings, *[1] * (leaf.dim() - 2)), drawn)
