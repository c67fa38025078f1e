"""Parameters in every form, param groups with their own options, and learning rates that change."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim import swa_utils

from lopt import InvalidInput, LearnedOptimizer, WeightSpace
from lopt.rules import SGDM, Adam, Functional
from tests.lopt.optimizer.common import LR, Spy, backward, build, network, same, state_of, train, weights

WAYS: dict[str, Callable] = {
    "tensors": lambda m: m.parameters(),
    "list": lambda m: list(m.parameters()),
    "named": lambda m: m.named_parameters(),
    "group": lambda m: [{"params": m.parameters()}],
    "groups": lambda m: [{"params": m[0].parameters()}, {"params": list(m[2].parameters())}],
    "named groups": lambda m: [
        {"params": m[2].named_parameters(prefix="2")},
        {"params": m[0].named_parameters(prefix="0")},
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_parameters_come_in_every_form(name, way, model):
    twin = copy.deepcopy(model)
    train(twin, LearnedOptimizer(twin.parameters(), LR[name], rule=build(name, twin)), 0, 4)
    optimizer = LearnedOptimizer(WAYS[way](model), LR[name], rule=build(name, model))
    train(model, optimizer, 0, 4)
    for one, other in zip(weights(model), weights(twin), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_groups_have_their_own_rate_and_decay(model):
    groups = [
        {"params": model[0].parameters(), "lr": 0.5, "weight_decay": 0.1},
        {"params": model[2].parameters(), "weight_decay": 0.2},
    ]
    optimizer = LearnedOptimizer(groups, lr=2.0, rule=Spy())
    before = weights(model)
    backward(model, 0)
    optimizer.step()
    for p, old, lr, decay in zip(model.parameters(), before, (0.5, 0.5, 2, 2), (0.1, 0.1, 0.2, 0.2), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.detach(), old - lr * (p.grad.sign() + decay * old))


def test_a_rate_of_zero_changes_nothing(name, model):
    optimizer = LearnedOptimizer(model.parameters(), 0.0, rule=build(name, model), weight_decay=0.5)
    before = weights(model)
    train(model, optimizer, 0, 3)
    assert same(weights(model), before)


def test_a_rate_can_be_a_tensor(name, model):
    twin, rate = copy.deepcopy(model), torch.tensor(LR[name])
    optimizer = LearnedOptimizer(model.parameters(), rate, rule=build(name, model))
    train(model, optimizer, 0, 2)
    train(twin, LearnedOptimizer(twin.parameters(), LR[name], rule=build(name, twin)), 0, 2)
    torch.testing.assert_close(weights(model), weights(twin))
    rate.zero_()
    before = weights(model)
    train(model, optimizer, 2, 4)
    assert same(weights(model), before)


def test_a_group_added_later_trains_from_its_own_start(model):
    rule = Spy()
    optimizer = LearnedOptimizer(model[0].named_parameters(prefix="0"), 0.1, rule=rule)
    train(model, optimizer, 0, 3)
    last = weights(model[2])
    optimizer.add_param_group({"params": model[2].named_parameters(prefix="2"), "lr": 0.3})
    train(model, optimizer, 3, 5)
    assert not same(weights(model[2]), last)
    assert [float(optimizer.state[p]["step"]) for p in model.parameters()] == [5, 5, 2, 2]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3]
    assert set(rule.spaces[-1]) == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.parametrize("with_space", [False, True])
def test_a_refused_group_leaves_the_optimizer_as_it_was(model, with_space):
    space = WeightSpace.linear_stack(dict(model.named_parameters())) if with_space else None
    optimizer = LearnedOptimizer(model.named_parameters(), 0.01, rule=Adam(), weight_space=space)
    twin = copy.deepcopy(model)
    reference = LearnedOptimizer(twin.named_parameters(), 0.01, rule=Adam(), weight_space=space)
    train(model, optimizer, 0, 2)
    train(twin, reference, 0, 2)
    extra = nn.Parameter(torch.ones(5))
    refused: list[dict] = [
        {"params": [("extra", extra)], "lr": -1.0},
        {"params": [("extra", extra)], "weight_decay": float("nan")},
        {"params": [extra]},
        {"params": [("again", model[0].weight)]},
        *([{"params": [("extra", extra)]}, {"params": [("0.weight", extra)]}] if with_space else []),
    ]
    for group in refused:
        with pytest.raises(ValueError):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
    assert optimizer.weight_space == reference.weight_space
    train(model, optimizer, 2, 5)
    train(twin, reference, 2, 5)
    assert same(weights(model), weights(twin))


def test_two_networks_with_the_same_names():
    one, other = nn.Linear(3, 2), nn.Linear(5, 4)
    groups = [{"params": one.named_parameters()}, {"params": other.named_parameters()}]
    optimizer = LearnedOptimizer(groups, 0.1, rule=Spy())
    before = weights(one) + weights(other)
    (one(torch.ones(1, 3)).sum() + other(torch.ones(1, 5)).sum()).backward()
    optimizer.step()
    for p, old in zip([*one.parameters(), *other.parameters()], before, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.detach(), old - 0.1 * p.grad.sign())
    with pytest.raises(InvalidInput, match=r"\['bias', 'weight'\] name several parameters"):
        LearnedOptimizer(groups, 0.1, rule=Spy(), weight_space=WeightSpace({"weight": "2, 3", "bias": "2"}))


def test_a_weight_space_reaches_the_rule_in_its_order(model):
    space, rule = WeightSpace.linear_stack(dict(model.named_parameters())), Spy()
    optimizer = LearnedOptimizer(reversed(list(model.named_parameters())), rule=rule, weight_space=space)
    train(model, optimizer, 0, 1)
    assert rule.spaces == [space]
    part = LearnedOptimizer(model[2].named_parameters(prefix="2"), rule=rule, weight_space=space)
    train(model, part, 0, 1)
    assert rule.spaces[-1] == space.restrict(["2.weight", "2.bias"])
    model[2].weight.grad = None
    part.step()
    assert rule.spaces[-1] == space.restrict(["2.bias"])


def test_scalars_and_empty_parameters(name):
    space = WeightSpace({"scale": "", "w": "h:3, k:0", "v": "h:3, j:2"})
    params = {k: nn.Parameter(torch.ones(shape)) for k, shape in space.shapes.items()}
    rule = Functional(space, 8, 2) if name == "functional" else build(name, nn.Module())
    optimizer = LearnedOptimizer(params.items(), 0.1, rule=rule)
    for _ in range(3):
        optimizer.zero_grad()
        (params["scale"] * params["v"].sum() + params["w"].sum()).backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in params.values())
    assert (params["scale"] != 1).all() and (params["v"] != 1).all()


# --- learning rates that change --------------------------------------------------------------------------------------

SCHEDULES: dict[str, Callable] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 2, 0.1),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 4], 0.1),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.3, 3),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.1, total_iters=4),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.7),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.2, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.5, total_steps=8, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.1, patience=0),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=3), schedulers.ExponentialLR(o, 0.5)], [3]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.3, 3), schedulers.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=4),
}


def test_every_scheduler_of_torch_is_here():
    base = {"LRScheduler"}
    assert set(schedulers.__all__) - base == set(SCHEDULES) - {"SWALR"}


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule, as_tensor):
    def rates(make: Callable) -> tuple[list[float], list[float]]:
        model = network()
        optimizer = make(model.parameters(), torch.tensor(0.1) if as_tensor else 0.1)
        scheduler, used, moved = SCHEDULES[schedule](optimizer), [], []
        for step in range(6):
            backward(model, step)
            before = weights(model)
            optimizer.step()
            used.append(float(optimizer.param_groups[0]["lr"]))
            moved.append(float((before[0] - weights(model)[0]).abs().max()))
            scheduler.step(1.0) if schedule == "ReduceLROnPlateau" else scheduler.step()
        return used, moved

    used, moved = rates(lambda p, lr: LearnedOptimizer(p, lr, rule=Spy()))
    assert used == pytest.approx(moved, rel=1e-3, abs=1e-6)  # sign descent moves each weight by the rate
    assert used == rates(lambda p, lr: torch.optim.SGD(p, lr))[0]
    assert len(set(used)) > 1


@pytest.mark.parametrize("make", [schedulers.OneCycleLR, schedulers.CyclicLR])
def test_schedulers_that_also_turn_a_momentum_say_that_there_is_none(make, model):
    optimizer = LearnedOptimizer(model.parameters(), 0.1, rule=Adam())
    arguments: Any = {"total_steps": 8} if make is schedulers.OneCycleLR else {"base_lr": 0.1}
    with pytest.raises(ValueError, match="momentum"):
        make(optimizer, max_lr=0.5, **arguments)


def test_averaged_weights(model):
    optimizer = LearnedOptimizer(model.parameters(), 0.1, rule=Spy())
    averaged, seen = swa_utils.AveragedModel(model), []
    for step in range(4):
        train(model, optimizer, step, step + 1)
        averaged.update_parameters(model)
        seen.append(weights(model)[0])
    torch.testing.assert_close(weights(averaged.module)[0], torch.stack(seen).mean(0))


# --- climbing, accumulating, clipping, many --------------------------------------------------------------------------


def test_climbing_is_descending_the_negative(name, model):
    twin = copy.deepcopy(model)
    up = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model), maximize=True, weight_decay=0.1)
    down = LearnedOptimizer(twin.parameters(), LR[name], rule=build(name, twin), weight_decay=0.1)
    for step in range(4):
        loss = backward(model, step)
        up.step(loss=loss)
        other = backward(twin, step)
        for p in twin.parameters():
            assert p.grad is not None
            p.grad.neg_()
        down.step(loss=-other)
        assert same(weights(model), weights(twin))


def test_one_group_climbs(model):
    groups = [{"params": model[0].parameters(), "maximize": True}, {"params": model[2].parameters()}]
    optimizer = LearnedOptimizer(groups, 0.1, rule=Spy())
    before = weights(model)
    backward(model, 0)
    optimizer.step()
    for p, old, sign in zip(model.parameters(), before, (1, 1, -1, -1), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.detach(), old + sign * 0.1 * p.grad.sign())


def test_accumulated_gradients_are_the_large_batch(name):
    x, y = torch.randn(16, 3), torch.randn(16, 2)
    results = []
    for parts in (1, 4):
        model = network()
        optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model))
        for _ in range(3):
            optimizer.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (nn.functional.mse_loss(model(a), b) / parts).backward()
            optimizer.step()
        results.append(weights(model))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_clipped_gradients_are_what_the_rule_sees(model):
    class Plain(Spy):
        def forward(self, space, params, grads, state, clock):
            _, state = super().forward(space, params, grads, state, clock)
            return dict(grads), state

    optimizer = LearnedOptimizer(model.parameters(), 1.0, rule=Plain())
    before = weights(model)
    backward(model, 0)
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, weights(model), strict=True)])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("count", [1, 10_000])
@pytest.mark.parametrize("rule", [SGDM, "neuron"])
def test_one_parameter_and_ten_thousand(count, rule):
    params = [nn.Parameter(torch.ones(2)) for _ in range(count)]
    optimizer = LearnedOptimizer(params, 0.1, rule=rule() if rule is SGDM else build(rule, nn.Module()))
    for p in params:
        p.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    assert all((p[0] < 1) & (p[1] > 1) for p in (params[0], params[-1]))
    assert len(optimizer.state) == count
    if count > 1 and rule != SGDM:
        return  # loading takes the same way for every rule
    twin = LearnedOptimizer(params, 0.1, rule=optimizer.rule)
    twin.load_state_dict(optimizer.state_dict())
    assert same(state_of(twin), state_of(optimizer))


def test_wrappers_may_exchange_the_parameters(model):
    """As those do that shard a network after its optimizer was made."""
    space = WeightSpace.linear_stack(dict(model.named_parameters()))
    optimizer = LearnedOptimizer(model.parameters(), 0.1, rule=(rule := Spy()), weight_space=space)
    twin = copy.deepcopy(model)
    optimizer.param_groups[0]["params"] = list(twin.parameters())
    before = weights(model)
    train(twin, optimizer, 0, 1)
    assert rule.spaces == [space]
    assert same(weights(model), before) and not same(weights(twin), before)
    saved, again = optimizer.state_dict(), copy.deepcopy(twin)
    optimizer.param_groups[0]["params"] = list(again.parameters())
    optimizer.load_state_dict(saved)
    assert all(optimizer.state[p]["step"] == 1 for p in again.parameters())
    train(again, optimizer, 1, 2)
    assert not same(weights(again), weights(twin))
    optimizer.param_groups[0]["params"] = [nn.Parameter(torch.ones(7)) for _ in range(4)]
    optimizer.param_groups[0]["params"][0].grad = torch.ones(7)
    with pytest.raises(InvalidInput, match="'0.weight' has shape"):
        optimizer.step()
