"""One loop for all models: AdamW, a warm-up and a cosine, and the parameters of the best epoch by validation.

Legend of shapes: N examples, *S the shape of a parameter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

CLIP = 1.0  # the largest norm of a gradient
EVALUATED = 256  # examples of a batch without gradients

Tensors = Mapping[str, Tensor]
Loss = Callable[[nn.Module, "Batch"], Tensor]  # a number to minimise
Score = Callable[[nn.Module, "Batch"], Tensor]  # [N]: one number for each example, the more the better
Augment = Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Batch:
    """Networks and what is to be said of them."""

    tensors: Tensors  # name -> [N, *S]
    target: Tensor  # [N, ...]

    def __len__(self) -> int:
        return len(self.target)

    def rows(self, rows: Tensor | slice) -> Batch:
        return Batch({name: x[rows] for name, x in self.tensors.items()}, self.target[rows])


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Args:
        epochs: over the train examples.
        batch_size: examples of a step.
        lr: the highest learning rate.
        weight_decay: of AdamW.
        warm_up: the share of the steps in which the learning rate rises to `lr`, before it falls along a cosine.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 1e-2
    warm_up: float = 0.1


class Epoch(NamedTuple):
    """What the loop reports."""

    number: int
    loss: float  # mean over the epoch
    score: float  # mean over the validation examples


def train(
    model: nn.Module,
    examples: Batch,
    validation: Batch,
    loss: Loss,
    score: Score,
    recipe: Recipe,
    generator: torch.Generator,
    augment: Augment | None = None,
) -> Iterator[Epoch]:
    """Trains a model; yields after every epoch. At the end the model has the parameters of its best epoch.

    Args:
        generator: draws the order of the examples.
        augment: what happens to the networks of every batch first.
    """
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    size = min(recipe.batch_size, len(examples))
    steps = recipe.epochs * (len(examples) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step / steps, recipe.warm_up))
    best, kept = -math.inf, copy.deepcopy(model.state_dict())
    for number in range(1, recipe.epochs + 1):
        model.train()
        losses = []
        order = torch.randperm(len(examples), generator=generator)
        for rows in order[: len(order) // size * size].split(size):
            batch = examples.rows(rows)
            batch = batch if augment is None else replace(batch, tensors=augment(batch.tensors))
            value = loss(model, batch)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
            losses.append(value.detach())
        found = Epoch(number, float(torch.stack(losses).mean()), evaluate(model, validation, score))
        if found.score > best:
            best, kept = found.score, copy.deepcopy(model.state_dict())
        yield found
    model.load_state_dict(kept)


def rate(done: float, warm_up: float) -> float:
    """The share of the highest learning rate when a share of the steps is done.

    >>> [round(rate(done, 0.1), 2) for done in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if done < warm_up:
        return done / warm_up
    return (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up))) / 2


@torch.no_grad()
def apply(model: nn.Module, examples: Batch, function: Callable[[nn.Module, Batch], Tensor]) -> Tensor:
    """What a function makes of a model and all examples, batch by batch, without dropout and gradients: [N, ...]."""
    model.eval()
    rows = [slice(start, start + EVALUATED) for start in range(0, len(examples), EVALUATED)]
    return torch.cat([function(model, examples.rows(some)) for some in rows])


def evaluate(model: nn.Module, examples: Batch, score: Score) -> float:
    """The mean score over the examples, without dropout and gradients."""
    return float(apply(model, examples, score).mean())


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
