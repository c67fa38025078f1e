"""PerParameter's step in place against its pure form, whatever the chunks, dtypes and orders of memory."""

import pytest
import torch
from torch import Tensor

from lopt import WeightSpace
from lopt.rules import Clock, PerParameter, State, UpdateRule, pointwise_step
from lopt.rules.per_parameter import PerParameter as Rule
from tests.lopt.rules.test_neuron import gap, tensors

SPACE = WeightSpace({"w": "a:13, b:7", "v": "b:7", "s": "", "none": "c:0, b:7", "conv": "a:13, b:7, 3, 3"})


def drawn() -> Rule:
    torch.manual_seed(3)
    rule = PerParameter(width=8)
    with torch.no_grad():
        rule.update.a.add_(0.05)  # α and β away from their start
        rule.update.b.add_(0.3)
        for p in rule.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return rule.requires_grad_(False)


def both(rule: Rule, dtype: torch.dtype, order=lambda x: x) -> float:
    """How far three steps in place are from those of the pure form, in updates and state."""
    params, *gradients = ({k: order(x) for k, x in tensors(SPACE, s, dtype).items()} for s in range(4))
    state, worst = rule.init_state(SPACE, params), 0.0
    for step, grads in enumerate(gradients):
        clock = Clock(torch.tensor(float(10**step)))
        held = State({k: {key: x.clone() for key, x in t.items()} for k, t in state.tensors.items()}, {})
        wanted, following = rule(SPACE, params, grads, held, clock)
        came: dict[str, Tensor] = {}
        for piece in rule.updates_(SPACE, params, grads, state, clock):
            assert piece.factors is None
            for k, x in zip(piece.names, piece.directions, strict=True):
                came[k] = x.clone()
                params[k] -= 0.1 * came[k]  # a parameter may be written as soon as its update was handed out
        assert {k: (x.dtype, x.shape) for k, x in came.items()} == {k: (x.dtype, x.shape) for k, x in wanted.items()}
        worst = max(worst, gap({k: came[k] for k in wanted}, wanted), gap(state.tensors, following.tensors))
        worst = max(worst, max(relative(came[k], wanted[k]) for k in wanted if wanted[k].numel()))
    return worst


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("size", [1, 10, 8192])
@pytest.mark.parametrize(
    ("dtype", "theta", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.float64, torch.float64, 1e-12),
        (torch.float64, torch.float32, 1e-5),
        (torch.bfloat16, torch.float32, 1e-5),
        (torch.float16, torch.float32, 1e-5),
    ],
)
def test_in_place_it_takes_the_same_steps(monkeypatch, size, dtype, theta, tolerance):
    monkeypatch.setattr(pointwise_step, "chunk_size", lambda device: size)
    assert both(drawn().to(theta), dtype) < tolerance


def test_other_orders_of_memory():
    def strange(x: Tensor) -> Tensor:
        return x.mT.contiguous().mT if x.dim() > 1 else x

    assert both(drawn(), torch.float32, strange) < 1e-5


def test_the_step_in_chunks_is_taken_where_it_can_be(monkeypatch):
    taken = []
    plain = UpdateRule.updates_
    monkeypatch.setattr(UpdateRule, "updates_", lambda *arguments: taken.append(1) or plain(*arguments))
    params, rule = tensors(SPACE, 0, torch.float32), drawn()
    state = rule.init_state(SPACE, params)
    list(rule.updates_(SPACE, params, params, state, Clock(torch.tensor(0.0))))
    assert not taken
    state.tensors["w"]["momenta"] = torch.zeros(6, 13, 7).movedim(0, -1)
    list(rule.updates_(SPACE, params, params, state, Clock(torch.tensor(1.0))))
    assert taken


def test_zeros_stay_finite():
    params, rule = tensors(SPACE, 0, torch.float32), drawn()
    zeros = {k: torch.zeros_like(p) for k, p in params.items()}
    state = rule.init_state(SPACE, params)
    for piece in rule.updates_(SPACE, zeros, zeros, state, Clock(torch.tensor(0.0))):
        assert all(x.isfinite().all() for x in piece.directions)
