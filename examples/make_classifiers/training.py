r"""Training many classifiers of one kind together: their parameters are stacked, and one vmap runs all of them.

    loss = sum over networks of the cross-entropy of a network on the batch,

so that the gradient of a network's parameters is that of its own loss; Adam acts on every number alone, and so is Adam
on each network. All see the same batches. Masks multiply the weights in the forward pass: what is masked has no
gradient, and stays where it began.

Legend of shapes: N networks, *S the shape of a parameter, B images of a batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lopt.errors import unknown
from lopt.tracing import trace
from lopt.weight_space import WeightSpace
from tasks import load_images
from tasks.modules import cnn, mlp
from tasks.task import Split

KINDS = ("mlp", "cnn")
KERNEL = 3  # of a convolution; all but the first have a stride of 2
TESTED = 1000  # images at a time, without gradients

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Training:
    """How networks are trained.

    Args:
        steps: of Adam.
        batch_size: images of a step.
        lr: the first learning rate; it falls to 0 along half a cosine.
    """

    steps: int
    batch_size: int
    lr: float


def training_of(config: Mapping[str, Any]) -> Training:
    """How the configuration of a set says that its networks are trained."""
    return Training(config["steps"], config["batch_size"], config["lr"])


@dataclass(frozen=True)
class Problem:
    """A kind of network, and the images that it is to tell apart."""

    module: nn.Module  # the structure alone: its own parameters are not used
    space: WeightSpace
    images: dict[Split, Tensor]  # what goes into the module: [.., C, H, W], for an MLP [.., C * H * W]
    labels: dict[Split, Tensor]


class Measured(NamedTuple):
    """The mean cross-entropy and the accuracy of each network, [N]."""

    loss: Tensor
    accuracy: Tensor


def load_problem(data: str, size: int, network: str, hidden: list[int]) -> Problem:
    """The images of a data set and a network for them.

    Args:
        data: one of `tasks.DATA_SETS`.
        size: pixels of a side.
        network: "mlp" or "cnn".
        hidden: widths of the hidden layers, or channels of the convolutions.

    Raises:
        InvalidInput: an unknown name, or a data set that cannot be read.

    >>> problem = load_problem("digits", 8, "cnn", [4, 8])
    >>> list(problem.space)
    ['0.weight', '0.bias', '2.weight', '2.bias', '5.weight', '5.bias']
    """
    if network not in KINDS:
        raise unknown("network", network, KINDS)
    found = load_images(data, size)
    images: dict[Split, Tensor] = found.images
    if network == "mlp":
        images = {split: x.flatten(1) for split, x in images.items()}
        module = mlp([images["train"].shape[1], *hidden, found.classes])
    else:
        strides = [1, *[2] * (len(hidden) - 1)]
        module = cnn([images["train"].shape[1], *hidden], found.classes, KERNEL, strides)
    module.requires_grad_(False)
    return Problem(module, trace(module, images["train"][:2]), images, found.labels)


def initial_networks(problem: Problem, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Networks as PyTorch initialises them: every number uniform within ± 1 / sqrt(fan in). Name -> [count, *S].

    >>> problem = load_problem("digits", 8, "mlp", [16])
    >>> drawn = initial_networks(problem, 5, torch.Generator().manual_seed(0))
    >>> drawn["0.weight"].shape, round(drawn["0.weight"].max().item(), 3)  # 1 / sqrt(64) at most
    (torch.Size([5, 16, 64]), 0.125)
    """
    drawn, bound = {}, 0.0
    for name, shape in problem.space.shapes.items():
        if len(shape) > 1:  # a bias comes after the weight whose fan in it shares
            bound = 1 / math.sqrt(math.prod(shape[1:]))
        drawn[name] = (2 * torch.rand(count, *shape, generator=generator) - 1) * bound
    return drawn


def train_all(
    problem: Problem, networks: Tensors, training: Training, generator: torch.Generator, masks: Tensors | None = None
) -> dict[str, Tensor]:
    """Trains each network from where it is.

    Args:
        generator: draws the batches.
        masks: of the parameters that have one: 0 where a number is out, 1 where it is in.

    Shapes:
        networks: name -> [N, *S], and so the result; masks likewise. What is masked is zero in the result.
    """
    start = {name: x * masks[name] if masks and name in masks else x for name, x in networks.items()}
    tensors = {name: x.clone().requires_grad_() for name, x in start.items()}
    optimizer = torch.optim.Adam(tensors.values(), training.lr)
    images, labels = problem.images["train"], problem.labels["train"]
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.lr * (1 + math.cos(math.pi * step / training.steps)) / 2
        rows = torch.randint(len(labels), (training.batch_size,), generator=generator)
        seen = {name: x * masks[name] if masks and name in masks else x for name, x in tensors.items()}
        optimizer.zero_grad()
        losses = F.cross_entropy(_outputs(problem, seen, images[rows]).movedim(2, 1), _each(labels[rows], networks))
        (losses * len(next(iter(networks.values())))).backward()  # the mean over networks, made their sum
        optimizer.step()
    return {name: x.detach() for name, x in tensors.items()}


@torch.no_grad()
def measure(problem: Problem, networks: Tensors, split: Split, count: int | None = None) -> Measured:
    """Tests each network on the first `count` images of a split, all where it is None.

    Shapes:
        networks: name -> [N, *S].
    """
    images, labels = problem.images[split][:count], problem.labels[split][:count]
    losses, hits = [], []
    for x, y in zip(images.split(TESTED), labels.split(TESTED), strict=True):
        outputs, target = _outputs(problem, networks, x), _each(y, networks)
        losses.append(F.cross_entropy(outputs.movedim(2, 1), target, reduction="none"))
        hits.append((outputs.argmax(2) == target).float())
    return Measured(torch.cat(losses, 1).mean(1), torch.cat(hits, 1).mean(1))


def _outputs(problem: Problem, networks: Tensors, images: Tensor) -> Tensor:
    """[N, B, K]."""
    return vmap(lambda tensors: functional_call(problem.module, tensors, (images,)))(dict(networks))


def _each(labels: Tensor, networks: Tensors) -> Tensor:
    """[B] -> [N, B]."""
    return labels.expand(len(next(iter(networks.values()))), -1)
