"""Calibration: probes against runs one at a time, laws against curves whose best is known, and the command."""

import json
import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import lopt
from lopt.errors import InvalidInput
from lopt.rules import Neuron
from lopt.rules.neuron.combine import bounded_scale
from lopt.rules.neuron.layout import STATIC, layout_of
from lopt.rules.rule import Clock
from lopt.weight_space import WeightSpace
from meta_train.calibration import MULTIPLES, Law, Probe, cross_validate, fit_law, probe, regret_of
from meta_train.calibration.__main__ import calibrate
from meta_train.calibration.probing import PIECE
from meta_train.keys import generator
from tasks import Quadratic


def shipped():
    rule = Neuron()
    rule.load_state_dict(lopt.load_rule("neuron-1").state_dict())
    return rule


def made_probes(count, wanted, seed=0):
    """Probes of tensors with three features whose curves are parabolas about wanted(features), in the logarithm."""
    g = torch.Generator().manual_seed(seed)
    at = torch.tensor(MULTIPLES).log()
    probes = []
    for _ in range(count):
        features = torch.randn(4, 3, generator=g)
        features[:, 2] = 7.0  # tells nothing
        weights = torch.rand(4, generator=g)
        weights = weights / weights.sum()
        best = (weights * wanted(features)).sum()
        probes.append(Probe(features, weights, 0.1 * (at - best).square()))
    return probes


def test_the_law_of_made_curves_is_found():
    law = fit_law(made_probes(200, lambda z: 0.8 * z[:, 0] - 0.5 * z[:, 1] + 0.3), ridge=1e-4)
    torch.testing.assert_close(law.weights, torch.tensor([0.8, -0.5, 0.0]), atol=0.12, rtol=0)
    assert abs(law.bias - 0.3) < 0.1


def test_a_law_helps_on_probes_left_out_only_if_there_is_one():
    with_law = made_probes(64, lambda z: z[:, 0])
    assert cross_validate(with_law, [1e-3])[1e-3] < 0.5 * regret_of(with_law)
    assert regret_of(with_law, fit_law(with_law, 1e-3)) < 0.5 * regret_of(with_law)
    noise = torch.Generator().manual_seed(1)
    without = made_probes(64, lambda z: 0.5 * torch.randn(4, generator=noise))
    assert cross_validate(without, [1e-3])[1e-3] > 0.9 * regret_of(without)


def test_few_probes_are_an_error():
    with pytest.raises(InvalidInput, match="probes: 7"):
        cross_validate(made_probes(7, lambda z: z[:, 0]))


def test_adding_a_law_shifts_the_logarithm_of_the_scale():
    task = Quadratic(dimensions=4).sample(generator(0, "task"))
    params = task.init(generator(0, "weights"))
    grads = torch.func.grad(task.loss)(params, task.batch("train", generator(0, "batch")))
    rule, space = Neuron(), task.weight_space

    def size():
        updates, _ = rule(space, params, grads, rule.init_state(space, params), Clock(torch.zeros(())))
        return {name: x.square().mean().sqrt() for name, x in updates.items()}

    before = size()
    Law(torch.zeros(STATIC), math.log(0.5)).add_to(rule)
    for name, x in size().items():
        assert 0.45 < x / before[name] < 0.6  # the bound of the scale bends the exponential


def test_a_law_of_features_reaches_the_tensors_that_have_them():
    space = WeightSpace({"w": "h:8, in=4", "b": "h:8", "v": "out=2, h:8"})
    params = {name: torch.randn(shape, generator=generator(1, name)) for name, shape in space.shapes.items()}
    grads = {name: torch.randn(shape, generator=generator(2, name)) for name, shape in space.shapes.items()}
    rule, weights = Neuron(), 0.3 * torch.randn(STATIC, generator=generator(3, "law"))
    Law(weights, 0.1).add_to(rule)
    updates, _ = rule(space, params, grads, rule.init_state(space, params), Clock(torch.zeros(())))
    layout = layout_of(space, torch.device("cpu"), torch.float32)
    for name, wanted in zip(layout.names, bounded_scale(layout.static @ weights + 0.1), strict=True):
        torch.testing.assert_close(updates[name].square().mean().sqrt(), wanted, rtol=1e-3, atol=0)


def test_a_probe_tells_what_single_runs_tell():
    task, rule = Quadratic(dimensions=8, condition=10.0).sample(generator(3, "task")), shipped()
    found = probe(rule, task, 2 * PIECE, seeds=1, seed=5)
    curves = []
    for multiple in MULTIPLES:
        params = task.init(generator(5, "weights", 0))
        state, losses, batches = rule.init_state(task.weight_space, params), [], []
        for step in range(2 * PIECE):
            if step % PIECE == 0:
                losses.append(task.loss(params, task.evaluation_batch("validation")))
                source = generator(5, "batches", 0, step // PIECE)
                batches = [task.batch("train", source) for _ in range(PIECE)]
            grads, loss = torch.func.grad_and_value(task.loss)(params, batches[step % PIECE])
            clock = Clock(torch.tensor(float(step)), torch.tensor(2.0 * PIECE), loss)
            with torch.no_grad():
                updates, state = rule(task.weight_space, params, grads, state, clock)
            params = {name: p - rule.default_lr * multiple * updates[name] for name, p in params.items()}
        losses.append(task.loss(params, task.evaluation_batch("validation")))
        curves.append(torch.stack(losses))
    losses = torch.stack(curves).detach()
    late = (losses[:, 1] + 2 * losses[:, 2]) / 3
    wanted = (late - late.min()) / (losses[0, 0] - losses.min())
    torch.testing.assert_close(found.regrets, wanted.clamp(max=1), atol=2e-3, rtol=2e-2)
    assert found.features.shape == (len(task.weight_space.shapes), STATIC)
    assert found.weights.sum() == pytest.approx(1)
    assert all(torch.equal(a, b) for a, b in zip(Probe.of(json.loads(json.dumps(found.record()))), found, strict=True))


def test_a_horizon_below_one_piece_is_an_error():
    task = Quadratic().sample(generator(0, "task"))
    with pytest.raises(InvalidInput, match="horizon=10"):
        probe(Neuron(), task, 10, seeds=1)


def config(out, **changed):
    base: Any = OmegaConf.to_container(OmegaConf.load("configs/calibration.yaml"))
    base = {key: value for key, value in base.items() if key not in ("defaults", "hydra")}
    family = {"_target_": "tasks.Quadratic", "dimensions": 4}
    rule = {"_target_": "lopt.load_rule", "source": "neuron-1"}
    horizon = {"_target_": "meta_train.LogUniform", "low": PIECE, "high": PIECE}
    return OmegaConf.create(
        {**base, "rule": rule, "family": family, "horizon": horizon, "seeds": 1, "tasks": 8, "out": str(out), **changed}
    )


def test_a_stopped_command_goes_on_and_ends_the_same(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    code = calibrate(config(whole))
    text = (whole / "probes.jsonl").read_text()
    assert len(text.splitlines()) == 9
    resumed.mkdir()
    (resumed / "probes.jsonl").write_text(text[: len(text) // 2])  # killed in the middle of a line
    assert calibrate(config(resumed)) == code
    assert (resumed / "probes.jsonl").read_text() == text
    lines = text.splitlines()  # two commands wrote at once, and one of them was killed
    (resumed / "probes.jsonl").write_text("\n".join([*lines[:4], *lines[2:7], lines[8]]) + "\n")
    assert calibrate(config(resumed)) == code
    result = json.loads((whole / "calibration.json").read_text())
    assert result == json.loads((resumed / "calibration.json").read_text())
    assert (code == 0) == (result["regret_left_out"] < result["regret_before"])
    if code == 0:
        assert lopt.read_card(whole / "rule.safetensors")["probes"] == 8
    with pytest.raises(InvalidInput, match="another rule, family, horizon or seed"):
        calibrate(config(whole, seed=1))


def test_a_probe_takes_the_dtype_of_the_task():
    task, rule = Quadratic(dimensions=4, dtype="float64").sample(generator(3, "task")), shipped().double()
    assert probe(rule, task, PIECE, seeds=1).regrets.dtype == torch.float32  # what the law is fitted in


def test_other_rules_and_too_few_tasks_are_errors(tmp_path):
    with pytest.raises(InvalidInput, match="dtype"):
        calibrate(config(tmp_path, dtype="int8"))
    with pytest.raises(InvalidInput, match="Adam has no law"):
        calibrate(config(tmp_path, rule={"_target_": "lopt.rules.Adam"}))
    with pytest.raises(InvalidInput, match="tasks: 3"):
        calibrate(config(tmp_path, tasks=3))
