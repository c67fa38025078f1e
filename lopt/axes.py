"""An axis of a parameter as a small tree: fixed, a group, a product or a concatenation; and its text form.

The text is what `repr` of a `WeightSpace` prints and what its constructor reads:

    128            a fixed axis of 128 entries (positions, kernel taps)
    in=784         a fixed axis with a name: neurons that must not be permuted (pixels, classes)
    h:64           64 neurons that the group h permutes
    c:16*9         a product, row-major: a flattened convolution
    H:4*d[H]:8     each of the 4 heads H permutes its 8 channels d on its own; H may be fixed, H=4*d[H]:8
    h:64+h:64      a concatenation: fused projections, gates
    3*(h:64+2)     parentheses group
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from lopt.errors import InvalidInput

_NAME = r"[A-Za-z_][\w.]*"


@dataclass(frozen=True)
class Fixed:
    """An axis that must not be permuted. A name marks neurons (inputs, classes) that several tensors share."""

    size: int
    name: str = ""

    def __post_init__(self) -> None:
        _check_leaf(self.size, *([self.name] if self.name else []))

    def __str__(self) -> str:
        return f"{self.name}={self.size}" if self.name else str(self.size)


@dataclass(frozen=True)
class Group:
    """An axis that the symmetric group `name` permutes; separately for each position of the groups, or of the named
    fixed axes, in `within`."""

    name: str
    size: int
    within: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_leaf(self.size, self.name, *self.within)

    def __str__(self) -> str:
        return f"{self.name}[{','.join(self.within)}]:{self.size}" if self.within else f"{self.name}:{self.size}"


@dataclass(frozen=True)
class Product:
    """A row-major product of axes: channel x taps, head x channel."""

    factors: tuple[Axis, ...]

    def __post_init__(self) -> None:
        _check_parts("factors", self.factors)

    @property
    def size(self) -> int:
        return math.prod([factor.size for factor in self.factors])  # of a list: torch.compile traces it

    def __str__(self) -> str:
        return "*".join(f"({f})" if isinstance(f, Product | Concatenation) else str(f) for f in self.factors)


@dataclass(frozen=True)
class Concatenation:
    """Segments one after the other: query, key and value; the gates of a recurrent cell."""

    segments: tuple[Axis, ...]

    def __post_init__(self) -> None:
        _check_parts("segments", self.segments)

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)

    def __str__(self) -> str:
        return "+".join(f"({s})" if isinstance(s, Concatenation) else str(s) for s in self.segments)


Axis: TypeAlias = Fixed | Group | Product | Concatenation


def children(axis: Axis) -> tuple[Axis, ...]:
    """The axes that `axis` is made of; none for a fixed axis or a group."""
    if isinstance(axis, Product):
        return axis.factors
    return axis.segments if isinstance(axis, Concatenation) else ()


def leaves(axis: Axis) -> Iterator[Fixed | Group]:
    """The fixed axes and groups in the tree of `axis`, from left to right."""
    if isinstance(axis, Fixed | Group):
        yield axis
    for child in children(axis):
        yield from leaves(child)


def _check_leaf(size: int, *names: str) -> None:
    if size < 0:
        raise InvalidInput(f"size: {size}; an axis has a size of at least 0")
    for name in names:
        if not re.fullmatch(_NAME, name):
            raise InvalidInput(
                f"name: {name!r}; the name of an axis is made of letters, digits, _ and dots, no digit first"
            )


def _check_parts(what: str, parts: tuple[Axis, ...]) -> None:
    """One part alone would print like the part itself, so the text would not read back as the same tree."""
    if len(parts) < 2:
        raise InvalidInput(f"{what}: {parts}; give at least two, or use the one axis by itself")


# --- text form -------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    rf"\s*(?:(?P<group>{_NAME})(?:\[(?P<within>[\w.,\s]+)\])?\s*:\s*(?P<size>\d+)"
    rf"|(?P<fixed>{_NAME})\s*=\s*(?P<fixed_size>\d+)|(?P<number>\d+)|(?P<symbol>[-+*(),]))\s*"
)


def parse_axes(text: str) -> tuple[Axis, ...]:
    """Reads "h:128, in=784" (recursive descent: a sum of products of atoms)."""
    tokens, position = [], 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            raise InvalidInput(
                f"axes {text!r}: cannot read {text[position:]!r}. An axis is written as 128, in=784, h:64, "
                "c:16*9, H:4*d[H]:8 or h:64+h:64; axes are separated by commas."
            )
        tokens.append(match)
        position = match.end()
    stream = _Stream(tokens, text)
    if not tokens:
        return ()
    axes = [stream.concatenation()]
    while stream.take(","):
        axes.append(stream.concatenation())
    stream.finish()
    return tuple(axes)


class _Stream:
    def __init__(self, tokens: list[re.Match[str]], text: str) -> None:
        self.tokens, self.text, self.position = tokens, text, 0

    def take(self, symbol: str) -> bool:
        found = self.position < len(self.tokens) and self.tokens[self.position]["symbol"] == symbol
        self.position += found
        return found

    def finish(self) -> None:
        if self.position < len(self.tokens):
            raise InvalidInput(f"axes {self.text!r}: unexpected {self.tokens[self.position][0]!r}")

    def concatenation(self) -> Axis:
        segments = [self.product()]
        while self.take("+"):
            segments.append(self.product())
        return segments[0] if len(segments) == 1 else Concatenation(tuple(segments))

    def product(self) -> Axis:
        factors = [self.atom()]
        while self.take("*"):
            factors.append(self.atom())
        return factors[0] if len(factors) == 1 else Product(tuple(factors))

    def atom(self) -> Axis:
        if self.take("("):
            axis = self.concatenation()
            if not self.take(")"):
                raise InvalidInput(f"axes {self.text!r}: a parenthesis is not closed")
            return axis
        if self.position == len(self.tokens) or self.tokens[self.position]["symbol"]:
            raise InvalidInput(f"axes {self.text!r}: an axis is missing")
        token = self.tokens[self.position]
        self.position += 1
        if token["group"]:
            within = tuple(name.strip() for name in (token["within"] or "").split(",") if name.strip())
            return Group(token["group"], int(token["size"]), within)
        if token["fixed"]:
            return Fixed(int(token["fixed_size"]), token["fixed"])
        return Fixed(int(token["number"]))
