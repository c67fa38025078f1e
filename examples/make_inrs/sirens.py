r"""Fitting many images at once, each by a SIREN of its own: one batch of matrix products for all of them.

    f(x) = W_L sin(ω (W .. sin(ω (W_1 x + b_1)) .. + b)) + b_L,     loss = mean over pixels and colours (f(x) - y)²

The gradients are written out, so that a step is a handful of batched products in place of a graph under `vmap`; the
tests hold them against autograd and `torch.optim.Adam` on one network at a time.

Legend of shapes: B images fitted together, N pixels of an image, P pixels of a step, C colours, n, m neurons.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from examples.common.mlps import by_name, forward

CHUNK = 32  # images fitted together: as many as keep their activations in the cache
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam
LEAST_ERROR = 1e-10  # a perfect fit has a PSNR of 100 dB, not an infinite one


@dataclass(frozen=True)
class Fit:
    """How a SIREN is fitted to an image.

    Args:
        hidden: widths of the hidden layers.
        frequency: ω of all sines.
        steps: of Adam, whose learning rate falls from `lr` to 0 along half a cosine.
        lr: the initial learning rate.
        pixels: of a step, the same for all images of a chunk; every pixel has its turn before one comes again.
        initial: the scale of the initial weights behind the first layer, and of their biases, over those of the paper.
            The smaller, the more a weight says of the image, and the less of where it began.
    """

    hidden: tuple[int, ...]
    frequency: float
    steps: int
    lr: float
    pixels: int
    initial: float = 1.0

    def widths(self, colours: int) -> list[int]:
        return [2, *self.hidden, colours]


def coordinates(size: int) -> Tensor:
    """The pixels of an image of size x size, row by row, as points of [-1, 1]²: [N, 2]."""
    axis = torch.linspace(-1, 1, size)
    return torch.cartesian_prod(axis, axis)


def initial_sirens(
    count: int, widths: Sequence[int], frequency: float, generator: torch.Generator, scale: float = 1.0
) -> list[Tensor]:
    """Random SIRENs, each drawn on its own, as section 3.2 of the paper (arXiv 2006.09661) has it.

    Weights of the first layer within ±1 / m, of the others within ±√(6 / m) / ω; biases within ±1 / √m. Everything
    behind the first layer is then multiplied by `scale`.

    Shapes:
        result: weight [count, n, m] and bias [count, n] of every layer, in turn.

    >>> [tuple(t.shape) for t in initial_sirens(5, [2, 32, 1], 30.0, torch.Generator())]
    [(5, 32, 2), (5, 32), (5, 1, 32), (5, 1)]
    """
    drawn = []
    for layer, (m, n) in enumerate(pairwise(widths)):
        bound = 1 / m if layer == 0 else scale * math.sqrt(6 / m) / frequency
        drawn.append((2 * torch.rand(count, n, m, generator=generator) - 1) * bound)
        drawn.append((2 * torch.rand(count, n, generator=generator) - 1) * (scale if layer else 1.0) / math.sqrt(m))
    return drawn


def render(tensors: Mapping[str, Tensor], size: int, frequency: float) -> Tensor:
    """The images that SIRENs stand for; differentiable in the tensors.

    Shapes:
        tensors: weights [B, n, m] and biases [B, n] in the order of the layers. The result: [B, C, size, size].
    """
    flat = list(tensors.values())
    x = coordinates(size).to(flat[0]).expand(len(flat[0]), -1, -1)
    return forward(flat, x, lambda phase: torch.sin(frequency * phase)).mT.unflatten(-1, (size, size))


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images [B, C, H, W] whose brightest value is 1: [B], in dB.

    >>> psnr(torch.full((1, 1, 2, 2), 0.1), torch.zeros(1, 1, 2, 2))
    tensor([20.])
    """
    return -10 * torch.log10((images - targets).square().mean((1, 2, 3)).clamp_min(LEAST_ERROR))


def fit_sirens(images: Tensor, fit: Fit, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """Fits a SIREN to each image.

    Args:
        generator: draws initial weights and pixels.

    Shapes:
        images: [count, C, size, size], values in [0, 1]. The result: name -> [count, *shape], named as the Linear
        layers of `nn.Sequential(Linear, Sine, Linear, ..)`; and the PSNR [count] in dB.

    >>> fit = Fit(hidden=(16,), frequency=10.0, steps=200, lr=1e-2, pixels=64)
    >>> image = coordinates(8).prod(-1).view(1, 1, 8, 8) / 2 + 0.5
    >>> tensors, decibels = fit_sirens(image, fit, torch.Generator().manual_seed(0))
    >>> {name: tuple(t.shape) for name, t in tensors.items()}, bool(decibels > 25)
    ({'0.weight': (1, 16, 2), '0.bias': (1, 16), '2.weight': (1, 1, 16), '2.bias': (1, 1)}, True)
    """
    size = images.shape[-1]
    parts = [_fit_chunk(chunk, fit, generator) for chunk in images.split(CHUNK)]
    tensors = by_name([torch.cat(pieces) for pieces in zip(*parts, strict=True)])
    return tensors, psnr(render(tensors, size, fit.frequency), images)


def _fit_chunk(images: Tensor, fit: Fit, generator: torch.Generator) -> list[Tensor]:
    """[B, C, size, size] -> weight [B, n, m] and bias [B, n] of every layer."""
    start = initial_sirens(len(images), fit.widths(images.shape[1]), fit.frequency, generator, fit.initial)
    points, colours = coordinates(images.shape[-1]), images.flatten(2).mT  # [N, 2], [B, N, C]
    # All parameters of a network in one row, so that Adam is a few operations for all of them.
    rows = torch.cat([t.flatten(1) for t in start], 1)
    gradients, first, second = (torch.zeros_like(rows) for _ in range(3))
    tensors, slots = _views(rows, start), _views(gradients, start)
    for step, drawn in enumerate(_turns(len(points), fit, generator), 1):
        _gradients(tensors, slots, points[drawn], colours[:, drawn], fit.frequency)
        lr = fit.lr * (1 + math.cos(math.pi * (step - 1) / fit.steps)) / 2
        _adam(rows, gradients, first, second, lr, step)
    return [t.contiguous() for t in tensors]


def _turns(count: int, fit: Fit, generator: torch.Generator) -> Iterator[Tensor]:
    """The pixels of each step, out of `count`."""
    left = torch.empty(0, dtype=torch.long)
    for _ in range(fit.steps):
        while len(left) < fit.pixels:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        drawn, left = left[: fit.pixels], left[fit.pixels :]
        yield drawn


def _views(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The columns of [B, numbers] as tensors of the shapes of `like`."""
    parts = rows.split([t[0].numel() for t in like], 1)
    return [part.unflatten(1, t.shape[1:]) for part, t in zip(parts, like, strict=True)]


def _gradients(tensors: Sequence[Tensor], out: Sequence[Tensor], x: Tensor, y: Tensor, frequency: float) -> None:
    """Writes the gradients of the loss on pixels x [P, 2] with colours y [B, P, C] into `out`."""
    weights, biases = tensors[::2], tensors[1::2]
    inputs, slopes = [x.expand(len(y), -1, -1)], []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        phase = torch.baddbmm(bias.unsqueeze(1), inputs[-1], weight.mT).mul_(frequency)
        inputs.append(phase.sin())
        slopes.append(phase.cos_())
    error = torch.baddbmm(biases[-1].unsqueeze(1), inputs[-1], weights[-1].mT).sub_(y).mul_(2 / y[0].numel())
    for layer in reversed(range(len(weights))):
        out[2 * layer].copy_(torch.bmm(error.mT, inputs[layer]))
        torch.sum(error, 1, out=out[2 * layer + 1])
        if layer:
            error = torch.bmm(error, weights[layer]).mul_(slopes[layer - 1]).mul_(frequency)


def _adam(rows: Tensor, gradients: Tensor, first: Tensor, second: Tensor, lr: float, step: int) -> None:
    first.lerp_(gradients, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradients, gradients, value=1 - BETAS[1])
    scale = second.sqrt().div_(math.sqrt(1 - BETAS[1] ** step)).add_(EPSILON)
    rows.addcdiv_(first, scale, value=-lr / (1 - BETAS[0] ** step))
