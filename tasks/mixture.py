"""Families made of families: a weighted mixture, and a product distribution over a family's arguments.

Both are families themselves, so they nest. Their `member` draws one of the families that they are made of, whose tasks
run as one population; `sample` draws a member and then a task of it.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Unpack, get_args, get_origin, get_type_hints

import torch

from lopt.errors import InvalidInput, unknown
from tasks.arguments import check_positive, check_range, check_weights
from tasks.task import Task, TaskFamily


class Mixture(TaskFamily):
    """One of several families, drawn by weight.

    Args:
        families: at least one.
        weights: one a family, in proportion to which they are drawn; by default equal.

    Raises:
        InvalidInput: no families, something else than families, or weights that do not fit.

    >>> from tasks import Quadratic
    >>> family = Mixture([Quadratic(dimensions=2), Quadratic(dimensions=3)], weights=[1, 3])
    >>> tasks = [family.sample(torch.Generator().manual_seed(seed)) for seed in range(100)]
    >>> [sum(task.weight_space.shapes["w"] == (size,) for task in tasks) for size in (2, 3)]
    [22, 78]
    """

    name: ClassVar[str] = "mixture"

    def __init__(self, families: Sequence[TaskFamily], weights: Sequence[float] | None = None) -> None:
        if isinstance(families, str) or not isinstance(families, Sequence) or not families:
            raise InvalidInput(f"families={families!r}: give a list of at least one task family")
        if wrong := [family for family in families if not isinstance(family, TaskFamily)]:
            raise InvalidInput(f"families: {wrong} are no task families")
        self.families = list(families)
        self.weights = check_weights(weights, len(families), "family")

    def member(self, generator: torch.Generator) -> TaskFamily:
        weights = torch.tensor(self.weights, dtype=torch.float64, device=generator.device)
        return self.families[int(torch.multinomial(weights, 1, generator=generator))].member(generator)

    def sample(self, generator: torch.Generator) -> Task:
        return self.member(generator).sample(generator)


class Varied(TaskFamily):
    """A family whose arguments are drawn, each on its own, from lists of options.

    Each combination is built once, when it is first drawn, and kept: so its tasks share their networks and tables, and
    run as one population. An option that stands in its list twice is drawn twice as often; for a range of numbers, see
    `log_range`.

    Args:
        family: what to call for a family: a class, or functools.partial of one with the arguments that do not vary.
        choices: for every argument that varies its options. They are all tried, one at a time, when this is built.

    Raises:
        InvalidInput: no options, an argument that the family does not take, or an option that it refuses.

    >>> from tasks import ImageMLP
    >>> family = Varied(ImageMLP, hidden=[[8], [16, 16]], activation=["relu", "tanh"])
    >>> family.count
    4
    >>> task = family.sample(torch.Generator().manual_seed(0))
    """

    name: ClassVar[str] = "varied"

    def __init__(self, family: Callable[..., TaskFamily], **choices: Sequence[Any]) -> None:
        if not callable(family):
            raise InvalidInput(
                f"family={family!r}: give a class, or a partial (in YAML: _partial_: true), to be called"
            )
        title, known = _arguments(family)
        for argument, options in choices.items():
            if known is not None and argument not in known:
                raise unknown(f"argument of {title}", argument, known)
            if isinstance(options, str) or not isinstance(options, Sequence) or not options:
                raise InvalidInput(f"{argument}={options!r}: give a list of options to draw from")
        if not choices:
            raise InvalidInput("choices: none. Give a list of options for at least one argument")
        self.family, self.choices = family, {name: list(options) for name, options in choices.items()}
        self._built: dict[tuple[int, ...], TaskFamily] = {}
        first = (0,) * len(choices)
        for k, options in enumerate(self.choices.values()):
            for option in range(len(options)):
                self._build((*first[:k], option, *first[k + 1 :]))

    @property
    def count(self) -> int:
        """How many combinations there are."""
        return math.prod(len(options) for options in self.choices.values())

    def member(self, generator: torch.Generator) -> TaskFamily:
        chosen = tuple(
            int(torch.randint(len(options), (), generator=generator, device=generator.device))
            for options in self.choices.values()
        )
        return self._build(chosen).member(generator)

    def sample(self, generator: torch.Generator) -> Task:
        return self.member(generator).sample(generator)

    def _build(self, chosen: tuple[int, ...]) -> TaskFamily:
        if chosen not in self._built:
            pairs = zip(self.choices.items(), chosen, strict=True)
            built = self.family(**{name: options[k] for (name, options), k in pairs})
            if not isinstance(built, TaskFamily):
                raise InvalidInput(f"family: {self.family!r} makes a {type(built).__name__}, which is no task family")
            self._built[chosen] = built
        return self._built[chosen]


def log_range(low: float, high: float, count: int, whole: bool = True) -> list[float]:
    """`count` numbers from `low` to `high` with equal ratios, for `Varied`; whole numbers, each once, unless told else.

    A few numbers stand for a range, so that the tasks of one number can run as one population.

    >>> log_range(8, 64, 4), log_range(1e-3, 1e-1, 3, whole=False)
    ([8, 16, 32, 64], [0.001, 0.01, 0.1])
    """
    check_range("log_range", low, high)
    check_positive("count", count)
    ratio = (high / low) ** (1 / max(1, count - 1))
    numbers = [low * ratio**k for k in range(count)]
    return sorted({round(x) for x in numbers}) if whole else [float(f"{x:.6g}") for x in numbers]


def _arguments(family: Callable[..., TaskFamily]) -> tuple[str, set[str] | None]:
    """What a family is called, and the arguments it takes by name, inherited ones included; None where that is open."""
    target: Any = family.func if isinstance(family, functools.partial) else family
    title = getattr(target, "__name__", repr(target))
    known: set[str] = set()
    for kind in target.__mro__ if isinstance(target, type) else (target,):
        try:
            parameters = inspect.signature(kind).parameters.values()
        except ValueError:  # some builtins have none
            break
        known |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        rest = next((p for p in parameters if p.kind is p.VAR_KEYWORD), None)
        if rest is None:
            return title, known
        if options := _options(kind, rest.name):
            return title, known | options
    return title, None


def _options(target: Any, rest: str) -> set[str]:
    """The names that a `**rest: Unpack[...]` stands for; none where its type says nothing."""
    try:
        hint = get_type_hints(target.__init__ if isinstance(target, type) else target).get(rest)
    except (NameError, TypeError):  # a type that is imported for checkers alone
        return set()
    return set(get_type_hints(get_args(hint)[0])) if get_origin(hint) is Unpack else set()
