"""Parameters without a gradient on some steps, or never: frozen layers, mixtures of experts."""

import pytest
import torch
from torch import nn

from lopt import LearnedOptimizer, WeightSpace
from lopt.optimizer.parameters import MAX_PARTS
from tests.lopt.optimizer.common import LR, Spy, backward, build, same, train, weights


def test_a_parameter_without_a_gradient_keeps_weight_and_state(name, model):
    optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model), weight_decay=0.1)
    train(model, optimizer, 0, 2)
    p = model[0].bias
    weight, state = p.detach().clone(), {k: v.clone() for k, v in optimizer.state[p].items()}
    for step in (2, 3):
        backward(model, step)
        p.grad = None
        other = model[0].weight.detach().clone()
        optimizer.step()
        assert not torch.equal(model[0].weight, other)
    assert torch.equal(p, weight)
    assert state.keys() == optimizer.state[p].keys()
    assert all(torch.equal(v, optimizer.state[p][k]) for k, v in state.items())
    train(model, optimizer, 4, 5)
    assert not torch.equal(p, weight)
    assert [float(optimizer.state[q]["step"]) for q in (p, model[0].weight)] == [3, 5]


def test_a_frozen_parameter_stays_and_has_no_state(name, model):
    model[0].weight.requires_grad_(False)
    optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model))
    before = weights(model)
    train(model, optimizer, 0, 3)
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[2].weight, before[2])
    assert set(optimizer.state) == {model[0].bias, model[2].weight, model[2].bias}
    assert len(optimizer.state_dict()["state"]) == 3


def test_without_any_gradient_nothing_happens(name, model):
    optimizer = LearnedOptimizer(model.parameters(), rule=build(name, model))
    before = weights(model)
    optimizer.step()
    assert optimizer.step(lambda: 3.0) == 3.0
    assert same(weights(model), before)
    assert not optimizer.state


def test_a_mixture_of_experts_restricts_the_space_once_for_each_pattern(monkeypatch):
    experts = [nn.Linear(3, 3) for _ in range(4)]
    named = nn.ModuleList(experts).named_parameters()
    optimizer = LearnedOptimizer(named, 0.01, rule=(rule := Spy()))
    calls, restrict = [], WeightSpace.restrict
    monkeypatch.setattr(WeightSpace, "restrict", lambda space, names: calls.append(1) or restrict(space, names))
    chosen = [0, 1, 2, 0, 1, 2, 2, 0]
    for expert in chosen:
        optimizer.zero_grad()
        experts[expert](torch.ones(1, 3)).sum().backward()
        optimizer.step()
        assert set(rule.spaces[-1]) == {f"{expert}.weight", f"{expert}.bias"}
    assert len(calls) == 3
    steps = [float(optimizer.state[e.weight]["step"]) if e.weight in optimizer.state else 0 for e in experts]
    assert steps == [3, 2, 3, 0]


def test_very_many_patterns_are_not_all_kept():
    weights = [nn.Parameter(torch.ones(1)) for _ in range(9)]
    optimizer = LearnedOptimizer(weights, 0.1, rule=Spy())
    for pattern in range(1, 2**9 - 1):
        for i, p in enumerate(weights):
            p.grad = torch.ones(1) if pattern >> i & 1 else None
        optimizer.step()
    assert 0 < len(optimizer._parameters.parts) <= MAX_PARTS < 2**9 - 2


@pytest.mark.parametrize("listed", [True, False])
def test_frozen_layers_need_no_new_space(name, model, listed):
    """The space of the whole module serves the parameters that train, by name, also when that changes."""
    if name == "functional" and not listed:
        name = "adam"  # that one wants its whole network
    space = WeightSpace.linear_stack(dict(model.named_parameters()))
    model[0].requires_grad_(False)
    named = [(k, p) for k, p in model.named_parameters() if listed or p.requires_grad]
    optimizer = LearnedOptimizer(named, LR[name], rule=build(name, model), weight_space=space)
    before = weights(model)
    train(model, optimizer, 0, 2)
    assert same(weights(model[0]), before[:2]) and not same(weights(model[2]), before[2:])
    model[0].requires_grad_(True)
    if not listed:
        optimizer.add_param_group({"params": list(model[0].named_parameters(prefix="0"))})
    train(model, optimizer, 2, 4)
    assert not same(weights(model[0]), before[:2])
    assert optimizer.weight_space == space
    assert [float(optimizer.state[p]["step"]) for p in model.parameters()] == [2, 2, 4, 4]
