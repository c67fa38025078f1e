"""The Neuron rule against what it is said to compute: Adam at θ0, its symmetries, its twin in place, its gradients."""

import itertools
import math
import re
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lopt import InvalidInput, WeightSpace
from lopt.rules import Clock, Neuron, State
from lopt.rules.neuron import layout as layout_module
from lopt.rules.neuron.chunks import chunks_of
from lopt.rules.neuron.combine import bounded_scale
from lopt.rules.neuron.form import ROLES, form_of
from lopt.rules.neuron.layout import COUNT, HIDDEN, Layout, layout_of
from lopt.rules.neuron.orthogonalise import orthogonalise
from lopt.rules.neuron.passes import add_sums
from lopt.rules.neuron.pure import stacked, sums_of
from lopt.rules.neuron.tokens import FEATURES, MOMENTS
from lopt.rules.sharded import Shard
from lopt.testing import TOLERANCE

SPACES = {
    "stack": {"0.weight": "h:6, in=3", "0.bias": "h:6", "2.weight": "out=2, h:6", "2.bias": "out=2", "scale": ""},
    "convolution": {"conv.weight": "c:4, in=2, 3, 3", "norm": "c:4", "next": "e:5, c:4, 3, 3", "fc": "out=2, e:5*4"},
    "gru": {"ih": "h:5+h:5+h:5, in=2", "hh": "h:5+h:5+h:5, h:5", "bias": "h:5+h:5+h:5", "fc": "out=2, h:5"},
    "attention": {
        "embedding": "32, e:6",
        "qkv": "H:2*d[H]:3+H:2*d[H]:3+H:2*v[H]:4, e:6",
        "out": "e:6, H:2*v[H]:4",
        "bias": "e:6",
        "per_head": "H:2, d[H]:3, e:6",
        "scales": "H:2, d[H]:3",
    },
    "grouped": {
        "conv": "G:2*d[G]:4, e[G]:3, 3, 3",
        "bias": "G:2*d[G]:4",
        "before": "G:2*e[G]:3, 5",
        "fc": "7, G:2*d[G]:4",
    },
    "fixed heads": {"qkv": "H=2*d[H]:3+H=2*d[H]:3, e:4", "out": "e:4, H=2*d[H]:3", "conv": "H=2*d[H]:3, x[H]:2, 3"},
    "experts": {"up": "E:3, h[E]:4+h[E]:4, e:5", "down": "E:3, e:5, h[E]:4", "router": "E:3, e:5"},
    "inside out": {"w": "d[H]:3, H:2", "x": "e:4, d[H]:3, 2, H:2"},
    "twice": {"hh": "H:2, d[H]:3, H:2, d[H]:3", "flat": "H:2*d[H]:3, H:2*d[H]:3", "b": "H:2*d[H]:3*H:2, 3"},
    "by shapes": {"w": "a:4, b:3, c:3, d:2", "b": "e:4", "s": ""},
    "large": {"tall": "a:21, b:13", "wide": "b:13, a:21", "again": "a:21, b:13", "heads": "G:2*d[G]:9, e[G]:8"},
}  # fmt: skip
WAYS = {"": {}, "orthogonalised": {"orthogonalise": True}, "deflated": {"deflation": 8}}  # of hidden matrices
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors(space: WeightSpace, seed: int, dtype: torch.dtype = torch.float64, *batch: int) -> dict[str, Tensor]:
    g = generator(seed)
    return {k: torch.randn((*batch, *shape), generator=g, dtype=dtype) for k, shape in space.shapes.items()}


def neuron(seed: int | None = 0, **arguments) -> Neuron:
    """A rule whose θ was drawn, its heads included; with `seed=None` one at its start."""
    torch.manual_seed(7)
    rule = Neuron(**arguments).double().requires_grad_(False)
    if seed is not None:
        g = generator(seed)
        for p in rule.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return rule


def clocks(steps: int, full: bool = True) -> list[Clock]:
    losses = torch.tensor([2.0, 1.4, 1.7, 1.1, 0.6, 0.9, -0.2, -0.1], dtype=torch.float64)
    told = (torch.tensor(30.0), torch.tensor(8.0))
    return [
        Clock(torch.tensor(float(t)), torch.tensor(9.0), losses[t], *told) if full else Clock(torch.tensor(float(t)))
        for t in range(steps)
    ]


def run(rule: Neuron, space: WeightSpace, params, gradients, times, start: State | None = None, rate: float = 0.1):
    """Steps of size `rate` along given gradients: the updates of every step, and the last state."""
    state = rule.init_state(space, params) if start is None else start
    history = []
    for grads, clock in zip(gradients, times, strict=True):
        updates, state = rule(space, params, grads, state, clock)
        params = {k: p - rate * updates[k] for k, p in params.items()}
        history.append(updates)
    return history, state


def run_in_place(rule: Neuron, space: WeightSpace, params, gradients, times, rate: float = 0.1):
    """Steps by `updates_`, each parameter written as soon as its update was handed out."""
    params, state, history = {k: p.clone() for k, p in params.items()}, rule.init_state(space, params), []
    for grads, clock in zip(gradients, times, strict=True):
        updates = {}
        for piece in rule.updates_(space, params, grads, state, clock):
            factors = [1.0] * len(piece.names) if piece.factors is None else piece.factors
            for name, direction, factor in zip(piece.names, piece.directions, factors, strict=True):
                updates[name] = direction * factor
                params[name] -= rate * updates[name]
        assert list(updates) and set(updates) == set(params)
        history.append({k: updates[k] for k in params})
    return history, state


def gap(came, wanted) -> float:
    """The largest difference between two trees of tensors, relative to the size of each."""
    pairs = zip(tree_leaves(came), tree_leaves(wanted), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs if a.numel())


def permute_state(space: WeightSpace, state: State, p: Mapping[str, Tensor]) -> State:
    def one(name: str, key: str, x: Tensor) -> Tensor:
        if key == "subspace":
            return permute_subspace(space, name, x, p)
        return x if key in ("step", "loss") else space.permute({name: x}, p)[name]

    return State({k: {key: one(k, key, x) for key, x in v.items()} for k, v in state.tensors.items()}, {})


def permute_subspace(space: WeightSpace, name: str, x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """Each row of a subspace [b, r, c] stands along the rows or columns of the parameter, and permutes as they do."""
    form = form_of(name, space[name])
    wide, found = form.rows < form.columns, []
    for row in x.unbind(1):
        everywhere = (row[:, :, None] if wide else row[:, None, :]).expand(form.shape)
        moved = space.permute({name: everywhere.reshape(space.shapes[name])}, p)[name].reshape(form.shape)
        found.append(moved[:, :, 0] if wide else moved[:, 0, :])
    return torch.stack(found, 1)


@pytest.fixture(params=SPACES)
def space(request) -> WeightSpace:
    return WeightSpace(SPACES[request.param])


# --- at the start: Adam ----------------------------------------------------------------------------------------------


def test_untrained_it_is_adam_brought_to_rms_one(space):
    rule, params, gradients = neuron(None, eps=1e-12), tensors(space, 0), [tensors(space, s) for s in range(1, 9)]
    came, _ = run(rule, space, params, gradients, clocks(8), rate=0.0)
    twins = {k: nn.Parameter(torch.zeros_like(p)) for k, p in params.items()}
    adam = torch.optim.Adam(twins.values(), lr=1.0, eps=1e-30)
    for grads, updates in zip(gradients, came, strict=True):
        before = {k: p.detach().clone() for k, p in twins.items()}
        for k, p in twins.items():
            p.grad = grads[k]
        adam.step()
        step = {k: before[k] - p.detach() for k, p in twins.items()}
        assert gap(updates, {k: u / u.square().mean().sqrt() for k, u in step.items()}) < 1e-12


def test_the_formula():
    """Against the docstring's, weight by weight, with coefficients and corrections that do not depend on anything."""
    space, rule = WeightSpace({"w": "h:6, in=3, 2"}), neuron(None)
    params, gradients = tensors(space, 0), [tensors(space, s) for s in range(1, 4)]
    h_g, h_m, h_s, h_w, h_1, h_f, h_r, h_c, head, h_d = given = [0.3, -0.4, 0.5, -0.2, 0.7, -0.6, 0.9, -0.8, 0.25, 1.5]
    row, column = 0.4, -0.3
    rule.network.tensor_head.bias.copy_(torch.tensor(given))
    rule.network.neuron_head.bias.copy_(torch.tensor([row, column, 5.0, 5.0]))
    came, _ = run(rule, space, params, gradients, clocks(3), rate=0.0)
    w = params["w"].reshape(6, 6)
    m, s, v = (torch.zeros_like(w) for _ in range(3))
    for step, grads in enumerate(gradients, 1):
        g = grads["w"].reshape(6, 6)
        m, s, v = 0.9 * m + 0.1 * g, 0.99 * s + 0.01 * g, 0.999 * v + 0.001 * g * g
        mh, sh, vh = m / (1 - 0.9**step), s / (1 - 0.99**step), v / (1 - 0.999**step)
        mean, rho, size = vh.mean(), mh.square().mean().sqrt() / vh.mean().sqrt(), w.square().mean().sqrt()
        d = torch.empty(6, 6, dtype=torch.float64)
        for i in range(6):
            for j in range(6):
                rows, columns = (vh[i].mean(), mh[i].mean()), (vh[:, j].mean(), mh[:, j].mean())
                u = ((1 + h_m) * mh[i, j] + h_s * sh[i, j] + h_g * rho * g[i, j]) / (vh[i, j] + 1e-8 * mean).sqrt()
                u += h_w * rho * w[i, j] / size + h_1 * mh[i, j] / mean.sqrt()
                u += h_f * mh[i, j] / (rows[0] * columns[0] / mean).sqrt() + h_r * rows[1] / rows[0].sqrt()
                r, b = math.exp(math.tanh(row)), math.exp(math.tanh(column))
                d[i, j] = r * b * u + b * h_c * columns[1] / columns[0].sqrt()
        left = 1 - (step - 1) / 9  # of the horizon of `clocks`
        scale = bounded_scale(torch.tensor(head, dtype=torch.float64)) * left**h_d
        wanted = scale * d / d.square().mean().sqrt()
        assert gap({"w": came[step - 1]["w"].reshape(6, 6)}, {"w": wanted}) < 1e-6  # guards of logarithms: 1e-8


# --- symmetry --------------------------------------------------------------------------------------------------------


def symmetry_error(rule: Neuron, space: WeightSpace, dtype: torch.dtype, group: WeightSpace | None = None) -> float:
    """How far four steps from a state that has seen gradients are from commuting with permutations of `group`."""
    group, rule = group or space, rule.to(dtype)
    params, times = tensors(space, 0, dtype), clocks(6)
    warm_up, gradients = ([tensors(space, s, dtype) for s in span] for span in ((1, 2), (3, 4, 5, 6)))
    _, state = run(rule, space, params, warm_up, times[:2])
    plain = run(rule, space, params, gradients, times[2:], state)
    worst, g = 0.0, generator()
    for _ in range(3):
        p = group.random_permutations(g)
        moved = [group.permute(grads, p) for grads in gradients]
        came = run(rule, space, group.permute(params, p), moved, times[2:], permute_state(group, state, p))
        worst = max(worst, gap(came[0], [group.permute(u, p) for u in plain[0]]))
        worst = max(worst, gap(came[1].tensors, permute_state(group, plain[1], p).tensors))
    return worst


@ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equivariant_under_the_whole_group(space, dtype, way):
    assert symmetry_error(neuron(**way), space, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("stack", {"0.weight": "h:6, in=3", "0.bias": "i:6", "2.weight": "out=2, h:6", "2.bias": "out=2", "scale": ""}),
        ("gru", {"ih": "a:5+b:5+c:5, in=2", "hh": "h:5+h:5+h:5, h:5", "bias": "h:5+h:5+h:5", "fc": "out=2, h:5"}),
        ("experts", {"up": "E:3, h[E]:4+h[E]:4, e:5", "down": "E:3, e:5, f[E]:4", "router": "E:3, e:5"}),
    ],
)
def test_permuting_against_the_coupling_shows(name, group):
    assert symmetry_error(neuron(), WeightSpace(SPACES[name]), torch.float64, WeightSpace(group)) > 1e-3


def test_heads_that_permute_on_their_own_are_more_than_heads_that_permute_alike():
    """One permutation for all heads, applied to one head only, must not commute with a rule that ties the heads."""
    tied = WeightSpace({"q": "H:2*d:3, e:6", "k": "H:2*d:3, e:6"})
    free = WeightSpace({"q": "H:2*d[H]:3, e:6", "k": "H:2*d[H]:3, e:6"})
    assert symmetry_error(neuron(), tied, torch.float64) < 1e-12
    assert symmetry_error(neuron(), free, torch.float64) < 1e-12


class _Operators(TorchDispatchMode):
    """Counts the operators that compute; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and func.overloadpacket not in (torch.ops.aten.split_with_sizes,)
        return func(*args, **(kwargs or {}))


def test_equal_layers_run_as_one(monkeypatch):
    """A transformer of 24 equal layers takes no more operators than one of 4, up to the form of a mean or two."""
    monkeypatch.setenv("LOPT_KERNELS", "0")
    block = {"norm": (4,), "qkv": (12, 4), "qkv_bias": (12,), "out": (4, 4), "up": (16, 4), "down": (4, 16)}
    counts = []
    for layers in (4, 24):
        space = WeightSpace.from_shapes({f"{i}.{k}": shape for i in range(layers) for k, shape in block.items()})
        rule, params, grads = neuron(), tensors(space, 0), tensors(space, 1)
        state = rule.init_state(space, params)
        with _Operators() as operators:
            assert sum(len(u.names) for u in rule.updates_(space, params, grads, state, clocks(1)[0])) == len(params)
        counts.append(operators.count)
    assert counts[1] < 1.1 * counts[0]


# --- the same step in other ways -------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize(
    ("dtype", "tolerance", "full"), [(torch.float64, 1e-12, True), (torch.float32, 2e-5, False)], ids=["64", "32"]
)
def test_in_place_it_takes_the_same_steps(space, dtype, tolerance, way, full):
    rule, params = neuron(**way).to(dtype), tensors(space, 0, dtype)
    gradients, times = [tensors(space, s, dtype) for s in range(1, 6)], clocks(5, full)
    wanted = run(rule, space, params, gradients, times)
    came = run_in_place(rule, space, params, gradients, times)
    assert gap(came[0], wanted[0]) < tolerance
    assert gap(came[1].tensors, wanted[1].tensors) < tolerance


@ways
@pytest.mark.parametrize("limit", [1, 7, 64, 1000])
def test_in_place_whatever_the_chunks(monkeypatch, limit, way):
    monkeypatch.setattr("lopt.rules.neuron.passes._chunk_size", lambda device: limit)
    monkeypatch.setattr("lopt.rules.neuron.hidden._TOGETHER", limit)
    monkeypatch.setattr("lopt.rules.neuron.deflate._together", lambda device: limit)
    rule = neuron(**way)
    for axes in SPACES.values():
        space = WeightSpace(axes)
        params, gradients = tensors(space, 0), [tensors(space, s) for s in (1, 2)]
        wanted = run(rule, space, params, gradients, clocks(2))
        came = run_in_place(rule, space, params, gradients, clocks(2))
        assert gap(came[0], wanted[0]) < 1e-12
        assert gap(came[1].tensors, wanted[1].tensors) < 1e-12


def test_in_place_with_other_orders_of_memory():
    space, rule = WeightSpace({"w": "a:4, b:3, 3, 3", "v": "b:3, a:4"}), neuron()
    params = tensors(space, 0)
    gradients = [tensors(space, s) for s in (1, 2)]
    wanted = run(rule, space, params, gradients, clocks(2))

    def strange(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.t().contiguous().t()

    odd = {k: strange(p) for k, p in params.items()}
    state, moved = rule.init_state(space, odd), {}
    for entries in state.tensors.values():
        for key in ("momentum", "slow_momentum", "second_moment"):
            entries[key] = strange(entries[key])
    for grads, clock in zip(gradients, clocks(2), strict=True):
        for u in rule.updates_(space, odd, {k: strange(g) for k, g in grads.items()}, state, clock):
            assert u.factors is not None
            for k, d, f in zip(u.names, u.directions, u.factors, strict=True):
                moved[k] = d * f
                odd[k] -= 0.1 * moved[k]
    assert gap(moved, {k: wanted[0][-1][k] for k in moved}) < 1e-12
    assert gap(state.tensors, wanted[1].tensors) < 1e-12


@ways
def test_a_population_is_a_loop(space, way):
    rules = [neuron(seed, **way) for seed in range(3)]
    params, gradients = tensors(space, 0, torch.float64, 3), [tensors(space, 1 + s, torch.float64, 3) for s in range(3)]
    theta, _ = stack_module_state(rules)
    losses, horizons = torch.randn(3, 3, generator=generator(), dtype=torch.float64), torch.tensor([5.0, 9.0, 20.0])
    sizes = torch.tensor([[3.0, 50.0, 1e4], [8.0, 16.0, 32.0]])

    def step(theta, params, grads, state, clock):
        return functional_call(rules[0], theta, (space, params, grads, state, clock))

    state = vmap(lambda p: rules[0].init_state(space, p))(params)
    moved, updates = params, {}
    for t, grads in enumerate(gradients):
        clock = Clock(torch.full((3,), float(t)), horizons, losses[t], *sizes)
        updates, state = vmap(step)(theta, moved, grads, state, clock)
        moved = {k: p - 0.1 * updates[k] for k, p in moved.items()}
    for i, rule in enumerate(rules):
        times = [Clock(torch.tensor(float(t)), horizons[i], losses[t, i], *sizes[:, i]) for t in range(3)]
        inputs = {k: p[i] for k, p in params.items()}, [{k: g[i] for k, g in grads.items()} for grads in gradients]
        alone = run(rule, space, *inputs, times)
        assert gap(tree_map(lambda x, i=i: x[i], (updates, state.tensors)), (alone[0][-1], alone[1].tensors)) < 1e-11


@pytest.mark.parametrize("name", ["convolution", "large"])
@ways
def test_compiled_it_is_one_graph(name, way):
    space, rule = WeightSpace(SPACES[name]), neuron(**way)
    params, grads = tensors(space, 0), tensors(space, 1)
    state = rule.init_state(space, params)

    def step(params, grads, state, t, loss):
        return rule(space, params, grads, State(state, {}), Clock(t, None, loss))

    inputs = (params, grads, state.tensors, torch.tensor(1.0), torch.tensor(0.3))
    wanted = step(*inputs)  # first: the layout of a space is made when a step first needs it, and not in a graph
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert gap(compiled(*inputs), wanted) < 1e-12


@ways
@pytest.mark.parametrize("limit", [5, 32_768])
def test_the_sums_of_all_shards_are_those_of_the_whole(space, limit, way):
    """Every weight is in one chunk of one process, with its own row and column, wherever the first axis is cut; none
    holds both a hidden matrix and another tensor where these move in other ways."""
    layout = layout_of(space, torch.device("cpu"), torch.float64)
    stop = layout.n_others if way.get("orthogonalise") else len(layout.names)
    numbers = {k: torch.randn((MOMENTS, *shape), dtype=torch.float64) for k, shape in space.shapes.items()}
    wanted = sums_of(
        [
            [stacked(layout, stack, [numbers[k][i] for k in layout.names[stack.tensors]]) for i in range(MOMENTS)]
            for stack in layout.stacks
        ]
    )
    came = torch.zeros(MOMENTS, layout.n_entries, dtype=torch.float64)
    cuts = {k: (0, (shape[0] + 1) // 3, shape[0]) for k, shape in space.shapes.items() if shape}
    for process in range(2):
        shards = {k: Shard(cut[process], cut[process + 1], None) for k, cut in cuts.items()}
        for chunk in chunks_of(layout, shards, limit, stop):
            assert chunk.tensors.stop <= stop or chunk.tensors.start >= stop
            name = layout.names[chunk.tensors.start]
            if chunk.part is None and process:
                continue  # a tensor that every process holds whole
            mine = numbers[name][:, shards[name].start : shards[name].stop] if name in shards else numbers[name]
            flat = mine.reshape(MOMENTS, -1)[:, chunk.part or slice(None)]
            assert flat.shape[1] == chunk.size
            for run in chunk.runs:
                add_sums(came, flat[:, run.weights], run, layout.n_rows)
    torch.testing.assert_close(came, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,)], ids=["numbers", "rows"])
def test_three_ways_to_the_same_sums(space, shape, monkeypatch):
    """Gathered, by a matrix, and one after the other; for the means and for the sums of a layout."""
    ways: dict[str, Layout] = {}
    for way, few, small in (("gathered", 0, 1 << 30), ("matrix", 1 << 30, 1 << 30), ("added", 1 << 30, -1)):
        monkeypatch.setattr(layout_module, "_FEW", few)
        monkeypatch.setattr(layout_module, "_GATHERED", small)
        monkeypatch.setattr(layout_module, "_SMALL_MATRIX", small)
        monkeypatch.setattr(layout_module, "_kept", ())
        ways[way] = layout_of(space, torch.device("cpu"), torch.float64)
    sizes = {
        "to_neurons": ways["matrix"].n_entries,
        "to_entries": ways["matrix"].n_neurons * len(ROLES),
        "to_tables": ways["matrix"].n_neurons,
    }
    for name, rows in sizes.items():
        x = torch.randn(rows, *shape, generator=generator(), dtype=torch.float64)
        gathered, matrix, added = (getattr(layout, name) for layout in ways.values())
        assert matrix.matrix is not None and added.matrix is None and added.summands is None
        assert (gathered.summands is not None) == bool(len(gathered.target))
        for other in (gathered, added):
            torch.testing.assert_close(other(x), matrix(x), rtol=1e-12, atol=1e-12)


# --- scale -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "loss_shift"), [(1e3, 0.0), (1e-3, -3.0)], ids=["1000", "0.001 and a negative loss"]
)
def test_the_scale_of_the_loss_does_not_matter(space, factor, loss_shift):
    rule, params = neuron().float(), tensors(space, 0, torch.float32)
    gradients = [{k: 1e-3 * g for k, g in tensors(space, s, torch.float32).items()} for s in range(1, 40)]
    times = [Clock(torch.tensor(float(t)), None, torch.tensor(math.exp(-t / 9) + loss_shift)) for t in range(39)]
    scaled = [Clock(clock.step, None, factor * clock.loss) for clock in times if clock.loss is not None]
    plain, _ = run(rule, space, params, gradients, times, rate=1e-3)
    came, _ = run(rule, space, params, [{k: factor * g for k, g in x.items()} for x in gradients], scaled, rate=1e-3)
    for one, other in zip(came, plain, strict=True):
        for k, u in other.items():
            assert (one[k] - u).norm() < 0.01 * u.norm()


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_zero_gradients_give_zero_updates(space, seed, dtype):
    rule, params = neuron(seed).float(), tensors(space, 0, dtype)
    zeros = {k: torch.zeros_like(p) for k, p in params.items()}
    zero_weights = {k: p if p.dim() > 1 else torch.zeros_like(p) for k, p in params.items()}
    for weights in (params, zero_weights):
        for history, state in (
            run(rule, space, weights, [zeros] * 3, clocks(3)),
            run_in_place(rule, space, weights, [zeros] * 3, clocks(3)),
        ):
            assert all((u == 0).all() for updates in history for u in updates.values())
            assert all(x.isfinite().all() for x in tree_leaves(state.tensors))


def test_one_silent_tensor_leaves_the_others_their_scale():
    space, rule = WeightSpace(SPACES["stack"]), neuron()
    gradients = [tensors(space, s) for s in range(1, 4)]
    for grads in gradients:
        grads["2.bias"].zero_()
        grads["0.weight"][2:4] = 0
    small = [{k: 1e-6 * g for k, g in grads.items()} for grads in gradients]
    plain, came = (run(rule, space, tensors(space, 0), x, clocks(3, False))[0] for x in (gradients, small))
    assert gap(came, plain) < 1e-3
    assert all((updates["2.bias"] == 0).all() for updates in plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_state_is_float32_whatever_the_parameters(space, dtype):
    rule, params = neuron().float(), tensors(space, 0, dtype)
    grads = {k: 1e-5 * g for k, g in tensors(space, 1, dtype).items()}  # squares that half precision cannot hold
    history, state = run_in_place(rule, space, params, [grads] * 2, clocks(2))
    assert {x.dtype for x in tree_leaves(state.tensors)} == {torch.float32}
    assert all(u.dtype == torch.float32 and u.isfinite().all() and u.any() for u in history[-1].values())
    lifted = {k: p.float() for k, p in params.items()}, [{k: g.float() for k, g in grads.items()}]
    assert gap(history[0], {k: run(rule, space, *lifted, clocks(1))[0][0][k] for k in history[0]}) < 1e-3


def test_the_state_takes_twelve_bytes_a_parameter():
    space = WeightSpace.from_shapes({"w": (300, 200), "b": (300,)})
    state = Neuron().init_state(space, tensors(space, 0, torch.float32))
    numbers = sum(x.numel() * x.element_size() for entries in state.tensors.values() for x in entries.values())
    assert numbers <= 12 * 60_300 + 100
    assert not state.scalars


# --- shapes, architectures -------------------------------------------------------------------------------------------


def test_every_shape():
    shapes = {
        "scalar": (), "one": (1,), "vector": (5,), "empty": (0,), "empty matrix": (3, 0), "matrix": (4, 5),
        "1d": (3, 2, 5), "2d": (3, 2, 3, 3), "3d": (3, 2, 2, 2, 2), "embedding": (50, 4),
        "column": (6, 1), "row": (1, 6),
    }  # fmt: skip
    space, rule = WeightSpace.from_shapes(shapes), neuron().float()
    params, grads = tensors(space, 0, torch.float32), tensors(space, 1, torch.float32)
    for clock in (*clocks(1), *clocks(1, False)):
        one = run(rule, space, params, [grads], [clock])[0][0]
        other = run_in_place(rule, space, params, [grads], [clock])[0][0]
        for k, shape in shapes.items():
            assert one[k].shape == other[k].shape == shape
            assert one[k].isfinite().all()
            torch.testing.assert_close(one[k], other[k], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shapes", [{"s": ()}, {"e": (0,)}, {"w": (2, 3)}])
def test_the_smallest_networks(shapes):
    space = WeightSpace.from_shapes(shapes)
    for updates in run(neuron(), space, tensors(space, 0), [tensors(space, 1)] * 2, clocks(2))[0]:
        assert all(u.isfinite().all() for u in updates.values())


def test_a_tensor_does_not_depend_on_how_many_others_there_are_like_it():
    """Means, not sums: two equal networks in one space get the updates of one alone, but for the count of matrices."""
    one, two = WeightSpace(SPACES["gru"]), {}
    for copy in "ab":
        two |= {f"{copy}.{k}": re.sub("(h|in|out)([:=])", rf"\1{copy}\2", v) for k, v in SPACES["gru"].items()}
    both = WeightSpace(two)
    params, grads = tensors(one, 0), [tensors(one, s) for s in (1, 2, 3)]
    rule = neuron()
    for reading in (rule.network.read_tensors, rule.network.scale_law):
        reading.weight[:, FEATURES + COUNT] = 0
    rule.network.hidden_law.weight[:, COUNT] = 0
    alone = run(rule, one, params, grads, clocks(3))[0]

    def twice(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{copy}.{k}": x for copy in "ab" for k, x in tensors.items()}

    came = run(rule, both, twice(params), [twice(g) for g in grads], clocks(3))[0]
    assert gap(came, [twice(u) for u in alone]) < 1e-12


def test_the_place_of_a_tensor_in_the_network():
    """By hand: a residual stream of two blocks, a recurrent matrix, and a vector that nothing else meets."""
    space = WeightSpace(
        {
            "embed": "tokens=9, stream:4",
            "up": "h:6, stream:4",
            "down": "stream:4, h:6",
            "recurrent": "stream:4, stream:4",
            "alone": "k:5",
        }
    )
    layout = layout_of(space, torch.device("cpu"), torch.float64)
    found = {name: layout.static[k, COUNT : COUNT + 4] for k, name in enumerate(layout.names)}
    for name, met in {"embed": (1, 4), "up": (2, 4), "down": (4, 2), "recurrent": (4, 4), "alone": (1, 1)}.items():
        logs = [math.log(count) / 4 for count in (4, *met)]
        assert found[name].tolist() == pytest.approx([*logs, float(name == "recurrent")])


def test_the_law_of_the_scale():
    """A power law: with an exponent for the number of matrices, the update grows by the power of that number."""
    rule, exponent, sizes = neuron(None), -0.6, []
    rule.network.scale_law.weight[:, FEATURES + COUNT] = 4 * exponent
    for matrices in (1, 3):
        space = WeightSpace.from_shapes({str(k): (3, 4) for k in range(matrices)})
        update = run(rule, space, tensors(space, 0), [tensors(space, 1)], clocks(1, full=False))[0][0]["0"]
        sizes.append(update.square().mean().sqrt())
    assert sizes[1] / sizes[0] == pytest.approx(bounded_scale(torch.tensor(exponent * math.log(3.0))).item(), rel=1e-6)


def test_hidden_matrices_have_a_law_of_their_own():
    space, rule = WeightSpace({"first": "h:6, in=3", "hidden": "k:5, h:6", "last": "out=2, k:5"}), neuron(None)
    rule.network.hidden_law.weight[0, HIDDEN] = 0.7
    rule.network.hidden_law.weight[0, COUNT] = -0.2
    update = run(rule, space, tensors(space, 0), [tensors(space, 1)], clocks(1, full=False))[0][0]
    wanted = bounded_scale(torch.tensor(0.7 - 0.2 * math.log(3) / 4, dtype=torch.float64))
    torch.testing.assert_close(update["hidden"].square().mean().sqrt(), wanted)
    for name in ("first", "last"):
        torch.testing.assert_close(update[name].square().mean().sqrt(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize(
    ("examples", "step", "horizon", "wanted"),
    [
        (500.0, 0, 250.0, 0.5),
        (500.0, 0, 500.0, 0.25),
        (500.0, 0, None, 0.125),  # of a horizon that is not known there are at least 1,000 steps
        (500.0, 400, None, 0.125),
        (500.0, 2000, None, 1 / 32),  # half of it is over
        (4000.0, 0, 250.0, 1.0),
        (1.0, 0, 250.0, 1 / 32),
        (0.0, 0, 250.0, 1 / 32),
        (None, 0, 250.0, 1.0),
    ],
)
def test_few_examples_for_many_steps_make_small_steps(examples, step, horizon, wanted):
    """With this law and batches of 4 the scale is one over how often an example comes, from 1/32 to 1."""
    space = WeightSpace({"w": "a:300, b:20", "b": "a:300"})
    rule = neuron(None)
    rule.network.data_law.weight.fill_(-4.0)
    size, end = (None if x is None else torch.tensor(x) for x in (examples, horizon))
    times = [Clock(torch.tensor(float(step)), end, None, size, torch.tensor(4.0))]
    update = run(rule, space, tensors(space, 0), [tensors(space, 1)], times)[0][0]
    for u in update.values():
        torch.testing.assert_close(u.square().mean().sqrt(), torch.tensor(wanted, dtype=torch.float64))


def test_a_small_network_cannot_learn_many_examples_by_heart():
    """From five examples a weight on nothing is taken from the scale."""
    rule, weights = neuron(None), 60
    rule.network.data_law.bias.fill_(-9.0)
    space = WeightSpace({"w": "a:10, b:5", "b": "a:10"})
    for per_weight, wanted in ((0.01, 1 / 32), (1.0, 0.2), (3.0, 0.6), (5.0, 1.0), (50.0, 1.0)):
        sizes = torch.tensor(per_weight * weights), torch.tensor(4.0)
        times = [Clock(torch.tensor(0.0), torch.tensor(1e6), None, *sizes)]
        update = run(rule, space, tensors(space, 0), [tensors(space, 1)], times)[0][0]["w"]
        torch.testing.assert_close(update.square().mean().sqrt(), torch.tensor(wanted, dtype=torch.float64))


def test_parameters_may_come_and_go():
    space, rule = WeightSpace(SPACES["stack"]), neuron()
    params, grads = tensors(space, 0), tensors(space, 1)
    state = rule.init_state(space, params)
    part = space.restrict(["0.weight", "2.bias"])

    def pick(x: Mapping) -> dict:
        return {k: x[k] for k in part}

    _, after = rule(part, pick(params), pick(grads), State(pick(state.tensors), {}), Clock(torch.tensor(0.0)))
    merged = State({**state.tensors, **after.tensors}, {})
    updates, last = rule(space, params, grads, merged, Clock(torch.tensor(1.0)))
    assert {k: float(v["step"]) for k, v in last.tensors.items()} == {k: 1.0 + (k in part) for k in space}
    assert all(u.isfinite().all() for u in updates.values())


# --- what it sees ----------------------------------------------------------------------------------------------------


def test_horizon_loss_and_structure_matter_once_trained():
    space = WeightSpace(SPACES["stack"])
    params, gradients = tensors(space, 0), [tensors(space, s) for s in range(1, 5)]

    def last(times: list[Clock], space: WeightSpace = space) -> dict[str, Tensor]:
        return run(neuron(), space, params, gradients, times)[0][-1]

    full = clocks(4)
    base = last(full)
    assert gap(last([c._replace(horizon=torch.tensor(4.0)) for c in full]), base) > 1e-3
    assert gap(last([c._replace(horizon=None) for c in full]), base) > 1e-3
    assert gap(last([c._replace(loss=c.loss**2) for c in full if c.loss is not None]), base) > 1e-4
    assert gap(last([c._replace(loss=None) for c in full]), base) > 1e-3
    assert gap(last(full, WeightSpace.from_shapes(space.shapes)), base) > 1e-3


def test_the_loss_is_followed_by_moving_averages():
    space, rule = WeightSpace({"w": "a:2"}), neuron()
    losses = [3.0, -1.0, 4.0, 1.0, -5.0]
    times = [Clock(torch.tensor(float(t)), None, torch.tensor(x)) for t, x in enumerate(losses)]
    state = run(rule, space, tensors(space, 0), [tensors(space, 1)] * 5, times)[1]
    count, fast, slow, _ = state.tensors["w"]["loss"]
    assert count == 5
    torch.testing.assert_close(fast, torch.tensor(losses, dtype=torch.float64).mean())
    torch.testing.assert_close(slow, fast)
    silent = run(rule, space, tensors(space, 0), [tensors(space, 1)], clocks(1, False), state)[1]
    assert torch.equal(silent.tensors["w"]["loss"], state.tensors["w"]["loss"])


def test_the_learned_scale_is_bounded():
    x = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    y = bounded_scale(x)
    assert 0.999e-3 < y.min() < 1.001e-3 and 9.999 < y.max() < 10.001 and (y.diff() >= 0).all()
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    one = bounded_scale(zero)
    torch.testing.assert_close(one, torch.ones_like(one))
    torch.testing.assert_close(torch.autograd.grad(one, zero)[0], torch.ones_like(one))


@pytest.mark.parametrize(("head", "power"), [(-0.7, 0.9), (9.0, 1.5), (9.0, -1.5)])
def test_updates_have_the_scale_that_the_heads_say(space, head, power):
    """It falls as a power of the time left, near the bound as well, and never grows beyond it."""
    rule = neuron()
    rule.network.tensor_head.weight[-2:] = 0
    for law in (rule.network.scale_law, rule.network.hidden_law):
        law.weight[:] = 0
    rule.network.tensor_head.bias[-2:] = torch.tensor([head, power])
    for horizon in (None, 10.0, 2.0, 1.0):
        times = [Clock(time.step, None if horizon is None else torch.tensor(horizon)) for time in clocks(3)]
        history, _ = run(rule, space, tensors(space, 0), [tensors(space, 1)] * 3, times)
        left = 0.5 if horizon is None else max(horizon - 2, 1) / horizon
        wanted = (bounded_scale(torch.tensor(head, dtype=torch.float64)) * left**power).clamp(max=10)
        for u in history[-1].values():
            torch.testing.assert_close(u.square().mean().sqrt(), wanted)


# --- orthogonalised directions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6), (2, 3, 7)])
def test_orthogonalised_matrices(shape):
    x = torch.randn(shape, generator=generator(), dtype=torch.float64)
    y = orthogonalise(x)
    assert y.shape == x.shape
    s = torch.linalg.svdvals(y)
    assert s.min() > 0.6 and s.max() < 1.3
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    between = u.mT @ y @ v.mT  # diagonal: the same singular vectors
    assert (between - torch.diag_embed(torch.diagonal(between, dim1=-2, dim2=-1))).abs().max() < 1e-10
    assert (orthogonalise(0 * x) == 0).all()


def test_hidden_matrices_move_along_the_orthogonalised_momentum():
    space = WeightSpace({"first": "h:6, in=3", "hidden": "k:5, h:6", "conv": "c:4, k:5*9", "last": "out=2, c:4"})
    params, grads = tensors(space, 0), tensors(space, 1)
    plain, came = (run(neuron(orthogonalise=o), space, params, [grads], clocks(1))[0][0] for o in (False, True))
    for k in ("first", "last"):
        torch.testing.assert_close(came[k], plain[k])
    for k in ("hidden", "conv"):
        wanted = orthogonalise(grads[k])
        scale = plain[k].square().mean().sqrt()  # is learned, as without
        torch.testing.assert_close(came[k], scale * wanted / wanted.square().mean().sqrt())


# --- learning and meta-learning --------------------------------------------------------------------------------------


def digits_like(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    centres = torch.randn(5, 12, generator=g)
    y = torch.randint(5, (256,), generator=g)
    return centres[y] + 0.7 * torch.randn(256, 12, generator=g), y


def fit(step: Callable[[nn.Module, Tensor], None], steps: int = 60) -> float:
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5)), digits_like()
    for t in range(steps):
        i = torch.randint(256, (64,), generator=generator(t))
        loss = F.cross_entropy(model(x[i]), y[i])
        model.zero_grad()
        loss.backward()
        step(model, loss.detach())
    return float(F.cross_entropy(model(x), y).detach())


def test_untrained_it_trains_a_network_as_adam_does():
    rule, kept = Neuron(), {}

    @torch.no_grad()
    def ours(model: nn.Module, loss: Tensor) -> None:
        params = dict(model.named_parameters())
        if not kept:
            kept["space"] = WeightSpace.linear_stack(params)
            kept["state"] = rule.init_state(kept["space"], params)
        grads = {k: p.grad for k, p in params.items() if p.grad is not None}
        clock = Clock(torch.tensor(float(kept.get("t", 0))), None, loss)
        kept["t"] = kept.get("t", 0) + 1
        for u in rule.updates_(kept["space"], params, grads, kept["state"], clock):
            assert u.factors is not None
            for k, d, f in zip(u.names, u.directions, u.factors, strict=True):
                params[k].sub_(3e-3 * f * d)

    def adam(model: nn.Module, loss: Tensor) -> None:
        if "adam" not in kept:
            kept["adam"] = torch.optim.Adam(model.parameters(), lr=3e-3)
        kept["adam"].step()

    before, came, wanted = fit(lambda model, loss: None), fit(ours), fit(adam)
    assert came < 0.5 * before
    assert came < wanted * 1.1


def meta_loss(theta: Mapping[str, Tensor], rule: Neuron, steps: int = 5) -> Tensor:
    """The loss of a small network after a few steps: differentiable in θ."""
    space = WeightSpace.linear_stack({"0.w": (6, 12), "0.b": (6,), "1.w": (5, 6), "1.b": (5,)})
    params = {k: 0.4 * p for k, p in tensors(space, 0).items()}
    x, y = digits_like()
    x = x.double()[:32]

    def loss_of(params: Mapping[str, Tensor]) -> Tensor:
        h = torch.tanh(F.linear(x, params["0.w"], params["0.b"]))
        return F.cross_entropy(F.linear(h, params["1.w"], params["1.b"]), y[:32])

    state = rule.init_state(space, params)
    for t in range(steps):
        grads, loss = torch.func.grad_and_value(loss_of)(params)
        clock = Clock(torch.tensor(float(t)), torch.tensor(5.0), loss, torch.tensor(3.0), torch.tensor(2.0))
        updates, state = functional_call(rule, dict(theta), (space, params, grads, state, clock))
        params = {k: p - 0.03 * updates[k] for k, p in params.items()}
    return loss_of(params)


@pytest.mark.parametrize("seed", [None, 0])
def test_the_meta_gradient(seed):
    rule = neuron(seed)
    rule.network.data_law.bias.fill_(-0.5)  # between its bounds
    theta = {k: p.detach().clone().requires_grad_() for k, p in rule.named_parameters()}
    slopes = torch.autograd.grad(meta_loss(theta, rule), list(theta.values()))
    assert all(slope.isfinite().all() for slope in slopes)
    direction = {
        k: torch.randn(p.shape, generator=generator(i), dtype=p.dtype) for i, (k, p) in enumerate(theta.items())
    }
    wanted = sum(float((slope * d).sum()) for slope, d in zip(slopes, direction.values(), strict=True))
    h = 1e-6
    ends = [meta_loss({k: p.detach() + e * direction[k] for k, p in theta.items()}, rule) for e in (h, -h)]
    came = float((ends[0] - ends[1]).detach()) / (2 * h)
    assert abs(wanted) > 1e-6
    assert abs(came - wanted) < 1e-4 * abs(wanted)


def test_the_meta_gradient_is_finite_where_gradients_are_zero():
    rule, space = neuron(), WeightSpace(SPACES["stack"])
    theta = {k: p.float().requires_grad_() for k, p in rule.named_parameters()}
    params, grads = tensors(space, 0, torch.float32), tensors(space, 1, torch.float32)
    params["0.bias"].zero_()
    grads["0.bias"].zero_()
    grads["0.weight"][1:3] = 0
    state, total = rule.float().init_state(space, params), torch.zeros(())
    for t in range(3):
        leaf = {k: (g * torch.ones_like(g).requires_grad_()) for k, g in grads.items()}
        clock = Clock(torch.tensor(float(t)), None, torch.tensor(0.0), torch.tensor(3.0), torch.tensor(2.0))
        updates, state = functional_call(rule, theta, (space, params, leaf, state, clock))
        params = {k: p - 0.1 * updates[k] for k, p in params.items()}
        total = total + sum(u.sum() for u in updates.values())
    assert all(x.isfinite().all() for x in torch.autograd.grad(total, list(theta.values())))


# --- arguments -------------------------------------------------------------------------------------------------------


def test_theta_is_small_and_serves_every_network():
    rule = Neuron()
    assert sum(p.numel() for p in rule.parameters()) < 20_000
    for axes in itertools.islice(SPACES.values(), 3):
        space = WeightSpace(axes)
        params = tensors(space, 0, torch.float32)
        rule(space, params, params, rule.init_state(space, params), Clock(torch.tensor(0.0)))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"decays": (0.9, 1.0)}, "decay: 1.0"),
        ({"decays": (0.9,)}, "decays: "),
        ({"second_decay": 0.0}, "decay: 0.0"),
        ({"eps": 0.0}, "eps: 0.0"),
        ({"eps": math.nan}, "eps: nan"),
        ({"width": 0}, "width: 0"),
        ({"rounds": -1}, "rounds: -1"),
    ],
)
def test_arguments_out_of_range(arguments, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        Neuron(**arguments)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_meta_parameters_of_half_precision_are_refused(dtype):
    space = WeightSpace(SPACES["stack"])
    with pytest.raises(InvalidInput, match=r"meta-parameters.*float16.*rule\.float\(\)"):
        neuron().to(dtype).init_state(space, tensors(space, 0))
