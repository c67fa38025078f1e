"""All that the Neuron rule precomputes for a weight space: which entries meet which neurons, and what never changes.

The tensors of one form stand together, as one stack, hidden matrices behind all others; the entries of all of them lie
in one row, row entries first, then column entries, then an entry for each tensor as a whole. All tables of neurons lie
in one table. So a step takes the same few operators for every network.

Legend: T tensors, E entries without those of the tensors, N neurons, K tables, R roles, M summands.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from lopt.axes import leaves
from lopt.rules.moments import TIMESCALES
from lopt.rules.neuron.ends import guess_ends, knows_shapes_alone
from lopt.rules.neuron.form import ROLES, Form, Slot, Table, form_of, has_group
from lopt.weight_space import WeightSpace

STATIC = 16  # features of a tensor that never change
COUNT = 8  # among them: the number of matrices, and the tensor's place after it
HIDDEN = 15  # the last: whether it is a hidden matrix
LOSS_GAINS = (0.1, 0.01, 0.01)  # of the fast mean, the slow mean, the variance
_SIZE_UNIT = 10.0  # of log sizes
_COUNT_UNIT = 4.0  # of log counts
_SMALL_MATRIX = 1 << 17  # entries up to which sums are one product with a matrix
# Where rows outnumber the summands of a result by the first, gathering these beats a product with a matrix, up to as
# many summands as the second, those that fill up included.
_FEW, _GATHERED = 8, 1 << 13


class Sums(NamedTuple):
    """Weighted sums of rows of a matrix: result j is weight[j] times the sum of the rows source[k] with target[k] = j.

    Three ways to the same numbers: a product with a matrix, where that is small; the summands of each result gathered,
    where all have few; else one after the other. Compiled, the last runs one number at a time.
    """

    source: Tensor | None  # [M]; None: all rows in order
    target: Tensor  # [M]
    weight: Tensor  # [results]
    matrix: Tensor | None  # [results, rows]
    summands: Tensor | None  # [results, most]: rows; where there are fewer, row 0 ..
    weights: Tensor | None  # .. and [results, most]: a weight of 0

    def __call__(self, x: Tensor) -> Tensor:
        """[rows, c] -> [results, c], or [rows] -> [results]."""
        if self.summands is not None and self.weights is not None:
            found = x.index_select(0, self.summands.flatten()).reshape(*self.summands.shape, *x.shape[1:])
            return (found * self.weights[..., None] if x.dim() > 1 else found * self.weights).sum(1)
        if self.matrix is not None:
            return self.matrix @ x
        x = x if self.source is None else x.index_select(0, self.source)
        sums = x.new_zeros(self.weight.shape[0], *x.shape[1:]).index_add(0, self.target, x)
        return sums * (self.weight[:, None] if x.dim() > 1 else self.weight)


class Stack(NamedTuple):
    """The tensors of one form, which run as one: where they and their entries are."""

    form: Form
    hidden: bool  # hidden matrices: both axes hold groups, neither of which was guessed to be an end of the network
    tensors: slice
    rows: slice  # among the entries
    columns: slice  # among the column entries

    @property
    def n_tensors(self) -> int:
        """How many tensors there are."""
        return self.tensors.stop - self.tensors.start


class Layout(NamedTuple):
    """See the module. Index tensors are int64, the others of the dtype that the rule computes in."""

    space: WeightSpace
    device: torch.device
    dtype: torch.dtype
    names: tuple[str, ...]  # stack after stack
    stacks: tuple[Stack, ...]
    sizes: tuple[int, ...]  # [T]
    n_others: int  # tensors that are no hidden matrices
    n_rows: int
    n_entries: int
    n_tables: int
    n_neurons: int
    tensor: Tensor  # [E + T]: the tensor of each entry
    inverse_size: Tensor  # [E + T]: 1 / (weights behind the entry)
    static: Tensor  # [T, STATIC]
    timescales: Tensor  # [11]: see moments.py; here so that a step copies nothing to the device
    loss_gains: Tensor  # [3]: the least gains of the averages of the loss, see tokens.py
    # entries and neurons
    to_neurons: Sums  # means over entries, role by role: [E, c] -> [N R, c]
    to_entries: Sums  # sums over the neurons that stand there: [N R, c] -> [E, c]
    present: Tensor  # [N, R]: 1 where there is an entry
    # neurons, tables and tensors
    table: Tensor  # [N]: the table of each neuron
    to_tables: Sums  # means over neurons: [N, c] -> [K, c]
    tables_to_tensors: Sums  # means, role by role: [K, c] -> [T R, c]
    tensors_to_tables: Sums  # means, role by role: [T, c] -> [K R, c]


def handfuls(stack: Stack, tensors: slice, most: int) -> Iterator[slice]:
    """Those of some tensors that are in a stack, as many at a time as have at most so many weights, or one."""
    start, stop = max(stack.tensors.start, tensors.start), min(stack.tensors.stop, tensors.stop)
    step = max(1, most // max(1, math.prod(stack.form.shape)))
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))


# What is remembered stands in tuples that are replaced, never changed: several threads may train at once, and a graph
# that is compiled may look a layout up.
_LAYOUTS = 64  # that are remembered, with what belongs to them: experts have many sets of gradients
_kept: tuple[Layout, ...] = ()
_LOCK = threading.Lock()  # of the replacing
_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def layout_of(space: WeightSpace, device: torch.device, dtype: torch.dtype) -> Layout:
    """The layout of a space, made once for each device and dtype."""
    for kept in _kept:
        if kept.space is space and kept.device == device and kept.dtype == dtype:
            return kept
    for kept in _kept:
        if kept.space == space and kept.device == device and kept.dtype == dtype:
            return kept
    return _remember(space, device, dtype)


def _remember(space: WeightSpace, device: torch.device, dtype: torch.dtype) -> Layout:
    global _kept
    with torch.inference_mode(False):  # may be used in a graph of autograd later
        made = _build(space, device, dtype)
    if type(made.static) is Tensor:  # a fake one must not be kept
        with _LOCK:
            _kept = (*_kept, made)[-_LAYOUTS:]
    return made


def once_a_layout(
    make: Callable[Concatenate[Layout, _Given], _Made],
) -> Callable[Concatenate[Layout, _Given], _Made]:
    """`make`, which remembers what it made of the last layouts and arguments. Layouts are told apart by identity."""
    kept: tuple[tuple[Layout, object, _Made], ...] = ()

    @functools.wraps(make)
    def remembered(layout: Layout, /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Made:
        nonlocal kept
        for known, given, made in kept:
            if known is layout and given == (args, kwargs):
                return made
        made = make(layout, *args, **kwargs)
        with _LOCK:
            kept = (*kept, (layout, (args, kwargs), made))[-_LAYOUTS:]
        return made

    return remembered


def _build(space: WeightSpace, device: torch.device, dtype: torch.dtype) -> Layout:
    forms = {name: form_of(name, axes) for name, axes in space.items()}
    guessed = knows_shapes_alone(space)
    ends = guess_ends(space.shapes) if guessed else _fixed(space)
    hidden = {name: form.hidden and not (guessed and any(ends[name][:2])) for name, form in forms.items()}
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, form in forms.items():
        alike.setdefault((hidden[name], *form.shape), []).append(name)
    members = [alike[key] for key in sorted(alike, key=lambda key: key[0])]
    names = tuple(name for some in members for name in some)
    ordered = [forms[name] for name in names]
    tensor, size = _entries(ordered)

    def index(x: Sequence[int] | np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(x, dtype=np.int64), device=device)

    def number(x: Sequence[Sequence[float]] | Sequence[float] | np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(x, dtype=np.float64), device=device).to(dtype)

    def sums(source: np.ndarray | None, rows: int, target: np.ndarray, results: int, mean: bool = True) -> Sums:
        counts = np.bincount(target, minlength=results)
        weight = 1 / np.maximum(1, counts) if mean else np.ones(results)
        chosen, most = np.arange(rows) if source is None else source, int(counts.max(initial=0))
        dense = summands = weights = None
        if most and most * _FEW <= rows and most * results <= _GATHERED:
            order = np.argsort(target, kind="stable")
            place = np.arange(len(target)) - np.repeat(np.cumsum(counts) - counts, counts)  # among those of its result
            summands, weights = np.zeros((results, most), np.int64), np.zeros((results, most))
            summands[target[order], place] = chosen[order]
            weights[target[order], place] = weight[target[order]]
        elif rows * results <= _SMALL_MATRIX:
            dense = np.zeros((results, rows))
            np.add.at(dense, (target, chosen), weight[target])
        return Sums(
            None if source is None else index(source),
            index(target),
            number(weight),
            None if dense is None else number(dense),
            None if summands is None else index(summands),
            None if weights is None else number(weights),
        )

    meet, n_rows = _meetings(ordered), sum(form.batch * form.rows for form in ordered)
    n_entries, n_tables, n_neurons = len(tensor) - len(names), len(meet.table_sizes), int(meet.table_sizes.sum())
    roles, table = len(ROLES), np.repeat(np.arange(n_tables), meet.table_sizes)
    return Layout(
        space=space,
        device=device,
        dtype=dtype,
        names=names,
        stacks=_stacks(members, forms, hidden),
        sizes=tuple(math.prod(form.shape) for form in ordered),
        n_others=sum(not hidden[name] for name in names),
        n_rows=n_rows,
        n_entries=n_entries,
        n_tables=n_tables,
        n_neurons=n_neurons,
        tensor=index(tensor),
        inverse_size=number(1 / np.maximum(1, size)),
        static=number(_static(space, names, forms, ends, hidden)).reshape(len(names), STATIC),
        timescales=number(TIMESCALES),
        loss_gains=number(LOSS_GAINS),
        to_neurons=sums(meet.entry, n_entries, meet.target, n_neurons * roles),
        to_entries=sums(meet.target, n_neurons * roles, meet.entry, n_entries, mean=False),
        present=number(np.bincount(meet.target, minlength=n_neurons * roles) > 0).reshape(-1, roles),
        table=index(table),
        to_tables=sums(None, n_neurons, table, n_tables),
        tables_to_tensors=sums(meet.table_role // roles, n_tables, meet.tensor_role, len(names) * roles),
        tensors_to_tables=sums(meet.tensor_role // roles, len(names), meet.table_role, n_tables * roles),
    )


def _fixed(space: WeightSpace) -> dict[str, list[bool]]:
    """For each axis of each tensor, whether nothing of it is permuted."""
    return {name: [not has_group(leaves(axis)) for axis in axes] for name, axes in space.items()}


def _stacks(alike: Sequence[Sequence[str]], forms: dict[str, Form], hidden: Mapping[str, bool]) -> tuple[Stack, ...]:
    stacks, tensors, rows, columns = [], 0, 0, 0
    for members in alike:
        form, count = forms[members[0]], len(members)
        ends = (
            tensors + count,
            rows + count * form.batch * form.rows,
            columns + count * form.batch * form.columns,
        )
        starts = (tensors, rows, columns)
        stacks.append(Stack(form, hidden[members[0]], *(slice(a, b) for a, b in zip(starts, ends, strict=True))))
        tensors, rows, columns = ends
    return tuple(stacks)


def _entries(forms: Sequence[Form]) -> tuple[np.ndarray, np.ndarray]:
    """For each entry, and each tensor as a whole, its tensor and the number of weights behind it."""
    every = np.arange(len(forms))
    batch, rows, columns = (np.array([form[k] for form in forms], dtype=np.int64) for k in range(3))
    tensor = np.concatenate([np.repeat(every, batch * rows), np.repeat(every, batch * columns), every])
    size = np.concatenate([np.repeat(columns, batch * rows), np.repeat(rows, batch * columns), batch * rows * columns])
    return tensor, size


class _Meetings(NamedTuple):
    table_sizes: np.ndarray
    entry: np.ndarray
    target: np.ndarray
    tensor_role: np.ndarray
    table_role: np.ndarray


def _meetings(forms: Sequence[Form]) -> _Meetings:
    """Which entries meet which neurons, and which tensors meet which tables, by role."""
    tables: dict[Table, tuple[int, int]] = {}  # -> its number, its first neuron
    neurons, row, column = 0, 0, sum(form.batch * form.rows for form in forms)
    entry, target, links = [np.empty(0, np.int64)], [np.empty(0, np.int64)], {}
    for index, form in enumerate(forms):
        sides: list[tuple[int, Slot]] = [(row, slot) for slot in form.row_slots]
        sides += [(column, slot) for slot in form.column_slots]
        for start, slot in sides:
            if slot.table not in tables:
                tables[slot.table] = (len(tables), neurons)
                neurons += math.prod(size for _, size in slot.table)
            number, first = tables[slot.table]
            entry.append(start + slot.entries)
            target.append((first + slot.neurons) * len(ROLES) + slot.role)
            links[index * len(ROLES) + slot.role, number * len(ROLES) + slot.role] = None
        row += form.batch * form.rows
        column += form.batch * form.columns
    sizes = np.array([math.prod(size for _, size in table) for table in tables], dtype=np.int64)
    pairs = np.array(list(links), dtype=np.int64).reshape(-1, 2)
    return _Meetings(sizes, np.concatenate(entry), np.concatenate(target), pairs[:, 0], pairs[:, 1])


def _static(
    space: WeightSpace,
    names: Sequence[str],
    forms: dict[str, Form],
    ends: Mapping[str, list[bool]],
    hidden: Mapping[str, bool],
) -> list[list[float]]:
    """What never changes about each tensor: rank, sizes, taps, its place in the network, which axes are permuted.

    Its place: how many matrices there are; how many tensors meet the neurons of its rows, and of its columns (many
    where a residual stream passes); whether it reads and writes the same neurons, as recurrent weights do. Which axes
    are permuted, and which are the inputs and outputs of the network, is guessed where the space knows shapes alone.
    """
    matrices = sum(min(form.rows, form.columns) > 1 for form in forms.values())
    sides = {
        name: [{slot.table for slot in side} for side in (f.row_slots, f.column_slots)] for name, f in forms.items()
    }
    degrees = Counter(table for rows, columns in sides.values() for table in rows | columns)

    def one(name: str) -> list[float]:
        shape, form, (rows, columns), end = space.shapes[name], forms[name], sides[name], ends[name]
        sizes = (math.prod(shape), form.batch * form.rows, form.columns, math.prod(shape[2:]))
        met = [max((degrees[table] for table in side), default=1) for side in (rows, columns)]
        return [
            *(float(min(len(shape), 3) == rank) for rank in range(4)),
            *(math.log1p(size) / _SIZE_UNIT for size in sizes),
            *(math.log(count) / _COUNT_UNIT for count in (max(1, matrices), *met)),
            float(bool(rows & columns)),
            float(any(end[:1])),
            float(any(end[1:2])),
            end.count(False) / 3,
            float(hidden[name]),
        ]

    return [one(name) for name in names]
