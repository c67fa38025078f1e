"""Pooling: invariants against loops and nfn's pools, and the equivariant layer that reduces by maximum or attention."""

import itertools
import math
from typing import Any, TypeVar

import pytest
import torch
from nfn.common import ArraySpec, NetworkSpec, WeightSpaceFeatures
from nfn.layers import HNPPool, NPPool
from torch import Tensor, nn

from lopt import WeightSpace
from lopt.functionals import EquivariantLinear, Pointwise, mlp
from lopt.functionals.atoms import join, split
from lopt.functionals.pool import InvariantPool
from lopt.functionals.reductions import REDUCTIONS, Reduction
from lopt.functionals.set_layers import EquivariantSetLayer

M = TypeVar("M", bound=nn.Module)

SPACES = {
    "linear stack": {"0.weight": "h:4, in=3", "0.bias": "h:4", "2.weight": "out=2, h:4", "2.bias": "out=2"},
    "relaxed stack": {"0.weight": "h:4, in:3", "0.bias": "h:4", "2.weight": "out:2, h:4", "2.bias": "out:2"},
    "convolution": {"conv.weight": "c:3, 2, 3", "conv.bias": "c:3", "fc.weight": "out=2, c:3*3", "fc.bias": "out=2"},
    "recurrent": {"ih": "h:3, in=2", "hh": "h:3, h:3", "b": "h:3"},
    "heads": {"qkv": "H:2*d[H]:3+H:2*e[H]:2, in=2", "scalar": ""},
}


def features(space: WeightSpace, channels: int, *batch: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {k: torch.randn(*batch, *s, channels, generator=g, dtype=torch.float64) for k, s in space.shapes.items()}


@pytest.fixture(params=SPACES)
def space(request) -> WeightSpace:
    return WeightSpace(SPACES[request.param])


def randomised(module: M) -> M:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p)
    return module.double()


# --- reductions ------------------------------------------------------------------------------------------------------


def slow_reduce(reduction: Any, vectors: list[Tensor]) -> Tensor:
    """A list of vectors [C] as one, number by number."""
    kind, query = reduction.kind, reduction.query
    assert vectors
    if kind == "attention":
        scores = [
            sum(float(a * b) for a, b in zip(v.detach(), query.detach(), strict=True)) / math.sqrt(len(v))
            for v in vectors
        ]
        weights = [math.exp(score) for score in scores]
        return sum((v * w for v, w in zip(vectors, weights, strict=True)), torch.zeros(())) / sum(weights)
    columns = [[float(v[c]) for v in vectors] for c in range(len(vectors[0]))]
    reduce = {"mean": lambda column: sum(column) / len(column), "sum": sum, "max": max}[kind]
    return torch.tensor([reduce(column) for column in columns], dtype=torch.float64)


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reductions_are_their_slow_twins(kind):
    reduction = randomised(Reduction(kind, 5))
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    came = reduction(x, [-3, -2])
    assert came.shape == (2, 5)
    for network in range(2):
        torch.testing.assert_close(came[network], slow_reduce(reduction, list(x[network].flatten(0, 1))))
    assert torch.equal(reduction(x, []), x)
    assert torch.equal(reduction(x[:, :0], [-3]), torch.zeros(2, 4, 5))


def test_attention_begins_as_the_mean_and_survives_large_scores():
    attention, x = Reduction("attention", 2), torch.randn(6, 2)
    torch.testing.assert_close(attention(x, [-2]), x.mean(0))
    for query in attention.parameters():
        nn.init.constant_(query, 1e4)
    torch.testing.assert_close(attention(x, [-2]), x[x.sum(-1).argmax()])


def test_an_unknown_reduction_names_its_neighbours():
    with pytest.raises(ValueError, match="unknown reduction 'maxx'; did you mean 'max'"):
        Reduction("maxx", 1)


# --- invariants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_pools_are_their_slow_twins(reduction):
    space = WeightSpace({"w": "h:4, 2, in=3", "hh": "h:4, h:4", "t": ""})
    x = features(space, 5)
    kept, pooled = (randomised(InvariantPool(space, 5, reduction, fixed)) for fixed in ("kept", "pooled"))
    sides = {
        "w": [[x["w"][j].flatten() for j in range(4)]],
        "hh": [[x["hh"][j, j] for j in range(4)], [x["hh"][j, k] for j in range(4) for k in range(4)]],
        "t": [[x["t"]]],
    }
    queries = iter(kept.reductions)
    for name, y in kept.per_tensor(x).items():
        torch.testing.assert_close(y, torch.cat([slow_reduce(next(queries), side) for side in sides[name]]))
    sides["w"] = [[x["w"][j, k, i] for j in range(4) for k in range(2) for i in range(3)]]
    queries = iter(pooled.reductions)
    for name, y in pooled.per_tensor(x).items():
        torch.testing.assert_close(y, torch.cat([slow_reduce(next(queries), side) for side in sides[name]]))
    assert kept.widths == {"w": 30, "hh": 10, "t": 5}
    assert pooled.widths == {"w": 5, "hh": 10, "t": 5}
    assert torch.equal(kept(x), torch.cat(list(kept.per_tensor(x).values())))


@pytest.mark.parametrize(("theirs", "relaxed"), [(HNPPool, False), (NPPool, True)])
@pytest.mark.parametrize("taps", [(), (2, 2)])
def test_pools_are_those_of_nfn(theirs, relaxed, taps):
    sizes, text = (3, 5, 4, 2), "".join(f", {tap}" for tap in taps)
    axes = ["in=3", "a:5", "b:4", "out=2"]
    parameters = {}
    for layer in range(3):
        parameters[f"w{layer}"] = f"{axes[layer + 1]}, {axes[layer]}{text}"
        parameters[f"b{layer}"] = axes[layer + 1]
    space = WeightSpace(parameters)
    x = features(space, 6, 7)
    spec = NetworkSpec(
        [ArraySpec((sizes[i + 1], sizes[i], *taps)) for i in range(3)], [ArraySpec((sizes[i + 1],)) for i in range(3)]
    )
    first = {name: t.movedim(-1, 1) for name, t in x.items()}
    wanted = theirs(spec)(WeightSpaceFeatures([first[f"w{i}"] for i in range(3)], [first[f"b{i}"] for i in range(3)]))
    pool = InvariantPool(space.relaxed() if relaxed else space, 6)
    # Theirs is [B, C, positions]; ours has the positions of each tensor first.
    ours = torch.cat([y.unflatten(-1, (-1, 6)) for y in pool.per_tensor(x).values()], 1).movedim(-1, 1)
    torch.testing.assert_close(ours, wanted)


def test_pooled_means_are_all_invariant_linear_maps(space):
    """As many as there are orbits of entries: what the mean over all permutations leaves of the space."""
    total = sum(math.prod(shape) for shape in space.shapes.values())
    ids = torch.arange(total).split([math.prod(shape) for shape in space.shapes.values()])
    named = {name: part.reshape(shape) for part, (name, shape) in zip(ids, space.shapes.items(), strict=True)}
    generator, seen = torch.Generator().manual_seed(0), torch.eye(total, dtype=torch.bool)
    for _ in range(60):
        moved = space.permute(named, space.random_permutations(generator))
        seen[torch.arange(total), torch.cat([t.flatten() for t in moved.values()])] = True
    closure = torch.linalg.matrix_power(seen.double() + seen.double().T, 8) > 0
    assert InvariantPool(space, 1).out_features == len({tuple(row.tolist()) for row in closure})


def test_an_invariant_network_is_invariant_and_sees_the_coupling(space):
    pool = InvariantPool(space, 6, "attention")
    layers = EquivariantLinear(space, 2, 6), Pointwise(nn.GELU()), EquivariantSetLayer(space, 6, 6)
    net = randomised(nn.Sequential(*layers, pool, mlp([pool.out_features, 8, 3])))
    x, generator = features(space, 2, 4), torch.Generator().manual_seed(0)
    plain = net(x)
    assert plain.shape == (4, 3)
    scale = float(plain.detach().abs().max())

    def moved(symmetry: WeightSpace) -> Tensor:
        return net(symmetry.permute(x, symmetry.random_permutations(generator), channels=True))

    assert (moved(space.independent()) - plain).abs().max() < 1e-12 * max(1, scale)
    assert (moved(WeightSpace.from_shapes(space.shapes)) - plain).abs().max() > 1e-4 * scale


# --- the equivariant layer with other reductions ---------------------------------------------------------------------


def position_of(blocks, position, axes: int) -> tuple[int, ...]:
    return tuple(next(position[b] for b, block in enumerate(blocks) if axis in block) for axis in range(axes))


def slow_read(x: Tensor, reading, sizes, reduction) -> dict[tuple[int, ...], Tensor]:
    """Entry by entry: the vectors that share their place along the kept blocks, reduced. Index in the order of K."""
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for position in itertools.product(*(range(sizes[block[0]]) for block in reading.blocks)):
        vector = x[position_of(reading.blocks, position, len(sizes))]
        found.setdefault(tuple(position[b] for b in reading.kept), []).append(vector)
    return {index: slow_reduce(reduction, vectors) for index, vectors in found.items()}


def slow_forward(layer: EquivariantSetLayer, x: dict[str, Tensor]) -> dict[str, Tensor]:
    inputs = [atom for name, axes in layer.space.items() for atom in split(x[name], axes)]
    outputs = [torch.zeros(*a.sizes, a.multiplicity * layer.out_channels).double() for a in layer.atoms]
    reductions = iter(layer.reductions)
    for weight, key in zip(layer.weights, dict.fromkeys(term.key for term in layer.terms), strict=True):
        terms = [term for term in layer.terms if term.key == key]
        read = [
            slow_read(inputs[r.atom], r, layer.atoms[r.atom].sizes, next(reductions))
            for r in dict.fromkeys(term.reading for term in terms)
        ]
        column = 0
        for writing in dict.fromkeys(term.writing for term in terms):
            y, sizes = outputs[writing.atom], layer.atoms[writing.atom].sizes
            columns = slice(column, column + y.shape[-1])
            column = columns.stop
            for position in itertools.product(*(range(sizes[block[0]]) for block in writing.blocks)):
                index = tuple(position[b] for b in writing.linked)
                value = torch.cat([r[index] for r in read]) @ weight[:, columns]
                if layer.bias is not None and not key:
                    value = value + layer.bias[columns]
                y[position_of(writing.blocks, position, len(sizes))] += value
    stream = iter(outputs)
    return {name: join(stream, axes) for name, axes in layer.space.items()}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_set_layers_are_their_slow_twins(space, reduction):
    layer, x = randomised(EquivariantSetLayer(space, 2, 3, reduction)), features(space, 2)
    with torch.no_grad():
        y = layer(x)
        for name, expected in slow_forward(layer, x).items():
            torch.testing.assert_close(y[name], expected)


def test_set_layers_have_the_terms_of_the_linear_layer(space):
    layer = EquivariantSetLayer(space, 2, 3)
    assert set(layer.terms) == set(EquivariantLinear(space, 2, 3).terms)
    assert f"max, {len(layer.terms)} terms" in repr(layer)


def test_the_maximum_tells_apart_what_the_mean_does_not():
    space = WeightSpace({"b": "h:3"})
    one, other = {"b": torch.tensor([[0.0], [0.0], [3.0]])}, {"b": torch.tensor([[1.0], [1.0], [1.0]])}
    for kind, differ in (("mean", False), ("max", True), ("attention", True)):
        pool = InvariantPool(space, 1, kind)
        for p in pool.parameters():
            nn.init.ones_(p)
        assert torch.equal(pool(one), pool(other)) != differ


def test_outputs_have_the_scale_of_the_inputs():
    space = WeightSpace({"hh": "h:20, h:20", "b": "h:20"})
    for kind in ("mean", "max", "attention"):
        torch.manual_seed(0)
        y = EquivariantSetLayer(space, 16, 32, kind).double()(features(space, 16))
        assert 0.1 < y["hh"].std() < 3


def test_neurons_that_are_not_there_say_nothing():
    space = WeightSpace({"w": "h:0, k:2", "b": "k:2"})
    for kind in REDUCTIONS:
        y = EquivariantSetLayer(space, 2, 3, kind).double()(features(space, 2))
        assert y["w"].shape == (0, 2, 3)
        assert y["b"].isfinite().all()
        assert not InvariantPool(space, 2, kind).double().per_tensor(features(space, 2))["w"].any()
