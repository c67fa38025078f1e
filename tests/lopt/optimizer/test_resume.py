"""Saving, copying and resuming: a run that was stopped goes on as if it had not been."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lopt import InvalidInput, LearnedOptimizer, WeightSpace, save_rule
from lopt.rules import RULES, SGDM, Adam, PerParameter, UpdateRule
from tests.lopt.optimizer.common import LR, Spy, build, network, same, state_of, train, weights

COMMON = Path(__file__).with_name("common.py")
RESUME = """
import runpy, sys, types, torch, lopt
common = types.SimpleNamespace(**runpy.run_path(sys.argv[2]))
for name in lopt.rules.RULES:
    saved = torch.load(f"{sys.argv[1]}/{name}.pt", weights_only=True)
    model = common.network()
    optimizer = lopt.LearnedOptimizer(model.parameters(), rule=lopt.load_rule(f"{sys.argv[1]}/{name}.safetensors"))
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    common.train(model, optimizer, 10, 20)
    result = {"weights": common.weights(model), "state": common.state_of(optimizer)}
    torch.save(result, f"{sys.argv[1]}/{name}.resumed.pt")
"""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """Ten steps of every rule, saved, and ten more in another process."""
    folder = tmp_path_factory.mktemp("resume")
    for name in RULES:
        model = network()
        rule = build(name, model)
        optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=rule, weight_decay=0.01)
        train(model, optimizer, 0, 10)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / f"{name}.pt")
        save_rule(folder / f"{name}.safetensors", rule)
    done = subprocess.run([sys.executable, "-c", RESUME, str(folder), str(COMMON)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_resuming_in_a_new_process_is_training_on(name, resumed):
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), LR[name], rule=build(name, model), weight_decay=0.01)
    train(model, optimizer, 0, 20)
    came = torch.load(resumed / f"{name}.resumed.pt", weights_only=True)
    assert same(came["weights"], weights(model))
    assert same(came["state"], state_of(optimizer))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_a_copy_steps_like_the_original(name, way, model):
    space = WeightSpace.linear_stack(dict(model.named_parameters()))
    rule = build(name, model)
    optimizer = LearnedOptimizer(model.named_parameters(), LR[name], rule=rule, weight_space=space, total_steps=9)
    optimizer.dataset_size, optimizer.batch_size = 40, 8
    train(model, optimizer, 0, 3)
    twin, other = way((model, optimizer))
    assert other.weight_space == space
    assert other.total_steps == 9
    assert (other.dataset_size, other.batch_size) == (40, 8)
    train(model, optimizer, 3, 6)
    middle = weights(twin)
    train(twin, other, 3, 6)
    assert not same(weights(twin), middle)
    assert same(weights(twin), weights(model))


def test_a_state_dict_of_other_names_loads_and_steps(model):
    twin = nn.ModuleDict({"a": network()[0], "b": network()[2]})
    source = LearnedOptimizer(twin.named_parameters(), 0.1, rule=Spy())
    space = WeightSpace.linear_stack(dict(model.named_parameters()))
    optimizer = LearnedOptimizer(model.named_parameters(), 0.3, rule=Spy(), weight_space=space)
    optimizer.load_state_dict(source.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.1
    train(model, optimizer, 0, 2)
    assert optimizer.weight_space == space


def test_a_state_dict_that_does_not_fit_changes_nothing(model):
    optimizer = LearnedOptimizer(model.parameters(), 0.1, rule=Adam())
    train(model, optimizer, 0, 2)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError):
        optimizer.load_state_dict(LearnedOptimizer(model[0].parameters(), rule=Adam()).state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(v, after["state"][i][k]) for i, s in before["state"].items() for k, v in s.items())
    train(model, optimizer, 2, 3)


def test_a_rule_from_a_file(model, tmp_path):
    path = save_rule(tmp_path / "mine.safetensors", SGDM(0.5))
    for rule in (path, str(path)):
        assert isinstance(LearnedOptimizer(model.parameters(), rule=rule).rule, SGDM)


def trained(rule: UpdateRule | None, width: int) -> torch.optim.Optimizer:
    """An optimizer with a state; without a rule it is one of torch."""
    model = nn.Linear(3, width)
    if rule is None:
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    else:
        optimizer = LearnedOptimizer(model.parameters(), rule=rule)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    return optimizer


def test_a_saved_rate_that_cannot_be_used_is_refused(model):
    optimizer = LearnedOptimizer(model.parameters(), 0.1, rule=Adam())
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = float("nan")
    with pytest.raises(InvalidInput, match="Invalid learning rate: nan"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("theirs", "complaint"),
    [
        (lambda: trained(SGDM(), 2), "of an optimizer with the rule SGDM, and this one has Adam. Load the state of"),
        (lambda: trained(PerParameter(), 2), "of an optimizer with the rule PerParameter, and this one has Adam"),
        (lambda: trained(Adam(), 5), "state of parameter '0' is .*, and the rule Adam keeps .*Load the state of"),
        (lambda: trained(None, 2), "state of parameter '0' is .*momentum_buffer.*, and the rule Adam keeps"),
    ],
)
def test_a_state_of_another_rule_or_model_is_refused_and_changes_nothing(theirs, complaint):
    mine, other = trained(Adam(), 2), theirs()
    before, state = copy.deepcopy(mine.state_dict()["param_groups"]), state_of(mine)
    with pytest.raises(InvalidInput, match=complaint):
        mine.load_state_dict(other.state_dict())
    assert mine.state_dict()["param_groups"] == before
    assert same(state_of(mine), state)
    mine.step()
