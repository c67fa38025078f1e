"""The compiled step: once for a whole schedule, and it still sees what changes from step to step."""

import copy
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from lopt import LearnedOptimizer
from tests.lopt.optimizer.common import LR, backward, build, state_of, weights


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("capturable", [False, True])
def test_a_schedule_compiles_once_and_steps_alike(model, capturable):
    """Eleven rates, missing gradients on one step and a bad gradient on another."""
    name, twin, counter = "adam", copy.deepcopy(model), CompileCounterWithBackend("aot_eager")
    optimizers = [
        LearnedOptimizer(m.parameters(), rule=build(name, m), weight_decay=0.1, capturable=capturable, total_steps=12)
        for m in (model, twin)
    ]
    compiled = torch.compile(optimizers[1].step, backend=counter)
    frames = []
    for step in range(11):
        for m, optimizer, call in zip((model, twin), optimizers, (optimizers[0].step, compiled), strict=True):
            optimizer.param_groups[0]["lr"] = LR[name] / (1 + step)
            loss = backward(m, step)
            if step == 8:
                m[0].bias.grad = None
            if step == 10:
                m[0].weight.grad[0, 0] = math.nan
            call(loss=loss.detach())
        frames.append(counter.frame_count)
    assert frames[7] == frames[0]  # one for all rates
    assert frames[8] > frames[7]  # and another for the step without a bias
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state_of(optimizers[0]), state_of(optimizers[1]), rtol=1e-4, atol=1e-6)
    assert [o.skipped_steps for o in optimizers] == [1, 1]
    assert optimizers[1].state[twin[0].bias]["step"] == 9


def test_the_capturable_step_is_the_step(name, model):
    """On a CPU there is nothing to capture, but the same code runs."""
    twin = copy.deepcopy(model)
    for m, capturable in ((model, False), (twin, True)):
        optimizer = LearnedOptimizer(
            m.parameters(), torch.tensor(LR[name]), rule=build(name, m), weight_decay=0.1, capturable=capturable
        )
        for step in range(5):
            optimizer.step(loss=backward(m, step))
    torch.testing.assert_close(weights(model), weights(twin), rtol=1e-5, atol=1e-6)
