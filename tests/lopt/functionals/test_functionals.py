"""NF-layers: equivariance, a full basis counted in three ways, and a slow twin in plain loops."""

import copy
import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from lopt import InvalidInput, WeightSpace
from lopt.functionals import EquivariantLinear, Pointwise, mlp
from lopt.functionals.atoms import atoms, join, split
from lopt.functionals.basis import partitions
from lopt.testing import assert_equivariant, equivariance_error

BELL = (1, 1, 2, 5, 15, 52, 203)

# One row for each way in which axes are tied. Every space has a coupling, so that ignoring it must show.
SPACES = {
    "linear stack": {"0.weight": "h:5, in=3", "0.bias": "h:5", "2.weight": "out=2, h:5", "2.bias": "out=2"},
    "relaxed stack": {"0.weight": "h:5, in:3", "0.bias": "h:5", "2.weight": "out:2, h:5", "2.bias": "out:2"},
    "convolution": {"conv.weight": "c:4, 2, 3", "conv.bias": "c:4", "fc.weight": "out=2, c:4*3", "fc.bias": "out=2"},
    "recurrent": {"ih": "h:4, in=2", "hh": "h:4, h:4", "b": "h:4"},
    "gates": {"ih": "h:3+h:3+h:3+h:3, in=2", "hh": "h:3+h:3+h:3+h:3, h:3"},
    "fused qkv": {"qkv": "H:2*d[H]:3+H:2*d[H]:3+H:2*e[H]:2, in=2", "o": "in=2, H:2*e[H]:2", "b": "H:2*d[H]:3"},
    "rank 3": {"cube": "h:3, h:3, h:3", "mixed": "h:3, k:2, h:3"},
    "scalars": {"temperature": "", "w": "h:4, h:4", "scale": ""},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(space: WeightSpace, channels: int, *batch: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = generator()
    return {k: torch.randn(*batch, *s, channels, generator=g, dtype=dtype) for k, s in space.shapes.items()}


def layer_of(space: WeightSpace, c_in: int = 2, c_out: int = 3, dtype=torch.float64, bias=True) -> EquivariantLinear:
    torch.manual_seed(0)
    layer = EquivariantLinear(space, c_in, c_out, bias=bias).to(dtype)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


@pytest.fixture(params=SPACES)
def space(request) -> WeightSpace:
    return WeightSpace(SPACES[request.param])


# --- the contract of a layer: a row for each -------------------------------------------------------------------------

LAYERS = {
    "EquivariantLinear": lambda space: EquivariantLinear(space, 2, 3),
    "Pointwise": lambda space: Pointwise(nn.Linear(2, 3)),
    "Pointwise mlp": lambda space: Pointwise(mlp([2, 8, 3])),
    "two layers": lambda space: nn.Sequential(
        EquivariantLinear(space, 2, 4), Pointwise(nn.GELU()), EquivariantLinear(space, 4, 3)
    ),
}


@pytest.fixture(params=LAYERS)
def layer(request, space) -> nn.Module:
    torch.manual_seed(0)
    layer = LAYERS[request.param](space)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_are_equivariant(layer, space, dtype):
    x = features(space, 2, dtype=dtype)
    assert_equivariant(layer.to(dtype), space.independent(), x, channels=True)


def test_layers_take_any_batch_axes(layer, space):
    layer.double()
    x = features(space, 2, 3, 2)
    y = layer(x)
    for index in itertools.product(range(3), range(2)):
        one = layer({name: t[index] for name, t in x.items()})
        for name, shape in space.shapes.items():
            assert y[name].shape == (3, 2, *shape, 3)
            torch.testing.assert_close(y[name][index], one[name])


def test_layers_under_vmap_are_a_loop(layer, space):
    layers = [copy.deepcopy(layer).double() for _ in range(3)]
    for p in itertools.chain.from_iterable(one.parameters() for one in layers):
        nn.init.normal_(p)
    x = features(space, 2, 3)
    theta, _ = stack_module_state(layers)
    came = vmap(lambda theta, inputs: functional_call(layers[0], theta, (inputs,)))(theta, x)
    for i, one in enumerate(layers):
        expected = one({name: t[i] for name, t in x.items()})
        for name in space:
            torch.testing.assert_close(came[name][i], expected[name])


# --- EquivariantLinear -----------------------------------------------------------------------------------------------


def test_the_layer_breaks_where_the_coupling_is_ignored(space):
    apart = WeightSpace.from_shapes(space.shapes)
    errors = equivariance_error(layer_of(space), apart, features(space, 2), channels=True)
    assert max(errors.values()) > 1e-2


def test_the_layer_breaks_under_a_permutation_for_each_head():
    space = WeightSpace(SPACES["fused qkv"])
    assert space.independent() != space
    errors = equivariance_error(layer_of(space), space, features(space, 2), channels=True, draws=10)
    assert errors["qkv"] > 1e-2


def test_the_layer_breaks_along_fixed_axes():
    space = WeightSpace(SPACES["linear stack"])
    errors = equivariance_error(layer_of(space), space.relaxed(), features(space, 2), channels=True)
    assert errors["0.weight"] > 1e-2


def test_the_layer_compiles_as_one_graph(space):
    layer, x = layer_of(space, dtype=torch.float32), features(space, 2, dtype=torch.float32)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


def test_the_number_of_terms_of_a_pair_is_a_product_of_bell_numbers(space):
    layer = layer_of(space)
    pairs = Counter((term.writing.atom, term.reading.atom) for term in layer.terms)
    for (o, one), (i, other) in itertools.product(enumerate(layer.atoms), repeat=2):
        axes = Counter(one.groups + other.groups)
        assert pairs[o, i] == math.prod(BELL[count] for count in axes.values())
    assert len(set(layer.terms)) == len(layer.terms)
    assert f"{len(layer.terms)} terms" in repr(layer)


def test_partitions_keep_groups_apart():
    assert set(partitions(["h", "k", "h"])) == {((0, 2), (1,)), ((0,), (1,), (2,))}


def orbits(space: WeightSpace, draws: int = 25) -> int:
    """How many orbits the group has on pairs of entries: union-find over random permutations."""
    total = sum(math.prod(shape) for shape in space.shapes.values())
    ids = torch.arange(total).split([math.prod(shape) for shape in space.shapes.values()])
    named = {name: part.reshape(shape) for part, (name, shape) in zip(ids, space.shapes.items(), strict=True)}
    parent, g = list(range(total**2)), generator()

    def root(x: int) -> int:
        while parent[x] != x:
            parent[x] = x = parent[parent[x]]
        return x

    for _ in range(draws):
        moved = torch.cat([t.flatten() for t in space.permute(named, space.random_permutations(g)).values()])
        images = (moved[:, None] * total + moved[None, :]).flatten().tolist()
        for x, image in enumerate(images):
            parent[root(x)] = root(image)
    return sum(parent[x] == x for x in range(total**2))


def coefficient_matrices(layer: EquivariantLinear) -> Tensor:
    """For every coefficient the matrix of the linear map that it stands for: [coefficients, entries x entries]."""
    shapes = layer.space.shapes
    total = sum(math.prod(shape) for shape in shapes.values())
    parts = torch.eye(total, dtype=torch.float64).split([math.prod(shape) for shape in shapes.values()], dim=1)
    x = {name: part.reshape(-1, *shape, 1) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
    rows = []
    with torch.no_grad():
        for weight in layer.weights:
            weight.zero_()
        for weight in layer.weights:
            for k in range(weight.numel()):
                weight.view(-1)[k] = 1
                rows.append(torch.cat([y.reshape(total, -1) for y in layer(x).values()], 1).flatten())
                weight.view(-1)[k] = 0
    return torch.stack(rows)


@pytest.mark.parametrize(
    "parameters",
    [
        {"0.weight": "h:2, in=2", "0.bias": "h:2", "2.weight": "out=2, h:2", "2.bias": "out=2"},
        {"0.weight": "h:2, in:2", "0.bias": "h:2", "2.weight": "out:2, h:2", "2.bias": "out:2"},
        {"conv.weight": "c:2, 2, 2", "conv.bias": "c:2", "fc.weight": "out=2, c:2*2"},
        {"ih": "h:4, in=2", "hh": "h:4, h:4", "b": "h:4"},
        {"hh": "h:4+h:4, h:4", "b": "h:4+1"},
        {"qk": "H:2*d:2+H:2*e:2, in=2"},
        {"rank 3": "h:4, h:4, k:2", "scalar": ""},
    ],
    ids=["stack", "relaxed", "convolution", "recurrent", "gates", "heads", "rank 3"],
)
def test_the_basis_is_complete_and_independent(parameters):
    layer = layer_of(WeightSpace(parameters), 1, 1, bias=False)
    matrices = coefficient_matrices(layer)
    assert len(matrices) == orbits(layer.space) == torch.linalg.matrix_rank(matrices)


def test_with_fewer_neurons_than_axes_the_terms_become_dependent():
    layer = layer_of(WeightSpace({"hh": "h:2, h:2"}), 1, 1, bias=False)
    matrices = coefficient_matrices(layer)
    assert len(matrices) == BELL[4]
    assert torch.linalg.matrix_rank(matrices) == orbits(layer.space) == 8  # partitions of 4 axes into at most 2 blocks


@pytest.mark.parametrize("name", ["recurrent", "scalars", "convolution"])
def test_the_bias_is_every_equivariant_constant(name):
    space = WeightSpace(SPACES[name])
    layer = layer_of(space, 1, 1)
    constants = layer({k: torch.zeros_like(x) for k, x in features(space, 1).items()})
    expected = {"recurrent": (1, 2, 1), "scalars": (1, 2, 1), "convolution": None}[name]
    if expected is not None:  # how many values differ: a matrix h x h has a diagonal and the rest
        flat = [y.flatten().tolist() if "ih" not in k else y[:, 0].flatten().tolist() for k, y in constants.items()]
        assert tuple(len({round(v, 9) for v in values}) for values in flat) == expected
    assert_equivariant(lambda _: constants, space, features(space, 1), channels=True)
    assert layer_of(space, bias=False).bias is None


# --- the slow twin ---------------------------------------------------------------------------------------------------


def slow_read(x: Tensor, blocks, kept, sizes) -> dict[tuple[int, ...], Tensor]:
    """Entry by entry: read along the kept blocks, average the others. Index in the order of K -> channels."""
    extents = [sizes[block[0]] for block in blocks]
    count = math.prod(extent for b, extent in enumerate(extents) if b not in kept)
    found: dict[tuple[int, ...], Tensor] = {}
    for position in itertools.product(*map(range, extents)):
        index = tuple(
            next(position[b] for b, block in enumerate(blocks) if axis in block) for axis in range(len(sizes))
        )
        key = tuple(position[b] for b in kept)
        found[key] = found.get(key, torch.zeros(())) + x[index] / count
    return found


def slow_forward(layer: EquivariantLinear, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layer as a sum over its terms, each read and written entry by entry."""
    inputs = [atom for name, axes in layer.space.items() for atom in split(x[name], axes)]
    width = [atom.multiplicity * layer.out_channels for atom in layer.atoms]
    entries = [
        {index: torch.zeros(c, dtype=torch.float64) for index in itertools.product(*map(range, atom.sizes))}
        for atom, c in zip(layer.atoms, width, strict=True)
    ]

    def write(writing, value) -> None:
        sizes, blocks = layer.atoms[writing.atom].sizes, writing.blocks
        for position in itertools.product(*(range(sizes[block[0]]) for block in blocks)):
            index = tuple(
                next(position[b] for b, block in enumerate(blocks) if axis in block) for axis in range(len(sizes))
            )
            entries[writing.atom][index] = entries[writing.atom][index] + value(
                tuple(position[b] for b in writing.linked)
            )

    bias = layer.bias
    for weight, key in zip(layer.weights, dict.fromkeys(term.key for term in layer.terms), strict=True):
        column = 0
        for writing in dict.fromkeys(term.writing for term in layer.terms if term.key == key):
            columns = slice(column, column + width[writing.atom])
            row, column = 0, columns.stop
            for reading in [term.reading for term in layer.terms if term.key == key and term.writing == writing]:
                atom = layer.atoms[reading.atom]
                rows = slice(row, row + atom.multiplicity * layer.in_channels)
                row, theta = rows.stop, weight[rows, columns]
                read = slow_read(inputs[reading.atom], reading.blocks, reading.kept, atom.sizes)
                write(writing, lambda index, read=read, theta=theta: read[index] @ theta)
            if bias is not None and not key:
                write(writing, lambda index, columns=columns: bias[columns])
    outputs = iter(
        [
            torch.stack(list(values.values())).reshape(*atom.sizes, -1)
            for values, atom in zip(entries, layer.atoms, strict=True)
        ]
    )
    return {name: join(outputs, axes) for name, axes in layer.space.items()}


AXIS = st.sampled_from(["a:2", "b:3", "2", "in=2", "a:2*2", "2*b:3", "a:2+b:3", "2*(a:2+1)", "b:3+b:3", "c:1"])
DRAWN = st.dictionaries(
    st.sampled_from(["w", "v"]), st.lists(AXIS, max_size=2).map(", ".join), min_size=1, max_size=2
).map(WeightSpace)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(DRAWN, st.booleans(), st.integers(1, 2), st.integers(1, 2))
def test_the_layer_is_its_slow_twin_in_values_and_gradients(space, bias, c_in, c_out):
    layer = layer_of(space, c_in, c_out, bias=bias)
    x = {name: t.requires_grad_() for name, t in features(space, c_in).items()}
    fast, slow = layer(x), slow_forward(layer, x)
    weights = features(space, c_out)
    over = [*x.values(), *layer.parameters()]
    for name in space:
        torch.testing.assert_close(fast[name], slow[name], rtol=1e-10, atol=1e-10)
    losses = [torch.stack([(y[name] * weights[name]).sum() for name in space]).sum() for y in (fast, slow)]
    grads = [torch.autograd.grad(loss, over) for loss in losses]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["recurrent", "convolution"])
def test_gradients_are_those_of_finite_differences(name):
    space = WeightSpace(SPACES[name])
    layer = layer_of(space)
    x = [t.requires_grad_() for t in features(space, 2).values()]
    assert torch.autograd.gradcheck(lambda *inputs: tuple(layer(dict(zip(space, inputs, strict=True))).values()), x)


# --- atoms -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(DRAWN)
def test_join_puts_together_what_split_took_apart(space):
    x = features(space, 2, 3)
    parts = [atom for name, axes in space.items() for atom in split(x[name], axes)]
    assert [(tuple(p.shape[1:-1]), p.shape[-1]) for p in parts] == [(a.sizes, 2 * a.multiplicity) for a in atoms(space)]
    stream = iter(parts)
    assert all(torch.equal(join(stream, axes), x[name]) for name, axes in space.items())


def test_split_against_plain_indexing():
    space = WeightSpace({"w": "2, h:3*2+k:4, h:3"})
    x = features(space, 5)["w"]
    first, second = split(x, space["w"])
    assert atoms(space)[0].groups == ("h", "h")
    assert torch.equal(first, x[:, :6].reshape(2, 3, 2, 3, 5).permute(1, 3, 0, 2, 4).reshape(3, 3, 20))
    assert torch.equal(second, x[:, 6:].permute(1, 2, 0, 3).reshape(4, 3, 10))


# --- what else the layers promise ------------------------------------------------------------------------------------


def test_an_empty_group_says_nothing():
    space = WeightSpace({"w": "h:0, k:2", "b": "k:2"})
    y = layer_of(space)(features(space, 2))
    assert y["w"].shape == (0, 2, 3)
    assert y["b"].isfinite().all()


def test_outputs_have_the_scale_of_the_inputs():
    space = WeightSpace({"hh": "h:30, h:30", "b": "h:30"})
    y = layer_of(space, 16, 64, bias=False)(features(space, 16))
    assert 0.1 < y["hh"].std() < 2


def test_one_seed_gives_one_layer():
    space = WeightSpace(SPACES["recurrent"])
    torch.testing.assert_close(layer_of(space).state_dict(), layer_of(space).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda x: {k: v for k, v in x.items() if k != "b"}, r"\['b'\] are missing"),
        (lambda x: x | {"b": x["b"][..., :1]}, r"'b' has shape \(5, 4, 1\), wanted \(5, 4, 2\)"),
        (lambda x: x | {"b": x["b"][0]}, r"'b' has shape \(4, 2\), wanted \(5, 4, 2\)"),
        (lambda x: x | {"hh": x["hh"][:, :3]}, "'hh' has shape"),
        (lambda x: x | {"b": x["b"][0, 0]}, "'b' has shape"),
    ],
    ids=["missing", "channels", "batch", "shape", "rank"],
)
def test_features_that_do_not_fit(change, complaint):
    space = WeightSpace(SPACES["recurrent"])
    with pytest.raises(InvalidInput, match=complaint):
        layer_of(space)(change(features(space, 2, 5)))


@pytest.mark.parametrize(
    ("parameters", "channels", "complaint"),
    [
        ({"b": "h:4"}, (0, 1), "in_channels: 0"),
        ({"b": "h:4"}, (1, -2), "out_channels: -2"),
        ({"w": "out=1000, in=784"}, (1, 1), r"614,656,000,000 coefficients.*space\.relaxed\(\)"),
        ({}, (1, 1), "no parameters"),
        ({"w": "h:4, 0"}, (1, 1), "fixed axis of size 0"),
    ],
)
def test_layers_that_cannot_be(parameters, channels, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        EquivariantLinear(WeightSpace(parameters), *channels)


def test_mlp():
    net = mlp([3, 4, 5], nn.Tanh)
    assert [type(layer) for layer in net] == [nn.Linear, nn.Tanh, nn.Linear]
    assert net(torch.zeros(7, 3)).shape == (7, 5)
    for widths in ([3], [3, 0]):
        with pytest.raises(InvalidInput, match="widths"):
            mlp(widths)


def test_pointwise_is_its_module_on_every_tensor():
    space = WeightSpace(SPACES["scalars"])
    module, x = nn.Linear(2, 3).double(), features(space, 2, 4)
    assert all(torch.equal(y, module(x[name])) for name, y in Pointwise(module)(x).items())
