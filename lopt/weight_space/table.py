"""A weight space as a table that a person can read, and in a few numbers.

`table` lists the parameters and then the groups. In a long model the blocks of a stack (`layers.0`, `layers.1`, ...)
that are alike are told once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lopt.axes import Axis, Concatenation, Fixed, Group, Product, children, leaves

if TYPE_CHECKING:
    from lopt.weight_space import WeightSpace

LONG = 40  # more parameters than this, and alike blocks are folded
_WIDEST = 60  # characters of a cell


def permutable_axes(space: WeightSpace) -> float:
    """See `WeightSpace.permutable_axes`."""
    axes = [axis for _, several in space.items() for axis in several]
    return sum(_still(axis) < axis.size for axis in axes) / max(1, len(axes))


def permutable_elements(space: WeightSpace) -> float:
    """See `WeightSpace.permutable_elements`."""
    total = sum(map(math.prod, space.shapes.values()))
    still = sum(math.prod([_still(axis) for axis in axes]) for _, axes in space.items())
    return (total - still) / max(1, total)


def _still(axis: Axis) -> int:
    """How many positions of the axis no permutation moves."""
    if isinstance(axis, Fixed):
        return axis.size
    if isinstance(axis, Group):
        return axis.size if axis.size < 2 else 0
    parts = [_still(child) for child in children(axis)]
    return math.prod(parts) if isinstance(axis, Product) else sum(parts)


@dataclass(frozen=True)
class Use:
    """Where a group stands: in how many parameters, of how many elements together."""

    group: Group
    parameters: tuple[str, ...]
    elements: int

    @property
    def depends(self) -> str:
        """What each of its permutations belongs to, in words."""
        return f"one for each {', '.join(self.group.within)}" if self.group.within else ""


def uses(space: WeightSpace) -> dict[str, Use]:
    """For each group where it stands."""
    names: dict[str, list[str]] = {name: [] for name in space.groups}
    for parameter, axes in space.items():
        for name in groups_of(axes):
            names[name].append(parameter)
    sizes = {name: math.prod(shape) for name, shape in space.shapes.items()}
    return {k: Use(space.groups[k], tuple(found), sum(sizes[n] for n in found)) for k, found in names.items()}


def groups_of(axes: Sequence[Axis]) -> list[str]:
    """The names of the groups of a tensor, in order of appearance."""
    return list(dict.fromkeys(leaf.name for axis in axes for leaf in leaves(axis) if isinstance(leaf, Group)))


def summary(space: WeightSpace) -> str:
    """One sentence: how much there is, and how much of it can be permuted."""
    elements = sum(map(math.prod, space.shapes.values()))
    return (
        f"{_count(len(space), 'parameter')} with {_count(elements, 'element')}; {_count(len(space.groups), 'group')}; "
        f"{permutable_axes(space):.0%} of the axes and {permutable_elements(space):.1%} of the elements can be permuted"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


# --- the table -------------------------------------------------------------------------------------------------------


def table(space: WeightSpace) -> str:
    """See `WeightSpace.__str__`."""
    lines = _folded(space) if len(space) > LONG else {name: _row(name, axes) for name, axes in space.items()}
    head = ["shape", "axes", "groups", "size"]
    parts = [summary(space), _aligned(["parameter", *head], list(lines.values()), right={4})]
    found = uses(space)
    shown = {name for name, line in lines.items() if line[0] == name}  # not the lines that stand for blocks
    told = [name for name, use in found.items() if shown & set(use.parameters)]
    if space.buffers:
        buffers = {
            k: axes for k, axes in space.buffers.items() if len(told) == len(found) or {*groups_of(axes)} & {*told}
        }
        rows = _more([_row(*item) for item in buffers.items()], len(space.buffers))
        parts.append(_aligned(["buffer", *head], rows, right={4}))
    if space.groups:
        rows = _more([_group_row(found[name]) for name in told], len(found))
        head = ["group", "size", "first in", "parameters", "elements", "permutations"]
        parts.append(_aligned(head, rows, right={1, 3, 4}))
    return "\n\n".join(parts)


def _more(rows: list[list[str]], total: int) -> list[list[str]]:
    """The rows, and how many there are besides, in the blocks that were folded."""
    empty = [""] * (len(rows[0]) - 1 if rows else 0)
    return rows if len(rows) == total else [*rows, [f"... {total - len(rows)} more", *empty]]


def _group_row(use: Use) -> list[str]:
    name, size = use.group.name, use.group.size
    first = use.parameters[0]
    return [name, f"{size:,}", first, f"{len(use.parameters):,}", f"{use.elements:,}", use.depends or "one"]


def _row(name: str, axes: tuple[Axis, ...]) -> list[str]:
    shape = [axis.size for axis in axes]
    return [
        name,
        " x ".join(map(str, shape)) or "scalar",
        _cut(", ".join(map(str, axes))),
        _cut(" ".join(groups_of(axes)) or "-"),
        f"{math.prod(shape):,}",
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def _aligned(header: list[str], rows: list[list[str]], right: set[int]) -> str:
    widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(w) if k in right else cell.ljust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


# --- folding the blocks of a stack -----------------------------------------------------------------------------------

_DEPTH = 3  # how many numbers of a name may count blocks: stages.1.blocks.0


def _folded(space: WeightSpace) -> dict[str, list[str]]:
    """The rows by parameter; for a run of blocks that are like the one before, one row at its first parameter."""
    homes: dict[str, set[str]] = {}
    for parameter, axes in space.items():
        for leaf in (leaf for axis in axes for leaf in leaves(axis) if leaf.name):
            homes.setdefault(leaf.name, set()).add(parameter)
    rows = {name: _row(name, axes) for name, axes in space.items()}
    told = list(space)  # outer blocks are folded first; what is left may hold inner ones
    for depth in range(_DEPTH):
        for first, others in _runs(space, told, depth, homes):
            names = [name for block in others for name in block.names]
            span = others[0].label if len(others) == 1 else f"{others[0].label} ... {others[-1].label}"
            size = sum(math.prod(space.shapes[name]) for name in names)
            rows[names[0]] = [f"({span})", f"as {first.label}", "", "", f"{size:,}"]
            for name in names[1:]:
                del rows[name]
            told = [name for name in told if name not in set(names)]
    return rows


@dataclass(frozen=True)
class _Block:
    """The parameters under one number of a stack, `layers.3`, with what comes behind it in their names."""

    stack: str
    index: int
    names: list[str]
    rests: list[str]

    @property
    def label(self) -> str:
        return f"{self.stack}{self.index}"


def _runs(
    space: WeightSpace, names: Sequence[str], depth: int, homes: Mapping[str, set[str]]
) -> list[tuple[_Block, list[_Block]]]:
    """Blocks with those that follow them and are alike."""
    blocks: dict[tuple[str, int], _Block] = {}
    for name in names:
        if place := _place(name, depth):
            stack, index, rest = place
            block = blocks.setdefault((stack, index), _Block(stack, index, [], []))
            block.names.append(name)
            block.rests.append(rest)
    signatures = {key: _signature(space, block, homes) for key, block in blocks.items()}
    runs: list[tuple[_Block, list[_Block]]] = []
    for (stack, index), block in blocks.items():
        if signatures.get((stack, index - 1)) != signatures[stack, index]:
            runs.append((block, []))
        elif runs and (runs[-1][1] or [runs[-1][0]])[-1] is blocks[stack, index - 1]:
            runs[-1][1].append(block)
    return [run for run in runs if run[1]]


def _place(name: str, depth: int) -> tuple[str, int, str] | None:
    """("model.layers.", 3, "norm.weight") of model.layers.3.norm.weight: around its first number, or a later one."""
    found = list(re.finditer(r"(?<![^.])\d+(?=\.)", name))
    if depth >= len(found):
        return None
    at = found[depth]
    return name[: at.start()], int(at[0]), name[at.end() + 1 :]


def _signature(space: WeightSpace, block: _Block, homes: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """A block without its own names: groups and named axes that stand in it alone are numbered."""
    local: dict[str, str] = {}
    for leaf in (leaf for name in block.names for axis in space[name] for leaf in leaves(axis)):
        if leaf.name and homes[leaf.name] <= set(block.names):
            local.setdefault(leaf.name, f"local{len(local)}")
    texts = (", ".join(str(_renamed(axis, local)) for axis in space[name]) for name in block.names)
    return list(zip(block.rests, texts, strict=True))


def _renamed(axis: Axis, names: Mapping[str, str]) -> Axis:
    if isinstance(axis, Group):
        return Group(names.get(axis.name, axis.name), axis.size, tuple(names.get(n, n) for n in axis.within))
    if isinstance(axis, Product | Concatenation):
        return type(axis)(tuple(_renamed(child, names) for child in children(axis)))
    return Fixed(axis.size, names.get(axis.name, axis.name))
