"""What the constructor of LearnedOptimizer and its param groups accept."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from lopt.checkpoint import load_rule
from lopt.errors import InvalidInput
from lopt.rules.rule import UpdateRule

DEFAULT_RULE = "neuron-1"  # packaged, and meta-trained

# What a param group holds besides its parameters and lr; also what a state of an older version is completed with.
OPTIONS: dict[str, Any] = {
    "weight_decay": 0.0,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "skipped_steps": 0,
}


def find_rule(rule: UpdateRule | str | os.PathLike[str]) -> UpdateRule:
    if isinstance(rule, UpdateRule):
        return rule
    if isinstance(rule, str) and rule.startswith("hub:"):
        raise InvalidInput(f"rule: {rule!r}; the constructor downloads nothing. Pass lopt.load_rule({rule!r})")
    if not isinstance(rule, str | os.PathLike):
        raise InvalidInput(f"rule: {rule!r}; give an object, such as lopt.rules.Adam(), a packaged name, or a path")
    return load_rule(rule)


def check_options(options: Mapping[str, Any]) -> None:
    for key, what in (("lr", "learning rate"), ("weight_decay", "weight_decay value")):
        value = options[key]
        if key == "lr" and isinstance(value, Tensor) and value.numel() != 1:
            raise InvalidInput(f"Tensor lr must be 1-element. Invalid learning rate: {value!r}")
        try:
            valid = isinstance(value, Real | Tensor) and 0 <= float(value) < math.inf
        except (TypeError, ValueError, RuntimeError):
            valid = False
        if not valid:
            hint = ". YAML reads 1e-3 as a string, and 1.0e-3 as a number" if isinstance(value, str) else ""
            raise InvalidInput(f"Invalid {what}: {value!r}. It must be one number, finite and at least 0{hint}")
