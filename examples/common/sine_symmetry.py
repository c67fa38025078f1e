r"""The symmetry that a SIREN has besides permutations, and a way to be rid of it.

    a sin(ω (w x + b)) = -a sin(ω (-w x - b)) = -a sin(ω (w x + b + π / ω))

So each hidden neuron can change sign with what goes in and comes out, and its phase can turn by half a period, and the
function stays the same: endlessly many weights for one image, which a functional would have to learn are alike.
`canonical` picks one of them, in a way that permutations commute with: a neuron's choice depends on that neuron alone.

Legend of shapes: B networks, n, m neurons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor


def canonical(tensors: Mapping[str, Tensor], frequency: float) -> dict[str, Tensor]:
    """The same functions, with phases within ±π / 2 and a sign for each neuron.

    The first hidden layer's neurons have no negative weight at the first input, the last one's none at the first
    output, and those between no negative bias.

    Args:
        tensors: weights [B, n, m] and biases [B, n] in the order of the layers, as `load_inrs` has them.
        frequency: ω of the sines.

    >>> network = {"0.weight": torch.tensor([[[-1.0]]]), "0.bias": torch.tensor([[4.0]])}
    >>> network |= {"2.weight": torch.tensor([[[1.0]]]), "2.bias": torch.zeros(1, 1)}
    >>> {name: round(x.item(), 2) for name, x in canonical(network, 1.0).items()}  # sin(4 - x) = sin(x - (4 - π))
    {'0.weight': 1.0, '0.bias': -0.86, '2.weight': 1.0, '2.bias': 0.0}
    """
    found = dict(tensors)
    layers = list(zip(list(found)[::2], list(found)[1::2], strict=True))
    for (_, bias), (following, _) in pairwise(layers):
        turns = torch.round(found[bias] * frequency / math.pi)
        found[bias] = found[bias] - turns * math.pi / frequency
        found[following] = found[following] * (1 - 2 * turns.remainder(2)).unsqueeze(1)
    for depth, ((weight, bias), (following, _)) in enumerate(pairwise(layers)):
        # What decides must not itself be permuted: the first input, the first output, or the neuron's own bias.
        if depth == 0:
            deciding = found[weight][:, :, 0]
        else:
            deciding = found[following][:, 0] if depth == len(layers) - 2 else found[bias]
        sign = torch.where(deciding < 0, -1.0, 1.0)
        found[weight], found[bias] = found[weight] * sign.unsqueeze(2), found[bias] * sign
        found[following] = found[following] * sign.unsqueeze(1)
    return found
