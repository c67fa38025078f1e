"""One step of LearnedOptimizer: it is the pure rule, told the right time, called as torch.optim is."""

import copy
from typing import Any

import pytest
import torch

from lopt import LearnedOptimizer, WeightSpace
from lopt.rules import Adam, Clock
from tests.lopt.optimizer.common import LR, Spy, backward, build, network, same, train, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_the_rule_applied_by_hand(name, dtype):
    model, decay, lr = network(dtype), 0.1, LR[name]
    rule = build(name, model)
    space = WeightSpace.linear_stack(dict(model.named_parameters()))
    optimizer = LearnedOptimizer(model.named_parameters(), lr, rule=rule, weight_decay=decay, weight_space=space)
    twin = {k: p.detach().clone() for k, p in model.named_parameters()}
    state = rule.init_state(space, twin)
    for step in range(5):
        loss = backward(model, step)
        grads = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
        optimizer.step(loss=loss)
        with torch.no_grad():
            updates, state = rule(space, twin, grads, state, Clock(torch.tensor(float(step)), None, loss))
            twin = {k: p - lr * updates[k] - lr * decay * p for k, p in twin.items()}
    for k, p in model.named_parameters():
        assert p.dtype == dtype
        torch.testing.assert_close(p.detach(), twin[k], rtol=1e-5, atol=1e-6)
        assert optimizer.state[p]["step"] == 5
        assert set(optimizer.state[p]) == set(state.tensors[k])


def test_training_lowers_the_loss(name, model):
    optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model))
    first = backward(model, 0)
    for _ in range(30):
        backward(model, 0)
        optimizer.step()
    assert backward(model, 0) < 0.95 * first


def test_adam_is_torch_adam(model):
    twin = copy.deepcopy(model)
    train(model, LearnedOptimizer(model.parameters(), 0.01, rule=Adam()), 0, 20)
    train(twin, torch.optim.Adam(twin.parameters(), 0.01), 0, 20)
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-4, atol=1e-6)


def test_the_clock(model):
    rule = Spy()
    optimizer = LearnedOptimizer(model.parameters(), rule=rule, total_steps=7, dataset_size=40, batch_size=8)
    loss = torch.zeros(())
    for step in range(3):
        loss = backward(model, step)
        optimizer.step(loss=loss)
    optimizer.step(loss=0.5)
    optimizer.step(lambda: 2.5)
    optimizer.step(lambda: 2.5, loss=torch.tensor(1.5))
    optimizer.step()
    assert [float(c.step) for c in rule.clocks] == [0, 1, 2, 3, 4, 5, 6]
    assert {float(c.horizon) for c in rule.clocks if c.horizon is not None} == {7.0}
    assert [torch.stack([x for x in c[3:] if x is not None]).tolist() for c in rule.clocks] == [[40.0, 8.0]] * 7
    losses = [c.loss for c in rule.clocks]
    assert [x if x is None else float(x) for x in losses[2:]] == [float(loss.detach()), 0.5, 2.5, 1.5, None]
    assert not any(x.requires_grad for x in losses if x is not None)
    untimed = LearnedOptimizer(model.parameters(), rule=rule)
    untimed.step()
    assert rule.clocks[-1].horizon is None
    assert rule.clocks[-1][3:] == (None, None)


def test_the_default_learning_rate_is_the_rules(name, model):
    rule = build(name, model)
    assert LearnedOptimizer(model.parameters(), rule=rule).param_groups[0]["lr"] == rule.default_lr


def test_a_closure_is_called_once_with_gradients_enabled(model):
    optimizer, calls = LearnedOptimizer(model.parameters(), 0.01, rule=Adam()), []
    before = weights(model)

    def closure() -> Any:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        return backward(model, 0)

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    torch.testing.assert_close(torch.as_tensor(loss).detach(), backward(network(), 0).detach())
    assert not same(weights(model), before)


def test_zero_grad_and_hooks(model):
    optimizer, seen = LearnedOptimizer(model.parameters(), 0.01, rule=Adam()), []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: seen.append("pre"))
    handle = optimizer.register_step_post_hook(lambda opt, args, kwargs: seen.append("post"))
    train(model, optimizer, 0, 1)
    handle.remove()
    train(model, optimizer, 1, 2)
    assert seen == ["pre", "post", "pre"]
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_gradients_and_theta_stay_as_they_are(name, model):
    rule = build(name, model)
    optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=rule)
    backward(model, 0)
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    theta = [p.detach().clone() for p in rule.parameters()]
    optimizer.step()
    assert same([p.grad for p in model.parameters() if p.grad is not None], grads)
    assert same([p.detach() for p in rule.parameters()], theta)
    assert all(p.grad is None for p in rule.parameters())
    assert not any(v.requires_grad for state in optimizer.state.values() for v in state.values())
