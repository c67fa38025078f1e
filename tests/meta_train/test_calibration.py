"""Calibration: probes against runs one at a time, laws against curves whose best is known, and the command."""

import copy
import itertools
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
from meta_train.calibration import ANNEALS, FACTORS, Law, Probe, cross_validate, fit_law, probe, regrets_of
from meta_train.calibration.__main__ import _fit, calibrate
from meta_train.calibration.probing import PIECE, regrets
from meta_train.keys import generator
from meta_train.unroll import draw
from tasks import ImageMLP, Quadratic


def shipped():
    rule = Neuron()
    rule.load_state_dict(lopt.load_rule("neuron-1").state_dict())
    return rule


def made_probes(count, wanted, seed=0):
    """Probes of tensors with three features whose curves are parabolas about wanted(features), in the logarithm."""
    g = torch.Generator().manual_seed(seed)
    at = torch.tensor(FACTORS).log()
    probes = []
    for _ in range(count):
        features = torch.randn(4, 3, generator=g)
        features[:, 2] = 7.0  # tells nothing
        weights = torch.rand(4, generator=g)
        weights = weights / weights.sum()
        best = (weights * wanted(features)).sum()
        probes.append(Probe(features, weights, (0.1 * (at - best).square()).expand(len(ANNEALS), -1)))
    return probes


def curve(regrets):
    """The same for each power."""
    return torch.tensor(regrets).expand(len(ANNEALS), -1)


def test_the_law_of_made_curves_is_found():
    law = fit_law(made_probes(200, lambda z: 0.8 * z[:, 0] - 0.5 * z[:, 1] + 0.3), ridge=1e-4)
    torch.testing.assert_close(law.slopes, torch.tensor([0.8, -0.5, 0.0]), atol=0.12, rtol=0)
    assert abs(law.shift - 0.3) < 0.1


def test_a_law_helps_on_probes_left_out_only_if_there_is_one():
    with_law = made_probes(64, lambda z: z[:, 0])
    assert cross_validate(with_law, [1e-3])[1.0, 1e-3].mean() < 0.5 * regrets_of(with_law).mean()
    assert regrets_of(with_law, fit_law(with_law, 1e-3)).mean() < 0.5 * regrets_of(with_law).mean()
    noise = torch.Generator().manual_seed(1)
    without = made_probes(64, lambda z: 0.5 * torch.randn(4, generator=noise))
    assert cross_validate(without, [1e-3])[1.0, 1e-3].mean() > 0.9 * regrets_of(without).mean()


def test_each_power_has_a_law_of_its_own():
    slow, fast = made_probes(64, lambda z: z[:, 0]), made_probes(64, lambda z: -z[:, 0])
    costs = torch.tensor([0.2, 0.0, 0.1]).unsqueeze(1)
    probes = [
        Probe(a.features, a.shares, torch.stack([a.regrets[0], b.regrets[1], a.regrets[2]]) + costs)
        for a, b in zip(slow, fast, strict=True)
    ]
    left_out = {anneal: float(regret.mean()) for (anneal, _), regret in cross_validate(probes, [1e-3]).items()}
    assert sorted(left_out, key=left_out.__getitem__) == [ANNEALS[1], ANNEALS[2], ANNEALS[0]]
    for anneal, wanted in zip(ANNEALS, (1, -1, 1), strict=True):
        law = fit_law(probes, 1e-4, anneal)
        assert law.anneal == anneal and float(law.slopes[0]) == pytest.approx(wanted, abs=0.2)
        assert regrets_of(probes, law).mean() < costs[ANNEALS.index(anneal)] + 0.02


def test_few_probes_are_an_error():
    with pytest.raises(InvalidInput, match="probes: of 7 architectures"):
        cross_validate(made_probes(7, lambda z: z[:, 0]))


def test_probes_of_one_architecture_are_left_out_together():
    probes = [p for p in made_probes(32, lambda z: z[:, 0]) for _ in range(2)]
    apart = cross_validate(probes, [1e-4])[1.0, 1e-4]
    assert torch.equal(apart[::2], apart[1::2])  # in two folds they would be two laws' regrets
    assert len(apart.unique()) == 32


def test_steps_that_nobody_tried_are_no_gain():
    falling = Probe(torch.zeros(1, 1), torch.ones(1), curve([1.0, 0.8, 0.5, 0.3, 0.0]))
    flat = Probe(torch.zeros(1, 1), torch.ones(1), curve([0.0, 0.5, 1.0, 1.0, 1.0]))
    for shift, wanted in ((0.0, 0.5), (math.log(5), 0.0), (math.log(5) + 2, 0.2), (math.log(0.45), 0.8)):
        assert regrets_of([falling], Law(torch.zeros(1), shift)) == pytest.approx(wanted, abs=1e-6)
    assert regrets_of([flat], Law(torch.zeros(1), math.log(5) + 1)) == pytest.approx(1.1)


def test_a_diverged_run_counts_for_itself_and_a_task_that_begins_at_nan_for_nothing():
    losses = torch.full((5, 2, 2), 2.0)
    losses[:, :, 1] = torch.tensor([0.4, 1e6])  # the worst is 3
    losses[0] = torch.tensor([[2.0, 0.2], [2.0, 0.2]])
    torch.testing.assert_close(regrets(losses), torch.tensor([0.0, *[(1.7 - 0.2) / 1.8] * 4]))
    losses[0, 0, 0] = torch.nan
    assert torch.equal(regrets(losses), torch.zeros(5))


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


def _run(rule, task, run):
    """The validation losses of one run of two pieces."""
    params = task.init(generator(5, "weights", 7, run))
    state, losses, batches = rule.init_state(task.weight_space, params), [], torch.empty(0)
    for step in range(2 * PIECE):
        if step % PIECE == 0:
            losses.append(task.loss(params, task.evaluation_batch("validation")))
            source = generator(5, "batches", 7, run, step // PIECE)
            batches = draw([task], "train", [source], PIECE)[:, 0]  # few numbers at a time would be other numbers
        grads, loss = torch.func.grad_and_value(task.loss)(params, task.gather("train", batches[step % PIECE]))
        clock = Clock(torch.tensor(float(step)), torch.tensor(2.0 * PIECE), loss)
        with torch.no_grad():
            updates, state = rule(task.weight_space, params, grads, state, clock)
        params = {name: p - rule.default_lr * updates[name] for name, p in params.items()}
    return [*map(float, losses), float(task.loss(params, task.evaluation_batch("validation")))]


def test_a_probe_tells_what_single_runs_tell():
    task, rule = Quadratic(dimensions=8, condition=10.0).sample(generator(3, "task")), shipped()
    found = probe(rule, task, 2 * PIECE, runs=2, seed=5, number=7)
    curves = []
    for anneal, factor in itertools.product(ANNEALS, FACTORS):
        changed = copy.deepcopy(rule)
        with torch.no_grad():
            changed.network.tensor_head.bias[8] += math.log(factor)
            changed.network.tensor_head.bias[9] *= anneal
            changed.network.tensor_head.weight[9] *= anneal
        curves.append([_run(changed, task, run) for run in range(2)])
    losses = torch.tensor(curves).mean(1)
    late = (losses[:, 1] + 2**3 * losses[:, 2]) / 9
    wanted = (late - late.min()) / (losses[0, 0] - losses.min())
    wanted = wanted.clamp(max=1).reshape(len(ANNEALS), len(FACTORS))
    torch.testing.assert_close(found.regrets, wanted, atol=1e-4, rtol=1e-3)
    assert (found.regrets[0] != found.regrets[2]).any()
    assert found.features.shape == (len(task.weight_space.shapes), STATIC)
    assert found.shares.sum() == pytest.approx(1)
    assert all(torch.equal(a, b) for a, b in zip(Probe.of(json.loads(json.dumps(found.record()))), found, strict=True))


def test_no_horizon_is_an_error():
    task = Quadratic().sample(generator(0, "task"))
    with pytest.raises(InvalidInput, match="horizon=0"):
        probe(Neuron(), task, 0, runs=1)


def test_what_is_not_told_is_not_seen():
    task, rule = Quadratic(dimensions=8, condition=10.0).sample(generator(3, "task")), shipped()
    told, not_told = (probe(rule, task, 2 * PIECE, runs=1, told=told) for told in (True, False))
    assert not torch.equal(told.regrets, not_told.regrets)  # the rule cannot anneal
    assert not torch.equal(not_told.regrets, not_told.regrets[:1].expand_as(not_told.regrets))  # but its size changes
    task = ImageMLP(hidden=[4], size=4, evaluation_size=20).sample(generator(3, "task"))
    traced, shapes = (probe(rule, task, PIECE, runs=1, traced=traced) for traced in (True, False))
    assert not torch.equal(traced.features, shapes.features)
    assert not torch.equal(traced.regrets, shapes.regrets)


def config(out, **changed):
    base: Any = OmegaConf.to_container(OmegaConf.load("configs/calibration.yaml"))
    base = {key: value for key, value in base.items() if key not in ("defaults", "hydra")}
    family = {
        "_target_": "tasks.Varied",
        "family": {"_target_": "tasks.Quadratic", "_partial_": True},
        "dimensions": list(range(2, 18)),
        "condition": [3.0, 30.0],
    }
    rule = {"_target_": "lopt.load_rule", "source": "neuron-1"}
    horizon = {"_target_": "meta_train.LogUniform", "low": PIECE, "high": 2 * PIECE}
    return OmegaConf.create(
        {**base, "rule": rule, "family": family, "horizon": horizon, "runs": 1, "tasks": 12, "out": str(out), **changed}
    )


def test_a_stopped_command_goes_on_and_ends_the_same(tmp_path):
    rule, whole, resumed = shipped(), tmp_path / "whole", tmp_path / "resumed"
    Law(torch.zeros(STATIC), -1.5).add_to(rule)  # steps that are far too small
    source = {"_target_": "lopt.load_rule", "source": str(lopt.save_rule(tmp_path / "slow.safetensors", rule))}
    assert calibrate(config(whole, rule=source)) == 0
    text = (whole / "probes.jsonl").read_text()
    assert len(set(text.splitlines())) == 13
    card = lopt.read_card(whole / "rule.safetensors")
    assert card["probes"] == 12 and card["regret_left_out"] < card["regret_before"] / 2
    better = lopt.load_rule(whole / "rule.safetensors").state_dict()["network.tensor_head.bias"][8]
    assert better > rule.network.tensor_head.bias[8]

    resumed.mkdir()
    (resumed / "probes.jsonl").write_text(text[: len(text) // 2])  # killed in the middle of a line
    assert calibrate(config(resumed, rule=source)) == 0
    assert (resumed / "probes.jsonl").read_text() == text
    lines = text.splitlines()  # two commands wrote at once, and one of them was killed
    (resumed / "probes.jsonl").write_text("\n".join([*lines[:4], *lines[2:7], *lines[8:]]) + "\n")
    assert calibrate(config(resumed, rule=source)) == 0
    assert (resumed / "calibration.json").read_text() == (whole / "calibration.json").read_text()

    with pytest.raises(InvalidInput, match="another rule, family, horizon or seed"):
        calibrate(config(whole, rule=source, seed=1))
    (whole / "probes.jsonl").write_text(lines[0] + "\n" + "{not json}\n")
    with pytest.raises(InvalidInput, match=r"probes\.jsonl is damaged"):
        calibrate(config(whole, rule=source))


def test_no_rule_is_written_where_no_law_helps(tmp_path, capsys):
    noise = torch.Generator().manual_seed(1)
    probes = made_probes(64, lambda z: 0.5 * torch.randn(4, generator=noise))
    lopt.save_rule(tmp_path / "rule.safetensors", shipped())  # of an earlier command with fewer tasks
    assert _fit(config(tmp_path), shipped(), probes, tmp_path) == 1
    assert "no rule is written" in capsys.readouterr().err
    assert not (tmp_path / "rule.safetensors").exists()


def test_a_probe_takes_the_dtype_of_the_task():
    task, rule = Quadratic(dimensions=4, dtype="float64").sample(generator(3, "task")), shipped().double()
    assert probe(rule, task, PIECE, runs=1).regrets.dtype == torch.float32  # what the law is fitted in


@pytest.mark.parametrize(
    ("changed", "count"),
    [({"tasks": 7}, 7), ({"family": {"_target_": "tasks.Quadratic"}, "tell_symmetry": 1.0}, 1)],
)
def test_too_few_architectures_are_said_before_any_probe(tmp_path, monkeypatch, changed, count):
    monkeypatch.setattr("meta_train.calibration.__main__.probe", None)
    with pytest.raises(InvalidInput, match=f"of {count} architectures.*another family=, or more tasks="):
        calibrate(config(tmp_path / "out", **changed))
    assert not (tmp_path / "out").exists()


def test_bad_settings_are_errors_and_leave_nothing(tmp_path):
    for changed, message in (
        ({"dtype": "int8"}, "dtype"),
        ({"rule": {"_target_": "lopt.rules.Adam"}}, "Adam has no law"),
        ({"runs": 0}, "runs=0"),
        ({"tell_horizon": 2}, "tell_horizon: 2"),
    ):
        with pytest.raises(InvalidInput, match=message):
            calibrate(config(tmp_path / "out", **changed))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InvalidInput, match="architectures"):
        calibrate(config(tmp_path / "out", tasks=2))
