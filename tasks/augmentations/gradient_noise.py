"""Noise on the gradient, as a smaller batch would bring it."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import grad

from tasks.arguments import check_range
from tasks.augmentations.wrapper import Wrapper, log_uniform
from tasks.task import Batch, Sizes, Split, Task, TaskFamily

TABLE_SIZE = 2**20
_TABLE_SEED = 1703


class GradientNoise(Wrapper):
    r"""Tasks whose training gradients carry Gaussian noise, of a standard deviation relative to the initial gradient.

    $$ L'(w) = L(w) + \langle \epsilon,\, w - \mathrm{stop}(w) \rangle, \qquad
       \nabla L'(w) = \nabla L(w) + \epsilon, \qquad \epsilon_k \sim \mathcal N(0, (\text{level} \cdot r_k)^2 I) $$

    where stop hides w from differentiation, so the value of the loss is untouched, and r_k is the root mean square of
    tensor k's gradient at initial weights, measured once a task. The level is drawn once a task, its logarithm uniform;
    ε is new in every training batch. It is read from a shared table of 2^20 normal numbers at a random place
    (arXiv 1703.03864, section 2.1), so that a task draws one whole number a batch, not a number a weight.

    Args:
        family: whose tasks are changed.
        low, high: the range of the level.

    Raises:
        InvalidInput: an argument cannot be used.
    """

    name: ClassVar[str] = "gradient_noise"

    def __init__(self, family: TaskFamily, low: float = 0.1, high: float = 3.0) -> None:
        super().__init__(family)
        check_range("low, high", low, high)
        self.low, self.high = low, high

    def around(self, family: TaskFamily) -> TaskFamily:
        return GradientNoise(family, self.low, self.high)

    def wrap(self, task: Task, generator: torch.Generator) -> Task:
        level = log_uniform(self.low, self.high, generator)
        gradient = grad(task.loss)(task.init(generator), task.batch("train", generator))
        return NoisyGradients(task, {name: level * g.square().mean().sqrt() for name, g in gradient.items()})


class Noisy(NamedTuple):
    """A batch, or what is drawn for it, with the place of its noise in the table and the noise's size by tensor."""

    inner: Batch
    place: Tensor  # ()
    std: dict[str, Tensor]  # () each


class NoisyGradients(Task):
    """A task with noise on its gradients; see `GradientNoise`."""

    def __init__(self, inner: Task, std: dict[str, Tensor]) -> None:
        self.inner, self.std, self.optimum = inner, std, inner.optimum
        self.name, self.module, self.weight_space = inner.name, inner.module, inner.weight_space
        example = next(iter(std.values()))
        self.table = _table(example.device, example.dtype)

    @property
    def population(self) -> Hashable:
        return type(self), self.inner.population

    @property
    def sizes(self) -> Sizes | None:
        return self.inner.sizes

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self.inner.init(generator)

    def loss(self, params: Mapping[str, Tensor], batch: Noisy) -> Tensor:
        loss = self.inner.loss(params, batch.inner)
        count = sum(p.numel() for p in params.values())
        noise = self.table[(batch.place + torch.arange(count, device=self.table.device)) % TABLE_SIZE]
        parts = noise.split([p.numel() for p in params.values()])
        # The difference is zero with a slope of one: but inf - inf is not, so a weight that diverged shows in the loss.
        slopes = [
            batch.std[name] * (part * (p - p.detach()).flatten()).sum()
            for part, (name, p) in zip(parts, params.items(), strict=True)
        ]
        return loss + torch.stack(slopes).sum()

    def draw(self, split: Split, generator: torch.Generator) -> Noisy:
        inner = self.inner.draw(split, generator)
        place = torch.randint(TABLE_SIZE, (), generator=generator, device=generator.device)
        std = self.std if split == "train" else {name: torch.zeros_like(x) for name, x in self.std.items()}
        return Noisy(inner, place.to(next(iter(std.values())).device), std)

    def gather(self, split: Split, drawn: Noisy) -> Noisy:
        return drawn._replace(inner=self.inner.gather(split, drawn.inner))

    def evaluation_batch(self, split: Split) -> Noisy:
        std = {name: torch.zeros_like(x) for name, x in self.std.items()}
        place = torch.zeros((), dtype=torch.long, device=next(iter(std.values())).device)
        return Noisy(self.inner.evaluation_batch(split), place, std)


@functools.cache
def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normal numbers (TABLE_SIZE,), the same in every process."""
    return torch.randn(TABLE_SIZE, generator=torch.Generator().manual_seed(_TABLE_SEED)).to(device, dtype)
