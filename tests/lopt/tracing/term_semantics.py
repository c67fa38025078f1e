"""What a term means, written down a second time: the set of permutations that it allows, by enumeration.

A group element assigns a permutation to every free variable; `action` is what follows for a whole axis, and `group`
enumerates the elements of a few axes together. Nothing here uses more of the algebra than the form of a term.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from lopt.tracing.algebra import Term, concatenation, find, fixed, free, product

Permutation = tuple[int, ...]
LARGEST_GROUP = 3000


def variables(terms: Iterable[Term]) -> dict[int, Term]:
    """The free variables of terms, by identity."""
    found: dict[int, Term] = {}
    for term in map(find, terms):
        if not term.product and not term.concatenation:
            if term.reason is None:
                found[id(term)] = term
        else:
            found |= variables(term.product or term.concatenation)
    return found


def action(term: Term, chosen: Mapping[int, Permutation]) -> Permutation:
    """The permutation of the axis: entry i of the result comes from entry action[i]."""
    term = find(term)
    if term.product:
        parts = [action(part, chosen) for part in term.product]
        index = itertools.product(*parts)  # row-major: the last factor runs fastest
        sizes = [len(part) for part in parts]
        return tuple(_ravel(places, sizes) for places in index)
    if term.concatenation:
        whole: list[int] = []
        for part in term.concatenation:
            start = len(whole)
            whole += [start + place for place in action(part, chosen)]
        return tuple(whole)
    return chosen.get(id(term), tuple(range(term.size)))


def _ravel(places: Sequence[int], sizes: Sequence[int]) -> int:
    whole = 0
    for place, size in zip(places, sizes, strict=True):
        whole = whole * size + place
    return whole


def order(terms: Iterable[Term]) -> int:
    """How many group elements there are."""
    return math.prod(math.factorial(term.size) for term in variables(terms).values())


def group(terms: Sequence[Term]) -> set[tuple[Permutation, ...]]:
    """All that can be done to these axes at once."""
    free_ones = variables(terms)
    tables = [list(itertools.permutations(range(term.size))) for term in free_ones.values()]
    elements = (dict(zip(free_ones, table, strict=True)) for table in itertools.product(*tables))
    return {tuple(action(term, chosen) for term in terms) for chosen in elements}


# --- random terms ----------------------------------------------------------------------------------------------------

Spec = tuple[Any, ...]


@st.composite
def specs(draw: Any, size: int, depth: int = 2) -> Spec:
    """What to build: a variable of a small pool, a fixed axis, a product or a concatenation."""
    divisors = [d for d in range(2, size) if size % d == 0]
    kinds = ["variable", "variable", "fixed"] if depth == 2 else ["variable"] * 5 + ["fixed"]
    kinds += (["product"] * 2 if divisors else []) + (["sum"] * 2 if size > 1 else []) if depth else []
    kind = draw(st.sampled_from(kinds))
    if kind == "product":
        outer = draw(st.sampled_from(divisors))
        return "product", draw(specs(outer, depth - 1)), draw(specs(size // outer, depth - 1))
    if kind == "sum":
        first = draw(st.integers(1, size - 1))
        return "sum", draw(specs(first, depth - 1)), draw(specs(size - first, depth - 1))
    return kind, size, draw(st.integers(0, 1))


def build(spec: Spec, pool: dict[Spec, Term]) -> Term:
    """The term; variables of one name in `pool` are the same."""
    if spec[0] == "product":
        return product(build(part, pool) for part in spec[1:])
    if spec[0] == "sum":
        return concatenation(build(part, pool) for part in spec[1:])
    if spec not in pool:
        pool[spec] = free(spec[1]) if spec[0] == "variable" else fixed(spec[1], "given")
    return pool[spec]


@st.composite
def systems(draw: Any, axes: int, largest: int = 6) -> list[Spec]:
    """Several axes of one size, which share variables."""
    size = draw(st.integers(1, largest))
    return [draw(specs(size)) for _ in range(axes)]
