"""Update rules: one contract for all of them, then each against what it is said to compute."""

import inspect
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from lopt import InvalidInput, WeightSpace
from lopt.functionals import Pointwise
from lopt.rules import RULES, SGDM, Adam, Clock, Functional, Neuron, PerParameter, State, UpdateRule
from lopt.rules.features import CHANNELS, DECAYS, WEIGHT_CHANNELS
from lopt.rules.moments import TIMESCALES, debias, logit, normalise_rms, time_features
from lopt.testing import TOLERANCE

# One row for each rule of the registry: how to build it for a space.
BUILD: dict[str, Callable[[WeightSpace], UpdateRule]] = {
    "sgdm": lambda space: SGDM(0.8),
    "adam": lambda space: Adam(0.8, 0.95, 1e-6),
    "per_parameter": lambda space: PerParameter(width=8, layers=2),
    "functional": lambda space: Functional(space, width=8, layers=2),
    "neuron": lambda space: Neuron(width=8),
}
SPACES = {
    "linear stack": {"0.weight": "h:6, in=3", "0.bias": "h:6", "2.weight": "out=2, h:6", "2.bias": "out=2"},
    "convolution": {"conv.weight": "c:4, 2, 3", "conv.bias": "c:4", "fc.weight": "out=2, c:4*3", "fc.bias": "out=2"},
    "recurrent": {"ih": "h:5, in=2", "hh": "h:5, h:5", "b": "h:5", "out": "out=2, h:5", "scale": ""},
}
STEPS = 4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tensors(space: WeightSpace, seed: int, dtype: torch.dtype = torch.float64, *batch: int) -> dict[str, Tensor]:
    g = generator(seed)
    return {k: torch.randn((*batch, *shape), generator=g, dtype=dtype) for k, shape in space.shapes.items()}


def perturb(rule: UpdateRule, seed: int = 0) -> UpdateRule:
    """θ away from its start, with every term of the update at full size, so that none hides behind another."""
    g = generator(seed)
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
        if isinstance(rule, PerParameter | Functional):
            rule.update.a.fill_(0.2 + 0.01 * seed)
            rule.update.b.fill_(0.7 + 0.01 * seed)
            assert min(rule.update.alpha, rule.update.beta) > 0.5
    return rule


def run(
    rule: UpdateRule, space: WeightSpace, params, gradients, start: State | None = None, told: Sequence[Tensor] = ()
) -> tuple[dict, State]:
    """A few steps of size 0.1 along the given gradients; the updates of the last one, and the state after it.

    Args:
        told: what the clock holds beside the step.
    """
    state = rule.init_state(space, params) if start is None else start
    updates: dict[str, Tensor] = {}
    for step, grads in enumerate(gradients):
        updates, state = rule(space, params, grads, state, Clock(torch.tensor(float(step)), *told))
        params = {k: p - 0.1 * updates[k] for k, p in params.items()}
    return updates, state


def permute_state(space: WeightSpace, state: State, permutations: Mapping[str, Tensor]) -> State:
    """State tensors have the shape of the weight, or that and one more axis, which stays; so does all else."""

    def one(name: str, key: str, x: Tensor) -> Tensor:
        if key in ("step", "loss"):
            return x
        return space.permute({name: x}, permutations, channels=key == "momenta")[name]

    return State({k: {key: one(k, key, x) for key, x in v.items()} for k, v in state.tensors.items()}, state.scalars)


def gap(came: Any, wanted: Any) -> float:
    """The largest difference between two trees of tensors, relative to the size of each tensor."""
    pairs = zip(tree_leaves(came), tree_leaves(wanted), strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1)) for a, b in pairs)


@pytest.fixture(params=SPACES)
def space(request) -> WeightSpace:
    return WeightSpace(SPACES[request.param])


@pytest.fixture(params=RULES)
def name(request) -> str:
    return request.param


@pytest.fixture
def rule(name, space) -> UpdateRule:
    torch.manual_seed(0)
    return perturb(BUILD[name](space)).double()


# --- the contract ----------------------------------------------------------------------------------------------------


def test_every_rule_has_a_row_and_is_final():
    assert set(BUILD) == set(RULES)
    assert all(cls.__bases__ == (UpdateRule,) for cls in RULES.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_updates_and_state_are_equivariant(rule, space, dtype):
    """Each step from the same weights and state: over several, rounding would grow as the steps let it."""
    rule.to(dtype)
    params, warm_up = tensors(space, 0, dtype), [tensors(space, seed, dtype) for seed in (1, 2)]
    _, state = run(rule, space, params, warm_up)  # a state that has seen gradients
    g = generator()
    for step in range(STEPS):
        grads, clock = tensors(space, 10 + step, dtype), Clock(torch.tensor(float(step)))
        updates, following = rule(space, params, grads, state, clock)
        for _ in range(3):
            p = space.random_permutations(g)
            moved = rule(
                space, space.permute(params, p), space.permute(grads, p), permute_state(space, state, p), clock
            )
            assert gap(moved[0], space.permute(updates, p)) < TOLERANCE[dtype]
            assert gap(moved[1], permute_state(space, following, p)) < TOLERANCE[dtype]
        params, state = {k: x - 0.1 * updates[k] for k, x in params.items()}, following


@torch.no_grad()
def test_only_rules_that_see_the_coupling_depend_on_it(rule, name, space):
    apart = WeightSpace.from_shapes(space.shapes)
    params, gradients, p = tensors(space, 0), [tensors(space, 1)], apart.random_permutations(generator())
    plain = run(rule, space, params, gradients)[0]
    moved = run(rule, space, apart.permute(params, p), [apart.permute(grads, p) for grads in gradients])[0]
    error = gap(moved, apart.permute(plain, p))
    assert error > 1e-3 if name in ("functional", "neuron") else error < 1e-12


def test_calls_are_pure(rule, space):
    params, grads = tensors(space, 0), tensors(space, 1)
    state = run(rule, space, params, [grads])[1]
    clock = Clock(torch.tensor(3.0), torch.tensor(9.0), torch.tensor(1.5), torch.tensor(40.0), torch.tensor(8.0))
    inputs, theta = (params, grads, tuple(state), tuple(clock)), dict(rule.named_parameters())
    leaves, versions = tree_leaves((inputs, theta)), [x._version for x in tree_leaves((inputs, theta))]
    before, attributes = [x.detach().clone() for x in leaves], set(vars(rule))
    first = rule(space, params, grads, state, clock)
    second = rule(space, params, grads, state, clock)
    assert [x._version for x in leaves] == versions
    assert all(torch.equal(x, y) for x, y in zip(leaves, before, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(tree_leaves(first), tree_leaves(second), strict=True))
    assert set(vars(rule)) == attributes
    owned = {x.untyped_storage().data_ptr() for x in leaves if x.numel()}
    assert not owned & {x.untyped_storage().data_ptr() for x in tree_leaves(first) if x.numel()}


@torch.no_grad()
def test_a_population_is_a_loop(name, space):
    rules = [perturb(BUILD[name](space), seed).double() for seed in range(3)]
    params, gradients = tensors(space, 0, torch.float64, 3), [tensors(space, 1 + s, torch.float64, 3) for s in range(3)]
    states = [rule.init_state(space, {k: p[i] for k, p in params.items()}) for i, rule in enumerate(rules)]
    theta, _ = stack_module_state(rules)
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *states)

    def step(theta, params, grads, state, t):
        return functional_call(rules[0], theta, (space, params, grads, state, Clock(t)))

    moved, state, updates = params, stacked, {}
    for t, grads in enumerate(gradients):
        updates, state = vmap(step, in_dims=(0, 0, 0, 0, None))(theta, moved, grads, state, torch.tensor(float(t)))
        moved = {k: p - 0.1 * updates[k] for k, p in moved.items()}
    for i, rule in enumerate(rules):
        alone = run(
            rule, space, {k: p[i] for k, p in params.items()}, [{k: g[i] for k, g in q.items()} for q in gradients]
        )
        assert gap(tree_map(lambda x, i=i: x[i], (updates, tuple(state))), (alone[0], tuple(alone[1]))) < 1e-12


@torch.no_grad()
def test_what_a_clock_holds_beside_the_step_is_optional(rule, space):
    params, grads = tensors(space, 0), tensors(space, 1)
    state, step = rule.init_state(space, params), torch.tensor(2.0)
    given = ([None, torch.tensor(x)] for x in (9.0, 1.5, 40.0, 8.0))
    for told in itertools.product(*given):
        updates, _ = rule(space, params, grads, state, Clock(step, *told))
        assert {k: u.shape for k, u in updates.items()} == {k: p.shape for k, p in params.items()}
        assert all(u.isfinite().all() for u in updates.values())


def test_rules_compile_as_one_graph(name):
    space = WeightSpace(SPACES["convolution"])
    rule = perturb(BUILD[name](space)).double().requires_grad_(False)
    params, grads = tensors(space, 0), tensors(space, 1)

    def step(params, grads, state, t):
        return rule(space, params, grads, State(state, {}), Clock(t, *told))

    state, t = rule.init_state(space, params).tensors, torch.tensor(1.0)
    told = [torch.tensor(x) for x in (9.0, 1.5, 40.0, 8.0)]
    came = torch.compile(step, backend="eager", fullgraph=True)(params, grads, state, t)
    assert gap(came, step(params, grads, state, t)) < 1e-12


def test_theta_gets_a_gradient(rule, space):
    told = [torch.tensor(x) for x in (9.0, 1.5, 40.0, 8.0)]
    updates, state = run(rule, space, tensors(space, 0), [tensors(space, 1), tensors(space, 2)], told=told)
    loss = torch.stack([u.square().sum() for u in updates.values()]).sum()
    grads = torch.autograd.grad(loss, list(rule.parameters()))  # raises where one is not used
    assert all(g.isfinite().all() for g in grads)
    assert sum(g.abs().sum() > 0 for g in grads) > len(grads) / 2


def test_arguments_are_json_and_build_the_rule_again(rule, name):
    arguments = json.loads(json.dumps(dict(rule.arguments)))
    again = type(rule)(**arguments)
    assert dict(again.arguments) == dict(rule.arguments)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in rule.state_dict().items()}
    assert set(arguments) == set(inspect.signature(type(rule)).parameters)


def test_state_is_what_the_docstring_lists(rule, space):
    state = rule.init_state(space, tensors(space, 0, torch.float32))
    described = (inspect.getdoc(type(rule)) or "").split("State:")[1].split("\n")[0]
    assert state.tensors.keys() == set(space)
    for k, shape in space.shapes.items():
        entries = dict(state.tensors[k])
        assert entries.pop("step").shape == ()
        assert all(f'"{key}"' in described for key in entries)
        assert entries.pop("loss", torch.zeros(0)).numel() <= 4  # the same few for every tensor
        assert all(x.shape[: len(shape)] == shape for x in entries.values())
        numbers = sum(x.numel() for x in entries.values())
        assert f"{4 * numbers // math.prod(shape)} bytes a parameter" in described
    assert isinstance(rule.default_lr, float)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_state_counts_its_updates_and_keeps_its_form(rule, space, dtype):
    params = tensors(space, 0, dtype)
    start = rule.init_state(space, params)
    state = run(rule, space, params, [tensors(space, 1, dtype)] * STEPS)[1]
    assert all(float(entries["step"]) == STEPS for entries in state.tensors.values())
    assert tree_flatten(tuple(start))[1] == tree_flatten(tuple(state))[1]
    for old, new in zip(tree_leaves(tuple(start)), tree_leaves(tuple(state)), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_zeros_stay_finite(rule, space, dtype):
    zeros = {k: torch.zeros(shape, dtype=dtype) for k, shape in space.shapes.items()}
    updates, state = run(rule.float(), space, zeros, [zeros] * STEPS)
    assert all(x.isfinite().all() for x in tree_leaves((updates, tuple(state))))


# --- hand-made rules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "reference"),
    [
        (SGDM(), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        (SGDM(0.5), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.5)),
        (Adam(), lambda p: torch.optim.Adam(p, lr=0.01)),
        (Adam(0.5, 0.99, 1e-3), lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.99), eps=1e-3)),
    ],
    ids=["SGD", "SGD 0.5", "Adam", "Adam 0.5"],
)
@torch.no_grad()
def test_fifty_steps_are_those_of_torch(rule, reference):
    space = WeightSpace(SPACES["recurrent"])
    params, rule = tensors(space, 0), rule.double()
    twins = {k: nn.Parameter(p.clone()) for k, p in params.items()}
    optimizer, state = reference(list(twins.values())), rule.init_state(space, params)
    for step in range(50):
        grads = {k: 0.1 * p + g for (k, p), g in zip(params.items(), tensors(space, step).values(), strict=True)}
        for k, p in twins.items():
            p.grad = grads[k].clone()
        updates, state = rule(space, params, grads, state, Clock(torch.tensor(float(step))))
        params = {k: p - 0.01 * updates[k] for k, p in params.items()}
        optimizer.step()
    assert gap(params, {k: p.detach() for k, p in twins.items()}) < 1e-6


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: SGDM(1.0), "decay: 1.0"),
        (lambda: SGDM(-0.1), "decay: -0.1"),
        (lambda: Adam(beta1=0.0), "decay: 0.0"),
        (lambda: Adam(beta2=1.5), "decay: 1.5"),
        (lambda: Adam(eps=0.0), "eps: 0.0"),
        (lambda: Adam(eps=math.inf), "eps: inf"),
        (lambda: Adam(eps=math.nan), "eps: nan"),
    ],
)
def test_hyperparameters_out_of_range(make, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        make()


# --- learned rules ---------------------------------------------------------------------------------------------------


def nineteen_channels(w: Tensor, grads: list[Tensor]) -> Tensor:
    """The inputs of a learned rule at a step, from their definitions; grads are all gradients up to this one."""
    last = len(grads) - 1
    momenta = [torch.stack([(1 - d) * d ** (last - t) * g for t, g in enumerate(grads)]).sum(0) for d in DECAYS]
    columns = [x / x.square().mean().sqrt() for x in (w, grads[-1], *momenta)]
    times = [torch.full_like(w, math.tanh(last / tau - 1)) for tau in TIMESCALES]
    return torch.stack([*columns, *times], -1)


def pointwise_twin(rule: PerParameter | Functional, x: Tensor) -> Tensor:
    for layer in (rule.features.first, *rule.features.rest):
        x = F.relu(layer(x))
    return x


@pytest.mark.parametrize("steps", [1, 5])
@torch.no_grad()
def test_learned_rules_against_their_formula(steps):
    space = WeightSpace(SPACES["linear stack"])
    params, gradients = tensors(space, 0), [tensors(space, 1 + step) for step in range(steps)]
    torch.manual_seed(0)
    per_parameter, functional = PerParameter().double(), Functional(space).double()
    for rule in (per_parameter, functional):
        first, rest = rule.features.first, rule.features.rest
        assert [(layer.in_features, layer.out_features) for layer in (first, *rest)] == [(19, 32), (32, 32), (32, 32)]
        torch.testing.assert_close(rule.update.alpha, torch.tensor(0.1, dtype=torch.float64))
        torch.testing.assert_close(rule.update.beta, torch.tensor(0.001, dtype=torch.float64))
        state, updates = rule.init_state(space, params), {}
        for step, grads in enumerate(gradients):
            updates, state = rule(space, params, grads, state, Clock(torch.tensor(float(step))))
        inputs = {k: nineteen_channels(params[k], [grads[k] for grads in gradients]) for k in params}
        hidden = {k: pointwise_twin(rule, x) for k, x in inputs.items()}
        f = Pointwise(per_parameter.head)(hidden) if rule is per_parameter else functional.nf_layer(hidden)
        alpha, beta = rule.update.alpha, rule.update.beta
        for k in params:
            momentum = sum(0.1 * 0.9 ** (steps - 1 - t) * grads[k] for t, grads in enumerate(gradients))
            torch.testing.assert_close(updates[k], alpha * (momentum + beta * f[k][..., 0]), rtol=1e-12, atol=1e-12)
            assert (beta * f[k]).abs().max() > 1e-6  # the network takes part


def test_the_inputs_are_nineteen():
    assert (CHANNELS, WEIGHT_CHANNELS, len(TIMESCALES)) == (19, 8, 11)
    assert DECAYS == (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


def test_functional_shares_coefficients_along_inputs_and_classes():
    wide = Functional(WeightSpace.linear_stack({"0.w": (6, 300), "0.b": (6,), "1.w": (10, 6), "1.b": (10,)}))
    narrow = Functional(WeightSpace.linear_stack({"0.w": (6, 3), "0.b": (6,), "1.w": (2, 6), "1.b": (2,)}))
    shapes = [{k: v.shape for k, v in rule.state_dict().items()} for rule in (wide, narrow)]
    assert shapes[0] == shapes[1]
    assert len(wide.nf_layer.terms) == 32


def test_functional_refuses_another_network():
    space = WeightSpace(SPACES["recurrent"])
    other = WeightSpace(SPACES["linear stack"])
    rule, params = Functional(space), tensors(other, 0, torch.float32)
    with pytest.raises(InvalidInput, match="made for .*hh.* was given .*0.weight"):
        rule(other, params, params, rule.init_state(other, params), Clock(torch.tensor(0.0)))


# --- moments and normalisers -----------------------------------------------------------------------------------------


def test_normalise_rms():
    x = torch.randn(5, 3, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(normalise_rms(1e-6 * x).square().mean(), torch.ones((), dtype=torch.float64))
    zero = torch.zeros(4, requires_grad=True)
    y = normalise_rms(zero)
    assert (y == 0).all()
    y.sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


def test_time_features():
    start, late = time_features(torch.tensor(0.0)), time_features(torch.tensor(1e7))
    assert start.shape == (11,)
    torch.testing.assert_close(start, torch.full((11,), math.tanh(-1)))
    torch.testing.assert_close(late, torch.ones(11))
    one = time_features(torch.tensor(30.0, dtype=torch.float64))
    assert one[3] == 0 and one.dtype == torch.float64 and (one.diff() < 0).sum() >= 9


@pytest.mark.parametrize("decay", [0.1, 0.9, 0.9999])
def test_logit_and_debias(decay):
    x = torch.tensor(logit(decay), dtype=torch.float64)
    torch.testing.assert_close(torch.sigmoid(x), torch.tensor(decay, dtype=torch.float64))
    for step in (1, 10, 1000):
        came = debias(torch.tensor(float(step)), F.logsigmoid(x))
        torch.testing.assert_close(came, torch.tensor(1 - decay**step, dtype=torch.float64), rtol=1e-10, atol=0)
