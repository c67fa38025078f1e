r"""Neural functionals, and MLPs on raw weights, by name; all from the weights of a batch of networks.

    weights [B, *S]  ->  standardised  ->  features [B, *S, c]  ->  NF-layers  ->  pooled  ->  MLP  ->  [B, outputs]
                                                                               ->  weights [B, *S]

`make_model` makes the first kind, `make_editor` the second.

    dws            DWSNets' layers, pooled by their maximum
    hnp            the same maps, as NFN has them, with a choice of the pool
    np             NFN's NP layers: positions of inputs and outputs enter by a code
    nft            a Neural Functional Transformer
    mlp            an MLP on all weights in a row, which knows of no symmetry

Legend of shapes: B networks, *S the shape of a parameter, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lopt.errors import unknown
from lopt.functionals import (
    FourierFeatures,
    InvariantPool,
    LayerEncoding,
    Pointwise,
    PositionEncoding,
    mlp,
    nft_block,
    presets,
)
from lopt.weight_space import WeightSpace
from tasks.arguments import pick
from tasks.modules.parts import ACTIVATIONS

LEAST_STD = 1e-6  # a weight that never varies stays at zero instead of dividing by zero
NAMES = ("dws", "np", "hnp", "nft", "mlp")
EDITORS = ("np", "hnp", "mlp")
FIRST_STEP = 0.1  # of an untrained editor, in standard deviations of the weights


@dataclass(frozen=True)
class Architecture:
    """The size of a model.

    Args:
        channels: c, of every NF-layer.
        layers: how many NF-layers, or blocks of a transformer.
        code: width of the code of a position, for `np`.
        heads: of attention, for `nft`.
        head: hidden width of the MLP behind the pool.
        pool: what `np`, `hnp` and `nft` pool by: mean, max, sum or attention.
        width: of the two hidden layers of the MLP on raw weights.
        frequencies: of the random Fourier features that the neural functionals see beside a weight; 0: none.
        activation: between the NF-layers of dws, np and hnp, one of tasks.modules.parts.ACTIVATIONS; nft has its own.

    Raises:
        InvalidInput: there is no such activation.
    """

    channels: int = 32
    layers: int = 3
    code: int = 8
    heads: int = 4
    head: int = 128
    pool: str = "mean"
    width: int = 512
    frequencies: int = 0
    activation: str = "relu"

    def __post_init__(self) -> None:
        pick("activation", self.activation, ACTIVATIONS)


class Standardise(nn.Module):
    """Brings weights to mean 0 and standard deviation 1, by statistics over many networks.

    Over a whole tensor, and so equivariant: `each=False`. Over every weight on its own, for MLPs: `each=True`.

    Shapes:
        tensors: name -> [N, *S], of which the statistics are taken; the input and the result likewise.
    """

    def __init__(self, tensors: Mapping[str, Tensor], each: bool = False) -> None:
        super().__init__()
        self.names = list(tensors)
        for index, x in enumerate(tensors.values()):
            std, mean = torch.std_mean(x, dim=0 if each else None)
            self.register_buffer(f"mean{index}", mean)
            self.register_buffer(f"std{index}", std.clamp_min(LEAST_STD))

    def forward(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: (tensors[name] - self.get_buffer(f"mean{i}")) / self.get_buffer(f"std{i}")
            for i, name in enumerate(self.names)
        }


class Channel(nn.Module):
    """[B, *S] -> [B, *S, 1]."""

    def forward(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: x.unsqueeze(-1) for name, x in tensors.items()}


class Flatten(nn.Module):
    """All weights of a network in a row."""

    def forward(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([x.flatten(1) for x in tensors.values()], 1)


def make_model(
    name: str, space: WeightSpace, tensors: Mapping[str, Tensor], outputs: int, size: Architecture
) -> nn.Module:
    """A model from weights [B, *S] to [B, outputs].

    Args:
        tensors: networks that the statistics of the weights are taken from: the train split.

    Raises:
        InvalidInput: no such model.

    >>> space = WeightSpace({"0.weight": "h:8, in=2", "0.bias": "h:8", "2.weight": "out=1, h:8", "2.bias": "out=1"})
    >>> networks = {name: torch.randn(5, *shape) for name, shape in space.shapes.items()}
    >>> make_model("np", space, networks, 10, Architecture(channels=4))(networks).shape
    torch.Size([5, 10])
    """
    if name not in NAMES:
        raise unknown("model", name, NAMES)
    if name == "mlp":
        count = sum(x[0].numel() for x in tensors.values())
        return nn.Sequential(Standardise(tensors, each=True), Flatten(), mlp([count, size.width, size.width, outputs]))
    if name == "nft":
        return nn.Sequential(Standardise(tensors), *_transformer(space, outputs, size))
    start, channels = _start(name, space, size)
    reduction = "max" if name == "dws" else size.pool
    widths, activation = [channels, *[size.channels] * size.layers], ACTIVATIONS[size.activation]
    network = presets.invariant(name, space, widths, [size.head, outputs], activation, reduction)
    return nn.Sequential(Standardise(tensors), *start, network)


class Editor(nn.Module):
    r"""Adds to weights what a network makes of them, in units of their standard deviations: W' = W + γ σ f(W).

    Shapes:
        tensors: name -> [B, *S]; the result likewise.
    """

    def __init__(self, start: Standardise, network: nn.Module) -> None:
        super().__init__()
        self.start, self.network = start, network
        self.step = nn.Parameter(torch.full((len(start.names),), FIRST_STEP))

    def forward(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        change = self.network(self.start(tensors))
        return {
            name: tensors[name] + self.step[i] * self.start.get_buffer(f"std{i}") * change[name]
            for i, name in enumerate(self.start.names)
        }


class Unchannel(nn.Module):
    """[B, *S, 1] -> [B, *S]."""

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: x.squeeze(-1) for name, x in features.items()}


class Unflatten(nn.Module):
    """The inverse of `Flatten`."""

    def __init__(self, space: WeightSpace) -> None:
        super().__init__()
        self.shapes = space.shapes

    def forward(self, row: Tensor) -> dict[str, Tensor]:
        parts = row.split([math.prod(shape) for shape in self.shapes.values()], 1)
        return {name: x.unflatten(1, shape) for (name, shape), x in zip(self.shapes.items(), parts, strict=True)}


def make_editor(name: str, space: WeightSpace, tensors: Mapping[str, Tensor], size: Architecture) -> Editor:
    """A model from weights to weights, equivariant unless it is the `mlp`.

    Args:
        tensors: networks that the statistics of the weights are taken from: the train split.

    Raises:
        InvalidInput: no such model.

    >>> space = WeightSpace({"0.weight": "h:8, in=2", "0.bias": "h:8", "2.weight": "out=1, h:8", "2.bias": "out=1"})
    >>> networks = {name: torch.randn(5, *shape) for name, shape in space.shapes.items()}
    >>> make_editor("hnp", space, networks, Architecture(channels=4))(networks)["2.weight"].shape
    torch.Size([5, 1, 8])
    """
    if name not in EDITORS:
        raise unknown("model", name, EDITORS)
    if name == "mlp":
        count = sum(x[0].numel() for x in tensors.values())
        row = mlp([count, size.width, size.width, count])
        return Editor(Standardise(tensors, each=True), nn.Sequential(Flatten(), row, Unflatten(space)))
    start, channels = _start(name, space, size)
    widths = [channels, *[size.channels] * (size.layers - 1), 1]
    stack = presets.stack(name, space, widths, ACTIVATIONS[size.activation])
    return Editor(Standardise(tensors), nn.Sequential(*start, stack, Unchannel()))


def _start(name: str, space: WeightSpace, size: Architecture) -> tuple[list[nn.Module], int]:
    """From standardised weights to the features of the first NF-layer, and how many channels those have."""
    start: list[nn.Module] = [Channel()]
    channels = 1
    if size.frequencies:
        fourier = FourierFeatures(space, 1, size.frequencies)
        start, channels = [*start, fourier], fourier.out_channels
    if name == "np":
        start.append(PositionEncoding(space, channels, how="concatenate", width=size.code))
        channels += size.code
    return start, channels


def _transformer(space: WeightSpace, outputs: int, size: Architecture) -> list[nn.Module]:
    c, relaxed = size.channels, space.relaxed()
    start, channels = _start("nft", space, size)
    pool = InvariantPool(relaxed, c, size.pool)
    return [
        *start,
        Pointwise(nn.Linear(channels, c)),
        LayerEncoding(space, c),
        PositionEncoding(space, c),
        *(nft_block(relaxed, c, size.heads, sharing="tensor") for _ in range(size.layers)),
        pool,
        mlp([pool.out_features, size.head, outputs]),
    ]
