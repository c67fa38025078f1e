r"""Training many CNN classifiers at once: one grouped convolution for a layer of all of them.

    three times:  x <- activation(conv 3 x 3, 16 channels, stride 2)       then the mean over pixels, and a Linear layer

as in the zoo of Unterthiner et al. (arXiv 2002.11448). Each network has its own hyper-parameters, initial weights,
images and dropout; the tests hold it against `nn.Sequential` and `torch.optim.AdamW`, one network at a time.

Legend of shapes: P networks, B images of a step, N images, S = pixels of a side, c channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.make_cnn_zoo.hyper_parameters import HyperParameters

CHANNELS, DEPTH, KERNEL = 16, 3, 3
CHUNK = 50  # networks trained together: as many as keep their activations in the cache
TESTED = 100  # images classified at a time
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam


def shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """The parameters of a network, as `nn.Sequential` of convolutions, activations, a pool and a Linear names them.

    >>> shapes(10)["0.weight"], shapes(10)["8.weight"], sum(math.prod(shape) for shape in shapes(10).values())
    ((16, 1, 3, 3), (10, 16), 4970)
    """
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(DEPTH):
        found[f"{2 * layer}.weight"] = (CHANNELS, CHANNELS if layer else 1, KERNEL, KERNEL)
        found[f"{2 * layer}.bias"] = (CHANNELS,)
    return found | {f"{2 * DEPTH + 2}.weight": (classes, CHANNELS), f"{2 * DEPTH + 2}.bias": (classes,)}


def initial(chosen: HyperParameters, classes: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random weights of standard deviation scale / √inputs, normal or uniform; biases zero: name -> [P, *S]."""
    count, found = len(chosen.scale), {}
    for name, shape in shapes(classes).items():
        if name.endswith("bias"):
            found[name] = torch.zeros(count, *shape)
            continue
        normal = torch.randn(count, *shape, generator=generator)
        uniform = (2 * torch.rand(count, *shape, generator=generator) - 1) * math.sqrt(3)
        drawn = torch.where(_beside(chosen.uniform, normal), uniform, normal)
        found[name] = drawn * _beside(chosen.scale, drawn) / math.sqrt(math.prod(shape[1:]))
    return found


def logits(tensors: Sequence[Tensor], images: Tensor, tanh: Tensor, kept: Tensor | None = None) -> Tensor:
    """What each network says of its own images.

    Args:
        tensors: those of `shapes`, in their order.
        tanh: [P]: tanh, or ReLU.
        kept: [P, B, c]: what the pooled features are multiplied by, for dropout.

    Shapes:
        images: [B, P, S, S], one channel each. The result: [P, B, K].
    """
    count = len(tanh)
    x, bend = images, tanh.repeat_interleave(CHANNELS).view(1, -1, 1, 1)
    for weight, bias in zip(tensors[:-2:2], tensors[1:-2:2], strict=True):
        x = F.conv2d(x, weight.flatten(0, 1), bias.flatten(), stride=2, padding=1, groups=count)
        x = torch.where(bend, x.tanh(), x.relu())
    pooled = x.mean((2, 3)).unflatten(1, (count, CHANNELS)).transpose(0, 1)
    pooled = pooled if kept is None else pooled * kept
    return torch.baddbmm(tensors[-1].unsqueeze(1), pooled, tensors[-2].mT)


def train_networks(
    images: Tensor, labels: Tensor, chosen: HyperParameters, classes: int, batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Trains a network for each row of hyper-parameters.

    Args:
        batch: images of a step.
        generator: draws everything that is random.

    Shapes:
        images: [N, 1, S, S], labels: [N]. The result: name -> [P, *S].
    """
    # The longest first, so that the networks that are done are the last ones and can be left out.
    order = chosen.steps.argsort(descending=True, stable=True)
    parts = [_train_chunk(images, labels, chosen.rows(rows), classes, batch, generator) for rows in order.split(CHUNK)]
    back = order.argsort()
    return {name: torch.cat([part[name] for part in parts])[back] for name in shapes(classes)}


def _train_chunk(
    images: Tensor, labels: Tensor, chosen: HyperParameters, classes: int, batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    named = initial(chosen, classes, generator)
    tensors = list(named.values())
    first, second = ([torch.zeros_like(x) for x in tensors] for _ in range(2))
    for step in range(1, int(chosen.steps.max()) + 1):
        live = slice(int((chosen.steps >= step).sum()))
        now, leaves = chosen.rows(live), [x[live].detach().requires_grad_() for x in tensors]
        seen = (torch.rand(len(chosen.lr), batch, generator=generator)[live] * _images_of(now, len(images))).long()
        dropped = torch.rand(len(chosen.lr), batch, CHANNELS, generator=generator)[live] < now.dropout.view(-1, 1, 1)
        kept = torch.where(dropped, 0.0, 1 / (1 - now.dropout.view(-1, 1, 1)))
        said = logits(leaves, images[seen.mT, 0], now.tanh, kept)
        loss = F.cross_entropy(said.flatten(0, 1), labels[seen].flatten(), reduction="sum") / batch
        for x, gradient, m, v in zip(tensors, torch.autograd.grad(loss, leaves), first, second, strict=True):
            _adam(x[live], gradient, m[live], v[live], now, step)
    return named


def _images_of(chosen: HyperParameters, count: int) -> Tensor:
    """How many images each network sees: [P, 1]."""
    return (chosen.fraction * count).floor().clamp_min(1).unsqueeze(1)


def _adam(x: Tensor, gradient: Tensor, first: Tensor, second: Tensor, chosen: HyperParameters, step: int) -> None:
    """A step of AdamW with a learning rate and a weight decay for each network, in place."""
    lr = _beside(chosen.lr, x)
    x.mul_(1 - lr * _beside(chosen.weight_decay, x))
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    scale = second.sqrt().div_(math.sqrt(1 - BETAS[1] ** step)).add_(EPSILON)
    x.sub_(lr / (1 - BETAS[0] ** step) * first / scale)


@torch.no_grad()
def accuracies(tensors: Mapping[str, Tensor], tanh: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """The share of the images [N, 1, S, S] that each network classifies as their labels [N] say: [P]."""
    right = []
    for rows in torch.arange(len(tanh)).split(CHUNK):
        some = [x[rows] for x in tensors.values()]
        hits = torch.zeros(len(rows))
        for pixels, label in zip(images.split(TESTED), labels.split(TESTED), strict=True):
            said = logits(some, pixels.expand(-1, len(rows), -1, -1), tanh[rows])
            hits += (said.argmax(-1) == label).sum(1)
        right.append(hits / len(labels))
    return torch.cat(right)


def _beside(x: Tensor, like: Tensor) -> Tensor:
    """[P] as [P, 1, ...], to multiply a tensor [P, ...] by."""
    return x.view(-1, *[1] * (like.dim() - 1))
