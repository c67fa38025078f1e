"""The basis is complete: as many terms as the null space of the equivariance constraint has dimensions.

A matrix M from features of a tensor i to those of a tensor o is equivariant when ρ_o(g) M ρ_i(g)^T = M for every
permutation g. For permutation matrices that is (ρ_o(g) ⊗ ρ_i(g) − I) vec M = 0, and it is enough to ask it of
generators: the transpositions of neighbours in each group. All of them stacked, the null space is found by SVD, pair by
pair of tensors. It knows nothing of partitions, blocks or atoms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lopt import WeightSpace
from lopt.functionals import EquivariantLinear

# Groups have as many neurons as a pair of tensors has axes of them; with fewer, terms coincide (see the last test).
SPACES = {
    "2-3-2 fixed": {"0.weight": "h:3, in=2", "0.bias": "h:3", "2.weight": "out=2, h:3", "2.bias": "out=2"},
    "2-3-2 permuted": {"0.weight": "h:3, in:2", "0.bias": "h:3", "2.weight": "out:2, h:3", "2.bias": "out:2"},
    "4 layers, no biases": {"a": "h:2, in=1", "b": "k:3, h:2", "c": "l:2, k:3", "d": "out:2, l:2"},
    "convolutions, pooled": {
        "0.weight": "c:2, in=1, 3",
        "0.bias": "c:2",
        "1.weight": "d:3, c:2, 2",
        "1.bias": "d:3",
        "fc.weight": "out=2, d:3",
    },
    "convolution, flattened": {
        "weight": "c:3, in=2, 1, 2",
        "bias": "c:3",
        "fc.weight": "out:2, c:3*2",
        "fc.bias": "out:2",
    },
    "depthwise and grouped": {"depthwise": "c:3, 1, 2", "norm": "c:3", "grouped": "g:2*c:3, 2"},
    "rnn": {"ih": "h:4, in:2", "hh": "h:4, h:4", "bias": "h:4", "out": "2, h:4"},
    "gru": {"ih": "h:3+h:3+h:3, in=1", "bias": "h:3+h:3+h:3"},
    "residual": {"embed": "r:4, in=2", "a": "h:2, r:4", "a.bias": "h:2", "b": "r:4, h:2", "norm": "r:4"},
    "shared stream": {"a": "r:4, r:4", "a.bias": "r:4", "scale": ""},
    "attention": {"qkv": "H:2*d[H]:2+H:2*d[H]:2+H:2*e[H]:2, r:2", "bias": "H:2*d[H]:2", "out": "r:2, H:2*e[H]:2"},
    "relative positions": {"table": "3, H:2", "query": "H:2*d[H]:2, r:2"},
    "segments of different kinds": {"w": "h:4+1+k:2, h:4", "b": "h:4+1+k:2"},
}


def generators(space: WeightSpace) -> Iterator[dict[str, Tensor]]:
    """The transpositions of neighbours in each group. All positions of the groups that it is within move alike."""
    still = {name: torch.arange(group.size) for name, group in space.groups.items()}
    for name, group in space.groups.items():
        for i in range(group.size - 1):
            swapped = still[name].clone()
            swapped[[i, i + 1]] = swapped[[i + 1, i]]
            yield {**still, name: swapped}


def representation(space: WeightSpace, name: str, g: dict[str, Tensor]) -> Tensor:
    """ρ(g) on the entries of one tensor: a permutation matrix, read off what `permute` does to their numbers."""
    size = math.prod(space.shapes[name])
    numbers = torch.arange(size).reshape(space.shapes[name])
    return torch.eye(size, dtype=torch.float64)[space.permute({name: numbers}, g)[name].flatten()]


def nullity(space: WeightSpace, o: str, i: str, elements: Iterable[dict[str, Tensor]] | None = None) -> int:
    """The dimension of all linear maps from tensor i to tensor o that commute with these group elements."""
    size = math.prod(space.shapes[o]) * math.prod(space.shapes[i])
    constraints = [torch.zeros(1, size, dtype=torch.float64)]
    for g in generators(space) if elements is None else elements:
        constraint = torch.kron(representation(space, o, g), representation(space, i, g)) - torch.eye(size)
        constraints.append(constraint[constraint.any(1)])  # a row of zeros asks nothing
    values = torch.linalg.svdvals(torch.cat(constraints))
    assert not ((values > 1e-9) & (values < 1e-3)).any()  # the rank is not a matter of taste
    return size - int((values > 1e-6).sum())


def pair_matrices(layer: EquivariantLinear) -> dict[tuple[str, str], Tensor]:
    """For each pair of tensors (o, i) the matrices that the single coefficients stand for: [coefficients, |o| |i|]."""
    space = layer.space
    sizes = {name: math.prod(shape) for name, shape in space.shapes.items()}
    parts = torch.eye(sum(sizes.values()), dtype=torch.float64).split(list(sizes.values()), dim=1)
    x = {name: part.reshape(-1, *space.shapes[name], 1) for name, part in zip(space, parts, strict=True)}
    found: dict[tuple[str, str], list[Tensor]] = {pair: [] for pair in itertools.product(space, space)}
    with torch.no_grad():
        for weight in layer.weights.parameters():
            weight.zero_()
        for weight in layer.weights.parameters():
            for k in range(weight.numel()):
                weight.view(-1)[k] = 1
                for o, y in layer(x).items():
                    columns = y.reshape(-1, sizes[o]).split(list(sizes.values()))
                    for i, block in zip(space, columns, strict=True):
                        if block.any():
                            found[o, i].append(block.T.flatten())
                weight.view(-1)[k] = 0
    count = sum(weight.numel() for weight in layer.weights.parameters())
    assert sum(map(len, found.values())) == count  # no coefficient is idle, and none serves two pairs
    return {pair: torch.stack(rows) for pair, rows in found.items()}


def single_channel(parameters: dict[str, str]) -> EquivariantLinear:
    """A layer over the symmetry to which it is equivariant: one permutation for all heads."""
    return EquivariantLinear(WeightSpace(parameters).independent(), 1, 1, bias=False).double()


@pytest.mark.parametrize("parameters", SPACES.values(), ids=SPACES)
def test_the_terms_are_a_basis_of_the_null_space(parameters):
    layer = single_channel(parameters)
    for (o, i), matrices in pair_matrices(layer).items():
        assert len(matrices) == nullity(layer.space, o, i) == torch.linalg.matrix_rank(matrices), (o, i)
        for g in generators(layer.space):  # each is in the null space, so as many independent ones span it
            there, here = representation(layer.space, o, g), representation(layer.space, i, g)
            moved = there @ matrices.reshape(len(matrices), len(there), len(here)) @ here.T
            torch.testing.assert_close(moved.reshape_as(matrices), matrices, rtol=1e-12, atol=1e-12)


# Groups of at least 4, so that the axes of one group in a pair, at most 4, never outnumber its neurons.
DRAWN_AXIS = st.sampled_from(["a:4", "b:4", "2", "in=2", "a:4*2", "a:4+1"])
DRAWN = st.lists(st.lists(DRAWN_AXIS, min_size=1, max_size=2).map(", ".join), min_size=1, max_size=2, unique=True)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(DRAWN)
def test_random_spaces_have_a_full_basis(axes):
    layer = single_channel({f"w{k}": text for k, text in enumerate(axes)})
    for (o, i), matrices in pair_matrices(layer).items():
        if math.prod(layer.space.shapes[o]) * math.prod(layer.space.shapes[i]) <= 400:
            assert len(matrices) == nullity(layer.space, o, i) == torch.linalg.matrix_rank(matrices)


@pytest.mark.parametrize("name", ["2-3-2 fixed", "convolution, flattened", "attention"])
def test_a_larger_symmetry_has_a_smaller_basis(name):
    """What the constraint gives up: fixed inputs that are permuted too, and the coupling of tensors ignored."""
    true = WeightSpace(SPACES[name]).independent()
    counts = [
        sum(nullity(space, o, i) for o, i in itertools.product(space, space))
        for space in (WeightSpace.from_shapes(true.shapes), true.relaxed(), true)
    ]
    assert counts[0] < counts[1] <= counts[2]


def test_a_permutation_for_each_head_allows_fewer_maps():
    """Why the layer is equivariant to one permutation for all heads only: that group is smaller, its maps are more."""
    space = WeightSpace({"query": "H:2*d[H]:2"})
    draws = [space.random_permutations(torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert len({str(g) for g in draws}) == 8  # the whole group: it has so few elements
    assert nullity(space, "query", "query", draws) == 3
    assert nullity(space.independent(), "query", "query") == len(single_channel({"query": "H:2*d[H]:2"}).terms) == 4


def test_with_fewer_neurons_than_axes_terms_coincide():
    """Two neurons, four axes: 15 partitions, of which 8 have at most two blocks, and no more maps are there."""
    layer = single_channel({"hh": "h:2, h:2"})
    (matrices,) = pair_matrices(layer).values()
    assert len(matrices) == 15
    assert torch.linalg.matrix_rank(matrices) == nullity(layer.space, "hh", "hh") == 8
