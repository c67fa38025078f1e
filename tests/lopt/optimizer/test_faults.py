"""Gradients with NaN or infinities: the step is skipped or refused, and leaves weights and state as they were."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from lopt import InvalidInput, LearnedOptimizer
from lopt.optimizer.nonfinite import all_finite, nonfinite_names
from tests.lopt.optimizer.common import LR, Spy, backward, build, network, same, state_of, train, weights

BAD = [math.nan, math.inf, -math.inf]


def spoil(model: nn.Module, value: float) -> None:
    """One entry of one gradient."""
    p = list(model.parameters())[2]
    assert p.grad is not None
    p.grad.view(-1)[3] = value


@pytest.mark.filterwarnings("ignore:LearnedOptimizer skips")
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("value", BAD)
def test_a_bad_step_is_skipped_and_counted(name, model, value, capturable):
    twin = copy.deepcopy(model)
    optimizer, other = (
        LearnedOptimizer(m.parameters(), LR[name], rule=build(name, m), weight_decay=0.1, capturable=capturable)
        for m in (model, twin)
    )
    train(model, optimizer, 0, 2)
    train(twin, other, 0, 2)
    before, state = weights(model), state_of(optimizer)
    for count in (1, 2):
        backward(model, 2)
        spoil(model, value)
        optimizer.step()
        assert same(weights(model), before)
        assert same(state_of(optimizer), state)
        assert optimizer.skipped_steps == count
    train(model, optimizer, 3, 5)
    train(twin, other, 3, 5)
    assert same(weights(model), weights(twin))
    assert same(state_of(optimizer), state_of(other))
    assert (optimizer.skipped_steps, other.skipped_steps) == (2, 0)


@pytest.mark.filterwarnings("ignore:LearnedOptimizer skips")
def test_a_bad_first_step_leaves_no_state(name, model):
    optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model))
    backward(model, 0)
    spoil(model, math.nan)
    optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("value", BAD)
def test_a_bad_step_raises_if_asked_to(name, model, value):
    optimizer = LearnedOptimizer(
        model.named_parameters(), LR[name], rule=build(name, model), on_nonfinite="raise", weight_decay=0.1
    )
    train(model, optimizer, 0, 2)
    before, state = weights(model), state_of(optimizer)
    backward(model, 2)
    spoil(model, value)
    with pytest.raises(InvalidInput, match=r"not finite \(NaN or infinite\): 2.weight. Weights and state are as they"):
        optimizer.step()
    assert same(weights(model), before) and same(state_of(optimizer), state)
    assert optimizer.skipped_steps == 1
    train(model, optimizer, 3, 4)
    assert not same(weights(model), before)


@pytest.mark.parametrize("loss", BAD)
def test_a_loss_that_is_not_finite_is_a_fault(loss, model):
    optimizer = LearnedOptimizer(model.parameters(), rule=Spy(), on_nonfinite="raise")
    backward(model, 0)
    with pytest.raises(InvalidInput, match="loss"):
        optimizer.step(loss=loss)
    optimizer.step(loss=1.0)


def test_it_warns_once_where_step_was_called(model):
    optimizer = LearnedOptimizer(model.named_parameters(), rule=Spy())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            backward(model, step)
            spoil(model, math.nan)
            optimizer.step()
    assert len(caught) == 1
    assert "skips a step" in str(caught[0].message) and "2.weight" in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:LearnedOptimizer skips")
@pytest.mark.parametrize("capturable", [False, True])
def test_the_count_is_saved(model, capturable):
    optimizer = LearnedOptimizer(model.parameters(), rule=Spy(), capturable=capturable)
    backward(model, 0)
    spoil(model, math.nan)
    optimizer.step()
    other = LearnedOptimizer(network().parameters(), rule=Spy())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.skipped_steps == optimizer.skipped_steps == copy.deepcopy(optimizer).skipped_steps == 1


@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 6e4), (torch.float32, 3e38), (torch.bfloat16, 3e38)])
def test_huge_gradients_are_not_bad_ones(dtype, size):
    """Their squares, and their sum, are infinite."""
    p = nn.Parameter(torch.zeros(100, dtype=dtype))
    optimizer = LearnedOptimizer([p], 0.5, rule=Spy(), on_nonfinite="raise")
    p.grad = torch.full_like(p, size)
    optimizer.step()
    assert (p == -0.5).all()


@pytest.mark.parametrize("size", [1e15, 1e18, 3e38, 1e45])
@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_what_is_finite_and_huge_spoils_nothing(name, what, size):
    """Squares of it leave float32, in which rules compute."""
    torch.manual_seed(0)
    model = network().to(torch.float64 if size > 1e39 else torch.float32)
    optimizer = LearnedOptimizer(model.named_parameters(), LR[name], rule=build(name, model), on_nonfinite="raise")
    for step in range(4):
        for p in model.parameters():
            p.grad = torch.randn_like(p).clamp(-1, 1)
        if what == "gradient" and step == 1:
            spoil(model, size)
        optimizer.step(loss=torch.tensor(size if what == "loss" and step == 1 else 1.0, dtype=torch.float64))
    assert optimizer.skipped_steps == 0
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(x.isfinite().all() for entries in optimizer.state.values() for x in entries.values())


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e12), (torch.float16, 6e4)])
def test_many_large_numbers_are_not_bad_ones_in_a_capturable_step(dtype, size):
    """Their norm lies beyond the limit, and none of them does."""
    p = nn.Parameter(torch.zeros(400, 400, dtype=dtype))
    optimizer = LearnedOptimizer([p], 0.5, rule=Spy(), capturable=True)
    p.grad = torch.full_like(p, size)
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert (p == -0.5).all()


def test_a_parameter_may_be_called_loss():
    p = nn.Parameter(torch.ones(2))
    optimizer = LearnedOptimizer([("loss", p)], 0.5, rule=Spy(), on_nonfinite="raise")
    p.grad = torch.tensor([math.nan, 1.0])
    with pytest.raises(InvalidInput, match="loss"):
        optimizer.step(loss=1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_entry_is_looked_at(dtype):
    for shape in ((), (1,), (7,), (3, 5), (1025,)):
        tensors = [torch.zeros(2), torch.zeros(0), torch.ones(shape, dtype=dtype), torch.ones((), dtype=torch.float64)]
        assert all_finite(tensors)
        for position in range(0, tensors[2].numel(), 17):
            for value in BAD:
                bad = tensors[2].clone()
                bad.view(-1)[position] = value
                assert not all_finite([*tensors[:2], bad, tensors[3]])
                assert nonfinite_names({"good": tensors[0], "bad": bad}) == ["bad"]
    assert all_finite([torch.zeros(0)])
