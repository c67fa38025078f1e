"""SGDM and Adam in place, by foreach operators, against their pure forms; they must not read a device's numbers."""

import pytest
import torch
from torch import Tensor

from lopt import LearnedOptimizer, WeightSpace
from lopt.rules import SGDM, Adam, Clock, UpdateRule, foreach
from tests.lopt.rules.test_neuron import gap, tensors
from tests.lopt.rules.test_per_parameter import BF16, F16, F32, F64, copied, strange

SPACE = WeightSpace({"w": "a:13, b:7", "v": "b:7", "s": "", "none": "c:0, b:7", "conv": "a:13, b:7, 3, 3"})
RULES = {"sgdm": lambda: SGDM(0.8), "adam": lambda: Adam(0.8, 0.95, 1e-3)}


def drawn(name: str, dtype: torch.dtype) -> UpdateRule:
    """θ away from its start: no scale of 1."""
    torch.manual_seed(1)
    rule = RULES[name]().to(dtype).requires_grad_(False)
    for p in rule.parameters():
        p.add_(0.3 * torch.randn_like(p))
    return rule


def full(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: x for k, x in found.items() if x.numel()}


@pytest.mark.parametrize("read", [True, False], ids=["numbers", "tensors"])
@pytest.mark.parametrize(
    ("dtype", "theta", "tolerance"), [(F32, F32, 1e-6), (F64, F64, 1e-13), (F64, F32, 1e-6), (BF16, F32, 1e-6)]
)
@pytest.mark.parametrize("name", RULES)
def test_in_place_it_takes_the_same_steps(monkeypatch, name, dtype, theta, tolerance, read):
    monkeypatch.setattr(foreach, "_is_read", lambda x: read)
    rule, params = drawn(name, theta), tensors(SPACE, 0, dtype)
    state = rule.init_state(SPACE, params)
    state.tensors["w"]["step"].fill_(7)  # tensors that have seen different numbers of updates
    for number in range(1, 4):
        grads, clock = tensors(SPACE, number, dtype), Clock(torch.tensor(float(number)))
        wanted, following = rule(SPACE, params, grads, copied(state), clock)
        (piece,) = rule.updates_(SPACE, params, grads, state, clock)
        assert list(piece.names) == list(wanted)
        factors = piece.factors
        assert factors is not None
        came = {k: d * f for k, d, f in zip(piece.names, piece.directions, factors, strict=True)}
        assert {k: (x.dtype, x.shape) for k, x in came.items()} == {k: (x.dtype, x.shape) for k, x in wanted.items()}
        assert gap(full(came), full(wanted)) < tolerance
        for k, entries in following.tensors.items():
            assert {key: x.dtype for key, x in state.tensors[k].items()} == {key: x.dtype for key, x in entries.items()}
            assert gap(full(state.tensors[k]), full(entries)) < tolerance
        params = {k: p - 0.1 * came[k].to(dtype) for k, p in params.items()}


@pytest.mark.parametrize("name", RULES)
def test_other_orders_of_memory(name):
    rule, params, clock = drawn(name, F32), tensors(SPACE, 0, F32), Clock(torch.tensor(0.0))
    grads = {k: strange(g) for k, g in tensors(SPACE, 1, F32).items()}
    state = rule.init_state(SPACE, params)
    wanted, _ = rule(SPACE, params, grads, copied(state), clock)
    (piece,) = rule.updates_(SPACE, params, grads, state, clock)
    assert piece.factors is not None
    came = {k: d * f for k, d, f in zip(piece.names, piece.directions, piece.factors, strict=True)}
    assert gap(full(came), full(wanted)) < 1e-6


@pytest.mark.parametrize("name", RULES)
def test_on_a_device_no_number_is_read(monkeypatch, name):
    """`Tensor.item` and its like wait for a device; with tensors for numbers none is called."""
    rule, params = drawn(name, F32), tensors(SPACE, 0, F32)
    state, clock = rule.init_state(SPACE, params), Clock(torch.tensor(0.0))

    def refuse(*arguments):
        raise AssertionError("a number was read")

    for method in ("item", "tolist", "__float__", "__bool__", "__int__", "numpy"):
        monkeypatch.setattr(Tensor, method, refuse)
    if name == "adam":
        with pytest.raises(AssertionError, match="was read"):
            list(rule.updates_(SPACE, params, params, state, clock))
    monkeypatch.setattr(foreach, "_is_read", lambda x: False)
    list(rule.updates_(SPACE, params, params, state, clock))


@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-6), (F16, 1e-3)])
@pytest.mark.parametrize(
    ("rule", "peer"),
    [
        (SGDM(), lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)),
        (Adam(), lambda params: torch.optim.Adam(params, lr=0.1)),
    ],
)
def test_a_weight_takes_the_steps_of_torch(rule, peer, dtype, tolerance):
    found = []
    for build in (lambda params: LearnedOptimizer(params, lr=0.1, rule=rule), peer):
        held = F32 if build is peer else dtype  # a state in float16 would be torch's own trouble
        params = {k: torch.nn.Parameter(x.to(held)) for k, x in tensors(SPACE, 0, F32).items()}
        optimizer = build(list(params.values()))
        for number in range(4):
            for k, g in tensors(SPACE, 1 + number, F32).items():
                params[k].grad = g.to(held)
            optimizer.step()
        found.append({k: p.detach().float() for k, p in params.items()})
    assert gap(full(found[0]), full(found[1])) < 10 * tolerance
