"""Autoencoders: of Linear layers, convolutional, variational.

Legend of shapes: B images, C channels, S pixels a side, F = C S² pixels, Z latent variables.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasks.modules.mlp import mlp
from tasks.modules.parts import ACTIVATIONS, Network


def mlp_autoencoder(
    pixels: int, hidden: Sequence[int], activation: str, norm: str = "none", initialisation: str = "default"
) -> Network:
    """Through the widths `hidden`, the last of which is the code, and back: (B, F) -> (B, F)."""
    return mlp([pixels, *hidden, *reversed(hidden[:-1]), pixels], activation, norm, initialisation)


def conv_autoencoder(channels: Sequence[int], activation: str) -> Network:
    """Convolutions that halve the image, and transposed ones that double it again: (B, C, S, S) -> (B, C, S, S).

    Args:
        channels: of the images, then of the output of every convolution, the last of which is the code.
    """
    down = [[nn.Conv2d(a, b, 3, 2, padding=1), ACTIVATIONS[activation]()] for a, b in itertools.pairwise(channels)]
    up = [
        [nn.ConvTranspose2d(b, a, 4, 2, padding=1), ACTIVATIONS[activation]()]
        for a, b in reversed(list(itertools.pairwise(channels)))
    ]
    return Network(list(itertools.chain(*down, *up))[:-1])


class VAE(nn.Module):
    """A variational autoencoder of Linear layers (arXiv 1312.6114), a function of the images and of noise."""

    def __init__(self, pixels: int, hidden: Sequence[int], latent: int, activation: str) -> None:
        super().__init__()
        self.encoder = mlp([pixels, *hidden, 2 * latent], activation)
        self.decoder = mlp([latent, *reversed(hidden), pixels], activation)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, F), noise (B, Z) -> logits of the pixels (B, F), mean and logarithm of the variance (B, Z)."""
        mean, log_variance = self.encoder(images).chunk(2, -1)
        return self.decoder(mean + torch.exp(log_variance / 2) * noise), mean, log_variance
