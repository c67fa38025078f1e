"""The contract of what stands around the linear layer: a row for each part, a row for each kind of space."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from lopt import InvalidInput, WeightSpace
from lopt.functionals.attention import WeightSpaceAttention, nft_block
from lopt.functionals.dropout import FeatureDropout
from lopt.functionals.encodings import LayerEncoding, PositionEncoding
from lopt.functionals.fourier import FourierFeatures
from lopt.functionals.norm import ChannelNorm
from lopt.functionals.pointwise import Pointwise
from lopt.functionals.pool import InvariantPool
from lopt.functionals.residual import Residual
from lopt.functionals.set_layers import EquivariantSetLayer
from lopt.testing import assert_equivariant, equivariance_error

C = 4

# Every space has a fixed axis, for the encodings.
SPACES = {
    "linear stack": {"0.weight": "h:5, in=3", "0.bias": "h:5", "2.weight": "out=2, h:5", "2.bias": "out=2"},
    "convolution": {"conv.weight": "c:4, 2, 3", "conv.bias": "c:4", "fc.weight": "out=2, c:4*3", "fc.bias": "out=2"},
    "recurrent": {"ih": "h:4, in=2", "hh": "h:4, h:4", "b": "h:4"},
    "gates": {"ih": "h:3+h:3, in=2", "hh": "h:3+h:3, h:3", "skip": "h:3, in=2+k:2"},
    "heads": {"qkv": "H:2*d[H]:3+H:2*d[H]:3+H:2*e[H]:2, in=2", "o": "in=2, H:2*e[H]:2", "b": "H:2*d[H]:3"},
    "rank 3": {"cube": "h:3, h:3, h:3", "mixed": "h:3, in=2, k:2"},
    "scalar": {"temperature": "", "w": "h:4, in=2"},
    "no neurons": {"w": "h:0, in=2", "v": "k:3, h:0", "b": "k:3"},
    "one neuron": {"w": "h:1, in=1", "b": "h:1", "v": "out=1, h:1"},
}
COUPLED = ("linear stack", "convolution", "recurrent", "gates", "heads", "rank 3")

PARTS = {
    "norm over channels": lambda s: ChannelNorm(s, C),
    "norm over tensor": lambda s: ChannelNorm(s, C, over="tensor"),
    "dropout, evaluated": lambda s: FeatureDropout(s, 0.5, 0.5).eval(),
    "set layer, max": lambda s: EquivariantSetLayer(s, C, 3),
    "set layer, attention": lambda s: EquivariantSetLayer(s, C, 3, "attention"),
    "set layer, sum": lambda s: EquivariantSetLayer(s, C, 3, "sum", bias=False),
    "residual": lambda s: Residual(Pointwise(nn.Linear(C, C)), skip=Pointwise(nn.Tanh())),
    "Fourier features": lambda s: FourierFeatures(s, C, 3),
    "position encoding": lambda s: PositionEncoding(s, C, unnamed=True),
    "position encoding, sinusoidal": lambda s: PositionEncoding(s, C, "sinusoidal", "concatenate", width=3),
    "layer encoding": lambda s: LayerEncoding(s, C, how="concatenate", width=3),
    "layer encoding, sinusoidal": lambda s: LayerEncoding(s, C, "sinusoidal"),
    "attention": lambda s: WeightSpaceAttention(s, C, heads=2),
    "attention, shared": lambda s: WeightSpaceAttention(s, C, sharing="all"),
    "transformer block": lambda s: nft_block(s, C, heads=2, dropout=0.5).eval(),
}
COUPLING = tuple(name for name in PARTS if name.startswith(("set layer", "attention", "transformer")))
POOLS = {
    f"{reduction}, {fixed}": lambda s, reduction=reduction, fixed=fixed: InvariantPool(s, C, reduction, fixed)
    for reduction, fixed in itertools.product(("mean", "sum", "max", "attention"), ("kept", "pooled"))
}


def features(space: WeightSpace, *batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(*batch, *s, C, generator=g, dtype=dtype) for k, s in space.shapes.items()}


def build(make, space: WeightSpace, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    part = make(space)
    for p in part.parameters():
        nn.init.normal_(p, std=0.5)
    return part.to(dtype)


@pytest.fixture(params=SPACES)
def space(request) -> WeightSpace:
    return WeightSpace(SPACES[request.param])


@pytest.fixture(params=PARTS)
def make(request):
    return PARTS[request.param]


def test_parts_are_equivariant(make, space):
    assert_equivariant(build(make, space), space.independent(), features(space, 2), channels=True)


@pytest.mark.parametrize("name", ["linear stack", "heads"])
def test_parts_are_equivariant_in_single_precision(make, name):
    space, single = WeightSpace(SPACES[name]), torch.float32
    x = features(space, 2, dtype=single)
    assert_equivariant(build(make, space, single), space.independent(), x, channels=True)


@pytest.mark.parametrize("name", COUPLING)
@pytest.mark.parametrize("coupled", COUPLED)
def test_parts_break_where_the_coupling_is_ignored(name, coupled):
    space = WeightSpace(SPACES[coupled])
    part = build(PARTS[name], space)
    errors = equivariance_error(
        part, WeightSpace.from_shapes(space.shapes), features(space), channels=True, draws=5, seed=1
    )
    assert max(errors.values()) > 1e-3


@pytest.mark.parametrize("name", COUPLING)
def test_parts_break_under_a_permutation_for_each_head(name):
    space = WeightSpace(SPACES["heads"])
    errors = equivariance_error(build(PARTS[name], space), space, features(space), channels=True, draws=10)
    assert errors["qkv"] > 1e-3


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_pools_are_invariant(pool, space, dtype, tolerance):
    part, x = build(pool, space, dtype), features(space, 2, dtype=dtype)
    plain = part(x)
    assert plain.shape == (2, part.out_features)
    for seed in range(3):
        moved = space.permute(x, space.random_permutations(torch.Generator().manual_seed(seed)), channels=True)
        torch.testing.assert_close(part(moved), plain, rtol=tolerance, atol=tolerance)


def reach(part, x) -> list[Tensor]:
    y = part(x)
    return list(y.values()) if isinstance(y, dict) else [y]


ALL = PARTS | {
    f"pool, {name}": POOLS[name] for name in ("mean, kept", "max, kept", "attention, kept", "attention, pooled")
}


@pytest.fixture(params=ALL)
def any_part(request):
    return ALL[request.param]


def test_parts_take_any_batch_axes(any_part, space):
    part, x = build(any_part, space), features(space, 2, 3)
    y = reach(part, x)
    for index in [(0, 0), (1, 2)]:
        one = reach(part, {name: t[index] for name, t in x.items()})
        torch.testing.assert_close([t[index] for t in y], one)


@pytest.mark.parametrize("name", ["linear stack", "heads", "recurrent", "no neurons"])
def test_parts_under_vmap_are_a_loop(any_part, name):
    space = WeightSpace(SPACES[name])
    parts = [copy.deepcopy(build(any_part, space)) for _ in range(3)]
    for p in itertools.chain.from_iterable(one.parameters() for one in parts):
        nn.init.normal_(p)
    x = features(space, 3)
    theta, buffers = stack_module_state(parts)
    came = vmap(lambda t, b, inputs: functional_call(parts[0], (t, b), (inputs,)))(theta, buffers, x)
    came = list(came.values()) if isinstance(came, dict) else [came]
    for i, one in enumerate(parts):
        torch.testing.assert_close([t[i] for t in came], reach(one, {k: t[i] for k, t in x.items()}))


# The transformer block holds most parts; the others are those that it lacks.
COMPILED = ("transformer block", "attention, shared", "set layer, attention", "position encoding")


@pytest.mark.parametrize("name", [*COMPILED, "pool, attention, pooled"])
def test_parts_compile_as_one_graph(name):
    space = WeightSpace({"w": "h:2+k:2*2, in=2", "hh": "h:2, h:2"})
    part, x = build(ALL[name], space, torch.float32), features(space, 2, dtype=torch.float32)
    torch.testing.assert_close(torch.compile(part, backend="eager", fullgraph=True)(x), part(x))


@pytest.mark.parametrize("name", ["linear stack", "recurrent", "scalar"])
def test_parts_in_half_precision(any_part, name):
    space = WeightSpace(SPACES[name])
    x = {k: t.bfloat16() for k, t in features(space, 2).items()}
    half, exact = build(any_part, space, torch.bfloat16), build(any_part, space)
    for a, b in zip(reach(half, x), reach(exact, {k: t.double() for k, t in x.items()}), strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).abs().max() <= 0.1 * b.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", ["recurrent", "scalar", "one neuron"])
def test_gradients_are_those_of_finite_differences(any_part, name):
    space = WeightSpace(SPACES[name])
    part = build(any_part, space)
    x = [t.requires_grad_() for t in features(space).values()]
    theta = dict(part.named_parameters())

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, values = tensors[: len(x)], tensors[len(x) :]
        y = functional_call(part, dict(zip(theta, values, strict=True)), (dict(zip(space, inputs, strict=True)),))
        return tuple(y.values()) if isinstance(y, dict) else (y,)

    assert torch.autograd.gradcheck(run, (*x, *theta.values()), fast_mode=True)


CHANGES = {
    "missing": (lambda x: {k: v for k, v in x.items() if k != "b"}, r"\['b'\] are missing"),
    "extra": (lambda x: x | {"c": x["b"]}, r"\['c'\] are not in the weight space"),
    "channels": (lambda x: x | {"b": x["b"][..., :1]}, r"'b' has shape \(5, 4, 1\), wanted \(5, 4, 4\)"),
    "batch": (lambda x: x | {"b": x["b"][0]}, r"'b' has shape \(4, 4\), wanted \(5, 4, 4\)"),
    "shape": (lambda x: x | {"hh": x["hh"][:, :3]}, r"'hh' has shape \(5, 3, 4, 4\), wanted \(5, 4, 4, 4\)"),
    "rank": (lambda x: x | {"b": x["b"][0, 0]}, r"'b' has shape \(4,\), wanted \(5, 4, 4\)"),
}
UNCHECKED = ("residual", "dropout, evaluated")  # they take whatever their inner layer takes


@pytest.mark.parametrize("name", [name for name in ALL if name not in UNCHECKED and not name.startswith("pool")])
@pytest.mark.parametrize(("change", "complaint"), CHANGES.values(), ids=CHANGES)
def test_features_that_do_not_fit(name, change, complaint):
    space = WeightSpace(SPACES["recurrent"])
    with pytest.raises(InvalidInput, match=complaint):
        build(ALL[name], space)(change(features(space, 5)))


@pytest.mark.parametrize("make", [PARTS["set layer, max"], PARTS["attention"], POOLS["mean, kept"]])
@pytest.mark.parametrize("parameters", [{}, {"w": "h:4, 0"}])
def test_spaces_that_cannot_be(make, parameters):
    with pytest.raises(InvalidInput, match="no parameters, or a fixed axis of size 0"):
        make(WeightSpace(parameters))


def test_parts_are_saved_and_loaded(any_part):
    space = WeightSpace(SPACES["gates"])
    part, other = build(any_part, space), build(any_part, space)
    for p in other.parameters():
        nn.init.zeros_(p)
    other.load_state_dict(part.state_dict())
    torch.testing.assert_close(reach(other, features(space)), reach(part, features(space)), rtol=0, atol=0)
    assert repr(part) == repr(other)


@pytest.mark.parametrize(
    ("build_wrong", "complaint"),
    [
        (lambda s: ChannelNorm(s, 0), "channels: 0"),
        (lambda s: ChannelNorm(s, 1), 'channels: 1.*over="tensor"'),
        (lambda s: ChannelNorm(s, 4, over="channel"), "unknown over 'channel'; did you mean 'channels'"),
        (lambda s: FeatureDropout(s, channels=1.5), "channels: 1.5"),
        (lambda s: FeatureDropout(s, entries=float("nan")), "entries: nan"),
        (lambda s: FourierFeatures(s, 1, 0), "frequencies: 0"),
        (lambda s: FourierFeatures(s, 1, 4, scale=float("inf")), "scale: inf"),
        (lambda s: EquivariantSetLayer(s, 0, 1), "in_channels: 0"),
        (lambda s: EquivariantSetLayer(s, 1, 1, "median"), "unknown reduction 'median'"),
        (lambda s: InvariantPool(s, -1), "channels: -1"),
        (lambda s: InvariantPool(s, 1, fixed="keep"), "unknown fixed 'keep'"),
        (lambda s: WeightSpaceAttention(s, 4, heads=3), "heads: 3; they must divide the 4 channels"),
        (lambda s: WeightSpaceAttention(s, 4, heads=0), "heads: 0"),
        (lambda s: WeightSpaceAttention(s, 4, sharing="role"), "unknown sharing 'role'"),
        (lambda s: nft_block(s, 4, factor=0), "factor: 0"),
        (lambda s: nft_block(s, 4, dropout=-1), "entries: -1"),
        (lambda s: LayerEncoding(s, 4, kind="sine"), "unknown kind 'sine'"),
        (lambda s: LayerEncoding(s, 4, how="concat"), "unknown how 'concat'; did you mean 'concatenate'"),
        (lambda s: LayerEncoding(s, 4, width=3), 'width: 3;.*how="concatenate"'),
        (lambda s: PositionEncoding(s, 4, how="concatenate", width=0), "width: 0"),
        (lambda s: PositionEncoding(s.relaxed(), 4), r"no named fixed axis.*space\.relaxed\(\)"),
        (lambda s: EquivariantSetLayer(WeightSpace({"w": "out=1000, in=784"}), 1, 1), "614,656,000,000 coefficients"),
    ],
)
def test_parts_that_cannot_be(build_wrong, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        build_wrong(WeightSpace(SPACES["linear stack"]))


# --- the residual block ----------------------------------------------------------------------------------------------


def test_the_residual_adds():
    space = WeightSpace(SPACES["recurrent"])
    x = features(space, 2)
    y = Residual(Pointwise(torch.sin))(x)
    assert all(torch.equal(y[name], x[name] + x[name].sin()) for name in space)
    y = Residual(Pointwise(nn.Linear(C, 3).double()), skip=Pointwise(lambda t: t[..., :3]))(x)
    assert y["hh"].shape == (2, 4, 4, 3)


def test_the_residual_does_not_broadcast():
    space = WeightSpace(SPACES["recurrent"])
    with pytest.raises(InvalidInput, match=r"'ih' with shape \(2, 4, 2, 1\), wanted \(2, 4, 2, 4\).*skip="):
        Residual(Pointwise(nn.Linear(C, 1).double()))(features(space, 2))
    with pytest.raises(InvalidInput, match=r"returns \['ih'\], wanted \['ih', 'hh', 'b'\]"):
        Residual(Only())(features(space))


class Only(nn.Module):
    def forward(self, features):
        return {"ih": features["ih"]}
