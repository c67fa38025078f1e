"""One form for all ways to write the same symmetry, so that two weight spaces can be compared.

An axis says which positions move together, and several texts say the same: h:4+h:4 and 2*h:4; (h:4+2)*9 and h:4*9+18.
A `Normal` form is the sequence of an axis's stretches from left to right: so many fixed entries, or so many equal
blocks in a row; a block is a group, times the normal form of what stands inside each of its positions. A fixed axis
that groups depend on is a block, too. `_times` builds the form by one rule for each kind of axis, `_axis` writes
it as an axis again, and `canonical_axes` renames the groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from lopt.axes import Axis, Concatenation, Fixed, Group, Product, leaves


class _Blocks(NamedTuple):
    repeats: int
    leaf: Fixed | Group
    inside: Normal


Normal: TypeAlias = tuple["int | _Blocks", ...]  # an int: that many fixed entries
_ONE: Normal = (1,)

Tensors: TypeAlias = Mapping[str, Sequence[Axis]]


def canonical_axes(*several: Tensors) -> list[dict[str, tuple[Axis, ...]]]:
    """The axes of several dicts of tensors, with groups called g0, g1, ... in order of appearance over all of them.

    Nested products and concatenations are flattened, fixed parts merged and stripped of their names, equal segments
    in a row become a product; groups of one neuron or none become fixed.

    >>> from lopt.axes import parse_axes
    >>> canonical_axes({"w": parse_axes("b:4+b:4+3+in=2, (a:2*2)*3, one:1")})
    [{'w': (Concatenation(segments=(Product(factors=(Fixed(size=2, name=''), Group(name='g0', size=4, within=()))), \
Fixed(size=5, name=''))), Product(factors=(Group(name='g1', size=2, within=()), Fixed(size=6, name=''))), \
Fixed(size=1, name=''))}]
    """
    found = [leaf for part in several for axes in part.values() for axis in axes for leaf in leaves(axis)]
    blocks = {leaf.name for leaf in found if leaf.size > 1 and isinstance(leaf, Group)}
    blocks |= {leaf.name for leaf in found if leaf.size > 1} & {
        n for g in found if isinstance(g, Group) for n in g.within
    }
    normal = [{name: [_times(axis, _ONE, blocks) for axis in axes] for name, axes in part.items()} for part in several]
    written = [_axis(form) for part in normal for forms in part.values() for form in forms]
    names = dict.fromkeys(leaf.name for axis in written for leaf in leaves(axis) if leaf.name)
    order = {name: k for k, name in enumerate(names)}

    def renamed(leaf: Fixed | Group) -> Fixed | Group:
        name = f"g{order[leaf.name]}"
        if isinstance(leaf, Fixed):
            return Fixed(leaf.size, name)
        return Group(name, leaf.size, tuple(f"g{k}" for k in sorted(order[n] for n in leaf.within if n in blocks)))

    def rename(form: Normal) -> Normal:
        return tuple(s if isinstance(s, int) else _Blocks(s.repeats, renamed(s.leaf), rename(s.inside)) for s in form)

    return [{name: tuple(_axis(rename(form)) for form in forms) for name, forms in part.items()} for part in normal]


def _times(axis: Axis, inside: Normal, blocks: set[str]) -> Normal:
    """The normal form of axis * inside, row-major. `blocks` names the leaves that are not mere fixed entries."""
    if isinstance(axis, Fixed | Group):
        if axis.name in blocks:
            return (_Blocks(1, axis, inside),) if inside else ()
        return _repeat(inside, axis.size)
    if isinstance(axis, Product):
        for factor in reversed(axis.factors):
            inside = _times(factor, inside, blocks)
        return inside
    return _join(stretch for segment in axis.segments for stretch in _times(segment, inside, blocks))


def _repeat(form: Normal, count: int) -> Normal:
    if len(form) == 1 and count:
        (stretch,) = form
        return (stretch * count if isinstance(stretch, int) else stretch._replace(repeats=stretch.repeats * count),)
    return _join(stretch for _ in range(count) for stretch in form)


def _join(stretches: Iterator[int | _Blocks]) -> Normal:
    """One after the other; fixed entries merge, and so do equal blocks."""
    joined: list[int | _Blocks] = []
    for stretch in stretches:
        last = joined[-1] if joined else None
        if isinstance(stretch, int) and isinstance(last, int):
            joined[-1] = last + stretch
        elif isinstance(stretch, _Blocks) and isinstance(last, _Blocks) and stretch[1:] == last[1:]:
            joined[-1] = last._replace(repeats=last.repeats + stretch.repeats)
        else:
            joined.append(stretch)
    return tuple(joined)


def _axis(form: Normal) -> Axis:
    """The shortest axis of this form: a sequence that repeats itself is a product."""
    period = next((p for p in range(1, len(form)) if len(form) % p == 0 and form == form[:p] * (len(form) // p)), 0)
    if period:
        return _product(Fixed(len(form) // period), _axis(form[:period]))
    segments = [_segment(stretch) for stretch in form]
    return Concatenation(tuple(segments)) if len(segments) > 1 else segments[0] if segments else Fixed(0)


def _segment(stretch: int | _Blocks) -> Axis:
    if isinstance(stretch, int):
        return Fixed(stretch)
    block = stretch.leaf if stretch.inside == _ONE else _product(stretch.leaf, _axis(stretch.inside))
    return block if stretch.repeats == 1 else _product(Fixed(stretch.repeats), block)


def _product(*factors: Axis) -> Product:
    return Product(tuple(part for f in factors for part in (f.factors if isinstance(f, Product) else (f,))))
