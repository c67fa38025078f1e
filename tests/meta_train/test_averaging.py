"""Averaging: against means written out, and the command."""

import subprocess
import sys
from typing import Any

import pytest
import torch

import lopt
from lopt.errors import InvalidInput
from lopt.rules import Neuron, PerParameter
from lopt.rules.rule import UpdateRule
from meta_train.averaging import average


def fitted(seed: int, **arguments) -> Neuron:
    torch.manual_seed(seed)
    rule = Neuron(**arguments)
    with torch.no_grad():
        for p in rule.parameters():
            p.normal_()
    return rule


def test_every_meta_parameter_is_the_weighted_mean():
    rules = [fitted(seed) for seed in range(3)]
    before = [{name: p.clone() for name, p in rule.named_parameters()} for rule in rules]
    for weights, shares in ((None, [1 / 3] * 3), ([1, 0, 3], [0.25, 0.0, 0.75])):
        for name, found in average(rules, weights).named_parameters():
            wanted = sum(share * theta[name].double() for share, theta in zip(shares, before, strict=True))
            torch.testing.assert_close(found.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    for rule, kept in zip(rules, before, strict=True):
        assert all(torch.equal(p, kept[name]) for name, p in rule.named_parameters())


def test_what_no_pattern_matches_is_of_the_first_rule():
    first, second = fitted(0), fitted(1)
    mean = dict(average([first, second], fit=r"scale_law|head\.bias").named_parameters())
    for name, p in first.named_parameters():
        chosen = name in ("network.scale_law.weight", "network.tensor_head.bias", "network.neuron_head.bias")
        wanted = (p + second.get_parameter(name)) / 2 if chosen else p
        torch.testing.assert_close(mean[name], wanted)
    with pytest.raises(InvalidInput, match="fit: no meta-parameter matches 'tail'"):
        average([first, second], fit="tail")


def test_what_has_no_mean_is_an_error():
    cases: list[tuple[list[UpdateRule], Any, str]] = [
        ([Neuron()], None, "rules: 1; a mean is of at least two"),
        ([Neuron(), PerParameter()], None, "different meta-parameters"),
        ([Neuron(), Neuron(width=8)], None, "different meta-parameters"),
        ([Neuron(), Neuron()], [1.0], "give 2 numbers"),
        ([Neuron(), Neuron()], [1.0, -1.0], "at least 0"),
        ([Neuron(), Neuron()], [0, 0], "at least one must be above 0"),
        ([Neuron(), Neuron()], 3, "weights=3: give a list of numbers"),
        ([Neuron(), Neuron()], ["a", "b"], "give a list of numbers"),
    ]
    for rules, weights, message in cases:
        with pytest.raises(InvalidInput, match=message):
            average(rules, weights)


def test_the_command_writes_a_rule_with_a_card(tmp_path):
    other = lopt.save_rule(tmp_path / "other.safetensors", fitted(0, **lopt.load_rule("neuron-1").arguments))
    command = [sys.executable, "-m", "meta_train.averaging", f"out={tmp_path / 'out'}", "weights=[3,1]"]
    done = subprocess.run([*command, f"sources=[neuron-1,{other}]"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = lopt.load_rule(tmp_path / "out" / "rule.safetensors").state_dict()
    wanted = average([lopt.load_rule("neuron-1"), lopt.load_rule(other)], [3, 1]).state_dict()
    assert all(torch.equal(x, wanted[name]) for name, x in found.items())
    assert lopt.read_card(tmp_path / "out" / "rule.safetensors")["weights"] == [3, 1]
    for sources, message in (("[neuron-2,neuron-1]", "neuron-1"), ("neuron-1", "give a list"), ("???", "give a list")):
        words = [*command, f"sources={sources}"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
