"""FourierFeatures: sines and cosines of a weight, so that a linear layer can tell values apart and not only rank them.

Legend of shapes: *B batch axes, *S the shape of a parameter, C channels, K frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lopt.errors import InvalidInput
from lopt.functionals.checks import check_channels, check_features
from lopt.weight_space import WeightSpace


class FourierFeatures(nn.Module):
    r"""Adds random Fourier features of every weight's channels to them.

    $$ Y = \big[X,\ \sin(2\pi X B),\ \cos(2\pi X B)\big],\quad B_{ck} \sim \mathcal{N}(0, \mathrm{scale}^2) $$

    Pointwise, and so equivariant to any permutation. B begins as drawn and is learned with the rest.

    Args:
        space: the weight space of the features.
        channels: C, of the features that come in; bring them to a variance of about 1.
        frequencies: K.
        scale: standard deviation of the frequencies, in periods over one unit of X.

    Attributes:
        out_channels: C + 2 K.

    Shapes:
        features: parameter name -> [*B, *S, C]; the result [*B, *S, C + 2 K].

    Raises:
        InvalidInput: a count below 1, a scale that is not above 0 and finite, or features that do not fit.

    >>> layer = FourierFeatures(WeightSpace({"w": "h:4, in=3"}), channels=1, frequencies=8)
    >>> layer({"w": torch.zeros(4, 3, 1)})["w"].shape, layer.out_channels
    (torch.Size([4, 3, 17]), 17)

    Source: arXiv 2006.10739, eq. 5, which has no X and keeps B as drawn; NFN (2302.14040) gives them to its classifiers
    of INRs.
    """

    def __init__(self, space: WeightSpace, channels: int, frequencies: int, scale: float = 0.25) -> None:
        super().__init__()
        check_channels(channels=channels, frequencies=frequencies)
        if not 0 < scale < math.inf:
            raise InvalidInput(f"scale: {scale}; it must be above 0 and finite")
        self.space, self.channels, self.scale = space, channels, scale
        self.out_channels = channels + 2 * frequencies
        self.frequencies = nn.Parameter(torch.randn(channels, frequencies) * scale)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        check_features(self.space, features, self.channels)
        found = {}
        for name, x in features.items():
            angle = 2 * math.pi * (x @ self.frequencies)
            found[name] = torch.cat([x, angle.sin(), angle.cos()], -1)
        return found

    def extra_repr(self) -> str:
        return f"{self.channels}, frequencies={self.frequencies.shape[1]}, scale={self.scale}"
