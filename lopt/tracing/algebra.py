"""The algebra of axis labels: what is known of the permutations that act along one axis of one tensor.

A `Term` is a variable (a set of neurons, free or fixed), a row-major product of terms, or a concatenation of terms.
`unify` says that two axes are permuted alike. As in the unification of types (Hindley-Milner), a variable is replaced
by what it was found equal to, with union-find; sizes strictly decrease on the way down, so that no cycle can arise.
Where two terms have no common refinement, both are fixed: less symmetry, never a false one.

    product with product              the common refinement, from the left
    concatenation with concatenation  cut at the boundaries of both
    product with concatenation        the outermost factor is cut

The module knows nothing of tensors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

_COUNT = itertools.count()


class Term:
    """One axis: a variable, a product or a concatenation. Only `unify`, `fix`, `split` and `cut` change it.

    Attributes:
        size: how many entries the axis has.
        product, concatenation: the parts, if it is one.
        reason: why a variable is fixed; None: it is free.
        origins: where the axis came from (see labels.py); a trace that finds it sliced makes blocks of it there.
        touched: whether an operator has used the variable's entries.
    """

    __slots__ = ("_link", "concatenation", "number", "origins", "product", "reason", "size", "touched")

    def __init__(
        self,
        size: int,
        reason: object = None,
        product: tuple[Term, ...] = (),
        concatenation: tuple[Term, ...] = (),
    ) -> None:
        self.size, self.reason, self.product, self.concatenation = size, reason, product, concatenation
        self.number = next(_COUNT)  # an order that does not depend on addresses
        self.origins: set[object] = set()
        self.touched = False
        self._link: Term | None = None

    @property
    def is_variable(self) -> bool:
        return not self.product and not self.concatenation

    @property
    def is_free(self) -> bool:
        return self.is_variable and self.reason is None

    def __repr__(self) -> str:
        term = find(self)
        if term.product:
            return "*".join(f"({p})" if find(p).concatenation else str(p) for p in term.product)
        if term.concatenation:
            return "+".join(map(str, term.concatenation))
        return str(term.size) if term.reason is not None else f"v{term.number}:{term.size}"


def free(size: int) -> Term:
    """A variable that nothing is known of yet; fewer than two entries cannot be permuted."""
    return Term(size) if size > 1 else fixed(size, "a single entry")


def fixed(size: int, reason: object) -> Term:
    """A variable whose entries must not be permuted."""
    return Term(size, reason)


def product(factors: Iterable[Term]) -> Term:
    """The row-major product; factors of one entry say nothing and are left out."""
    parts = [part for factor in factors for part in (find(factor).product or (find(factor),)) if part.size != 1]
    if len(parts) < 2:
        return parts[0] if parts else fixed(1, "a single entry")
    return Term(math.prod(part.size for part in parts), product=tuple(parts))


def concatenation(segments: Iterable[Term]) -> Term:
    """One after the other; empty segments are left out."""
    parts = [part for segment in segments for part in (find(segment).concatenation or (find(segment),)) if part.size]
    if len(parts) < 2:
        return parts[0] if parts else fixed(0, "no entries")
    return Term(sum(part.size for part in parts), concatenation=tuple(parts))


def find(term: Term) -> Term:
    """What the term is known to be now: links followed, nested products and concatenations flattened, and a product
    of a concatenation written as the concatenation of products, (a + b) * c = a*c + b*c in row-major order."""
    root = term
    while root._link is not None:
        root = root._link
    while term._link is not None:
        term._link, term = root, term._link
    if root.is_variable:
        return root
    parts = [find(part) for part in root.product or root.concatenation]
    if root.product and parts[0].concatenation:
        new = concatenation(product((segment, *parts[1:])) for segment in parts[0].concatenation)
    elif root.product and any(part.product for part in parts):
        new = product(parts)
    elif root.concatenation and any(part.concatenation for part in parts):
        new = concatenation(parts)
    else:
        return root
    root._link = new
    return find(new)


def leaves(term: Term) -> Iterator[Term]:
    """The variables of a term, from left to right."""
    term = find(term)
    if term.is_variable:
        yield term
    for part in term.product or term.concatenation:
        yield from leaves(part)


def is_fixed(term: Term) -> bool:
    """Whether no entry can be permuted."""
    return all(leaf.reason is not None for leaf in leaves(term))


def fix(term: Term, reason: object) -> None:
    """Nothing permutes this axis; `reason` is kept where it was still free."""
    for leaf in leaves(term):
        if leaf.reason is None:
            leaf.reason = reason


def touch(term: Term) -> None:
    """Notes that the entries were used."""
    for leaf in leaves(term):
        leaf.touched = True


def unify(a: Term, b: Term, reason: object) -> None:
    """The two axes are permuted alike; `reason` is kept for what has to be fixed because they do not fit."""
    a, b = find(a), find(b)
    if a is b:
        return
    if a.size != b.size:
        raise ValueError(f"axes of {a.size} and {b.size} entries cannot be permuted alike")
    if a.is_variable or b.is_variable:
        _join(a, b)
    elif not _refine(a, b, reason):
        fix(a, reason)
        fix(b, reason)


def _join(a: Term, b: Term) -> None:
    """A variable with anything: the variable becomes the other one, and a fixed variable fixes it."""
    variable, other = (a, b) if a.is_variable and not (b.is_free and not a.is_free) else (b, a)
    if variable.reason is not None:
        fix(other, variable.reason)
    if variable.touched:
        touch(other)
    if other.is_variable:
        other.origins |= variable.origins
    elif variable.reason is not None:
        return  # a composite whose parts are fixed now stays as it is
    variable._link = other


def _refine(a: Term, b: Term, reason: object) -> bool:
    """Unifies two composites part by part; False where they have no common refinement."""
    if a.product and b.product:
        done = _refine_products(list(a.product), list(b.product), reason)
    elif a.concatenation and b.concatenation:
        done = _refine_concatenations(a, b, reason)
    else:
        p, c = (a, b) if a.product else (b, a)
        done = _distribute(p, c, reason)
    if done and find(a) is not find(b):
        find(a)._link = find(b)
    return done


def _refine_products(left: list[Term], right: list[Term], reason: object) -> bool:
    while left and right:
        x, y = left.pop(0), right.pop(0)
        if x.size > y.size:
            x, y, left, right = y, x, right, left
        if x.size < y.size:
            parts = split(y, x.size, reason)
            if parts is None:
                return False
            y = parts[0]
            right.insert(0, parts[1])
        unify(x, y, reason)
    return True


def _refine_concatenations(a: Term, b: Term, reason: object) -> bool:
    rest_a, rest_b = a, b
    while rest_a.size:
        size = min(_first_size(rest_a), _first_size(rest_b))
        head_a, rest_a = cut(rest_a, size, reason)
        head_b, rest_b = cut(rest_b, size, reason)
        unify(head_a, head_b, reason)
    return True


def _first_size(term: Term) -> int:
    term = find(term)
    return find(term.concatenation[0]).size if term.concatenation else term.size


def _distribute(p: Term, c: Term, reason: object) -> bool:
    inner = p.size // find(p.product[0]).size
    if any(segment.size % inner for segment in c.concatenation):
        return False
    rest = p
    for segment in c.concatenation:
        head, rest = cut(rest, segment.size, reason)
        unify(head, segment, reason)
    return True


def split(term: Term, outer: int, reason: object) -> tuple[Term, Term] | None:
    """The term as a product of `outer` and the rest; None where it cannot be.

    A variable is replaced by the product of two new ones: the permutations that are left are those of blocks, and those
    within blocks.
    """
    term = find(term)
    if outer < 1 or term.size % outer:
        return None
    inner = term.size // outer
    if outer == 1 or inner == 1:
        one = fixed(1, "a single entry")
        return (one, term) if outer == 1 else (term, one)
    if term.is_variable:
        parts = Term(outer, term.reason), Term(inner, term.reason)
        for part in parts:
            part.touched = term.touched
        term._link = product(parts)
        return parts
    if term.product:
        return _split_product(list(term.product), outer, reason)
    if any(segment.size % inner for segment in term.concatenation):
        return None
    pairs = [split(segment, segment.size // inner, reason) for segment in term.concatenation]
    if not all(pairs):
        return None
    outers, inners = zip(*(pair for pair in pairs if pair), strict=True)
    for other in inners[1:]:
        unify(inners[0], other, reason)
    return concatenation(outers), inners[0]


def _split_product(factors: list[Term], outer: int, reason: object) -> tuple[Term, Term] | None:
    taken: list[Term] = []
    while outer > 1:
        factor = find(factors[0])
        if outer % factor.size == 0:
            taken.append(factors.pop(0))
            outer //= factor.size
            continue
        parts = split(factor, outer, reason)
        if parts is None:
            return None
        taken.append(parts[0])
        factors[0], outer = parts[1], 1
    return product(taken), product(factors)


def cut(term: Term, size: int, reason: object) -> tuple[Term, Term]:
    """The first `size` entries and the rest; a product that is cut inside its inner factors is fixed."""
    term = find(term)
    if not 0 <= size <= term.size:
        raise ValueError(f"cannot cut {size} entries off an axis of {term.size}")
    if size in (0, term.size):
        none = fixed(0, "no entries")
        return (none, term) if size == 0 else (term, none)
    if term.concatenation:
        head: list[Term] = []
        tail = list(term.concatenation)
        while tail and size >= find(tail[0]).size:
            size -= find(tail[0]).size
            head.append(tail.pop(0))
        if size:
            first, tail[0] = cut(tail[0], size, reason)
            head.append(first)
        return concatenation(head), concatenation(tail)
    if term.product:
        inner = term.size // find(term.product[0]).size
        if size % inner == 0:
            first, second = cut(term.product[0], size // inner, reason)
            return product((first, *term.product[1:])), product((second, *term.product[1:]))
        fix(term, reason)
        return fixed(size, reason), fixed(term.size - size, reason)
    parts = (Term(size, _reason_of(term, size)), Term(term.size - size, _reason_of(term, term.size - size)))
    for part in parts:
        part.touched = term.touched
    term._link = concatenation(parts)
    return parts


def _reason_of(term: Term, size: int) -> object:
    return "a single entry" if term.reason is None and size == 1 else term.reason


def sizes(terms: Sequence[Term]) -> tuple[int, ...]:
    """The sizes of several axes."""
    return tuple(find(term).size for term in terms)
