"""Adam's scale: against a loop, on disk, and where it cannot be measured."""

import json
from typing import get_args

import pytest
import torch

from lopt import InvalidInput, WeightSpace
from lopt.rules import SGDM
from meta_train.estimators import PES
from meta_train.keys import generator
from meta_train.objectives import FinalLoss, MeanLoss, ValidationLoss
from meta_train.reference import _SEED, GUARD, AdamReference, normalise
from meta_train.validation import MetaValidation
from tasks import LossScaling, Mixture, Quadratic
from tasks.supervised import Supervised
from tasks.task import Split, TaskFamily

DOUBLE = torch.float64


def quadratic(**kwargs):
    return Quadratic(**{"dimensions": 4, "condition": 5.0, "noise": 0.0, "dtype": DOUBLE} | kwargs)


def torch_adam(lr, steps, weights, curvature):
    """The losses before each step of torch.optim.Adam on a noiseless quadratic."""
    w = weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (curvature * w.square()).mean() / 2
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    return torch.tensor(losses, dtype=DOUBLE)


def test_the_curves_are_those_of_torch_adam():
    family = quadratic()
    reference = AdamReference(rates=[0.01, 0.1], tasks=1)
    curves = reference.curves(family, MeanLoss(), truncation=5, count=3)
    task = family.task
    weights = task.init(generator(_SEED, "reference weights", 0))["w"]
    for row, rate in enumerate((0.01, 0.1)):
        losses = torch_adam(rate, 15, weights, task.curvature)
        wanted = losses.reshape(3, 5).mean(1) / losses[0]
        torch.testing.assert_close(curves[row], wanted, rtol=1e-6, atol=1e-9)


def test_the_unit_puts_the_start_at_one_and_the_best_adam_at_zero():
    reference = AdamReference(rates=[0.01, 0.1], tasks=2)
    curves = reference.curves(quadratic(), MeanLoss(), 5, 4)
    unit = reference.unit(quadratic(), MeanLoss(), 5, 4)
    assert unit.rho == pytest.approx(float(curves[:, -1].min()))
    scaled = normalise(curves, torch.ones(()), torch.tensor(unit.rho, dtype=DOUBLE))
    assert float(scaled[:, -1].min()) == pytest.approx(0.0, abs=1e-12)
    assert unit.adam == pytest.approx(float(scaled.mean(1).min()))
    assert float(normalise(torch.ones(()), torch.ones(()), torch.tensor(0.3))) == pytest.approx(1.0)
    final = reference.unit(quadratic(), FinalLoss(last=5), 5, 4)
    assert final.adam == pytest.approx(0.0, abs=1e-9)


def test_where_adam_gains_nothing_the_scale_is_guarded():
    tiny = torch.tensor(0.999)
    assert float(normalise(torch.tensor(2.0), torch.ones(()), tiny)) == pytest.approx((2 - 0.999) / GUARD)


@pytest.mark.parametrize("objective", [MeanLoss(), FinalLoss(2), ValidationLoss()])
def test_tasks_of_other_scales_weigh_alike(objective):
    """The meta-gradient on a loss that is 1000 times as large is the same."""
    rule = SGDM().to(DOUBLE)
    gradients = []
    for factor in (1.0, 1000.0):
        family = LossScaling(quadratic(), low=factor, high=factor)

        class Scaled(SGDM):
            """Undoes the scale in the gradient, so that the particles walk the same way."""

            def forward(self, space, params, grads, state, clock, factor=factor):
                return super().forward(space, params, {k: g / factor for k, g in grads.items()}, state, clock)

        estimator = PES(pairs=2, truncation=3, horizon=6, objective=objective, reference=AdamReference([0.01, 0.1]))
        scaled = Scaled().to(DOUBLE)
        theta = {k: p.detach() for k, p in rule.named_parameters()}
        gradients.append(estimator.estimate(scaled, theta, family, estimator.start(scaled, family, 1), 1).gradient)
    for k, g in gradients[0].items():
        torch.testing.assert_close(g, gradients[1][k], rtol=1e-4, atol=1e-9)
        assert g.abs().max() > 0


def test_the_measurement_is_kept_on_disk_by_content(tmp_path, monkeypatch):
    monkeypatch.setenv("LOPT_CACHE", str(tmp_path))
    first = AdamReference(tasks=1).curves(quadratic(), MeanLoss(), 2, 2)
    (file,) = (tmp_path / "adam").iterdir()

    def never(*args, **kwargs):
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(AdamReference, "_measure", never)
        again = AdamReference(tasks=1).curves(quadratic(), MeanLoss(), 2, 2)
    assert torch.equal(first, again)  # to the last bit: a resumed run must not see other units
    AdamReference(tasks=1).curves(quadratic(condition=6.0), MeanLoss(), 2, 2)
    AdamReference(tasks=1).curves(quadratic(), MeanLoss(), 3, 2)
    AdamReference(tasks=1).curves(quadratic(), FinalLoss(2), 2, 2)
    AdamReference(tasks=1).curves(quadratic(), FinalLoss(1), 2, 2)
    assert len(list((tmp_path / "adam").iterdir())) == 5
    longer = AdamReference(tasks=1).curves(quadratic(), MeanLoss(), 2, 4)
    torch.testing.assert_close(longer[:, :2], first)
    assert len(json.loads(file.read_text())[0]) == 4
    file.write_text("damaged")
    torch.testing.assert_close(AdamReference(tasks=1).curves(quadratic(), MeanLoss(), 2, 4), longer)


@pytest.mark.parametrize(
    ("split", "table", "row"),
    [("validation", "targets", 0), ("validation", "inputs", 3), ("train", "targets", 20), ("train", "inputs", 99)],
)
def test_other_data_are_measured_anew(tmp_path, monkeypatch, split, table, row):
    """Whichever row it is, in a batch or not, and among those that measure a split or not."""
    monkeypatch.setenv("LOPT_CACHE", str(tmp_path))
    g = torch.Generator().manual_seed(0)
    tables = {"inputs": torch.randn(200, 3, generator=g), "targets": torch.randn(200, 1, generator=g)}
    rows: dict[Split, range] = {"train": range(100), "validation": range(100, 110), "test": range(110, 120)}
    evaluation: dict[Split, range] = {name: range(r.start, r.start + 10) for name, r in rows.items()}
    module, splits = torch.nn.Linear(3, 1), get_args(Split)

    class Fixed(TaskFamily):
        name = "fixed"

        def sample(self, generator):
            inputs, targets = (dict.fromkeys(splits, tables[name]) for name in ("inputs", "targets"))
            loss, space = torch.nn.functional.mse_loss, WeightSpace.from_shapes({"weight": (1, 3), "bias": (1,)})
            return Supervised("fixed", module, space, inputs, targets, rows, 2, evaluation, loss)

    for _ in range(2):
        AdamReference([0.1], tasks=1).curves(Fixed(), ValidationLoss(), 2, 1)
    assert len(list((tmp_path / "adam").iterdir())) == 1
    tables[table] = tables[table].clone()
    tables[table][rows[split].start + row % len(rows[split])] += 1
    AdamReference([0.1], tasks=1).curves(Fixed(), ValidationLoss(), 2, 1)
    assert len(list((tmp_path / "adam").iterdir())) == 2


def test_an_unwritable_cache_is_said_in_words(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("LOPT_CACHE", str(blocked))
    with pytest.warns(UserWarning, match="Adam's losses are not kept .*Set LOPT_CACHE"):
        AdamReference(tasks=1).curves(quadratic(), MeanLoss(), 2, 2)


def test_losses_that_cannot_be_compared_are_refused():
    with pytest.raises(InvalidInput, match="initial losses.*raw_mean"):
        AdamReference(tasks=1).curves(below_zero(), MeanLoss(), 2, 1)
    for make in (lambda: AdamReference([]), lambda: AdamReference([0.0]), lambda: AdamReference(tasks=0)):
        with pytest.raises(InvalidInput, match="reference"):
            make()


def below_zero():
    family = quadratic()
    loss = family.task.loss
    family.task.loss = lambda params, batch: loss(params, batch) - 100.0
    return family


def test_meta_validation_without_a_reference_is_the_objective_as_it_is():
    rule = SGDM().to(DOUBLE)
    validation = MetaValidation(below_zero(), members=1, tasks=1, horizon=6, truncation=3)
    theta = {k: p.detach() for k, p in rule.named_parameters()}
    started = validation.evaluate(rule, {k: p - 50 * (k == "log_scale") for k, p in theta.items()})
    better = validation.evaluate(rule, {k: p + 3 * (k == "log_scale") for k, p in theta.items()})
    exploding = validation.evaluate(rule, {k: p + 300 * (k == "log_scale") for k, p in theta.items()})
    assert list(started) == ["validation"]
    assert -100 < better["validation"] < started["validation"] < -90
    assert started["validation"] < exploding["validation"] < 1  # what is not finite counts as the ceiling


def test_meta_validation_is_the_objective_on_adams_scale():
    """With Adam as the rule, at the one rate of the reference, it is Adam's own figure up to other tasks."""
    rule = SGDM().to(DOUBLE)
    family = Mixture([quadratic(), quadratic(dimensions=2)])
    validation = MetaValidation(family, members=3, tasks=2, horizon=6, truncation=3, reference=AdamReference([0.1]))
    theta = {k: p.detach() for k, p in rule.named_parameters()}
    first, again = validation.evaluate(rule, theta), validation.evaluate(rule, theta)
    assert first == again and set(first) == {"validation", "validation_adam"}
    still = validation.evaluate(rule, {k: p - 50 * (k == "log_scale") for k, p in theta.items()})
    assert float(still["validation"]) == pytest.approx(1.0)  # a rule that does nothing stays where it began
    exploding = validation.evaluate(rule, {k: p + 300 * (k == "log_scale") for k, p in theta.items()})
    assert 1 < float(exploding["validation"]) < 100
    with pytest.raises(InvalidInput, match="validation.every: 0"):
        MetaValidation(family, every=0)
