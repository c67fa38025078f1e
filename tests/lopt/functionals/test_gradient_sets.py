"""GradMetaNet's layers: both symmetries, slow twins in plain loops, and factors whose products are the gradients."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from lopt import InvalidInput, WeightSpace
from lopt.functionals import EquivariantLinear, Pointwise, mlp
from lopt.functionals.gradient_sets import GradientSetLinear, SetAttention, SetPool
from lopt.functionals.neuron_products import GradientProduct, PairwiseMLP
from lopt.functionals.neurons import NeuronEncoding, NeuronLinear, NeuronReadout, neuron_space
from lopt.functionals.rank_one import factor_slots, factors_to_gradients, rank_one_factors
from lopt.testing import TOLERANCE, assert_equivariant, equivariance_error

C = 4  # channels of the tables that the layers get

# One row for each way in which parameters share neurons.
SPACES = {
    "stack": {"0.weight": "h0:5, in=3", "0.bias": "h0:5", "2.weight": "h1:4, h0:5", "4.weight": "out=2, h1:4"},
    "residual": {
        "embed.weight": "r:6, in=3",
        "embed.bias": "r:6",
        "up.weight": "m:5, r:6",
        "up.bias": "m:5",
        "down.weight": "r:6, m:5",
        "head.weight": "out=2, r:6",
    },
    "recurrent": {"ih.weight": "h:5, in=3", "hh.weight": "h:5, h:5", "ih.bias": "h:5"},
    "all groups": {"w": "h:5, i:4", "b": "h:5"},
}

# One row for each layer: how it is built, and what comes out: "sets", "neurons", "weights" or "vector".
LAYERS = {
    "GradientSetLinear": (lambda s: GradientSetLinear(s, C, 3), "sets"),
    "GradientSetLinear shared": (lambda s: GradientSetLinear(s, C, 3, encodings=False), "sets"),
    "NeuronLinear": (lambda s: NeuronLinear(s, C, 3), "sets"),
    "NeuronEncoding": (lambda s: NeuronEncoding(s, 4), "sets"),
    "attention, set": (lambda s: SetAttention(s, C, 3, heads=2), "sets"),
    "attention, neurons": (lambda s: SetAttention(s, C, 3, heads=2, along="neurons"), "sets"),
    "attention, elements": (lambda s: SetAttention(s, C, 3, heads=2, along="elements"), "sets"),
    "pool, mean": (lambda s: SetPool(s, C), "neurons"),
    "pool, sum": (lambda s: SetPool(s, C, "sum"), "neurons"),
    "pool, max": (lambda s: SetPool(s, C, "max"), "neurons"),
    "pool, attention": (lambda s: SetPool(s, C, "attention"), "neurons"),
    "pool, linear": (lambda s: nn.Sequential(SetPool(s, C), NeuronLinear(s, C, 3)), "neurons"),
    "product, mean": (lambda s: GradientProduct(s, C, 3), "weights"),
    "product, sum": (lambda s: GradientProduct(s, C, 3, "sum"), "weights"),
    "pairwise": (lambda s: nn.Sequential(SetPool(s, C), PairwiseMLP(s, C, 6, 3)), "weights"),
    "pairwise over set": (lambda s: PairwiseMLP(s, C, 6, 3, over_set=True), "weights"),
    "readout": (lambda s: nn.Sequential(SetPool(s, C), NeuronReadout(s, C, 3)), "vector"),
    "GradMetaNet": (
        lambda s: nn.Sequential(
            NeuronEncoding(s, 2),
            GradientSetLinear(s, C + 4, 6),
            Pointwise(nn.GELU()),
            SetAttention(s, 6, 6),
            GradientProduct(s, 6, 3),
        ),
        "weights",
    ),
}
COUPLED = [name for name, (_, kind) in LAYERS.items() if kind == "weights"]


def tables_of(space: WeightSpace, *lead: int, channels: int = C, dtype: torch.dtype = torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    shapes = neuron_space(space).shapes
    return {axis: torch.randn(*lead, *n, channels, generator=g, dtype=dtype) for axis, n in shapes.items()}


def layer_of(name: str, space: WeightSpace, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With every parameter drawn, so that no term hides behind a zero."""
    torch.manual_seed(0)
    layer = LAYERS[name][0](space).to(dtype)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    return layer


def as_dict(y: dict[str, Tensor] | Tensor) -> dict[str, Tensor]:
    return {"vector": y} if isinstance(y, Tensor) else y


def everything(space: WeightSpace) -> WeightSpace:
    """Tables, parameters and an invariant vector in one space, so that one permutation acts on all of them."""
    vector = WeightSpace({"vector": ""})
    return WeightSpace({**dict(neuron_space(space).items()), **dict(space.items()), **dict(vector.items())})


@pytest.fixture(params=SPACES)
def space(request) -> WeightSpace:
    return WeightSpace(SPACES[request.param])


@pytest.fixture(params=LAYERS)
def name(request) -> str:
    return request.param


# --- symmetry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_are_equivariant_to_the_neurons(name, space, dtype):
    layer = layer_of(name, space, dtype)
    tables = tables_of(space, 3, 7, dtype=dtype)
    assert_equivariant(lambda t: as_dict(layer(t)), everything(space), tables, channels=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layers_respect_the_order_of_the_set(name, space, dtype):
    layer, kind = layer_of(name, space, dtype), LAYERS[name][1]
    assert order_error(layer, kind, tables_of(space, 3, 7, dtype=dtype)) <= TOLERANCE[dtype]


def order_error(layer, kind: str, tables: dict[str, Tensor]) -> float:
    """How far a function of tables [.., N, n, C] is from commuting with S_N, or from ignoring it."""
    size, errors = tables[next(iter(tables))].shape[-3], []
    with torch.no_grad():
        plain = as_dict(layer(tables))
        for order in ([*range(1, size), 0], [1, 0, *range(2, size)]):  # a cycle and a swap generate S_N
            came = as_dict(layer({axis: x[..., order, :, :] for axis, x in tables.items()}))
            wanted = {k: y[..., order, :, :] if kind == "sets" else y for k, y in plain.items()}
            errors += [float((came[k] - y).abs().max()) / max(1.0, float(y.abs().max())) for k, y in wanted.items()]
    return max(errors)


def test_a_function_that_uses_the_order_fails(space):
    tables = tables_of(space, 7)
    assert order_error(lambda t: {k: x.cumsum(-3) for k, x in t.items()}, "sets", tables) > 0.1
    assert order_error(lambda t: {k: x[..., 0, :, :] for k, x in t.items()}, "neurons", tables) > 0.1


@pytest.mark.parametrize("layer_name", COUPLED)
def test_the_coupling_of_weights_matters(layer_name):
    """Permuting each parameter on its own, as if its axes were not those of the tables, must break equivariance."""
    space = WeightSpace(SPACES["stack"])
    alone = WeightSpace.from_shapes(space.shapes)
    uncoupled = WeightSpace({**dict(neuron_space(space).items()), **dict(alone.items())})
    layer = layer_of(layer_name, space)
    errors = equivariance_error(layer, uncoupled, tables_of(space, 7), channels=True)
    assert min(errors.values()) > 1e-3


def test_a_permutation_that_moves_neurons_between_elements_breaks_the_linear_layer():
    """Neurons move in all elements together: shuffling them in one element alone is no symmetry."""
    space = WeightSpace(SPACES["stack"])
    layer, tables = layer_of("GradientSetLinear", space), tables_of(space, 7)
    shuffled = {k: x.clone() for k, x in tables.items()}
    shuffled["h0"][2] = shuffled["h0"][2].flip(0)
    wanted = layer(tables)["h0"].clone()
    wanted[2] = wanted[2].flip(0)
    assert (layer(shuffled)["h0"] - wanted).abs().max() > 1e-2


def test_fixed_axes_are_told_apart_by_the_encoding_only():
    """`in` and `out` are not permuted: with a code their neurons differ, without they are treated alike."""
    space = WeightSpace(SPACES["stack"])
    loose = neuron_space(space.relaxed())
    tables = tables_of(space, 7)
    assert_equivariant(layer_of("GradientSetLinear", space), loose, tables, channels=True)
    coded = nn.Sequential(NeuronEncoding(space, 4), GradientSetLinear(space, C + 8, 3)).double()
    errors = equivariance_error(coded, loose, tables, channels=True)
    assert errors["in"] > 1e-2 and errors["out"] > 1e-2


# --- slow twins ------------------------------------------------------------------------------------------------------


def neuron_linear_twin(layer: NeuronLinear, tables: dict[str, Tensor]) -> dict[str, Tensor]:
    names, result = list(layer.neurons), {}
    for row, axis in enumerate(names):
        result[axis] = torch.zeros(*tables[axis].shape[:-1], layer.out_channels, dtype=torch.float64)
        for n in range(tables[axis].shape[0]):
            for i in range(tables[axis].shape[1]):
                network = torch.zeros(layer.in_channels, dtype=torch.float64)
                for k, other in enumerate(names):
                    gain = torch.tensor(1.0) if layer.gains is None else layer.gains[k]
                    network = network + gain * tables[other][n].sum(0) / len(tables[other][n]) / len(names)
                own = tables[axis][n].sum(0) / len(tables[axis][n])
                y = layer.neuron.T @ tables[axis][n, i] + layer.axis.T @ own + layer.network.T @ network
                result[axis][n, i] = y + layer.bias[row if len(layer.bias) > 1 else 0]
    return result


@pytest.mark.parametrize("encodings", [True, False])
def test_neuron_linear_and_set_linear_equal_their_loops(space, encodings):
    torch.manual_seed(0)
    layer, tables = GradientSetLinear(space, C, 3, encodings).double(), tables_of(space, 5)
    nn.init.normal_(layer.element.bias)
    pooled = {k: torch.stack([sum(x[n] for n in range(5)) / torch.tensor(5)]) for k, x in tables.items()}
    one, two = neuron_linear_twin(layer.element, tables), neuron_linear_twin(layer.pooled, pooled)
    for axis, y in layer(tables).items():
        torch.testing.assert_close(y, one[axis] + two[axis])


@pytest.mark.parametrize("along", ["set", "neurons", "elements"])
def test_attention_equals_its_loop(space, along):
    layer, tables = layer_of(f"attention, {along}", space), tables_of(space, 5)
    assert isinstance(layer, SetAttention)
    bag, d = torch.cat(list(tables.values()), -2), C // layer.heads

    def attend(tokens: list[Tensor], at: Tensor) -> Tensor:
        heads = []
        for h in range(layer.heads):
            blocks = layer.query_key_value.weight.reshape(3, layer.heads, d, C)[:, h]
            scores = torch.stack([(blocks[0] @ at) @ (blocks[1] @ t) / d**0.5 for t in tokens])
            heads.append(sum(a * (blocks[2] @ t) for a, t in zip(scores.softmax(0), tokens, strict=True)))
        return layer.out.weight @ torch.cat(heads) + layer.out.bias

    means = torch.stack([x.mean(-2) for x in tables.values()]).mean(0)
    came = torch.cat(list(layer(tables).values()), -2)
    for n in range(5):
        for i in range(bag.shape[1]):
            tokens = {"set": bag[:, i], "neurons": bag[n], "elements": means}[along]
            at = means[n] if along == "elements" else bag[n, i]
            torch.testing.assert_close(came[n, i], attend(list(tokens), at))


def test_pools_equal_their_loops(space):
    tables = tables_of(space, 5)
    attention = layer_of("pool, attention", space)
    query = dict(attention.named_parameters())["reduce.query"]
    for axis, x in tables.items():
        for i in range(x.shape[1]):
            rows = [x[n, i] for n in range(5)]
            weights = torch.stack([row @ query / C**0.5 for row in rows]).softmax(0)
            torch.testing.assert_close(SetPool(space, C)(tables)[axis][i], sum(rows) / 5)
            torch.testing.assert_close(SetPool(space, C, "sum")(tables)[axis][i], sum(rows))
            torch.testing.assert_close(SetPool(space, C, "max")(tables)[axis][i], torch.stack(rows).max(0).values)
            torch.testing.assert_close(
                attention(tables)[axis][i], sum(w * r for w, r in zip(weights, rows, strict=True))
            )


def test_readout_equals_its_loop(space):
    torch.manual_seed(0)
    readout, tables = NeuronReadout(space, C, 3).double(), tables_of(space)
    pooled = sum(sum(x) / len(x) for x in tables.values()) / len(tables)
    torch.testing.assert_close(readout(tables), readout.linear.weight @ pooled + readout.linear.bias)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_product_equals_its_loop(space, reduction):
    layer, tables = layer_of(f"product, {reduction}", space), tables_of(space, 5)
    assert isinstance(layer, GradientProduct)
    for index, (name, y) in enumerate(layer(tables).items()):
        axes = [axis.name for axis in space[name]]  # type: ignore[union-attr]
        wanted = torch.zeros_like(y)
        for n in range(5):
            for at in torch.cartesian_prod(*map(torch.arange, y.shape[:-1])).reshape(-1, len(axes)).tolist():
                u = layer.out_side.T @ tables[axes[0]][n, at[0]] + layer.out_codes[index]
                v = layer.in_side.T @ tables[axes[1]][n, at[1]] + layer.in_codes[index] if len(at) == 2 else 1.0
                wanted[tuple(at)] += u * v / (5 if reduction == "mean" else 1)
        torch.testing.assert_close(y, wanted)


def test_pairwise_equals_its_loop(space):
    layer, tables = layer_of("pairwise over set", space), tables_of(space, 5)
    assert isinstance(layer, PairwiseMLP)
    first = torch.cat([layer.out_side.weight, layer.in_side.weight], 1)
    for index, (name, y) in enumerate(layer(tables).items()):
        axes = [axis.name for axis in space[name]]  # type: ignore[union-attr]
        wanted = torch.zeros_like(y)
        for n in range(5):
            for at in torch.cartesian_prod(*map(torch.arange, y.shape[:-1])).reshape(-1, len(axes)).tolist():
                joined = torch.cat([tables[axis][n, i] for axis, i in zip(axes, at, strict=True)])
                matrix, out = (first, layer.weight_out) if len(at) == 2 else (layer.bias_side.weight, layer.bias_out)
                wanted[tuple(at)] += out((matrix @ joined + layer.codes[index]).relu()) / 5
        torch.testing.assert_close(y, wanted)


# --- how the layers run ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_sets_of_any_size_and_any_batch(name, size, batch):
    space = WeightSpace(SPACES["stack"])
    layer, tables = layer_of(name, space), tables_of(space, *batch, size)
    came = as_dict(layer(tables))
    for index in [(0,) * len(batch), tuple(b - 1 for b in batch)]:
        alone = as_dict(layer({k: x[index] for k, x in tables.items()}))
        for k, y in came.items():
            assert y.shape[: len(batch)] == batch
            torch.testing.assert_close(y[index], alone[k])


def test_empty_sets_and_axes_give_finite_numbers(name):
    for text, size in (({"w": "h:0, in=3", "b": "h:0"}, 4), (SPACES["stack"], 0)):
        space = WeightSpace(text)
        for y in as_dict(layer_of(name, space)(tables_of(space, size))).values():
            assert y.isfinite().all()


def test_layers_run_under_vmap_with_a_stacked_theta(name):
    space = WeightSpace(SPACES["stack"])
    layers = [layer_of(name, space) for _ in range(3)]
    for k, layer in enumerate(layers):
        for p in layer.parameters():
            p.data.mul_(k + 1)
    theta, buffers = stack_module_state(layers)
    tables, base = tables_of(space, 3, 5), copy.deepcopy(layers[0])

    def run(p: dict[str, Tensor], b: dict[str, Tensor], x: dict[str, Tensor]):
        return functional_call(base, {**p, **b}, (x,))

    came = as_dict(vmap(run)(theta, buffers, tables))
    for k, layer in enumerate(layers):
        for key, y in as_dict(layer({a: x[k] for a, x in tables.items()})).items():
            torch.testing.assert_close(came[key][k], y)


@pytest.mark.parametrize(
    "build",
    [
        LAYERS["GradMetaNet"][0],
        lambda s: nn.Sequential(
            SetAttention(s, C, C, along="neurons"),
            SetAttention(s, C, C, along="elements"),
            PairwiseMLP(s, C, 6, 3, True),
        ),
        lambda s: nn.Sequential(SetPool(s, C, "attention"), NeuronLinear(s, C, C), PairwiseMLP(s, C, 6, 3)),
        lambda s: nn.Sequential(SetPool(s, C, "max"), NeuronReadout(s, C, 3)),
    ],
)
def test_layers_compile_without_a_graph_break(build):
    torch.compiler.reset()
    space = WeightSpace(SPACES["stack"])
    layer, tables = build(space).double(), tables_of(space, 5)
    came = as_dict(torch.compile(layer, backend="eager", fullgraph=True)(tables))
    for key, y in as_dict(layer(tables)).items():
        torch.testing.assert_close(came[key], y)


def test_gradients_are_right(name):
    space = WeightSpace({"w": "h:3, in=2", "b": "h:3"})
    layer, tables = layer_of(name, space), tables_of(space, 3)
    keys, parameters = list(tables), dict(layer.named_parameters())

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given, theta = values[: len(keys)], values[len(keys) :]
        y = functional_call(layer, dict(zip(parameters, theta, strict=True)), (dict(zip(keys, given, strict=True)),))
        return tuple(as_dict(y).values())

    inputs = [x.detach().requires_grad_() for x in (*tables.values(), *parameters.values())]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float32, 1e-5)])
def test_layers_keep_dtype_and_device_and_agree_with_double(name, dtype, tolerance, device):
    space = WeightSpace(SPACES["stack"])
    layer, tables = layer_of(name, space, torch.float64), tables_of(space, 5, dtype=torch.float64)
    wanted = as_dict(layer(tables))
    came = as_dict(layer.to(device, dtype)({k: x.to(device, dtype) for k, x in tables.items()}))
    for key, y in came.items():
        assert y.dtype == dtype and y.device.type == device
        torch.testing.assert_close(y.double().cpu(), wanted[key], rtol=tolerance, atol=tolerance)


def count(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def deep(depth: int) -> WeightSpace:
    return WeightSpace.linear_stack({f"{k}.weight": (3, 3) for k in range(depth)})


def test_parameters_grow_linearly_with_depth_or_not_at_all(name):
    counts = [count(LAYERS[name][0](deep(depth))) for depth in (4, 8, 12)]
    assert counts[1] - counts[0] == counts[2] - counts[1] <= counts[0]
    if "shared" in name or name.startswith(("attention", "pool, m", "readout")):
        assert counts[0] == counts[1]


def test_coefficients_without_encodings_serve_another_network():
    small, large = (GradientSetLinear(WeightSpace(SPACES[k]), C, 3, encodings=False) for k in ("stack", "residual"))
    large.load_state_dict(small.state_dict())


def test_features_keep_their_scale():
    space = deep(6)
    torch.manual_seed(0)
    layer = GradientSetLinear(space, 64, 64).double()
    y = torch.cat(list(layer(tables_of(space, 1, 1, channels=64)).values()), -2)
    assert 0.2 < y.var() < 1.5
    assert len(layer.terms) == len(set(layer.terms)) == 6


# --- factors ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Two layers write the stream r, two read it."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.in_place = in_place
        self.embed, self.up = nn.Linear(3, 6), nn.Linear(6, 5)
        self.down, self.head = nn.Linear(5, 6, bias=False), nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        r = self.embed(x)
        added = self.down(self.up(r).relu())
        return self.head(r.add_(added) if self.in_place else r + added)


def stack() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 5),
        nn.BatchNorm1d(5, affine=False),
        nn.ReLU(inplace=True),
        nn.Linear(5, 4),
        nn.Tanh(),
        nn.Linear(4, 2),
    )


NETS = {"stack": (stack, None), "residual": (Residual, WeightSpace(SPACES["residual"]))}


def net_and_data(which: str, dtype: torch.dtype = torch.float64, size: int = 8):
    torch.manual_seed(0)
    net = NETS[which][0]().to(dtype)
    x, target = torch.randn(size, 3, dtype=dtype), torch.randint(2, (size,))
    space = NETS[which][1] or WeightSpace.linear_stack(dict(net.named_parameters()))
    return net, x, lambda out: nn.functional.cross_entropy(out, target, reduction="none"), space


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("which", NETS)
@pytest.mark.parametrize("size", [2, 8])
def test_products_of_factors_are_autograds_gradients(which, dtype, tolerance, size):
    net, x, loss, space = net_and_data(which, dtype, size)
    tables = rank_one_factors(net, x, loss, space=NETS[which][1])
    wanted = torch.autograd.grad(loss(net(x)).sum(), list(net.parameters()))
    came, average = factors_to_gradients(tables, space), factors_to_gradients(tables, space, "mean")
    for (name, _), gradient in zip(net.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(came[name], gradient, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(average[name], gradient / size, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("which", NETS)
def test_each_element_is_the_gradient_of_its_example(which):
    net, x, loss, space = net_and_data(which)
    net.eval()  # a batch norm that trains ties the examples together
    tables = rank_one_factors(net, x, loss, space=space)
    for n in range(len(x)):
        wanted = torch.autograd.grad(loss(net(x))[n], list(net.parameters()))
        came = factors_to_gradients({axis: t[n : n + 1] for axis, t in tables.items()}, space)
        for (name, _), gradient in zip(net.named_parameters(), wanted, strict=True):
            torch.testing.assert_close(came[name], gradient)


@pytest.mark.parametrize("which", NETS)
def test_factors_move_with_the_neurons(which):
    net, x, loss, space = net_and_data(which)
    params = {k: p.detach() for k, p in net.named_parameters()}
    permutations = space.random_permutations(torch.Generator().manual_seed(3))
    plain = rank_one_factors(net, x, loss, space=space)
    came = rank_one_factors(net.eval().train(), x, loss, space=space, params=space.permute(params, permutations))
    for axis, table in neuron_space(space).permute(plain, permutations, channels=True).items():
        torch.testing.assert_close(came[axis], table)


def test_a_forward_that_works_in_place_does_not_change_what_was_read():
    net, x, loss, space = net_and_data("residual")
    in_place = Residual(in_place=True).double()
    in_place.load_state_dict(net.state_dict())
    for axis, table in rank_one_factors(net, x, loss, space=space).items():
        torch.testing.assert_close(rank_one_factors(in_place, x, loss, space=space)[axis], table)


def test_the_generalised_product_holds_the_mean_gradient_as_a_special_case():
    net, x, loss, space = net_and_data("stack")
    product = GradientProduct(space, in_channels=2, out_channels=1).double()
    with torch.no_grad():
        product.out_side.copy_(torch.tensor([[0.0], [1.0]]))
        product.in_side.copy_(torch.tensor([[1.0], [0.0]]))
    features = product(rank_one_factors(net, x, loss))
    wanted = torch.autograd.grad(loss(net(x)).mean(), list(net.parameters()))
    for (name, _), gradient in zip(net.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(features[name].squeeze(-1), gradient)


def test_extraction_leaves_the_module_as_it_was():
    net, x, loss, _ = net_and_data("stack")
    net[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        tables = rank_one_factors(net, x, loss)
    with torch.inference_mode():
        assert torch.equal(rank_one_factors(net, x, loss)["h0"], tables["h0"])
    assert not any(t.requires_grad for t in tables.values()) and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and not any(m._forward_hooks for m in net.modules())
    assert not net[0].weight.requires_grad and net[0].bias.requires_grad
    with pytest.raises(RuntimeError):
        rank_one_factors(net, x, lambda out: out @ out)
    assert not any(m._forward_hooks for m in net.modules())


def test_tokens_are_elements_of_the_set():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), torch.randn(5, 7, 3).double()
    tables = rank_one_factors(net, x, lambda out: out.square().sum((1, 2)))
    assert tables["h0"].shape == (35, 4, 2)
    wanted = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    came = factors_to_gradients(tables, WeightSpace.linear_stack(dict(net.named_parameters())))
    for y, gradient in zip(came.values(), wanted, strict=True):
        torch.testing.assert_close(y, gradient)


def test_a_part_of_a_network_can_be_read():
    """The convolution is left out; the weights behind it keep their factors."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    space = WeightSpace({"2.weight": "h:3, in=4", "2.bias": "h:3", "4.weight": "out=2, h:3", "4.bias": "out=2"})
    x = torch.randn(6, 1, 3).double()
    came = factors_to_gradients(rank_one_factors(net, x, lambda out: out.square().sum(-1), space=space), space)
    wanted = torch.autograd.grad(net(x).square().sum(), [p for k, p in net.named_parameters() if k in space])
    for y, gradient in zip(came.values(), wanted, strict=True):
        torch.testing.assert_close(y, gradient)


def test_layers_that_share_an_axis_have_channels_of_their_own():
    layout = factor_slots(WeightSpace(SPACES["residual"]))
    places = [place for slot in layout.slots.values() if slot.input for place in slot]
    assert layout.channels == 4 and len(places) == len(set(places)) == 8


# --- bad input -------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.a(x))


class Silent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) @ self.b.weight.T


class Uneven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(torch.cat([x, x])).unflatten(0, (2, -1)).sum(0))


def norm(out: Tensor) -> Tensor:
    return out.flatten(1).square().sum(-1)


@pytest.mark.parametrize(
    ("net", "shape", "words"),
    [
        (nn.Sequential(nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(4, 2)), (5, 1, 3), ["'0.weight'", "Conv1d"]),
        (nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), (5, 3), ["'1.weight'", "LayerNorm"]),
        (Twice(), (5, 3), ["'a.weight'", "twice"]),
        (Silent(), (5, 3), ["'b.weight'", "did not run"]),
        (Uneven(), (5, 3), ["different numbers", "(10,)", "(5,)"]),
        (nn.Linear(3, 2), (3,), ["'weight'", "(3,)"]),
        (nn.ReLU(), (5, 3), ["no parameters"]),
    ],
)
def test_modules_without_rank_one_factors_are_named(net, shape, words):
    with pytest.raises(InvalidInput) as error:
        rank_one_factors(net, torch.randn(shape), norm)
    assert all(word in str(error.value) for word in words), error.value
    assert not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize(
    ("loss", "extra", "words"),
    [
        (lambda out: out.square().mean(), {}, ["loss", "()", "(5,)"]),
        (lambda out: out, {}, ["loss", "(5, 2)", "(5,)"]),
        (lambda out: norm(out.detach()), {}, ["loss", "detaches"]),
        (norm, {"params": {"0.wieght": torch.zeros(2, 3)}}, ["params", "0.wieght"]),
        (norm, {"space": WeightSpace({"9.weight": "out=2, in=3"})}, ["space", "9.weight"]),
        (norm, {"space": WeightSpace({"weight": "out=2, in=4"})}, ["weight", "(2, 3)", "(2, 4)"]),
        (norm, {"space": WeightSpace({"bias": "out=2"})}, ["'bias'", "exactly one"]),
    ],
)
def test_bad_arguments_of_the_extraction(loss, extra, words):
    with pytest.raises(InvalidInput) as error:
        rank_one_factors(nn.Linear(3, 2), torch.randn(5, 3), loss, **extra)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"conv": "c:4, 2, 3"}, ["'conv'", "3 axes"]),
        ({"w": "out=2, c:4*3"}, ["'w'", "'c:4*3'"]),
        ({"w": "h:4, 3"}, ["'w'", "'3'"]),
        ({"scale": ""}, ["'scale'", "0 axes"]),
        ({}, ["no parameters"]),
    ],
)
def test_spaces_without_neuron_tables(text, words):
    with pytest.raises(InvalidInput) as error:
        GradientSetLinear(WeightSpace(text), 1, 1)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {k: x for k, x in t.items() if k != "h0"}, ["'h0'", "missing"]),
        (lambda t: {**t, "h0": t["h0"][:, :3]}, ["'h0'", "(7, 3, 4)", "(7, 5, 4)"]),
        (lambda t: {**t, "h0": t["h0"][..., :3]}, ["'h0'", "(7, 5, 3)", "(7, 5, 4)"]),
        (lambda t: {**t, "h0": t["h0"][:6]}, ["'h0'", "(6, 5, 4)", "(7, 5, 4)"]),
        (lambda t: {k: x[0] for k, x in t.items()}, ["(3, 4)", "set"]),
    ],
)
@pytest.mark.parametrize(
    "layer_name", ["GradientSetLinear", "attention, set", "pool, mean", "product, mean", "pairwise over set"]
)
def test_tables_that_do_not_fit_are_named(layer_name, change, words):
    space = WeightSpace(SPACES["stack"])
    with pytest.raises(InvalidInput) as error:
        layer_of(layer_name, space)(change(tables_of(space, 7)))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda s: SetAttention(s, 4, 4, heads=3), ["heads", "3", "4"]),
        (lambda s: SetAttention(s, 4, 4, along="time"), ["along", "time", "neurons"]),
        (lambda s: SetPool(s, 4, "median"), ["reduction", "median", "mean"]),
        (lambda s: GradientProduct(s, 4, 4, "max"), ["reduction", "max", "mean"]),
        (lambda s: NeuronEncoding(s, 0), ["width", "0"]),
        (lambda s: NeuronLinear(s, 0, 3), ["in_channels", "0"]),
        (lambda s: PairwiseMLP(s, 4, 0, 3), ["hidden", "0"]),
    ],
)
def test_bad_arguments_of_the_layers(build, words):
    with pytest.raises(InvalidInput) as error:
        build(WeightSpace(SPACES["stack"]))
    assert all(word in str(error.value) for word in words), error.value


# --- what sets are for -----------------------------------------------------------------------------------------------


def fisher_problem(count: int):
    """Networks with random data: their factors, mean gradients and the diagonals of their Fisher matrices."""
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    space = WeightSpace.linear_stack(dict(net.named_parameters()))
    found = []
    for _ in range(count):
        params = {k: torch.randn(shape, generator=g) for k, shape in space.shapes.items()}
        x, y = torch.randn(8, 3, generator=g), torch.randn(8, 2, generator=g)
        found.append(rank_one_factors(net, x, lambda out, y=y: (out - y).square().sum(-1) / 2, params=params))
    tables = {axis: torch.stack([t[axis] for t in found]) for axis in found[0]}
    mean = factors_to_gradients(tables, space, "mean")
    fisher = factors_to_gradients({axis: x.square() for axis, x in tables.items()}, space, "mean")
    return space, tables, {k: g.unsqueeze(-1) for k, g in mean.items()}, {k: f.unsqueeze(-1) for k, f in fisher.items()}


def fit(net: nn.Module, inputs: dict[str, Tensor], targets: dict[str, Tensor], train: int, steps: int) -> float:
    """Trains on the first networks, and gives the error on the others as a part of the targets' variance."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def error(rows: slice) -> Tensor:
        came = net({k: x[rows] for k, x in inputs.items()})
        return torch.stack([(came[k] - y[rows]).square().mean() / y.var() for k, y in targets.items()]).mean()

    for _ in range(steps):
        optimizer.zero_grad()
        error(slice(0, train)).backward()
        optimizer.step()
    with torch.no_grad():
        return float(error(slice(train, None)))


def test_a_set_gives_the_fisher_diagonal_and_the_mean_gradient_does_not():
    space, tables, means, targets = fisher_problem(96)
    scale = {k: x.std() for k, x in tables.items()}
    tables = {k: x / scale[k] for k, x in tables.items()}
    means = {k: x / x.std() for k, x in means.items()}
    targets = {k: (y / y.std()) for k, y in targets.items()}
    torch.manual_seed(0)
    of_sets = nn.Sequential(
        GradientSetLinear(space, 2, 16),
        Pointwise(nn.GELU()),
        GradientSetLinear(space, 16, 16),
        GradientProduct(space, 16, 16),
        Pointwise(mlp([16, 1])),
    )
    of_means = nn.Sequential(EquivariantLinear(space, 1, 8), Pointwise(nn.GELU()), EquivariantLinear(space, 8, 8))
    of_means.append(Pointwise(mlp([8, 16, 1])))
    assert count(of_means) > count(of_sets)
    sets, baseline = fit(of_sets, tables, targets, 64, 100), fit(of_means, means, targets, 64, 100)
    assert sets < 0.5 * baseline
