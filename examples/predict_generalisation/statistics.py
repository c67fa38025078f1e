"""What StatNN sees of a network: seven numbers for each tensor (Unterthiner et al., arXiv 2002.11448, section 4).

Legend of shapes: N networks, *S the shape of a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lopt.functionals import mlp

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
STATISTICS = 2 + len(QUANTILES)
LEAST_STD = 1e-6  # a statistic that never varies stays at zero instead of dividing by zero


def statistics(tensors: Mapping[str, Tensor]) -> Tensor:
    """Mean, variance and quartiles with both ends, of every tensor: [N, tensors * 7].

    Shapes:
        tensors: name -> [N, *S].

    >>> statistics({"weight": torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), "bias": torch.zeros(1, 3)}).shape
    torch.Size([1, 14])
    >>> statistics({"bias": torch.tensor([[1.0, 2.0, 3.0]])})
    tensor([[2.0000, 0.6667, 1.0000, 1.5000, 2.0000, 2.5000, 3.0000]])
    """
    found = []
    for x in tensors.values():
        flat = x.flatten(1)
        variance, mean = torch.var_mean(flat, 1, correction=0)
        found += [mean, variance, *torch.quantile(flat, torch.tensor(QUANTILES).to(flat), dim=1)]
    return torch.stack(found, 1)


class StatNN(nn.Module):
    """An MLP on the statistics, each brought to mean 0 and standard deviation 1: name -> [N, *S] to [N, 1].

    Args:
        tensors: networks that mean and standard deviation are taken from: the train split.
        width: of the two hidden layers.
    """

    def __init__(self, tensors: Mapping[str, Tensor], width: int) -> None:
        super().__init__()
        std, mean = torch.std_mean(statistics(tensors), 0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std.clamp_min(LEAST_STD))
        self.network = mlp([len(mean), width, width, 1])

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self.network((statistics(tensors) - self.get_buffer("mean")) / self.get_buffer("std"))
