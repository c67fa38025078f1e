r"""Moves the image that an INR shows, by its first layer alone: turned, shifted and scaled images at no cost.

    f(s R x + δ) = f₂(sin(ω (W (s R x + δ) + b)))  =>  W' = s W R,  b' = b + W δ

DWSNets (arXiv 2301.12780) augments INRs likewise.

Legend of shapes: B networks, n neurons of the first layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.arguments import check_at_least


@dataclass(frozen=True)
class Movements:
    """How far the images of a batch move, each by an amount of its own, uniform on both sides of none.

    Args:
        rotation: degrees, at most.
        shift: along each axis, at most, where an image is 2 wide.
        scale: the logarithm of the factor, at most.

    Raises:
        InvalidInput: one is negative.
    """

    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rotation", "shift", "scale"):
            check_at_least(name, getattr(self, name), 0)

    def __call__(self, tensors: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Moves each network's image.

        Args:
            tensors: weights and biases in the order of the layers, the first [B, n, 2] and [B, n].
        """
        (first, weight), (second, bias) = list(tensors.items())[:2]

        def draw(most: float) -> Tensor:
            return most * (2 * torch.rand(len(weight), generator=generator, dtype=weight.dtype) - 1)

        angle, factor = draw(math.radians(self.rotation)), draw(self.scale).exp()
        cosine, sine = factor * angle.cos(), factor * angle.sin()
        turn = torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)  # [B, 2, 2]
        shift = torch.stack([draw(self.shift), draw(self.shift)], -1)
        return {**tensors, first: weight @ turn, second: bias + torch.einsum("bni,bi->bn", weight, shift)}
