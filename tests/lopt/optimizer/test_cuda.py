"""What wants a GPU: state that follows the parameters, CUDA graphs, steps that do not wait for the device."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from lopt import LearnedOptimizer
from tests.lopt.optimizer.common import ANY_NETWORK, LR, build, network

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def fill(model: nn.Module, step: int) -> None:
    """Gradients in place, so that a graph sees them; the step's number alone decides them."""
    g = torch.Generator().manual_seed(step)
    for p in model.parameters():
        grad = torch.randn(p.shape, generator=g).to(p.device)
        if p.grad is None:
            p.grad = grad
        else:
            p.grad.copy_(grad)


def spoil(model: nn.Module) -> None:
    grad = next(model.parameters()).grad
    assert grad is not None
    grad[0, 0] = math.nan


def close(one: nn.Module, other: nn.Module) -> None:
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach().cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("foreach", [None, False, True])
def test_a_gpu_follows_the_cpu_and_takes_its_state(name, capturable, foreach):
    here = network()
    rule = build(name, here)
    options: Any = {"rule": rule, "weight_decay": 0.1, "total_steps": 9, "capturable": capturable, "foreach": foreach}
    optimizer = LearnedOptimizer(here.parameters(), LR[name], **options)
    for step in range(3):
        fill(here, step)
        optimizer.step(loss=0.5)
    there = copy.deepcopy(here).cuda()
    other = LearnedOptimizer(there.parameters(), LR[name], **options)
    saved = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(saved)
    assert all(x.is_cuda for entry in other.state.values() for x in entry.values())
    assert not any(x.is_cuda for entry in saved["state"].values() for x in entry.values())
    for step in range(3, 6):
        for m, o in ((here, optimizer), (there, other)):
            fill(m, step)
            o.step(loss=0.5)
        close(here, there)
    assert all(not p.is_cuda for p in rule.parameters())  # the caller's rule stays where it is


@pytest.mark.parametrize("name", ANY_NETWORK)
def test_a_captured_step_replays_as_the_step(name):
    models = [network().cuda() for _ in range(2)]
    options: Any = {"weight_decay": 0.1, "capturable": True}
    plain, captured = (
        LearnedOptimizer(m.parameters(), torch.tensor(LR[name], device="cuda"), rule=build(name, m), **options)
        for m in models
    )
    loss = torch.zeros((), device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up, as for every captured optimizer
        for step in range(3):
            fill(models[1], step)
            captured.step(loss=loss)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step(loss=loss)
    for step in range(8):
        fill(models[0], step)
        if step == 6:
            spoil(models[0])
        plain.param_groups[0]["lr"].fill_(LR[name] / (1 + step))
        plain.step(loss=loss)
        if step >= 3:
            fill(models[1], step)
            if step == 6:
                spoil(models[1])
            captured.param_groups[0]["lr"].fill_(LR[name] / (1 + step))
            graph.replay()
        if step == 2:
            with torch.no_grad():
                for p, q in zip(*(m.parameters() for m in models), strict=True):
                    q.copy_(p)
    close(*models)
    assert captured.skipped_steps == plain.skipped_steps == 1


def test_a_capturable_step_does_not_wait(name):
    model = network().cuda()
    optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model), capturable=True)
    for step in range(2):
        fill(model, step)
        optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
