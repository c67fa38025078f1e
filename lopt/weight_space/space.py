"""The symmetry of a network as a value: for each axis of each parameter, the permutation group that acts on it.

How the parts fit: an `Axis` is a small tree with a text form (axes.py); a `WeightSpace` maps parameter names to tuples
of axes; action.py says how a permutation moves the entries of a tensor with such axes. What a person looks at is made
elsewhere: the table (table.py) and the picture (drawing.py); so is the numeric proof that a module has the
symmetry that the space claims (lopt/verification).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lopt.axes import Axis, Fixed, Group, children, leaves, parse_axes
from lopt.errors import InvalidInput
from lopt.verification import Verification, verify
from lopt.weight_space.action import collect_groups, is_fixed, permute_axes
from lopt.weight_space.canonical import canonical_axes
from lopt.weight_space.drawing import draw
from lopt.weight_space.linear_stack import stack_axes
from lopt.weight_space.permutation_spec import axes_to_perm, perm_to_axes
from lopt.weight_space.table import permutable_axes, permutable_elements, table

Shape: TypeAlias = Sequence[int]


class WeightSpace:
    """The named parameters of one network, and for each axis the group that permutes it. Frozen and hashable.

    Args:
        parameters: for every parameter name its axes, as text (see axes.py) or as a tuple of `Axis`.
        buffers: the same for buffers that are permuted with the parameters: running statistics of a BatchNorm. A
            buffer that is not named is fixed. Everything but `permute` and `verify` is about the parameters.

    Raises:
        InvalidInput: the text does not parse; a group has two sizes; a group stands without the groups it is within;
            a buffer has the name of a parameter, or a group that no parameter has.

    >>> space = WeightSpace({"0.weight": "h:4, in=3", "0.bias": "h:4", "2.weight": "out=2, h:4"})
    >>> space
    WeightSpace({'0.weight': 'h:4, in=3', '0.bias': 'h:4', '2.weight': 'out=2, h:4'})
    >>> space.shapes["2.weight"], space.groups
    ((2, 4), {'h': Group(name='h', size=4, within=())})
    >>> WeightSpace({"norm.weight": "c:8", "norm.bias": "c:8"}, buffers={"norm.running_mean": "c:8"})
    WeightSpace({'norm.weight': 'c:8', 'norm.bias': 'c:8'}, buffers={'norm.running_mean': 'c:8'})
    """

    __slots__ = ("_parameters", "buffers", "groups", "shapes")
    _parameters: dict[str, tuple[Axis, ...]]
    buffers: dict[str, tuple[Axis, ...]]
    groups: dict[str, Group]
    shapes: dict[str, tuple[int, ...]]  # of every parameter

    def __init__(
        self,
        parameters: Mapping[str, str | Sequence[Axis]],
        buffers: Mapping[str, str | Sequence[Axis]] | None = None,
    ) -> None:
        parsed, parsed_buffers = _parse(parameters), _parse(buffers or {})
        if twice := sorted(parsed.keys() & parsed_buffers.keys()):
            raise InvalidInput(f"buffers: {twice} are parameters; a name is one or the other")
        groups = collect_groups(parsed | parsed_buffers)
        if loose := sorted(groups.keys() - {leaf.name for axes in parsed.values() for leaf in _leaves(axes)}):
            raise InvalidInput(f"buffers: no parameter has the groups {loose}; write their axes as fixed ones")
        object.__setattr__(self, "_parameters", parsed)
        object.__setattr__(self, "buffers", parsed_buffers)
        object.__setattr__(self, "groups", groups)
        shapes = {name: tuple(axis.size for axis in axes) for name, axes in parsed.items()}
        object.__setattr__(self, "shapes", shapes)

    # A value: nothing can be assigned, equal contents are equal, and the hash follows.
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a WeightSpace is frozen; cannot set {name!r}. Build a new one instead")

    def __reduce__(self) -> tuple[type, tuple[dict[str, tuple[Axis, ...]], dict[str, tuple[Axis, ...]]]]:
        return WeightSpace, (self._parameters, self.buffers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightSpace) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def _value(self) -> tuple[tuple[tuple[str, tuple[Axis, ...]], ...], frozenset[tuple[str, tuple[Axis, ...]]]]:
        return tuple(self.items()), frozenset(self.buffers.items())

    def __repr__(self) -> str:
        buffers = f", buffers={_text(self.buffers)}" if self.buffers else ""
        return f"WeightSpace({_text(self._parameters)}{buffers})"

    def __str__(self) -> str:
        """A table for people: parameters, buffers and groups. In a long model alike blocks are told once.

        >>> print(WeightSpace({"up": "h:4, in=3", "down": "out=2, h:4"}))
        2 parameters with 20 elements; 1 group; 50% of the axes and 100.0% of the elements can be permuted
        <BLANKLINE>
        parameter  shape  axes        groups  size
        ---------  -----  ----------  ------  ----
        up         4 x 3  h:4, in=3   h         12
        down       2 x 4  out=2, h:4  h          8
        <BLANKLINE>
        group  size  first in  parameters  elements  permutations
        -----  ----  --------  ----------  --------  ------------
        h         4  up                 2        20  one
        """
        return table(self)

    def draw(self, path: str | Path) -> None:
        """Writes a picture of the parameters and the groups that tie them, an SVG for light and dark backgrounds.

        Raises:
            InvalidInput: `path` does not end in .svg.
        """
        draw(self, path)

    @property
    def permutable_axes(self) -> float:
        """The share of the parameters' axes that some permutation moves, wholly or in part: between 0 and 1."""
        return permutable_axes(self)

    @property
    def permutable_elements(self) -> float:
        """The share of the parameters' elements that some permutation moves: between 0 and 1."""
        return permutable_elements(self)

    # A mapping from names to axes.
    def __getitem__(self, name: str) -> tuple[Axis, ...]:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __contains__(self, name: object) -> bool:
        return name in self._parameters

    def items(self) -> Iterable[tuple[str, tuple[Axis, ...]]]:
        return self._parameters.items()

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Shape | Tensor]) -> WeightSpace:
        """Every axis a group of its own: what is known when there are only shapes.

        Sound for every network, since it is a larger symmetry group than the true one; only less expressive.

        >>> WeightSpace.from_shapes({"weight": (4, 3), "bias": (4,)})
        WeightSpace({'weight': 'g0:4, g1:3', 'bias': 'g2:4'})
        """
        count = itertools.count()
        return cls({k: [Group(f"g{next(count)}", n) for n in _shape(v)] for k, v in shapes.items()})

    @classmethod
    def linear_stack(cls, shapes: Mapping[str, Shape | Tensor]) -> WeightSpace:
        """The space of Linear layers one after the other with elementwise functions between, biases where they are.

        Args:
            shapes: weights (out, in) and biases (out,) in the order of the layers, as `named_parameters` gives them.

        >>> WeightSpace.linear_stack({"0.weight": (8, 3), "0.bias": (8,), "2.weight": (2, 8)})
        WeightSpace({'0.weight': 'h0:8, in=3', '0.bias': 'h0:8', '2.weight': 'out=2, h0:8'})
        """
        return cls(stack_axes({name: _shape(value) for name, value in shapes.items()}))

    def relaxed(self) -> WeightSpace:
        """The same space with every *named* fixed axis turned into a group of that name (NP in NFN, section 3).

        A larger symmetry group: layers over it share coefficients along inputs and classes.

        >>> WeightSpace({"w": "h:4, in=3"}).relaxed()
        WeightSpace({'w': 'h:4, in:3'})
        """
        return self._map_leaves(
            lambda leaf: Group(leaf.name, leaf.size) if isinstance(leaf, Fixed) and leaf.name else leaf
        )

    def independent(self) -> WeightSpace:
        """The same space with one permutation for all positions of a group that depends on others: a subgroup.

        >>> WeightSpace({"w": "H:4*d[H]:8"}).independent()
        WeightSpace({'w': 'H:4*d:8'})
        """
        return self._map_leaves(lambda leaf: Group(leaf.name, leaf.size) if isinstance(leaf, Group) else leaf)

    def fixed(self, names: Iterable[str]) -> WeightSpace:
        """The same space with these groups fixed; the axes keep their names, so that others may depend on them.

        >>> WeightSpace({"w": "H:4*d[H]:8, 3"}).fixed(["H"])
        WeightSpace({'w': 'H=4*d[H]:8, 3'})
        """
        chosen = set(names)
        if missing := sorted(chosen - set(self.groups)):
            raise InvalidInput(f"names: {missing} are no groups of this WeightSpace, which has {list(self.groups)}")
        return self._map_leaves(lambda leaf: Fixed(leaf.size, leaf.name) if leaf.name in chosen else leaf)

    def _map_leaves(self, change: Callable[[Fixed | Group], Axis]) -> WeightSpace:
        def walk(axis: Axis) -> Axis:
            if isinstance(axis, Fixed | Group):
                return change(axis)
            return type(axis)(tuple(walk(child) for child in children(axis)))

        changed, buffers = (
            {name: [walk(axis) for axis in axes] for name, axes in tensors.items()}
            for tensors in (self._parameters, self.buffers)
        )
        return WeightSpace(changed, buffers)

    def restrict(self, names: Iterable[str]) -> WeightSpace:
        """The space of a subset of the parameters, in this space's order. A buffer stays if all its groups do."""
        kept = set(names)
        if missing := sorted(kept - set(self)):
            raise InvalidInput(f"names: {missing} are not in this WeightSpace, which holds {list(self)}")
        parameters = {name: axes for name, axes in self.items() if name in kept}
        groups = {leaf.name for axes in parameters.values() for leaf in _leaves(axes) if isinstance(leaf, Group)}
        buffers = {
            name: axes
            for name, axes in self.buffers.items()
            if {leaf.name for leaf in _leaves(axes) if isinstance(leaf, Group)} <= groups
        }
        return WeightSpace(parameters, buffers)

    def canonical(self) -> WeightSpace:
        """The same symmetry in the one form that all its texts share (see canonical.py): groups are called g0, g1, ...
        in order of appearance, fixed axes have no names, buffers that are fixed are left out.

        >>> WeightSpace({"b": "k:4", "w": "h:5+h:5, k:4*3*3"}).canonical()
        WeightSpace({'b': 'g0:4', 'w': '2*g1:5, g0:4*9'})
        """
        parameters, buffers = canonical_axes(self._parameters, dict(sorted(self.buffers.items())))
        return WeightSpace(parameters, {k: v for k, v in buffers.items() if not all(map(is_fixed, v))})

    def same_symmetry(self, other: WeightSpace) -> bool:
        """Whether both say the same of the same parameters and buffers, whatever they call the groups.

        >>> WeightSpace({"w": "h:4, in=3", "b": "h:4"}).same_symmetry(WeightSpace({"b": "k:4", "w": "k:4, 3"}))
        True
        >>> WeightSpace({"w": "h:4, in=3", "b": "h:4"}).same_symmetry(WeightSpace({"b": "k:4", "w": "h:4, 3"}))
        False
        """
        if self._parameters.keys() != other._parameters.keys():
            return False
        ordered = WeightSpace({name: other[name] for name in self}, other.buffers)
        return self.canonical() == ordered.canonical()

    def axes_to_perm(self, strict: bool = False) -> dict[str, tuple[str | None, ...]]:
        """git-re-basin's form: for each parameter and buffer, and each axis, the group that permutes it, or None.

        That form knows one permutation for each axis. A group that stands in a product or a concatenation, or depends
        on another, is left out everywhere (its axes are None), so that what is said is true; `strict=True` raises
        InvalidInput instead.

        >>> WeightSpace({"w": "h:4, in=3", "v": "c:2*9, h:4", "c": "c:2"}).axes_to_perm()
        {'w': ('h', None), 'v': (None, 'h'), 'c': (None,)}
        """
        return axes_to_perm(self, strict)

    def perm_to_axes(self, strict: bool = False) -> dict[str, list[tuple[str, int]]]:
        """`axes_to_perm` the other way round: for each group its places, (parameter or buffer, axis).

        >>> WeightSpace({"w": "h:4, in=3", "b": "h:4"}).perm_to_axes()
        {'h': [('w', 0), ('b', 0)]}
        """
        return perm_to_axes(self, strict)

    def check(self, tensors: Mapping[str, Tensor | Shape]) -> None:
        """Raises InvalidInput unless `tensors` has exactly this space's names and shapes."""
        missing, extra = [k for k in self if k not in tensors], [k for k in tensors if k not in self]
        if missing or extra:
            remedy = "Build it from the same module, or use weight_space.restrict(names) for a subset."
            if prefix := self._prefix(tensors):
                remedy = f"A wrapper has put {prefix!r} before each name: give the named_parameters() of what it wraps."
            raise InvalidInput(
                f"weight_space does not name the same parameters: missing {missing}, not in the space {extra}. {remedy}"
            )
        for name, shape in self.shapes.items():
            if (came := _shape(tensors[name])) != shape:
                raise InvalidInput(f"weight_space: parameter {name!r} has shape {came}, the space says {shape}")

    def _prefix(self, names: Iterable[str]) -> str:
        """What every name begins with, if without it they are those of this space; such as "_orig_mod."."""
        given = list(names)
        heads = [given[0][: i + 1] for i, letter in enumerate(given[0]) if letter == "."] if given else []
        fitting = (head for head in heads if sorted(name.removeprefix(head) for name in given) == sorted(self))
        return next(fitting, "")

    def random_permutations(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """One uniformly random element of the symmetry group: for each group a table [*sizes of within, size]."""
        drawn = {}
        for name, group in self.groups.items():
            lead = self.outer_sizes(group)
            rows = [torch.randperm(group.size, generator=generator) for _ in range(math.prod(lead))]
            drawn[name] = (
                torch.stack(rows).reshape(*lead, group.size) if rows else torch.empty(*lead, group.size).long()
            )
        return drawn

    def outer_sizes(self, group: Group) -> tuple[int, ...]:
        """The sizes of the groups and named fixed axes that a group depends on: it has a permutation for each position.

        >>> space = WeightSpace({"w": "H:4*d[H]:8, 3"})
        >>> space.outer_sizes(space.groups["d"])
        (4,)
        """
        if not group.within:
            return ()
        sizes = {leaf.name: leaf.size for axes in self._parameters.values() for leaf in _leaves(axes)}
        return tuple(sizes[outer] for outer in group.within)

    def permute(
        self, tensors: Mapping[str, Tensor], permutations: Mapping[str, Tensor], channels: bool = False
    ) -> dict[str, Tensor]:
        """Applies one group element to every tensor: permuted[i, j] = tensor[p(i), q(j)].

        Args:
            tensors: name of a parameter or buffer -> [*batch, *shape], or [*batch, *shape, channels] with
                `channels=True`.
            permutations: as `random_permutations` draws them.

        Raises:
            InvalidInput: a tensor that the space does not name, or whose shape does not end in its parameter's.
        """
        permuted = {}
        for name, tensor in tensors.items():
            axes = self._parameters.get(name, self.buffers.get(name))
            if axes is None:
                raise InvalidInput(f"tensors: {name!r} is not in this WeightSpace, which holds {list(self)}")
            wanted = tuple(axis.size for axis in axes)
            shape = tensor.shape[: tensor.dim() - channels]
            if shape[max(0, len(shape) - len(axes)) :] != wanted:
                raise InvalidInput(
                    f"tensors: {name!r} has shape {tuple(tensor.shape)}, wanted [*batch, *{wanted}"
                    f"{', channels' if channels else ''}]"
                )
            permuted[name] = permute_axes(tensor, axes, permutations, channels)
        return permuted

    def verify(
        self,
        module: nn.Module,
        *inputs: Any,
        training: bool = False,
        seed: int = 0,
        draws: int = 2,
        output: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> Verification:
        """Runs `module(*inputs, **kwargs)` with random weights and with permutations of them, and compares.

        Outputs must be equal and gradients permuted, in float64 (see verification.py for what is compared and how).
        The module, its mode, buffers, attributes and the random state are afterwards what they were.

        Args:
            training: run it in training mode; all runs see the same dropout masks.
            draws: how many permutations of all groups are tried.
            output: picks the tensors to compare out of what the module returns; all floating ones if not given.

        Raises:
            InvalidInput: the space is not of this module; lazy, meta or quantised parameters, or several devices; no
                floating output; outputs that are NaN, infinite or chaotic with all random weights that were tried.
            Exception: the module's own, of inputs that do not fit it.

        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> space = WeightSpace.linear_stack(dict(model.named_parameters()))
        >>> bool(space.verify(model, torch.randn(2, 3)))
        True
        >>> wrong = WeightSpace.from_shapes(dict(model.named_parameters()))
        >>> wrong.verify(model, torch.randn(2, 3)).failed
        ('g0', 'g1', 'g2', 'g3', 'g4', 'g5')
        """
        return verify(self, module, *inputs, training=training, seed=seed, draws=draws, output=output, **kwargs)


def _parse(tensors: Mapping[str, str | Sequence[Axis]]) -> dict[str, tuple[Axis, ...]]:
    return {name: parse_axes(axes) if isinstance(axes, str) else tuple(axes) for name, axes in tensors.items()}


def _text(tensors: Mapping[str, tuple[Axis, ...]]) -> str:
    return repr({name: ", ".join(map(str, axes)) for name, axes in tensors.items()})


def _leaves(axes: Sequence[Axis]) -> Iterator[Fixed | Group]:
    return itertools.chain.from_iterable(map(leaves, axes))


def _shape(value: Tensor | Shape) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else tuple(value)
