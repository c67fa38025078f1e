"""The fast evaluation of EquivariantLinear against the plain one: values, gradients, second gradients, and memory."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from benchmark.live_bytes import LiveBytes
from lopt import WeightSpace
from lopt.functionals import EquivariantLinear
from lopt.functionals import fast as fast_module
from lopt.functionals import linear as linear_module

SPACES = {
    "linear stack": {"0.weight": "h:5, in=3", "0.bias": "h:5", "2.weight": "out=2, h:5", "2.bias": "out=2"},
    "relaxed stack": {"0.weight": "h:5, in:3", "0.bias": "h:5", "2.weight": "g:4, h:5", "3.weight": "out:2, g:4"},
    "wide": {"0.weight": "h:9, in:700", "0.bias": "h:9"},
    "convolution": {"conv.weight": "c:4, 2, 3", "conv.bias": "c:4", "fc.weight": "out=2, c:4*3", "fc.bias": "out=2"},
    "residual": {"a": "h:4, h:4", "b": "h:4, k:3", "c": "h:4, k:3", "d": "k:3, h:4"},
    "gates": {"ih": "h:3+h:3+h:3, in=2", "hh": "h:3+h:3+h:3, h:3", "b": "h:3"},
    "heads": {"qkv": "H:2*d[H]:3+H:2*d[H]:3+H:2*e[H]:2, in=2", "o": "in=2, H:2*e[H]:2", "b": "H:2*d[H]:3"},
    "rank 3": {"cube": "h:3, h:3, h:3", "mixed": "h:3, k:2, h:3", "w": "k:2, h:3"},
    "scalars": {"temperature": "", "w": "h:4, h:4", "scale": ""},
    "empty": {"w": "h:0, k:2", "b": "k:2"},
}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 5e-2}


@pytest.fixture(params=SPACES)
def space(request) -> WeightSpace:
    return WeightSpace(SPACES[request.param])


def features(space: WeightSpace, channels: int, *batch: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        k: torch.randn(*batch, *s, channels, generator=g, dtype=torch.float64).to(dtype)
        for k, s in space.shapes.items()
    }


def layer_of(space: WeightSpace, dtype: torch.dtype = torch.float64, **options) -> EquivariantLinear:
    torch.manual_seed(0)
    layer = EquivariantLinear(space, 2, 3, **options).to(dtype)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


class _Plain:
    """Within it, layers evaluate plainly."""

    def __enter__(self) -> None:
        self.kept, linear_module.available = linear_module.available, lambda _: False

    def __exit__(self, *_: object) -> None:
        linear_module.available = self.kept


def gradients(layer: EquivariantLinear, x: dict[str, Tensor], g: dict[str, Tensor]) -> list[Tensor]:
    """Outputs, then the gradients of all inputs and parameters."""
    x = {name: t.clone().requires_grad_() for name, t in x.items()}
    y = layer(x)
    over = [*x.values(), *layer.parameters()]
    found = torch.autograd.grad(list(y.values()), over, [g[name] for name in y], materialize_grads=True)
    return [*y.values(), *found]


def assert_fast_is_plain(layer: EquivariantLinear, *batch: int, dtype: torch.dtype = torch.float64) -> None:
    x, g = features(layer.space, 2, *batch, dtype=dtype), features(layer.space, 3, *batch, dtype=dtype)
    assert fast_module.available([*x.values(), *layer.parameters()])
    fast = gradients(layer, x, g)
    with _Plain():
        plain = gradients(layer, x, g)
    for a, b in zip(fast, plain, strict=True):
        a, b = a.detach(), b.detach()
        scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=10 * TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=len)
def test_fast_is_plain(space, dtype, batch):
    assert_fast_is_plain(layer_of(space, dtype), *batch, dtype=dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"sharing": "role"},
        {"global_width": 2},
        {"terms": "pointwise"},
        {"terms": ["tensor", "shared"]},
    ],
    ids=str,
)
def test_fast_is_plain_with_options(space, options):
    assert_fast_is_plain(layer_of(space, **options), 2)


AXIS = st.sampled_from(["a:2", "b:3", "2", "in=2", "a:2*2", "2*b:3", "a:2+b:3", "2*(a:2+1)", "b:3+b:3", "c:1"])
DRAWN = st.dictionaries(
    st.sampled_from(["w", "v", "u"]), st.lists(AXIS, max_size=3).map(", ".join), min_size=1, max_size=3
).map(WeightSpace)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(DRAWN, st.integers(0, 2), st.sampled_from([{}, {"sharing": "role"}, {"terms": "shared"}]))
def test_fast_is_plain_on_drawn_spaces(space, batch, options):
    if sum(len(axes) for _, axes in space.items()) <= 6:
        assert_fast_is_plain(layer_of(space, **options), *(2,) * batch)


def test_it_splits_large_products():
    """Large enough that weight gradients and transposed products are cut into parts."""
    space = WeightSpace({"w": "h:96, h:96", "v": "k:4, h:96"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_module, "CHUNK", 1 << 10)
        patch.setattr(fast_module, "SPLIT", 1 << 6)
        assert_fast_is_plain(layer_of(space))


def test_features_may_be_views():
    space = WeightSpace(SPACES["relaxed stack"])
    layer, x = layer_of(space), features(space, 2, 3)
    views = {name: t.movedim(-1, 0).contiguous().movedim(0, -1) for name, t in x.items()}
    for name, y in layer(views).items():
        torch.testing.assert_close(y, layer(x)[name])


@pytest.mark.parametrize("name", ["relaxed stack", "convolution", "residual", "scalars"])
def test_second_gradients(name):
    space = WeightSpace(SPACES[name])
    layer = layer_of(space)
    x = [t.requires_grad_() for t in features(space, 2, 1).values()]
    theta = dict(layer.named_parameters())

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, values = tensors[: len(x)], tensors[len(x) :]
        named = dict(zip(space, inputs, strict=True))
        return tuple(functional_call(layer, dict(zip(theta, values, strict=True)), (named,)).values())

    inputs = [*x, *(p.detach().requires_grad_() for p in theta.values())]
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_gradients_of_some_inputs_and_outputs_only():
    space = WeightSpace(SPACES["relaxed stack"])
    layer = layer_of(space)

    def run() -> list[Tensor]:
        x = features(space, 2, 3)
        x["0.bias"].requires_grad_()
        y = layer(x)["2.weight"]
        return list(torch.autograd.grad(y.sum(), [x["0.bias"], *layer.parameters()], materialize_grads=True))

    fast = run()
    with _Plain():
        torch.testing.assert_close(fast, run())


def test_a_graph_may_be_walked_twice():
    space = WeightSpace(SPACES["relaxed stack"])
    layer, x = layer_of(space), {k: t.requires_grad_() for k, t in features(space, 2, 3).items()}
    loss = torch.stack([y.square().sum() for y in layer(x).values()]).sum()
    first = torch.autograd.grad(loss, list(x.values()), retain_graph=True)
    copies = [g.clone() for g in first]
    torch.testing.assert_close(torch.autograd.grad(loss, list(x.values())), tuple(copies))
    torch.testing.assert_close(first, tuple(copies))


def test_transforms_evaluate_plainly(space):
    layers = [layer_of(space) for _ in range(2)]
    for p in itertools.chain.from_iterable(layer.parameters() for layer in layers):
        nn.init.normal_(p)
    x, (theta, _) = features(space, 2, 2), stack_module_state(layers)
    came = vmap(lambda theta, inputs: functional_call(layers[0], theta, (inputs,)))(theta, x)
    for i, one in enumerate(layers):
        for name, y in one({name: t[i] for name, t in x.items()}).items():
            torch.testing.assert_close(came[name][i], y)


def test_forward_mode_and_autocast_evaluate_plainly():
    space = WeightSpace(SPACES["relaxed stack"])
    layer, x = layer_of(space, torch.float32), features(space, 2, dtype=torch.float32)
    tangent = torch.func.jvp(layer, (x,), (x,))[1]
    zero = layer({k: torch.zeros_like(t) for k, t in x.items()})
    for name, y in layer(x).items():  # the layer is affine
        torch.testing.assert_close(tangent[name], y - zero[name], atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(y.isfinite().all() for y in layer(x).values())


@pytest.mark.parametrize(("batch", "widths"), [(2, (196, 64, 64, 10)), (16, (2, 32, 32, 1))])
def test_a_forward_needs_little_more_memory_than_its_output(batch, widths):
    shapes = {}
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        shapes |= {f"{i}.weight": (m, n), f"{i}.bias": (m,)}
    space = WeightSpace.linear_stack(shapes).relaxed()
    layer = EquivariantLinear(space, 16, 16)
    x = {name: torch.randn(batch, *shape, 16) for name, shape in space.shapes.items()}
    with torch.no_grad(), LiveBytes() as memory:
        y = layer(x)
    assert memory.peak <= 1.2 * sum(t.nbytes for t in y.values())
