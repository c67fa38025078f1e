"""What the rule of an operator is given, a `Call`; and what the calls of a run leave behind, a `Record`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from lopt.tracing import algebra, labels
from lopt.tracing.algebra import Term
from lopt.tracing.labels import Labels, Origin
from lopt.verification.tensor_tree import tensors_in

if TYPE_CHECKING:
    from lopt.tracing.tracer import Tracer


class WrongRule(ValueError):
    """A rule said something that cannot be; the tracer fixes what the operator touches."""


class Reason(NamedTuple):
    """Why axes were fixed: by which operator, in which submodule, and whether the operator was not understood."""

    operator: str
    module: str
    unknown: bool = False

    def __str__(self) -> str:
        where = f" in {self.module}" if self.module else ""
        return f"{self.operator}{where}" + (", which has no rule" if self.unknown else "")


class Record:
    """What passes leave behind.

    Attributes:
        tensors: the terms of every tensor that was seen, and of the axes that each operator keeps aligned.
        mixed: for every operator along some axes the terms of these, and of those outside.
        sliced: origins of axes that were sliced.
        used: the ids of the tensors that operators took.
        routed: whether values of tensors decided what ran.
        unknown: where operators were not understood, in order.
    """

    def __init__(self) -> None:
        self.tensors: dict[tuple[int, ...], tuple[Term, ...]] = {}
        self.mixed: dict[tuple[int, ...], tuple[tuple[Term, ...], tuple[Term, ...]]] = {}
        self.sliced: set[Origin] = set()
        self.used: set[int] = set()
        self.routed = False
        self.unknown: dict[Reason, None] = {}

    def see(self, axes: Sequence[Term]) -> None:
        """The terms of one tensor."""
        self.tensors.setdefault(tuple(map(id, axes)), tuple(axes))

    def mix(self, inside: Sequence[Term], outside: Sequence[Term]) -> None:
        """Entries along `inside` meet, for every position `outside`."""
        self.see(outside)
        self.mixed.setdefault((*map(id, inside), 0, *map(id, outside)), (tuple(inside), tuple(outside)))


class Call:
    """One run of an operator, as its rule sees it: arguments by their names in the operator's schema."""

    def __init__(self, tracer: Tracer, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.tracer, self.func = tracer, func
        self.out: Any = None
        self.arguments: dict[str, Any] = {}
        schema = getattr(func, "_schema", None)
        names = [argument.name for argument in schema.arguments] if schema else map(str, range(len(args)))
        self.arguments |= dict(zip(names, args, strict=False)) | kwargs
        self.reason = Reason((schema or func).name.removeprefix("aten::"), tracer.module)

    def __getitem__(self, name: str) -> Any:
        """An argument, or its default."""
        if name in self.arguments:
            return self.arguments[name]
        return next(a.default_value for a in self.func._schema.arguments if a.name == name)

    def __contains__(self, name: str) -> bool:
        return any(argument.name == name for argument in self.func._schema.arguments)

    def get(self, name: str, otherwise: Any = None) -> Any:
        """An argument or its default; `otherwise` for an operator that has no such argument."""
        return self[name] if name in self else otherwise  # noqa: SIM401

    @functools.cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return tensors_in(self.arguments)

    def labels(self, tensor: Tensor) -> Labels:
        """The labels as they are, blocks included: for movements."""
        return self.tracer.labels(tensor)

    def terms(self, tensor: Tensor) -> tuple[Term, ...]:
        """One term an axis, whose entries the operator uses."""
        axes = labels.terms(self.labels(tensor), self.reason)
        for term in axes:
            algebra.touch(term)
        self.tracer.record.see(axes)
        return axes

    def axis(self, name: str, tensor: Tensor) -> int:
        """An argument that names an axis of `tensor`, counted from the front."""
        return self[name] % max(1, tensor.dim())

    def set(self, tensor: Tensor, axes: Labels | Iterable[Term]) -> None:
        """The labels of an output.

        Raises:
            WrongRule: they do not have the output's shape.
        """
        made = axes if isinstance(axes, Labels) else Labels(tuple(axes))
        if made.shape != tuple(tensor.shape):
            raise WrongRule(f"{self.reason} gave labels of shape {made.shape} to a tensor of {tuple(tensor.shape)}")
        if not made.blocks:
            self.tracer.record.see(made.axes)
        self.tracer.set(tensor, made)

    def unify(self, a: Term, b: Term) -> None:
        """The two axes are permuted alike."""
        algebra.unify(a, b, self.reason)

    def fix(self, axes: Iterable[Term]) -> None:
        """Nothing permutes these axes."""
        for term in axes:
            algebra.fix(term, self.reason)

    def fixed(self, size: int) -> Term:
        """A new axis that nothing permutes."""
        return algebra.fixed(size, self.reason)

    def aligned(self, axes: Iterable[Term]) -> None:
        """The axes along which the operator meets entry with entry: what is contracted, and the batch.

        A group may depend on another (channels on their head) only where both are aligned.
        """
        self.tracer.record.see(tuple(axes))

    def mixes(self, inside: Iterable[Term], outside: Iterable[Term]) -> None:
        """Entries along `inside` meet one another, alike for every position `outside`: nothing outside may be
        permuted differently for different positions inside."""
        self.tracer.record.mix(tuple(inside), tuple(outside))

    def routes(self) -> None:
        """The values of the arguments decide what runs, or which entries are used."""
        self.tracer.record.routed = True

    def slices(self, origins: set[Origin]) -> None:
        """Notes the origins of axes that were sliced."""
        self.tracer.record.sliced |= origins

    def origin(self, axis: int) -> Origin:
        """The name of an axis of the output: the same in every pass."""
        return (*self.tracer.operator, axis)

    def is_wanted(self, origin: Origin) -> bool:
        """Whether blocks are to be made at an origin."""
        return origin in self.tracer.wanted
