r"""python -m meta_train.averaging 'sources=[neuron-1, runs/neuron_wide/rule.safetensors]' name=between

The mean of the meta-parameters of rules that were fitted one from the other. A rule that was fitted further to other
tasks gains on these and forgets some of the first; the mean of both keeps most of what each can do, at no cost
(arXiv 2109.01903, section 3, for networks, where the share is α; 2203.05482 for many of them).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from lopt import load_rule, save_rule
from lopt.errors import InvalidInput
from lopt.rules.rule import UpdateRule
from meta_train.cli import run
from meta_train.matching import names_matching
from tasks.arguments import check_weights


def average(rules: Sequence[UpdateRule], weights: Sequence[float] | None = None, fit: str | None = None) -> UpdateRule:
    r"""A rule with the weighted mean of the meta-parameters.

    $$ \theta = \sum_k w_k \theta_k \Big/ \sum_k w_k $$

    It is as good as its parts only where they lie in one valley: fitted one from the other, or from one start.

    Args:
        rules: at least two, of one kind and with the same arguments.
        weights: w, a number of at least 0 for each rule; by default equal.
        fit: a regular expression: the meta-parameters that become the mean, by name; the others are those of the first
            rule. None: all.

    Raises:
        InvalidInput: fewer than two rules, rules that differ in more than θ, weights that are not as many numbers, or
            no name that matches.

    >>> from lopt.rules import Neuron
    >>> rules = [Neuron(), Neuron()]
    >>> mean = average(rules, weights=[1, 3]).state_dict()
    >>> name = "network.read_time.weight"
    >>> bool(torch.allclose(mean[name], 0.25 * rules[0].state_dict()[name] + 0.75 * rules[1].state_dict()[name]))
    True
    """
    if len(rules) < 2:
        raise InvalidInput(f"rules: {len(rules)}; a mean is of at least two rules")
    shares = check_weights(weights, len(rules), "rule")
    kinds = [(type(rule).__name__, dict(rule.arguments)) for rule in rules]
    if other := [kind for kind in kinds if kind != kinds[0]]:
        raise InvalidInput(
            f"rules: {kinds[0]} and {other[0]} have different meta-parameters; average rules of one kind"
        )
    mean = copy.deepcopy(rules[0])
    with torch.no_grad():
        for name in names_matching(mean, fit):
            parts = [w * rule.get_parameter(name) for w, rule in zip(shares, rules, strict=True)]
            mean.get_parameter(name).copy_(torch.stack(parts).sum(0) / sum(shares))
    return mean


def main(config: DictConfig) -> int:
    settings: Any = OmegaConf.to_container(config)
    if not isinstance(settings["sources"], list):
        raise InvalidInput(
            f"sources={settings['sources']}: give a list of rules, as 'sources=[neuron-1,mine.safetensors]'"
        )
    rule = average([load_rule(source) for source in settings["sources"]], settings["weights"], settings["fit"])
    kept = {key: settings[key] for key in ("sources", "weights", "fit")}
    print(f"saved {save_rule(Path(settings['out']) / 'rule.safetensors', rule, kept)}")
    return 0


if __name__ == "__main__":
    run("averaging", main)
