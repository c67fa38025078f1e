"""Which meta-parameters a command is about: by a regular expression on their names."""

from __future__ import annotations

import re

from lopt.errors import InvalidInput
from lopt.rules.rule import UpdateRule


def names_matching(rule: UpdateRule, fit: str | None) -> list[str]:
    """The names of the meta-parameters in which the regular expression is found; None: all.

    Raises:
        InvalidInput: there is none, or this is no regular expression.

    >>> from lopt.rules import Neuron
    >>> names_matching(Neuron(), "scale_law|tensor_head.bias")
    ['network.tensor_head.bias', 'network.scale_law.weight']
    """
    names = [name for name, _ in rule.named_parameters()]
    try:
        chosen = [name for name in names if fit is None or re.search(fit, name)]
    except (re.error, TypeError) as error:
        raise InvalidInput(f"fit: {fit!r} is no regular expression ({error}). There are: {', '.join(names)}") from None
    if not chosen:
        raise InvalidInput(f"fit: no meta-parameter matches {fit!r}. There are: {', '.join(names)}")
    return chosen
