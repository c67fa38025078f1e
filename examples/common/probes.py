r"""What the neurons of an INR say at a few points: features that a functional would have to work out from the weights.

    a_1 = sin(ω (W_1 p + b_1)),  a_l = sin(ω (W_l a_{l-1} + b_l)),  a_L = W_L a_{L-1} + b_L    for points p_1 .. p_P

A neuron's row of P values takes part in a permutation as its bias does, so an MLP of that row can be added to the
features of the bias, and all stays equivariant. The points are learned. Kofinas et al. (arXiv 2403.12143, section 2.2)
introduced probe features for graph networks.

Legend of shapes: B networks, n, m neurons, P points, c channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from examples.common.mlps import activations, layers_of
from lopt.functionals import mlp
from lopt.weight_space import WeightSpace


class Probes(nn.Module):
    """Adds to the features of every bias what its neurons say at learned points.

    Args:
        space: of the INRs.
        channels: c.
        points: P, drawn uniformly in [-1, 1] at first.
        frequency: ω of the sines.

    Shapes:
        tensors: weights [B, n, m] and biases [B, n], as they are; features: name -> [B, *S, c], the result likewise.

    >>> inrs = {"0.weight": torch.randn(5, 8, 2), "0.bias": torch.randn(5, 8)}
    >>> inrs |= {"2.weight": torch.randn(5, 1, 8), "2.bias": torch.randn(5, 1)}
    >>> space = WeightSpace.linear_stack({name: x.shape[1:] for name, x in inrs.items()})
    >>> features = {name: torch.zeros(*x.shape, 4) for name, x in inrs.items()}
    >>> probed = Probes(space, 4, points=16, frequency=30.0)(inrs, features)
    >>> {name: bool(x.any()) for name, x in probed.items()}
    {'0.weight': False, '0.bias': True, '2.weight': False, '2.bias': True}
    """

    def __init__(self, space: WeightSpace, channels: int, points: int, frequency: float) -> None:
        super().__init__()
        self.names = list(layers_of(dict.fromkeys(space, torch.empty(0))))
        self.frequency = frequency
        self.points = nn.Parameter(2 * torch.rand(points, space.shapes[self.names[0]][1]) - 1)
        self.read = nn.ModuleList(mlp([points, channels, channels], nn.GELU) for _ in self.names[1::2])

    def forward(self, tensors: Mapping[str, Tensor], features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = dict(features)
        for bias, values, read in zip(self.names[1::2], self.values(tensors), self.read, strict=True):
            found[bias] = found[bias] + read(values.mT)
        return found

    def values(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """What the neurons of each layer say at the points: [B, P, n], of the last one without a sine."""
        points = self.points.expand(len(tensors[self.names[0]]), -1, -1)
        layers = [tensors[name] for name in self.names]
        return activations(layers, points, lambda phase: torch.sin(self.frequency * phase))
