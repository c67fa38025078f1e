"""Which groups may depend on others: the channels of a head, permuted for every head on their own.

A group f may depend on a group g (a wreath product) where g accompanies f in every tensor, every operator that sets
entries of f side by side does so at the same place of g, and no operator mixes along g while f stands outside. The
record of a trace holds the axes of every tensor, and for such operators the axes that they keep aligned; so one test
says it all: g must stand beside f, once, in every entry of the record in which f occurs. But one: g may stand inside
and outside, as in a recurrence, and f beside it outside; so f must not be outside where g is inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lopt.tracing.algebra import Term, find, leaves

_Company = Counter[int]  # how often each variable stands beside another


def dependences(
    parameters: Mapping[str, Sequence[Term]],
    tensors: Iterable[Sequence[Term]],
    mixed: Iterable[tuple[Sequence[Term], Sequence[Term]]] = (),
) -> dict[Term, list[Term]]:
    """For every free variable of the parameters, the free variables that it may depend on, outermost first.

    Of two that may depend on each other, the one that comes later in the parameters depends on the earlier one.
    """
    order: dict[int, int] = {}
    variables: list[Term] = []
    for axes in parameters.values():
        for leaf in (leaf for term in axes for leaf in leaves(term)):
            if leaf.is_free and id(leaf) not in order:
                order[id(leaf)] = len(variables)
                variables.append(leaf)
    company: dict[int, set[int]] = {key: set(range(len(variables))) for key in order}
    done: set[tuple[int, ...]] = set()
    for axes in (*tensors, *parameters.values()):
        found = tuple(find(term) for term in axes)
        key = tuple(id(term) for term in found)
        if key in done:
            continue
        done.add(key)
        for leaf, beside in _companions(found):
            if id(leaf) in company:
                company[id(leaf)] &= {order[k] for k, times in beside.items() if times == 1 and k in order}
    for inside, outside in mixed:
        within = {order[id(leaf)] for term in inside for leaf in leaves(term) if id(leaf) in order}
        for leaf in (leaf for term in outside for leaf in leaves(term)):
            if within and id(leaf) in company:
                company[id(leaf)] -= within
    chosen = {i: {j for j in company[id(leaf)] if j < i} for i, leaf in enumerate(variables)}
    for i in sorted(chosen):  # outer ones first: their dependences are settled
        chosen[i] = _closed(chosen[i], chosen)
    return {variables[i]: [variables[j] for j in sorted(found)] for i, found in chosen.items() if found}


def _closed(found: set[int], chosen: Mapping[int, set[int]]) -> set[int]:
    """Without those that depend on something that is not among them."""
    while bad := {j for j in found if not chosen[j] <= found}:
        found = found - bad
    return found


def _companions(axes: Sequence[Term]) -> Iterator[tuple[Term, _Company]]:
    """Every variable of a tensor, with the variables that stand beside it."""
    common = [_common(term) for term in axes]
    for i, term in enumerate(axes):
        beside: _Company = Counter()
        for j, other in enumerate(common):
            if j != i:
                beside.update(other)
        yield from _inside(term, beside)


def _inside(term: Term, beside: _Company) -> Iterator[tuple[Term, _Company]]:
    term = find(term)
    if term.is_variable:
        yield term, beside
    for segment in term.concatenation:
        yield from _inside(segment, beside)
    common = [_common(factor) for factor in term.product]
    for i, factor in enumerate(term.product):
        inner = beside.copy()
        for j, other in enumerate(common):
            if j != i:
                inner.update(other)
        yield from _inside(factor, inner)


def _common(term: Term) -> _Company:
    """The variables that have one position at every entry of an axis: none in a concatenation."""
    term = find(term)
    if term.is_variable:
        return Counter({id(term): 1})
    if term.product:
        return sum((_common(factor) for factor in term.product), Counter())
    return Counter()  # another axis cannot tell at which segment it stands
