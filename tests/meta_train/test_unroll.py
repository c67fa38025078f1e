"""The vmapped population against a plain loop over particles."""

from functools import partial
from typing import Any

import pytest
import torch

from lopt import WeightSpace
from lopt.rules import SGDM, Adam, Clock, Functional, Neuron, PerParameter
from meta_train import PES, MetaValidation
from meta_train.calibration import probe
from meta_train.unroll import draw, evaluate, sizes_of, start, unroll
from tasks import FewExamples, ImageMLP, LossScaling, Quadratic, Tabular

STEPS, PARTICLES = 4, 3
DOUBLE = torch.float64


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield ImageMLP(hidden=(8, 8), batch_size=8, dtype=DOUBLE).sample(torch.Generator().manual_seed(0))


def generators(offset=0):
    return [torch.Generator().manual_seed(offset + i) for i in range(PARTICLES)]


def make_rule(name, task):
    torch.manual_seed(0)
    rules = {"sgdm": SGDM, "adam": Adam, "per_parameter": PerParameter, "functional": Functional}
    rules["neuron"] = partial(Neuron, deflation=8)
    rule = rules[name](task.weight_space) if name == "functional" else rules[name]()
    return rule.to(DOUBLE)


def run_alone(rule, theta, task, params, drawn, lr, weight_decay, horizon, sizes):
    """One particle, with autograd instead of torch.func and no vmap."""
    state, losses = rule.init_state(task.weight_space, params), []
    for t in range(len(lr)):
        live = {k: p.clone().requires_grad_() for k, p in params.items()}
        loss = task.loss(live, task.gather("train", drawn[t]))
        grads = dict(zip(live, torch.autograd.grad(loss, list(live.values())), strict=True))
        with torch.no_grad():
            clock = Clock(torch.tensor(float(t)), horizon, loss, *sizes)
            updates, state = torch.func.functional_call(rule, theta, (task.weight_space, params, grads, state, clock))
            params = {k: p - lr[t] * updates[k] - lr[t] * weight_decay * p for k, p in params.items()}
        losses.append(loss.detach())
    return params, torch.stack(losses)


@pytest.mark.parametrize("name", ["sgdm", "adam", "per_parameter", "functional", "neuron"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_each_particle_runs_as_if_alone(task, name, weight_decay):
    rule = make_rule(name, task)
    params = [task.init(g) for g in generators()]
    drawn = draw([task] * PARTICLES, "train", generators(10), STEPS)
    lr = torch.rand(STEPS, PARTICLES, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) * 0.1
    noise = torch.Generator().manual_seed(2)
    theta = {
        k: p.detach() + 0.1 * torch.randn(PARTICLES, *p.shape, generator=noise, dtype=DOUBLE)
        for k, p in rule.named_parameters()
    }
    sizes = 10.0 * torch.arange(1, 2 * PARTICLES + 1, dtype=DOUBLE).reshape(PARTICLES, 2)
    with torch.no_grad():
        population, losses = unroll(
            rule,
            theta,
            task,
            start(rule, task, params),
            drawn,
            lr,
            stacked_theta=True,
            weight_decay=weight_decay,
            sizes=sizes,
        )
    for i in range(PARTICLES):
        own = {k: x[i] for k, x in theta.items()}
        alone, alone_losses = run_alone(rule, own, task, params[i], drawn[:, i], lr[:, i], weight_decay, None, sizes[i])
        torch.testing.assert_close(losses[:, i], alone_losses, rtol=1e-10, atol=1e-12)
        for k, p in alone.items():
            torch.testing.assert_close(population.params[k][i], p, rtol=1e-10, atol=1e-12)
    assert losses.std(1).min() > 1e-3  # the particles do differ
    assert population.step.tolist() == [STEPS] * PARTICLES


def test_two_pieces_are_one_run(task):
    rule = make_rule("adam", task)
    theta = {k: p.detach() for k, p in rule.named_parameters()}
    drawn = draw([task] * PARTICLES, "train", generators(10), 6)
    lr = torch.full((6, PARTICLES), 1e-2, dtype=DOUBLE)
    begin = start(rule, task, [task.init(g) for g in generators()])
    whole, losses = unroll(rule, theta, task, begin, drawn, lr)
    half, first = unroll(rule, theta, task, begin, drawn[:2], lr[:2])
    rest, second = unroll(rule, theta, task, half, drawn[2:], lr[2:])
    assert torch.equal(losses, torch.cat([first, second]))
    assert all(torch.equal(whole.params[k], rest.params[k]) for k in whole.params)


def test_draws_are_each_particles_own(task):
    together = draw([task] * PARTICLES, "train", generators(), STEPS)
    alone = draw([task], "train", generators()[1:2], STEPS)
    assert together.shape[:2] == (STEPS, PARTICLES)
    assert torch.equal(together[:, 1:2], alone)


def test_the_rule_sees_all_of_the_clock():
    task = Quadratic(dimensions=2, noise=0.0, dtype=DOUBLE).sample(torch.Generator())
    seen = []

    class Spy(SGDM):
        def forward(self, space, params, grads, state, clock):
            seen.append(clock)
            return super().forward(space, params, grads, state, clock)

    rule = Spy().to(DOUBLE)
    theta = {k: p.detach() for k, p in rule.named_parameters()}
    params = [task.init(g) for g in generators()]
    drawn = draw([task] * PARTICLES, "train", generators(), 2)
    horizon, sizes = torch.full((PARTICLES,), 9.0), torch.full((PARTICLES, 2), 40.0)
    unroll(rule, theta, task, start(rule, task, params), drawn, torch.zeros(2, PARTICLES), horizon=horizon, sizes=sizes)
    assert len(seen) == 2
    assert all(None not in clock for clock in seen)


def test_evaluate_is_the_loss_on_the_fixed_batch(task):
    params = [task.init(g) for g in generators()]
    stacked = {k: torch.stack([p[k] for p in params]) for k in params[0]}
    came = evaluate(task, stacked, "validation")
    wanted = [task.loss(p, task.evaluation_batch("validation")) for p in params]
    torch.testing.assert_close(came, torch.stack(wanted))


def test_the_space_of_a_linear_stack(task):
    hidden = {"0.weight": "g0:8, in=64", "0.bias": "g0:8", "2.weight": "g1:8, g0:8", "2.bias": "g1:8"}
    expected = {**hidden, "4.weight": "out=10, g1:8", "4.bias": "out=10"}
    assert task.weight_space == WeightSpace(expected)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_evaluate_with_a_task_for_each_particle(chunk_size):
    """Tasks of one population on data sets of their own, here scales of the loss."""
    family = LossScaling(ImageMLP(hidden=(4,), batch_size=8, dtype=DOUBLE), low=0.1, high=10.0)
    first, second = (family.sample(torch.Generator().manual_seed(seed)) for seed in range(2))
    tasks = [first, second, first]
    params = [task.init(g) for task, g in zip(tasks, generators(), strict=True)]
    came = evaluate(tasks, {k: torch.stack([p[k] for p in params]) for k in params[0]}, "test", chunk_size=chunk_size)
    wanted = [task.loss(p, task.evaluation_batch("test")) for task, p in zip(tasks, params, strict=True)]
    torch.testing.assert_close(came, torch.stack(wanted))


# --- what a rule is told of the data ---------------------------------------------------------------------------------


def few(low: int = 20, high: int = 60) -> FewExamples:
    return FewExamples(Tabular("wine", hidden=[3], batch_size=4), low, high)


def test_sizes_of_tasks():
    tasks: list[Any] = [few().sample(g) for g in generators()]
    came = sizes_of(tasks, torch.empty(0, dtype=DOUBLE))
    assert came is not None and came.dtype == DOUBLE
    assert came.tolist() == [[len(task.rows["train"]), 4] for task in tasks]
    assert len(set(came[:, 0].tolist())) > 1
    assert sizes_of([*tasks, Quadratic().sample(torch.Generator())], torch.empty(0)) is None


def estimate() -> None:
    rule, estimator = SGDM(), PES(pairs=3, truncation=2, horizon=4)
    theta = {k: p.detach() for k, p in rule.named_parameters()}
    estimator.estimate(rule, theta, few(), estimator.start(rule, few(), 0), 0)


def validate() -> None:
    rule = SGDM()
    validation = MetaValidation(few(), members=1, tasks=3, horizon=2, truncation=2, every=1)
    validation.evaluate(rule, {k: p.detach() for k, p in rule.named_parameters()})


def calibrate() -> None:
    probe(Neuron(width=2, rounds=0), few().sample(torch.Generator()), 50, 1)


@pytest.mark.parametrize(
    ("caller", "module"),
    [(estimate, "estimators.episodes"), (validate, "reference"), (calibrate, "calibration.probing")],
)
def test_whoever_unrolls_says_how_many_examples_each_task_has(caller, module, monkeypatch):
    """Of each particle's own task; the two of an antithetic pair have the same."""
    seen = []

    def spy(rule, theta, task, population, drawn, lr, *, sizes, **others):
        rows = drawn.movedim(1, 0).flatten(1)  # of each particle: they lie within its part of the table
        spread = rows.amax(1) - rows.amin(1)
        assert (sizes[:, 1] == 4).all() and (sizes[:, 0] > spread).all()
        seen.append(sizes[:, 0].tolist())
        return unroll(rule, theta, task, population, drawn, lr, sizes=sizes, **others)

    monkeypatch.setattr(f"meta_train.{module}.unroll", spy)
    caller()
    assert seen and all(20 <= size <= 60 for sizes in seen for size in sizes)
    if caller is estimate:
        assert seen[0][:3] == seen[0][3:] and len(set(seen[0])) == 3
