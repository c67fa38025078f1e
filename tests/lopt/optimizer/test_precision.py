"""Parameters of every floating-point width: what the state is kept in, and that loading does not round it."""

import copy

import pytest
import torch
from torch import nn

from lopt import LearnedOptimizer
from lopt.rules import Adam
from tests.lopt.optimizer.common import ANY_NETWORK, LR, backward, build, network, same, state_of, train, weights

HALF = [torch.bfloat16, torch.float16]
DTYPES = [*HALF, torch.float32, torch.float64]


def optimizer_of(name: str, model: nn.Module, **options) -> LearnedOptimizer:
    return LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model), **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_in_any_width_lowers_the_loss(name, dtype):
    model = network(dtype)
    optimizer = optimizer_of(name, model, weight_decay=0.01)
    first = float(backward(model, 0).detach())
    for _ in range(20):
        optimizer.step(loss=backward(model, 0).detach())
    assert float(backward(model, 0).detach()) < 0.97 * first
    assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())
    assert all(x.dtype in (torch.float32, dtype) and x.element_size() >= 4 for x in state_of(optimizer))


@pytest.mark.parametrize("dtype", DTYPES)
def test_loading_restores_the_state_bit_for_bit(name, dtype):
    model = network(dtype)
    optimizer = optimizer_of(name, model)
    train(model, optimizer, 0, 3)
    twin = copy.deepcopy(model)
    other = optimizer_of(name, twin)
    other.load_state_dict(optimizer.state_dict())
    assert same(state_of(other), state_of(optimizer))
    train(model, optimizer, 3, 6)
    train(twin, other, 3, 6)
    assert same(weights(twin), weights(model))
    assert same(state_of(other), state_of(optimizer))


def test_loading_copies(model):
    optimizer = optimizer_of("adam", model)
    train(model, optimizer, 0, 1)
    twin = copy.deepcopy(model)
    other = optimizer_of("adam", twin)
    other.load_state_dict(optimizer.state_dict())
    before = state_of(optimizer)
    train(twin, other, 1, 2)
    assert same(state_of(optimizer), before)


def test_a_state_of_another_width_is_loaded_in_the_width_of_the_rule(model):
    wide = network(torch.float64)
    source, target = optimizer_of("adam", wide), optimizer_of("adam", model)
    train(wide, source, 0, 2)
    target.load_state_dict(source.state_dict())
    assert {x.dtype for x in state_of(target)} == {torch.float32}
    for one, other in zip(state_of(target), state_of(source), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_follows_full_precision(name, dtype):
    """With the same gradients, the state and the updates are those of float32; only the weights are rounded."""
    narrow, wide = network(dtype), network(dtype).float()
    optimizers = optimizer_of(name, narrow), optimizer_of(name, wide)
    for step in range(5):
        backward(narrow, step)
        for p, q in zip(narrow.parameters(), wide.parameters(), strict=True):
            assert p.grad is not None
            q.grad = p.grad.float()
            q.data.copy_(p.detach())
        for optimizer in optimizers:
            optimizer.step()
        rounding = torch.finfo(dtype).eps
        for p, q in zip(weights(narrow), weights(wide), strict=True):
            assert ((p.float() - q).abs() <= 0.51 * rounding * q.abs().clamp(min=1e-3)).all()
    for a, b in zip(*map(state_of, optimizers), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", HALF)
def test_adam_in_half_precision_has_its_epsilon_and_small_squares(dtype):
    """1e-8, and the square of a gradient of 1e-5, are zero in float16."""
    p = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = LearnedOptimizer([p], 0.25, rule=Adam())
    p.grad = torch.tensor([0.0, 1e-5, -1.0], dtype=dtype)
    optimizer.step()
    torch.testing.assert_close(p.detach().float(), torch.tensor([1.0, 0.75, 1.25]), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ANY_NETWORK)
def test_parameters_of_several_widths_together(name):
    params = [nn.Parameter(torch.linspace(-1, 1, 6).to(dtype).reshape(3, 2)) for dtype in DTYPES]
    optimizer = LearnedOptimizer(params, LR[name], rule=build(name, nn.Module()), weight_decay=0.1)
    before = copy.deepcopy(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    for p, old in zip(params, before, strict=True):
        assert p.dtype == old.dtype and p.isfinite().all() and not torch.equal(p, old)


def test_autocast_trains_float32_weights(name, model):
    optimizer = optimizer_of(name, model)
    x, y = torch.randn(16, 3), torch.randn(16, 2)
    losses, out = [], x
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
            loss = nn.functional.mse_loss(out, y.to(out.dtype))
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(float(loss.detach()))
    assert out.dtype == torch.bfloat16
    assert losses[-1] < 0.97 * losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_step_inside_autocast_is_the_step_outside(name, model):
    twin = copy.deepcopy(model)
    optimizer, other = optimizer_of(name, model), optimizer_of(name, twin)
    for step in range(2):
        backward(model, step)
        backward(twin, step)
        optimizer.step()
        with torch.autocast("cpu", torch.bfloat16):
            other.step()
    assert same(weights(model), weights(twin))


def test_activation_checkpointing_changes_nothing(name):
    results = []
    for reentrant in (None, True, False):
        model = network()
        optimizer = optimizer_of(name, model)
        for step in range(3):
            x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step), requires_grad=True)
            optimizer.zero_grad()
            out = (
                model(x) if reentrant is None else torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant)  # pyright: ignore
            )
            out.square().mean().backward()
            optimizer.step()
        results.append(weights(model))
    assert same(results[0], results[1]) and same(results[0], results[2])
