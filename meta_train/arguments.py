"""Checks of what a caller gives, by the name that the error gives; a command line makes strings of what is mistyped."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from lopt.errors import InvalidInput
from tasks.arguments import is_number, is_whole


def check_whole(least: int = 1, most: float = math.inf, **values: Any) -> None:
    """Raises InvalidInput unless every value is a whole number from `least` to `most`.

    >>> check_whole(steps=4)
    >>> check_whole(steps=4.5)
    Traceback (most recent call last):
    lopt.errors.InvalidInput: steps: 4.5; give a whole number of at least 1
    """
    for name, value in values.items():
        if not is_whole(value, least) or value > most:
            limit = "" if most == math.inf else f" and at most {most:.0f}"
            raise InvalidInput(f"{name}: {value!r}; give a whole number of at least {least}{limit}")


def check_above_zero(**values: Any) -> None:
    """Raises InvalidInput unless every value is a number above 0."""
    for name, value in values.items():
        if not is_number(value) or not value > 0:
            raise InvalidInput(f"{name}: {value!r}; give a number above 0")


def check_call(what: str, function: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Raises InvalidInput unless the function takes these arguments by name, and needs no others.

    >>> from lopt.rules import Adam
    >>> check_call("rule", Adam, {"foo": 1})
    Traceback (most recent call last):
    lopt.errors.InvalidInput: rule: Adam got an unexpected keyword argument 'foo'
    """
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise InvalidInput(f"{what}: {function.__name__} {_as_said(error)}") from None


def _as_said(error: TypeError) -> str:
    """Both "got an unexpected ..." and "missing a required ..." follow the name of what was called."""
    return str(error).replace("missing a", "misses a", 1)
