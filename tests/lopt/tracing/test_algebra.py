"""The algebra of axes, against the enumeration of all permutations of axes of up to 6 entries (term_semantics.py)."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lopt.tracing.algebra import (
    Term,
    concatenation,
    cut,
    find,
    fix,
    fixed,
    free,
    is_fixed,
    leaves,
    product,
    sizes,
    split,
    touch,
    unify,
)
from tests.lopt.tracing.term_semantics import LARGEST_GROUP, Spec, build, group, order, systems

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
many = settings(max_examples=80, deadline=None, derandomize=True)

MISFIT = "do not fit"


def made(specs: list[Spec]) -> list[Term]:
    pool: dict[Spec, Term] = {}
    axes = [build(spec, pool) for spec in specs]
    assume(order(axes) <= LARGEST_GROUP)
    return axes


def misfits(axes: list[Term]) -> bool:
    """Whether something was fixed because two axes had no common refinement."""
    return any(leaf.reason == MISFIT for axis in axes for leaf in leaves(axis))


def identity(size: int) -> tuple[int, ...]:
    return tuple(range(size))


# --- against the enumeration -----------------------------------------------------------------------------------------


@many
@given(systems(3))
def test_unify_leaves_exactly_what_acts_alike(specs):
    axes = made(specs)
    before = group(axes)
    unify(axes[0], axes[1], MISFIT)
    after = group(axes)
    exact = {g for g in before if g[0] == g[1]}
    assert after <= exact  # alike on both, and nothing that was not allowed before
    if not misfits(axes):
        assert after == exact  # and no less than that


@many
@given(systems(3))
def test_unify_twice_changes_nothing(specs):
    axes = made(specs)
    unify(axes[0], axes[1], MISFIT)
    after = group(axes)
    unify(axes[1], axes[0], MISFIT)
    assert group(axes) == after


@many
@given(systems(4), st.permutations([(0, 1), (1, 2), (2, 3), (0, 2)]))
def test_the_order_of_unifications_does_not_matter(specs, order_of_pairs):
    results = []
    for pairs in ([(0, 1), (1, 2), (2, 3), (0, 2)], order_of_pairs):
        axes = made(specs)
        for a, b in pairs[:3]:
            unify(axes[a], axes[b], MISFIT)
        for a, b in pairs[3:]:
            unify(axes[a], axes[b], MISFIT)
        results.append((group(axes), misfits(axes)))
    assume(not results[0][1] and not results[1][1])
    assert results[0][0] == results[1][0]


@many
@given(systems(2))
def test_fix_leaves_only_the_identity(specs):
    axes = made(specs)
    before = group(axes)
    fix(axes[0], "fixed")
    assert is_fixed(axes[0])
    still = identity(axes[0].size)
    assert group(axes) == {g for g in before if g[0] == still}


@many
@given(systems(2), st.integers(0, 6))
def test_cut_keeps_what_maps_each_part_into_itself(specs, size):
    axes = made(specs)
    whole = axes[0]
    assume(size <= whole.size)
    before = group(axes)
    head, tail = cut(whole, size, MISFIT)
    assert sizes((head, tail)) == (size, whole.size - size)
    after = group([*axes, concatenation((head, tail))])
    assert all(g[0] == g[2] for g in after)  # the parts act as the whole does
    kept = {g[:2] for g in after}
    exact = {g for g in before if set(g[0][:size]) == set(range(size))}
    assert kept <= exact
    if not misfits(axes):
        assert kept == exact


@many
@given(systems(2), st.integers(1, 6))
def test_split_keeps_what_maps_blocks_alike(specs, outer):
    axes = made(specs)
    whole = axes[0]
    before = group(axes)
    parts = split(whole, outer, MISFIT)
    if parts is None:
        assert group(axes) <= before
        return
    inner = whole.size // outer
    assert sizes(parts) == (outer, inner)
    after = group([*axes, product(parts)])
    assert all(g[0] == g[2] for g in after)
    exact = {g for g in before if is_product(g[0], outer, inner)}
    assert {g[:2] for g in after} == exact


def is_product(permutation: tuple[int, ...], outer: int, inner: int) -> bool:
    """Whether it moves blocks of `inner` entries as wholes, and the entries of each block alike."""
    blocks = [permutation[i * inner : (i + 1) * inner] for i in range(outer)]
    within = {tuple(place % inner for place in block) for block in blocks}
    return len(within) == 1 and all(len({place // inner for place in block}) == 1 for block in blocks)


@many
@given(systems(3))
def test_find_is_idempotent_and_keeps_the_size(specs):
    axes = made(specs)
    unify(axes[0], axes[1], MISFIT)
    for axis in axes:
        found = find(axis)
        assert find(found) is found and found.size == axis.size
        assert sum(1 for _ in leaves(found)) == sum(1 for _ in leaves(axis))
        parts = found.product or found.concatenation
        assert not parts or len(parts) > 1
        assert not any(find(part).product for part in found.product)
        assert not any(find(part).concatenation for part in found.concatenation)


@many
@given(systems(2))
def test_what_was_touched_stays_touched(specs):
    axes = made(specs)
    touch(axes[0])
    unify(axes[0], axes[1], MISFIT)
    assert all(leaf.touched for axis in axes for leaf in leaves(axis) if leaf.is_free)


# --- by hand ---------------------------------------------------------------------------------------------------------


def shown(term: Term) -> str:
    """The form of a term with its variables named a, b, c in order."""
    names: dict[int, str] = {}

    def text(term: Term) -> str:
        term = find(term)
        if term.product:
            return "(" + "*".join(map(text, term.product)) + ")"
        if term.concatenation:
            return "(" + "+".join(map(text, term.concatenation)) + ")"
        if not term.is_free:
            return str(term.size)
        return names.setdefault(id(term), "abcdefgh"[len(names)]) + str(term.size)

    return text(term)


@pytest.mark.parametrize(
    ("left", "right", "common"),
    [
        (free(12), product((free(3), free(4))), "(a3*b4)"),
        (product((free(4), free(3))), product((free(2), free(6))), "(a2*b2*c3)"),
        (product((free(2), free(3), free(2))), product((free(6), free(2))), "(a2*b3*c2)"),
        (product((free(8), fixed(9, "taps"))), free(72), "(a8*9)"),
        (concatenation((free(4), free(2))), concatenation((free(3), free(3))), "(a3+1+b2)"),
        (concatenation((free(4), free(4))), product((free(2), free(4))), "(a4+a4)"),  # one block acts as the other
        (product((free(3), free(2))), concatenation((free(2), free(4))), "(a2+(b2*a2))"),
        (concatenation((free(6), free(6))), product((free(4), free(3))), "((a2*b3)+(c2*b3))"),
        (product((free(2), free(3))), product((free(3), free(2))), "(2*3)"),  # no common refinement
        (concatenation((free(3), free(5))), product((free(4), free(2))), "(3+5)"),
    ],
)
def test_the_common_refinement(left, right, common):
    unify(left, right, MISFIT)
    assert shown(left) == common
    assert is_fixed(right) or shown(right) == common


def test_gates_and_heads():
    hidden = free(5)
    gates = concatenation([hidden] * 4)
    weight = free(20)
    unify(weight, gates, MISFIT)
    assert shown(weight) == "(a5+a5+a5+a5)" and next(leaves(weight)) is find(hidden)
    heads, inner = free(2), free(3)
    fused = free(18)
    unify(fused, concatenation(product((heads, channel)) for channel in (inner, inner, free(3))), MISFIT)
    assert shown(fused) == "((a2*b3)+(a2*b3)+(a2*c3))"


def test_a_chain_of_shared_variables_falls_apart_where_it_must():
    a, b = free(2), free(3)
    unify(concatenation((a, b)), concatenation((b, a)), MISFIT)
    assert find(a).reason is not None or is_fixed(a)
    assert is_fixed(b)


def test_a_distribution_of_a_concatenation_over_an_inner_factor():
    a, b, c = free(2), free(3), free(4)
    whole = product((concatenation((a, b)), c))
    assert shown(whole) == "((a2*b4)+(c3*b4))"
    assert shown(product((c, concatenation((a, b))))) == "(a4*(b2+c3))"


def test_factors_of_one_and_empty_segments_say_nothing():
    a = free(3)
    assert find(product((fixed(1, ""), a))) is a
    assert find(concatenation((fixed(0, ""), a))) is a
    assert product(()).size == 1 and concatenation(()).size == 0
    assert free(1).reason is not None and not free(0).is_free


def test_reasons_tell_what_came_first():
    a, b = free(3), free(3)
    fix(a, "first")
    fix(a, "second")
    unify(a, b, MISFIT)
    assert find(b).reason == "first"
    left, right = product((free(2), free(3))), product((free(3), free(2)))
    unify(left, right, MISFIT)
    assert {leaf.reason for leaf in (*leaves(left), *leaves(right))} == {MISFIT}


def test_origins_are_kept_through_unification():
    a, b = free(3), free(3)
    a.origins.add("here")
    b.origins.add("there")
    unify(a, b, MISFIT)
    assert find(a).origins == {"here", "there"}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="3 and 4 entries"):
        unify(free(3), free(4), MISFIT)
    with pytest.raises(ValueError, match="cannot cut 5 entries off an axis of 4"):
        cut(free(4), 5, MISFIT)
    assert split(free(6), 4, MISFIT) is None and split(free(6), 0, MISFIT) is None
