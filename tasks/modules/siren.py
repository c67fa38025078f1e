"""Sinusoidal representation networks (SIREN, arXiv 2006.09661)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from tasks.modules.parts import Sine


class Siren(nn.Sequential):
    """Linear layers with x -> sin(ω x) between, initialised as in section 3.2 of the paper."""

    def __init__(self, widths: Sequence[int], frequency: float) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), Sine(frequency)]
        super().__init__(*layers[:-1])
        self.frequency = frequency

    def reset_parameters(self) -> None:
        """Weights of the first layer within ±1 / n, of the others within ±√(6 / n) / ω; biases as PyTorch's."""
        for k, layer in enumerate(part for part in self if isinstance(part, nn.Linear)):
            n = layer.in_features
            bound = 1 / n if k == 0 else (6 / n) ** 0.5 / self.frequency
            nn.init.uniform_(layer.weight, -bound, bound)


def siren(widths: Sequence[int], frequency: float = 30.0) -> Siren:
    """Coordinates (B, widths[0]) -> values (B, widths[-1]); `frequency` is ω."""
    return Siren(widths, frequency)
