"""Multilayer perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from tasks.modules.parts import ACTIVATIONS, NORMS, Network


def mlp(
    widths: Sequence[int], activation: str = "relu", norm: str = "none", initialisation: str = "default"
) -> Network:
    """Linear layers of these widths, (B, widths[0]) -> (B, widths[-1]); norm and activation after all but the last.

    >>> mlp([3, 4, 2], norm="layer")
    Network(
      (0): Linear(in_features=3, out_features=4, bias=True)
      (1): LayerNorm((4,), eps=1e-05, elementwise_affine=True, bias=True)
      (2): ReLU()
      (3): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Linear(before, after))
        if norm != "none":
            layers.append(NORMS[norm](after))
        layers.append(ACTIVATIONS[activation]())
    return Network(layers[:-1] if norm == "none" or len(widths) == 2 else layers[:-2], initialisation)
