"""The rules of operators: what each one says about the permutations of its inputs and outputs.

A rule is one small function of a `Call`. It reads the terms of the inputs, unifies or fixes some, and sets the labels
of the outputs, such that permuting the inputs by the terms permutes the outputs by theirs:

    @lopt.tracing.register("my_library::row_softmax")
    def row_softmax(call):
        x = call.terms(call["x"])
        call.mixes(x[-1:], x[:-1])          # entries along the last axis meet, alike for each of the others
        call.set(call.out, x)

An operator without a rule is taken apart into others where PyTorch knows how; what is left is fixed and reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from lopt.errors import InvalidInput

if TYPE_CHECKING:
    from lopt.tracing.call import Call

Rule: TypeAlias = "Callable[[Call], None]"
F = TypeVar("F", bound=Rule)
RULES: dict[str, Rule] = {}


def register(*operators: str) -> Callable[[F], F]:
    """Makes a function the rule of operators, named "namespace::name" or "namespace::name.overload".

    A rule for an overload comes before the rule for all overloads. A later rule replaces an earlier one.

    Raises:
        InvalidInput: a name without a namespace.

    >>> @register("my_library::identity")
    ... def identity(call):
    ...     call.set(call.out, call.labels(call["x"]))
    >>> RULES.pop("my_library::identity") is identity
    True
    """
    for name in operators:
        namespace, separator, operator = name.partition("::")
        if not (namespace and separator and operator):
            raise InvalidInput(f"operator: {name!r}; an operator is named 'namespace::name', as 'aten::cumsum'")

    def add(rule: F) -> F:
        RULES.update(dict.fromkeys(operators, rule))
        return rule

    return add
