r"""Neural functionals, and MLPs on raw weights, by name; all from the weights of a batch of networks.

    weights [B, *S]  ->  standardised  ->  features [B, *S, c]  ->  NF-layers  ->  pooled  ->  MLP  ->  [B, outputs]
                     ->  probes  --------------^                               ->  weights [B, *S]

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

from examples.common.probes import Probes
from lopt.errors import InvalidInput, unknown
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
from tasks.arguments import check_at_least, pick
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
        probes: of the neural functionals, where networks are INRs: the points at which they see what its neurons say
            (see `Probes`); 0: none.
        frequency: ω of the INRs, for probes.

    Raises:
        InvalidInput: there is no such activation; fewer than 0 probes; probes without a frequency.
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
    probes: int = 0
    frequency: float | None = None

    def __post_init__(self) -> None:
        pick("activation", self.activation, ACTIVATIONS)
        check_at_least("probes", self.probes, 0)
        if self.probes and self.frequency is None:
            raise InvalidInput(f"probes: {self.probes}, but no frequency: probes need the ω of the INRs")


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
    start = Start(name, space, Standardise(tensors), size)
    if name == "nft":
        return nn.Sequential(start, *_transformer(space, start.channels, outputs, size))
    reduction = "max" if name == "dws" else size.pool
    widths, activation = [start.channels, *[size.channels] * size.layers], ACTIVATIONS[size.activation]
    network = presets.invariant(name, space, widths, [size.head, outputs], activation, reduction)
    return nn.Sequential(start, network)


class Start(nn.Module):
    """From the weights of networks to the features of the first NF-layer.

    Attributes:
        channels: how many those have.

    Shapes:
        tensors: name -> [B, *S]; the result: name -> [B, *S, channels].
    """

    def __init__(self, name: str, space: WeightSpace, standardise: Standardise, size: Architecture) -> None:
        super().__init__()
        path: list[nn.Module] = [standardise, Channel()]
        channels = 1
        if size.frequencies:
            fourier = FourierFeatures(space, 1, size.frequencies)
            path, channels = [*path, fourier], fourier.out_channels
        if name == "np":
            path.append(PositionEncoding(space, channels, how="concatenate", width=size.code))
            channels += size.code
        self.probes = None
        if size.probes and size.frequency is not None:
            path.append(Pointwise(nn.Linear(channels, size.channels)))
            channels = size.channels
            self.probes = Probes(space, channels, size.probes, size.frequency)
        self.path, self.channels = nn.Sequential(*path), channels

    def forward(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = self.path(tensors)
        return features if self.probes is None else self.probes(tensors, features)


class Editor(nn.Module):
    r"""Adds to weights what a network makes of them, in units of their standard deviations: W' = W + γ σ f(W).

    Args:
        standardise: has σ. The network that wants standardised weights has it inside, too.
        network: f, from weights [B, *S] as they are to the same shapes.

    Shapes:
        tensors: name -> [B, *S]; the result likewise.
    """

    def __init__(self, standardise: Standardise, network: nn.Module) -> None:
        super().__init__()
        self.standardise, self.network = standardise, network
        self.step = nn.Parameter(torch.full((len(standardise.names),), FIRST_STEP))

    def forward(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        change = self.network(tensors)
        return {
            name: tensors[name] + self.step[i] * self.standardise.get_buffer(f"std{i}") * change[name]
            for i, name in enumerate(self.standardise.names)
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
        standardise = Standardise(tensors, each=True)
        return Editor(standardise, nn.Sequential(standardise, Flatten(), row, Unflatten(space)))
    standardise = Standardise(tensors)
    start = Start(name, space, standardise, size)
    widths = [start.channels, *[size.channels] * (size.layers - 1), 1]
    stack = presets.stack(name, space, widths, ACTIVATIONS[size.activation])
    return Editor(standardise, nn.Sequential(start, stack, Unchannel()))


def _transformer(space: WeightSpace, channels: int, outputs: int, size: Architecture) -> list[nn.Module]:
    """From features of so many channels to the outputs."""
    c, relaxed = size.channels, space.relaxed()
    pool = InvariantPool(relaxed, c, size.pool)
    return [
        Pointwise(nn.Linear(channels, c)),
        LayerEncoding(space, c),
        PositionEncoding(space, c),
        *(nft_block(relaxed, c, size.heads, sharing="tensor") for _ in range(size.layers)),
        pool,
        mlp([pool.out_features, size.head, outputs]),
    ]
