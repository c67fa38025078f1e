"""EquivariantLinear against the authors' layers: with coefficients mapped across, the same values and gradients.

nfn builds its layers from Conv1d, Conv2d and Linear modules. Each takes some pooled tensors, concatenated along
channels, and its result is broadcast to one tensor, so each block of its matrix is the coefficient of one of our terms.
Two things differ. nfn orders a tensor's channels as (channel, taps, input or output neurons), we as the reverse. And
HNP also reads means over the fixed inputs and outputs, which are no terms of their own: a matrix divided by the number
of entries and repeated along them. So nfn's coefficients map linearly to ours; below, the map is written in
differentiable operations, and "mapped gradients" are those with respect to nfn's coefficients, through the map.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pytest
import torch
from nfn.common import ArraySpec, NetworkSpec, WeightSpaceFeatures
from nfn.layers import HNPLinear, NPLinear
from torch import Tensor, nn
from torch.func import functional_call

from lopt import WeightSpace
from lopt.functionals import EquivariantLinear, presets
from lopt.functionals.basis import Key

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
CHANNELS = 2, 3

# The shapes of the layers' weights as nfn takes them. A Linear over a flattened 2 x 3 map is a convolution to nfn.
NETWORKS = {
    "mlp of 2": [(5, 3), (2, 5)],
    "mlp of 3": [(5, 3), (4, 5), (2, 4)],
    "mlp of 5": [(3, 2), (4, 3), (5, 4), (3, 5), (1, 3)],
    "one neuron everywhere": [(1, 1), (1, 1), (1, 1)],
    "cnn, globally pooled": [(4, 2, 3, 2), (5, 4, 2, 2), (3, 5)],
    "cnn of 2, globally pooled": [(4, 2, 2, 2), (3, 4)],
    "cnn, flattened": [(4, 3, 2, 2), (3, 4, 1, 2), (2, 3, 2, 3)],
    "cnn, flattened, then an mlp": [(3, 2, 2, 2), (4, 3, 2, 3), (3, 4), (2, 3)],
}
FLATTENED = {"cnn, flattened": 2, "cnn, flattened, then an mlp": 1}  # which layer is a Linear over a flattened map


class Network(NamedTuple):
    """One row of NETWORKS in both worlds."""

    shapes: list[tuple[int, ...]]
    flattened: int | None
    space: WeightSpace
    spec: NetworkSpec

    @property
    def depth(self) -> int:
        return len(self.shapes)


def network(name: str) -> Network:
    shapes, flattened = NETWORKS[name], FLATTENED.get(name)
    neurons = [f"in={shapes[0][1]}", *(f"h{i}:{s[0]}" for i, s in enumerate(shapes[:-1])), f"out={shapes[-1][0]}"]
    axes = {}
    for i, shape in enumerate(shapes):
        taps = [str(n) for n in shape[2:]]
        before = "*".join([neurons[i], *taps]) if i == flattened else ", ".join([neurons[i], *taps])
        axes |= {f"{i}.weight": f"{neurons[i + 1]}, {before}", f"{i}.bias": neurons[i + 1]}
    spec = NetworkSpec([ArraySpec(s) for s in shapes], [ArraySpec(s[:1]) for s in shapes])
    return Network(shapes, flattened, WeightSpace(axes), spec)


def to_nfn(x: dict[str, Tensor], net: Network) -> WeightSpaceFeatures:
    """[B, *shape, C] -> [B, C, *shape], and a flattened Linear as a convolution."""
    channels_first = {name: t.movedim(-1, 1) for name, t in x.items()}
    weights = [channels_first[f"{i}.weight"].reshape(*t.shape[:2], *net.shapes[i]) for i, t in _weights(channels_first)]
    return WeightSpaceFeatures(weights, [channels_first[f"{i}.bias"] for i in range(net.depth)])


def from_nfn(x: WeightSpaceFeatures, net: Network) -> dict[str, Tensor]:
    found = {}
    for i, (weight, bias) in enumerate(x):
        weight = weight.flatten(3) if i == net.flattened else weight
        found |= {f"{i}.weight": weight.movedim(1, -1), f"{i}.bias": bias.movedim(1, -1)}
    return found


def _weights(x: dict[str, Tensor]) -> Iterator[tuple[int, Tensor]]:
    return enumerate(t for name, t in x.items() if name.endswith("weight"))


# --- what each module of nfn reads and writes ------------------------------------------------------------------------


class Read(NamedTuple):
    """One source in the input of a module: a tensor, pooled to K; also over its fixed inputs or outputs, or not."""

    name: str
    mean_over_fixed: bool = False


class Piece(NamedTuple):
    """One module of nfn."""

    module: str
    target: str
    key: Key
    reads: list[Read]


def np_pieces(depth: int) -> Iterator[Piece]:
    """NPLinear: the neurons of layer i are the rows of weight i - 1 and the columns of weight i."""
    groups = ["in", *(f"h{i}" for i in range(depth - 1)), "out"]
    everything = [Read(f"{i}.{kind}") for kind in ("weight", "bias") for i in range(depth)]
    for i in range(depth):
        weight, bias = f"{i}.weight", f"{i}.bias"
        columns = [Read(weight)] + [Read(f"{i - 1}.{kind}") for kind in ("weight", "bias") if i]
        rows = [Read(weight), Read(bias)] + [Read(f"{i + 1}.weight")] * (i + 1 < depth)
        yield Piece(f"layer_{i}", weight, (groups[i + 1], groups[i]), [Read(weight)])
        yield Piece(f"layer_{i}_rc", weight, (), everything)
        yield Piece(f"layer_{i}_r", weight, (groups[i],), columns)
        yield Piece(f"layer_{i}_c", weight, (groups[i + 1],), rows)
        yield Piece(f"bias_{i}", bias, (groups[i + 1],), rows)
        yield Piece(f"bias_{i}_rc", bias, (), everything)


def hnp_pieces(depth: int) -> Iterator[Piece]:
    """HNPLinear: first and last layer apart; the tensors with inputs or outputs once as a mean and once in full."""
    last = depth - 1
    hidden = [f"h{i}" for i in range(last)]
    first_weight, last_weight, last_bias = "0.weight", f"{last}.weight", f"{last}.bias"
    with_fixed = {first_weight, last_weight, last_bias}

    def mean(name: str) -> Read:
        return Read(name, name in with_fixed)

    everything = [mean(f"{i}.{kind}") for kind in ("weight", "bias") for i in range(depth)]
    everything += [Read(first_weight), Read(last_weight), Read(last_bias)]
    rows = [Read(first_weight), mean("1.weight"), Read("0.bias")] + [Read(last_weight)] * (depth == 2)
    yield Piece("w0_rpt", first_weight, (hidden[0],), rows)
    yield Piece("w0_rbdcst", first_weight, (), everything)
    yield Piece("bias_0", "0.bias", (hidden[0],), rows)
    yield Piece("bias_0_rc", "0.bias", (), everything)
    for i in range(1, last):
        weight, bias = f"{i}.weight", f"{i}.bias"
        columns = [Read(weight), mean(f"{i - 1}.weight"), Read(f"{i - 1}.bias")] + [Read(first_weight)] * (i == 1)
        rows = [Read(weight), Read(bias), mean(f"{i + 1}.weight")] + [Read(last_weight)] * (i == last - 1)
        yield Piece(f"layer_{i}", weight, (hidden[i], hidden[i - 1]), [Read(weight)])
        yield Piece(f"layer_{i}_rc", weight, (), everything)
        yield Piece(f"layer_{i}_r", weight, (hidden[i - 1],), columns)
        yield Piece(f"layer_{i}_c", weight, (hidden[i],), rows)
        yield Piece(f"bias_{i}", bias, (hidden[i],), rows)
        yield Piece(f"bias_{i}_rc", bias, (), everything)
    columns = [Read(last_weight), mean(f"{last - 1}.weight")] + [Read(first_weight)] * (depth == 2)
    yield Piece("wfin_cpt", last_weight, (hidden[-1],), columns)
    yield Piece("wfin_cbdcst", last_weight, (), everything)
    yield Piece("bias_fin_rc", last_bias, (), everything)


# --- the map from their coefficients to ours -------------------------------------------------------------------------

Theta = Mapping[str, Tensor]  # nfn's coefficients by name
Address = tuple[str, str, Key]  # output, input, the groups along which the term reads and writes


def addresses(layer: EquivariantLinear) -> list[Address]:
    """Without repeated groups and with one atom for each parameter, a term is its output, its input and K."""
    names = [atom.parameter for atom in layer.atoms]
    return [(names[term.writing.atom], names[term.reading.atom], term.key) for term in layer.terms]


def name_of(layer: nn.Module, parameter: nn.Parameter) -> str:
    return next(name for name, p in layer.named_parameters() if p is parameter)


def coefficients(layer: EquivariantLinear, blocks: dict[Address, Tensor]) -> dict[str, Tensor]:
    """The layer's weights by name, with these blocks and zeros elsewhere.

    There is one matrix for each K, in the order of the terms, with rows for readings and columns for writings.
    """
    size = {atom.parameter: atom.multiplicity for atom in layer.atoms}
    weights = {}
    for key, weight in zip(dict.fromkeys(t.key for t in layer.terms), layer.weights.parameters(), strict=True):
        here = [address for address in addresses(layer) if address[2] == key]
        outputs, inputs = dict.fromkeys(o for o, _, _ in here), dict.fromkeys(i for _, i, _ in here)

        def block(o: str, i: str, key: Key = key, weight: Tensor = weight) -> Tensor:
            zeros = weight.new_zeros(size[i] * layer.in_channels, size[o] * layer.out_channels)
            return blocks.get((o, i, key), zeros)

        weights[name_of(layer, weight)] = torch.cat([torch.cat([block(o, i) for i in inputs]) for o in outputs], 1)
    return weights


def mapped(layer: EquivariantLinear, pieces: list[Piece], net: Network, theta: Theta) -> dict[str, Tensor]:
    """The coefficients of nfn as ours, by name."""
    fixed = {a.parameter: a.multiplicity for a in layer.atoms}
    taps = {f"{i}.weight": torch.Size(shape[2:]).numel() for i, shape in enumerate(net.shapes)}
    blocks: dict[Address, Tensor] = {}
    bias = {name: torch.zeros(()) for name in layer.space}
    c_in, c_out = layer.in_channels, layer.out_channels
    for piece in pieces:
        t_out = taps.get(piece.target, 1)
        io_out = fixed[piece.target] // t_out  # inputs or outputs that are fixed axes
        widths = [c_in * (taps.get(r.name, 1) if r.mean_over_fixed else fixed[r.name]) for r in piece.reads]
        matrix = theta[f"{piece.module}.weight"].reshape(c_out * fixed[piece.target], -1)
        for read, part in zip(piece.reads, matrix.split(widths, dim=1), strict=True):
            t_in = taps.get(read.name, 1)
            io_in = fixed[read.name] // t_in
            part = part.reshape(c_out, t_out, io_out, c_in, t_in, -1)
            if read.mean_over_fixed:
                part = part.expand(*part.shape[:-1], io_in) / io_in
            block = part.permute(5, 4, 3, 2, 1, 0).reshape(io_in * t_in * c_in, io_out * t_out * c_out)
            address = (piece.target, read.name, tuple(sorted(piece.key)))
            blocks[address] = blocks.get(address, 0) + block
        one = theta[f"{piece.module}.bias"].reshape(c_out, t_out, io_out).permute(2, 1, 0).flatten()
        bias[piece.target] = bias[piece.target] + one
    assert set(blocks) <= set(addresses(layer))
    order = dict.fromkeys(o for o, _, key in addresses(layer) if not key)
    assert layer.bias is not None
    return {**coefficients(layer, blocks), name_of(layer, layer.bias): torch.cat([bias[name] for name in order])}


class Pair(NamedTuple):
    """Both layers, with what maps one to the other."""

    net: Network
    theirs: nn.Module
    ours: EquivariantLinear
    pieces: list[Piece]


def pair(kind: str, name: str, dtype: torch.dtype = torch.float64) -> Pair:
    torch.manual_seed(0)
    net = network(name)
    if kind == "np":
        layers = NPLinear(net.spec, *CHANNELS, io_embed=False), presets.np(net.space, *CHANNELS)
        pieces = np_pieces(net.depth)
    else:
        layers = HNPLinear(net.spec, *CHANNELS), presets.hnp(net.space, *CHANNELS)
        pieces = hnp_pieces(net.depth)
    return Pair(net, layers[0].to(dtype), layers[1].to(dtype), list(pieces))


def inputs(net: Network, dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {k: torch.randn(4, *s, CHANNELS[0], generator=g, dtype=dtype) for k, s in net.space.shapes.items()}


# --- equality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["np", "hnp"])
def test_the_layers_are_equal_in_values_and_gradients(kind, name, dtype):
    net, theirs, ours, pieces = pair(kind, name, dtype)
    theta = dict(theirs.named_parameters())
    assert {f"{piece.module}.{part}" for piece in pieces for part in ("weight", "bias")} == set(theta)
    x = {k: t.requires_grad_() for k, t in inputs(net, dtype).items()}
    error = TOLERANCE[dtype]

    expected = from_nfn(theirs(to_nfn(x, net)), net)
    came = functional_call(ours, mapped(ours, pieces, net, theta), (x,))
    torch.testing.assert_close(came, expected, rtol=error, atol=error)

    over = [*x.values(), *theta.values()]
    losses = [torch.stack([y[k].sin().mean() for k in net.space]).sum() for y in (came, expected)]
    gradients = [torch.autograd.grad(loss, over) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=error, atol=error)


# --- whether the bases are the same ----------------------------------------------------------------------------------


def missing(pair: Pair) -> set[Address]:
    """Terms of ours that no module of nfn holds."""
    hit = {(p.target, read.name, tuple(sorted(p.key))) for p in pair.pieces for read in p.reads}
    return set(addresses(pair.ours)) - hit


@pytest.mark.parametrize("name", NETWORKS)
def test_np_has_every_term_once(name):
    both = pair("np", name)
    assert missing(both) == set()
    reads = sum(len(piece.reads) for piece in both.pieces)
    assert reads == len(both.ours.terms)


@pytest.mark.parametrize("name", NETWORKS)
def test_hnp_lacks_one_term(name):
    """From the last hidden bias along the columns of the last weight: equivariant, and absent from nfn 0.1.2.

    Above, its coefficient is zero. Every other coefficient of ours is one of nfn's, so the map is onto, and equal
    mapped gradients mean equal gradients.
    """
    both = pair("hnp", name)
    last = both.net.depth - 1
    assert missing(both) == {(f"{last}.weight", f"{last - 1}.bias", (f"h{last - 1}",))}
    in_full = {(p.target, r.name, tuple(sorted(p.key))) for p in both.pieces for r in p.reads if not r.mean_over_fixed}
    assert in_full == set(addresses(both.ours)) - missing(both)


@pytest.mark.parametrize("kind", ["np", "hnp"])
def test_the_comparison_notices_two_coefficients_exchanged(kind):
    net, theirs, ours, pieces = pair(kind, "mlp of 3")
    theta, x = dict(theirs.named_parameters()), inputs(net, torch.float64)
    expected = from_nfn(theirs(to_nfn(x, net)), net)
    at = [piece.module for piece in pieces].index("layer_1_r")
    first, second, third, *others = pieces[at].reads
    wrong = [*pieces[:at], pieces[at]._replace(reads=[third, second, first, *others]), *pieces[at + 1 :]]
    came = functional_call(ours, mapped(ours, wrong, net, theta), (x,))
    assert (came["1.weight"] - expected["1.weight"]).abs().amax() > 1e-2
