"""From the terms of a trace to a `WeightSpace`: names, groups, dependences."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from lopt.axes import Axis, Concatenation, Fixed, Group, Product
from lopt.tracing import labels
from lopt.tracing.algebra import Term, find, fixed, leaves, unify
from lopt.tracing.call import Record
from lopt.tracing.dependence import dependences
from lopt.tracing.labels import Labels
from lopt.weight_space import WeightSpace

INPUT, OUTPUT = "the input", "the output"
Axes: TypeAlias = tuple[Term, ...]


def weight_space(parameters: Mapping[str, Labels], buffers: Mapping[str, Labels], record: Record) -> WeightSpace:
    """The space that a trace found.

    Args:
        parameters, buffers: their labels.
        record: what the trace saw, from which dependences follow.
    """
    stacks = _stacks(parameters)
    plain = {name: labels.terms(made, "a stack") for name, made in parameters.items() if name not in stacks}
    still = {name: labels.terms(made, "a stack") for name, made in buffers.items()}
    shown = plain | {name: stack.axes for name, stack in stacks.items()}
    seen = [*record.tensors.values(), *still.values(), *plain.values()]
    within = dependences({k: shown[k] for k in parameters}, seen, record.mixed.values())
    for stack in stacks.values():
        for term in stack.own:
            within[find(term)] = [stack.position]
    names = _names({k: shown[k] for k in parameters}, [s.position for s in stacks.values()])
    text = _Text(names, within)
    free = {id(leaf) for axes in shown.values() for term in axes for leaf in leaves(term) if leaf.is_free}
    moved = {
        name: axes for name, axes in still.items() if any(id(leaf) in free for term in axes for leaf in leaves(term))
    }
    return WeightSpace(
        {name: tuple(map(text.axis, shown[name])) for name in parameters},
        {name: tuple(map(text.axis, axes)) for name, axes in moved.items()},
    )


class _Text:
    """Terms as axes."""

    def __init__(self, names: Mapping[int, str], within: Mapping[Term, Sequence[Term]]) -> None:
        self.names = names
        self.within = {id(find(term)): tuple(names[id(find(o))] for o in outer) for term, outer in within.items()}

    def axis(self, term: Term) -> Axis:
        term = find(term)
        name = self.names.get(id(term), "")
        if term.is_free and name:
            return Group(name, term.size, self.within.get(id(term), ()))
        if term.is_variable:  # a group that only buffers have is no group of the space
            return Fixed(term.size, name)
        parts = [self.axis(part) for part in term.product or term.concatenation]
        return _merged(parts, Product) if term.product else _merged(parts, Concatenation)


def _merged(parts: Sequence[Axis], kind: type[Product] | type[Concatenation]) -> Axis:
    """Fixed axes side by side are one, unless they have names."""
    kept: list[Axis] = []
    for part in parts:
        last = kept[-1] if kept else None
        if isinstance(last, Fixed) and isinstance(part, Fixed) and not (last.name or part.name):
            kept[-1] = Fixed(last.size * part.size if kind is Product else last.size + part.size)
        else:
            kept.append(part)
    return kept[0] if len(kept) == 1 else kind(tuple(kept))


def _names(parameters: Mapping[str, Sequence[Term]], positions: Sequence[Term]) -> dict[int, str]:
    """A name for every group, g0, g1, ... in order of appearance. Axes of the network's inputs and outputs, and the
    places in a stack, are fixed and have names, too."""
    names: dict[int, str] = {}
    counts: Counter[str] = Counter()

    def give(term: Term, name: str) -> None:
        if id(term) not in names:
            names[id(term)] = name if name != "g" and not counts[name] else f"{name}{counts[name]}"
            counts[name] += 1

    for term in positions:
        give(find(term), "stack")
    for axes in parameters.values():
        for leaf in (leaf for term in axes for leaf in leaves(term)):
            if leaf.is_free:
                give(leaf, "g")
            elif leaf.size > 1 and str(leaf.reason) in (INPUT, OUTPUT):
                give(leaf, "in" if str(leaf.reason) == INPUT else "out")
    return names


# --- stacks ----------------------------------------------------------------------------------------------------------


class _Stack:
    """A parameter whose slices along one axis are permuted each on its own: dense experts.

    Attributes:
        axes: the terms of the whole, where a variable of `own` stands for one variable of each slice.
        position: the fixed axis, on which those depend.
    """

    def __init__(self, axes: Axes, own: Sequence[Term], position: Term) -> None:
        self.axes, self.own, self.position = axes, own, position


def _stacks(parameters: Mapping[str, Labels]) -> dict[str, _Stack]:
    """The parameters in blocks that differ from slice to slice alike; blocks of other kinds are tied to one another.

    The slices' variables must stand together in every parameter in which one of them occurs: if the first hidden layer
    of expert 3 meets the second one of expert 4, there is no such form.
    """
    blocked = {name: made for name, made in parameters.items() if _is_stack(made)}
    for name, made in parameters.items():
        if name not in blocked:
            labels.terms(made, "a stack")
    while True:
        columns = {name: _columns(made) for name, made in blocked.items()}
        places: dict[int, set[tuple[int, ...]]] = {}
        for column in itertools.chain.from_iterable(columns.values()):
            for term in column:
                for leaf in leaves(term):
                    places.setdefault(id(leaf), set()).add(tuple(id(find(other)) for other in column))
        for name, made in parameters.items():
            if name not in blocked:
                for leaf in (leaf for term in labels.terms(made, "a stack") for leaf in leaves(term)):
                    places.setdefault(id(leaf), set()).add(())
        bad = [column for found in columns.values() for column in found if not _stands_together(column, places)]
        if not bad:
            break
        for column in bad:
            for other in column[1:]:
                unify(column[0], other, "a stack")
    return _shown(blocked)


def _is_stack(made: Labels) -> bool:
    """Slices of one entry, each with plain labels."""
    return bool(made.blocks) and all(not b.blocks and b.shape[made.along] == 1 for b in made.blocks)


def _columns(made: Labels) -> list[tuple[Term, ...]]:
    """For each axis but the stack's the terms of all slices."""
    columns = zip(*(block.axes for block in made.blocks), strict=True)
    return [column for axis, column in enumerate(columns) if axis != made.along]


def _stands_together(column: Sequence[Term], places: Mapping[int, set[tuple[int, ...]]]) -> bool:
    if labels.same(column):
        return True
    found = [find(term) for term in column]
    alone = len({id(term) for term in found}) == len(found) and all(term.is_free for term in found)
    return alone and all(len(places[id(term)]) == 1 for term in found)


def _shown(blocked: Mapping[str, Labels]) -> dict[str, _Stack]:
    variables: dict[tuple[int, ...], tuple[Term, Term]] = {}  # the slices' variables -> one for all, and its position
    stacks = {}
    for name, made in blocked.items():
        position = fixed(made.shape[made.along], "a stack")
        axes, own = [], []
        for axis, column in enumerate(zip(*(block.axes for block in made.blocks), strict=True)):
            if axis == made.along:
                axes.append(position)
            elif labels.same(column):
                axes.append(column[0])
            else:
                key = tuple(id(find(term)) for term in column)
                one, where = variables.setdefault(key, (Term(find(column[0]).size), position))
                unify(position, where, "a stack")
                axes.append(one)
                own.append(one)
        if own:
            stacks[name] = _Stack(tuple(axes), own, position)
    return stacks
