r"""Many MLPs at once, stacked: the names and the order of their parameters, their weight space, and what they say.

A SIREN is an MLP too. The parameters have the names that `nn.Sequential(Linear, activation, Linear, ..)` gives them.

Legend of shapes: B networks, P inputs of each, n, m neurons, *S the shape of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lopt.weight_space import WeightSpace


def by_name(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The weight and bias of every layer, in turn, by their names.

    >>> list(by_name([torch.zeros(5, 8, 2), torch.zeros(5, 8), torch.zeros(5, 1, 8), torch.zeros(5, 1)]))
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    names = [f"{2 * layer}.{kind}" for layer in range(len(tensors) // 2) for kind in ("weight", "bias")]
    return dict(zip(names, tensors, strict=True))


def layers_of(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters among the rows of a set, in the order of the layers, a bias after its weight.

    >>> rows = {"label": torch.zeros(5), "10.weight": torch.zeros(5, 1, 8), "2.bias": torch.zeros(5, 8)}
    >>> list(layers_of({**rows, "2.weight": torch.zeros(5, 8, 2)}))
    ['2.weight', '2.bias', '10.weight']
    """
    return {name: rows[name] for name in sorted((name for name in rows if "." in name), key=_place)}


def _place(name: str) -> tuple[int, bool]:
    layer, kind = name.split(".")
    return int(layer), kind == "bias"


def space_of(tensors: Mapping[str, Tensor]) -> WeightSpace:
    """The weight space of one of the networks: name -> [B, *S], in the order of the layers."""
    return WeightSpace.linear_stack({name: x.shape[1:] for name, x in tensors.items()})


def forward(tensors: Sequence[Tensor], x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """What each network says of its own inputs.

    Shapes:
        tensors: weight [B, n, m] and bias [B, n] of every layer, in turn. x: [B, P, m] of the first layer; the result:
        [B, P, n] of the last.
    """
    return activations(tensors, x, activation)[-1]


def activations(tensors: Sequence[Tensor], x: Tensor, activation: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What the neurons of each layer say, behind the activation but for the last: [B, P, n] each; see `forward`."""
    said: list[Tensor] = []
    for weight, bias in zip(tensors[::2], tensors[1::2], strict=True):
        phase = torch.baddbmm(bias.unsqueeze(1), said[-1] if said else x, weight.mT)
        said.append(phase if bias is tensors[-1] else activation(phase))
    return said
