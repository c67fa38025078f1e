"""Movements: to move and then to permute is to permute and then to move, entry by entry, for every group element.

A tensor's entries are their own numbers; a random element of the group that the labels allow is applied to it before
and after the movement. `permuted` reads labels by the semantics of term_semantics.py.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lopt.tracing import labels
from lopt.tracing.algebra import Term, concatenation, find, fixed, free, is_fixed, leaves, product
from lopt.tracing.labels import Labels, Outer
from tests.lopt.tracing.term_semantics import Permutation, Spec, action, build, specs, variables

many = settings(max_examples=80, deadline=None, derandomize=True)
MISFIT = "do not fit"


def permuted(tensor: Tensor, made: Labels, chosen: Mapping[int, Permutation]) -> Tensor:
    """The tensor under a group element."""
    if not made.blocks:
        for axis, term in enumerate(made.axes):
            tensor = tensor.index_select(axis, torch.tensor(action(term, chosen), dtype=torch.long))
        return tensor
    sizes = [block.shape[made.along] for block in made.blocks]
    parts = zip(tensor.split(sizes, made.along), made.blocks, strict=True)
    return torch.cat([permuted(part, block, chosen) for part, block in parts], made.along)


def drawn(*all_labels: Labels, seed: int = 0) -> dict[int, Permutation]:
    """A random group element."""
    rng = random.Random(seed)
    terms = [term for made in all_labels for term in labels.all_terms(made)]
    return {key: tuple(rng.sample(range(v.size), v.size)) for key, v in variables(terms).items()}


def check(tensors: list[Tensor], before: list[Labels], after: Labels, move: Any) -> None:
    moved = move(*tensors)
    assert after.shape == tuple(moved.shape)
    for seed in range(3):
        chosen = drawn(*before, after, seed=seed)
        first = move(*(permuted(t, made, chosen) for t, made in zip(tensors, before, strict=True)))
        assert torch.equal(first, permuted(moved, after, chosen))


# --- random labels ---------------------------------------------------------------------------------------------------

Example = tuple[list[list[Spec]], int]  # the specs of the axes of each block, and the axis that the blocks divide


@st.composite
def examples(draw: Any, least: int = 1, most: int = 3) -> Example:
    """Labels of a tensor, sometimes in blocks of one or two entries along an axis."""
    rank = draw(st.integers(least, most))
    shape = [draw(st.sampled_from((1, 2, 3, 4, 6))) for _ in range(rank)]
    along = draw(st.integers(0, rank - 1)) if draw(st.booleans()) else -1
    if along < 0:
        return [[draw(specs(size)) for size in shape]], -1
    widths = [draw(st.integers(1, 2)) for _ in range(draw(st.integers(2, 3)))]
    blocks = [[draw(specs(w if a == along else n)) for a, n in enumerate(shape)] for w in widths]
    return blocks, along


def made_of(example: Example, pool: dict[Spec, Term] | None = None) -> tuple[Tensor, Labels]:
    blocks, along = example
    pool = {} if pool is None else pool
    parts = [Labels(tuple(build(spec, pool) for spec in block)) for block in blocks]
    made = parts[0] if along < 0 else Labels(along=along, blocks=tuple(parts))
    return torch.arange(torch.Size(made.shape).numel()).reshape(made.shape), made


@many
@given(examples(), st.randoms(use_true_random=False))
def test_permute(example, rng):
    x, made = made_of(example)
    order = rng.sample(range(x.dim()), x.dim())
    check([x], [made], labels.permute(made, order), lambda t: t.permute(order))


@many
@given(examples(), st.integers(0, 3))
def test_insert_and_drop(example, axis):
    x, made = made_of(example)
    axis %= x.dim() + 1
    more = labels.insert(made, axis)
    check([x], [made], more, lambda t: t.unsqueeze(axis))
    check([x], [made], labels.drop(more, axis), lambda t: t)
    for one in [a for a, size in enumerate(x.shape) if size == 1]:
        check([x], [made], labels.drop(made, one), lambda t, one=one: t.squeeze(one))


@many
@given(examples(), st.integers(0, 2), st.integers(0, 6), st.integers(0, 6))
def test_narrow(example, axis, start, length):
    x, made = made_of(example)
    axis %= x.dim()
    start = min(start, x.shape[axis])
    length = min(length, x.shape[axis] - start)
    after, _ = labels.narrow(made, axis, start, length, MISFIT)
    check([x], [made], after, lambda t: t.narrow(axis, start, length))


@many
@given(examples(), st.integers(0, 2), st.integers(2, 3))
def test_stride(example, axis, step):
    x, made = made_of(example)
    axis %= x.dim()
    after = labels.stride(made, axis, step, MISFIT)
    check([x], [made], after, lambda t: t[(slice(None),) * axis + (slice(None, None, step),)])


@many
@given(examples(), st.data())
def test_join(example, data):
    pool: dict[Spec, Term] = {}
    x, first = made_of(example, pool)
    axis = data.draw(st.integers(0, x.dim() - 1))
    shape = list(x.shape)
    shape[axis] = data.draw(st.integers(1, 3))
    y, second = made_of(([[data.draw(specs(size)) for size in shape]], -1), pool)
    check([x, y + 100], [first, second], labels.join([first, second], axis), lambda a, b: torch.cat([a, b], axis))


@many
@given(examples(), st.integers(0, 2), st.integers(2, 3))
def test_expand(example, axis, times):
    x, made = made_of(example)
    more = labels.insert(made, axis % (x.dim() + 1))
    at = axis % (x.dim() + 1)
    shape = (*x.shape[:at], times, *x.shape[at:])
    check([x.unsqueeze(at)], [more], labels.expand(more, shape, MISFIT), lambda t: t.expand(shape))
    lead = (times, *x.shape)
    check([x], [made], labels.expand(made, lead, MISFIT), lambda t: t.expand(lead))


@many
@given(examples(), st.randoms(use_true_random=False), st.booleans())
def test_reshape(example, rng, blocks):
    """To another shape, with an axis of it in blocks or not; and back."""
    x, made = made_of(example)
    shape, rest = [], x.numel()
    while rest > 1 and len(shape) < 3:
        shape.append(rng.choice([d for d in range(2, rest + 1) if rest % d == 0]))
        rest //= shape[-1]
    shape = (*shape, rest)
    wanted: set[object] = {Outer(rng.randrange(len(shape)))} if blocks else set()
    there = labels.reshape(made, shape, lambda axis: axis, wanted, MISFIT)
    check([x], [made], there, lambda t: t.reshape(shape))
    back = labels.reshape(there, tuple(x.shape), lambda axis: axis, set(), MISFIT)
    check([x.reshape(shape)], [there], back, lambda t: t.reshape(x.shape))


@many
@given(examples())
def test_terms_tie_the_blocks(example):
    x, made = made_of(example)
    check([x], [made], Labels(labels.terms(made, MISFIT)), lambda t: t)


@pytest.mark.parametrize(
    ("old", "new"),
    [((2, 6, 5), (2, 2, 3, 5)), ((4, 3), (12,)), ((2, 3, 4), (6, 4)), ((1, 6), (6, 1)), ((4, 3), (3, 4)), ((), (1, 1))],
)
def test_matched_axes_hold_the_same_entries(old, new):
    runs = labels.matched_axes(old, new)
    assert [a for run, _ in runs for a in run] == list(range(len(old)))
    assert [a for _, run in runs for a in run] == list(range(len(new)))
    for left, right in runs:
        sizes = [torch.Size([shape[a] for a in run]).numel() for shape, run in ((old, left), (new, right))]
        assert sizes[0] == sizes[1]


# --- how much is kept ------------------------------------------------------------------------------------------------


def test_a_fused_projection_keeps_heads_and_channels():
    """(t, 3 x heads x channels) -> (t, 3, heads, channels) -> query, key, value: each with groups of its own."""
    whole = free(3 * 2 * 4)
    made = labels.reshape(Labels((fixed(5, "in"), whole)), (5, 3, 2, 4), lambda a: a, {Outer(1)}, MISFIT)
    parts = [labels.drop(labels.narrow(made, 1, i, 1, MISFIT)[0], 1) for i in range(3)]
    found = {id(find(term)) for part in parts for term in part.axes[1:]}
    assert len(found) == 6 and all(find(term).is_free for part in parts for term in part.axes[1:])
    assert sum(leaf.size > 1 for leaf in leaves(whole)) == 6


def test_without_blocks_the_parts_are_tied_or_fixed():
    made = labels.reshape(Labels((free(24),)), (3, 2, 4), lambda a: a, set(), MISFIT)
    parts = [labels.drop(labels.narrow(made, 0, i, 1, MISFIT)[0], 0) for i in range(3)]
    assert len({id(find(part.axes[1])) for part in parts}) == 1


def test_a_slice_reports_where_the_axis_came_from():
    made = labels.fresh((6, 2), lambda axis: f"axis {axis}")
    part, origins = labels.narrow(made, 0, 2, 2, MISFIT)
    assert origins == set() and part.axes[0].is_free  # a stretch is a segment, and needs no blocks
    assert [leaf.size for leaf in leaves(made.axes[0])] == [2, 2, 2]
    assert labels.narrow(labels.fresh((6,), lambda axis: "here"), 0, 2, 1, MISFIT)[1] == {"here"}
    split = labels.reshape(labels.fresh((6,)), (3, 2), lambda axis: axis, set(), MISFIT)
    assert labels.narrow(split, 0, 1, 2, MISFIT)[1] == {Outer(0)}


def test_what_does_not_divide_is_fixed():
    made = Labels((free(4), free(3)))
    after = labels.reshape(made, (3, 4), lambda a: a, set(), MISFIT)
    assert all(is_fixed(term) for term in (*made.axes, *after.axes))


def test_a_merged_axis_is_a_product():
    a, b = free(4), free(3)
    after = labels.reshape(Labels((a, b)), (12,), lambda axis: axis, set(), MISFIT)
    assert find(after.axes[0]).product == (a, b)
    assert [t.size for t in itertools.chain(leaves(product((a, b))), leaves(concatenation((a, b))))] == [4, 3, 4, 3]
