"""A picture of a weight space: its parameters, and the groups that tie them. An SVG, written by hand.

A row is a parameter, with one bar for each axis. A bar shows the axis's tree: segments of a concatenation side by side,
factors of a product one above the other, the outer one on top; grey is fixed. On the right every group is a vertical
line through the parameters that it ties. `_lanes` lets groups that share no rows stand in one column, so that a deep
network is not wider than a shallow one. Colours, text and background follow the reader's light or dark mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from lopt.axes import Axis, Concatenation, Fixed, Group, Product, leaves
from lopt.errors import InvalidInput
from lopt.weight_space.table import Use, groups_of, summary, uses

if TYPE_CHECKING:
    from lopt.weight_space import WeightSpace

# In pixels.
_MARGIN, _HEAD, _ROW, _BAR, _LANE, _CHARACTER = 20, 84, 26, 20, 22, 6.7
_GAP = 10  # between columns
_NARROW, _WIDE = 44, 330  # of the bars of an axis

_STYLE = """
svg { font: 11px ui-monospace, Menlo, Consolas, monospace; --text: #1f2328; --faint: #667; --line: #d5d9de;
  --back: #ffffff; --fixed: #e4e7ea; --tint: 46%; background: var(--back); }
@media (prefers-color-scheme: dark) { svg { --text: #e6edf3; --faint: #98a2ad; --line: #343b44; --back: #0d1117;
  --fixed: #2a3038; --tint: 62%; } }
text { fill: var(--text); } .faint { fill: var(--faint); } .title { font-size: 16px; font-weight: 600; }
.back { fill: var(--back); } .rule { stroke: var(--line); stroke-width: 1; } .fixed { fill: var(--fixed); }
.edge { fill: none; stroke: var(--back); stroke-width: 1; }
.group { fill: var(--hue); fill-opacity: 0.42; } .tie { stroke: var(--hue); stroke-width: 2; }
.dependent { stroke-dasharray: 5 3; } .whole { fill: var(--hue); }
.part { fill: var(--back); stroke: var(--hue); stroke-width: 2; }
"""


_MARKS = (
    ('<rect class="fixed" y="-9" width="12" height="12"/>', "fixed"),
    ('<circle class="whole" cx="6" cy="-4" r="4"/>', "a whole axis"),
    ('<circle class="part" cx="6" cy="-4" r="4"/>', "a part of an axis"),
    ('<line class="tie dependent" x2="14" y1="-4" y2="-4"/>', "depends on another group"),
)


def draw(space: WeightSpace, path: str | Path) -> None:
    """See `WeightSpace.draw`."""
    if Path(path).suffix.lower() != ".svg":
        raise InvalidInput(f"path: {str(path)!r}; the picture is an SVG, so the name must end in .svg")
    Path(path).write_text(svg(space), encoding="utf-8")


def svg(space: WeightSpace) -> str:
    """The picture as text."""
    tensors = dict(space.items()) | space.buffers
    found = uses(space)
    names = _width(max([*map(len, tensors), 9]))
    bars = _Bars(tensors, _MARGIN + names + _GAP, {name: k for k, name in enumerate(space.groups)})
    rows = {name: _HEAD + (k + 0.5) * _ROW for k, name in enumerate(tensors)}
    lanes = _lanes(space, rows)
    right = bars.right + _GAP + _LANE * (1 + max([*lanes.values(), 0]))
    width = max(right + _MARGIN, _MARGIN * 2 + _width(len(summary(space))), 640)
    legend, height = _legend(found, bars, _HEAD + len(rows) * _ROW + 34, width - _MARGIN)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(summary(space))}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="back" width="{width:.0f}" height="{height:.0f}"/>',
        _text(_MARGIN, 30, "Weight space", "title"),
        _text(_MARGIN, 50, summary(space), "faint"),
        _text(_MARGIN, _HEAD - 10, "parameter", "faint"),
        *(_text(x, _HEAD - 10, f"axis {k}", "faint") for k, x in enumerate(bars.starts)),
        _text(bars.right + _GAP, _HEAD - 10, "groups" if lanes else "", "faint"),
    ]
    for name, axes in tensors.items():
        y = rows[name]
        parts += [_rule(y + _ROW / 2, right), _text(_MARGIN, y + 4, name, "faint" if name in space.buffers else "")]
        parts += bars.row(axes, y - _BAR / 2)
    parts += _ties(space, tensors, rows, lanes, bars)
    return "\n".join([*parts, *legend, "</svg>\n"])


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}>{escape(words)}</text>'


def _rule(y: float, right: float) -> str:
    return f'<line class="rule" x1="{_MARGIN}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _width(characters: int) -> float:
    return characters * _CHARACTER


def _hue(index: int) -> str:
    """Colours by the golden angle, so that neighbours differ however many there are."""
    return f"--hue: hsl({(210 + index * 137.5) % 360:.0f} 68% var(--tint))"


class _Bars:
    """The bars of the axes: where the column of each axis stands, and what a bar looks like."""

    def __init__(self, tensors: Mapping[str, Sequence[Axis]], left: float, index: Mapping[str, int]) -> None:
        self.index, self.starts, self.widths = index, [], []
        for k in range(max([len(axes) for axes in tensors.values()], default=0)):
            longest = max(_width(len(str(axes[k]))) + 8 for axes in tensors.values() if k < len(axes))
            self.starts.append(left)
            self.widths.append(min(max(longest, _NARROW), _WIDE))
            left += self.widths[-1] + _GAP
        self.right = left

    def row(self, axes: Sequence[Axis], y: float) -> Iterator[str]:
        for axis, x, width in zip(axes, self.starts, self.widths, strict=False):
            yield f"<g><title>{escape(str(axis))}</title>"
            yield from self._bar(axis, x, y, width)
            yield "</g>"

    def _bar(self, axis: Axis, x: float, y: float, width: float) -> Iterator[str]:
        """The segments side by side, each with its text."""
        segments = axis.segments if isinstance(axis, Concatenation) else (axis,)
        share = [max(segment.size, axis.size / 12, 1) for segment in segments]
        for segment, part in zip(segments, share, strict=True):
            step = width * part / sum(share)
            yield from self._fill(segment, x, y, step, _BAR)
            yield f'<rect class="edge" x="{x:.1f}" y="{y:.1f}" width="{step:.1f}" height="{_BAR}"/>'
            yield _text(x + 4, y + _BAR / 2 + 4, _fitting(str(segment), step - 6))
            x += step

    def _fill(self, axis: Axis, x: float, y: float, width: float, height: float) -> Iterator[str]:
        if isinstance(axis, Concatenation):
            for segment in axis.segments:
                step = width * segment.size / max(1, axis.size)
                yield from self._fill(segment, x, y, step, height)
                x += step
        elif isinstance(axis, Product):
            step = height / len(axis.factors)
            for k, factor in enumerate(axis.factors):
                yield from self._fill(factor, x, y + k * step, width, step)
        else:
            place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            kind = "fixed" if isinstance(axis, Fixed) else "group"
            colour = "" if isinstance(axis, Fixed) else f' style="{_hue(self.index[axis.name])}"'
            yield f'<rect class="{kind}" {place}{colour}/>'


def _fitting(text: str, width: float) -> str:
    room = int(width / _CHARACTER)
    return text if len(text) <= room else text[: room - 2] + ".." if room > 3 else ""


# --- the groups ------------------------------------------------------------------------------------------------------


def _lanes(space: WeightSpace, rows: Mapping[str, float]) -> dict[str, int]:
    """A column for each group: the first one that is free in all its rows, the longest groups first."""
    spans = {}
    for name in space.groups:
        there = [rows[k] for k in rows if name in groups_of(_axes(space, k))]
        spans[name] = (min(there), max(there))
    taken: list[list[tuple[float, float]]] = []
    lanes = {}
    for name in sorted(spans, key=lambda name: spans[name][0] - spans[name][1]):
        low, high = spans[name]
        free = (k for k, lane in enumerate(taken) if all(high < a or b < low for a, b in lane))
        lanes[name] = next(free, len(taken))
        taken += [[]] if lanes[name] == len(taken) else []
        taken[lanes[name]].append((low, high))
    return lanes


def _axes(space: WeightSpace, name: str) -> tuple[Axis, ...]:
    return space[name] if name in space else space.buffers[name]


def _ties(
    space: WeightSpace,
    tensors: Mapping[str, Sequence[Axis]],
    rows: Mapping[str, float],
    lanes: Mapping[str, int],
    bars: _Bars,
) -> Iterator[str]:
    for name, lane in lanes.items():
        group, x = space.groups[name], bars.right + _GAP + _LANE * (lane + 0.5)
        marks = {k: _sites(name, axes) for k, axes in tensors.items() if name in groups_of(axes)}
        heights = [rows[k] for k in marks]
        kind = "tie dependent" if group.within else "tie"
        yield f'<g style="{_hue(bars.index[name])}"><title>{escape(str(group))}</title>'
        yield f'<line class="{kind}" x1="{x}" x2="{x}" y1="{min(heights)}" y2="{max(heights)}"/>'
        for k, (whole, count) in marks.items():
            for i in range(count):
                centre = x + (i - (count - 1) / 2) * 6
                yield f'<circle class="{"whole" if whole else "part"}" cx="{centre}" cy="{rows[k]}" r="4"/>'
        yield "</g>"


def _sites(name: str, axes: Sequence[Axis]) -> tuple[bool, int]:
    """Whether the group is a whole axis of the tensor, and on how many of its axes it stands."""
    found = [axis for axis in axes if any(leaf.name == name and isinstance(leaf, Group) for leaf in leaves(axis))]
    return any(isinstance(axis, Group) for axis in found), len(found)


def _legend(found: Mapping[str, Use], bars: _Bars, y: float, right: float) -> tuple[list[str], float]:
    """What the marks mean, and every group with its size, in as many columns as fit; and where the picture ends."""
    parts, x = [], float(_MARGIN)
    for mark, words in _MARKS:
        parts += [
            f'<g style="{_hue(0)}" transform="translate({x:.1f} {y:.1f})">{mark}</g>',
            _text(x + 20, y, words, "faint"),
        ]
        x += 20 + _width(len(words)) + 2 * _GAP
    labels = {name: f"{use.group}  {use.depends}".strip() for name, use in found.items()}
    column = 20 + _width(max([*map(len, labels.values()), 0])) + 2 * _GAP
    columns = max(1, int((right - _MARGIN) / column))
    for k, (name, label) in enumerate(labels.items()):
        x, line = _MARGIN + (k % columns) * column, y + _ROW * (1 + k // columns)
        place = f'x="{x:.1f}" y="{line - 9:.1f}" width="12" height="12"'
        parts.append(f'<rect class="group" style="{_hue(bars.index[name])}" {place}/>')
        parts.append(_text(x + 20, line, label))
    return parts, y + _ROW * -(-len(labels) // columns) + _MARGIN
