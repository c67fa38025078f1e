"""Which meta-parameters a command is about: by a regular expression on their names."""

from __future__ import annotations

import re

from lopt.errors import InvalidInput
from lopt.rules.rule import UpdateRule


def names_matching(rule: UpdateRule, fit: str | None) -> list[str]:
    """The names of the meta-parameters in which the regular expression is found; None: all.

    Raises:
        InvalidInput: there is none.

    >>> from lopt.rules import Neuron
    >>> names_matching(Neuron(), "scale_law|tensor_head.bias")
    ['network.tensor_head.bias', 'network.scale_law.weight']
    """
    names = [name for name, _ in rule.named_parameters()]
    chosen = [name for name in names if fit is None or re.search(fit, name)]
    if not chosen:
        raise InvalidInput(f"fit: no meta-parameter matches {fit!r}. There are: {', '.join(names)}")
    return chosen
