"""Comparing weight spaces: whatever the names and however the axes are written, and never two that differ."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lopt import InvalidInput, WeightSpace
from lopt.axes import Axis, Concatenation, Fixed, Group, Product, children, leaves

SLOW = settings(max_examples=150, deadline=None, derandomize=True)

# Every group has a size of its own, so that a group is known by its size whatever its name is.
HEAD = Group("H", 2)
LEAVES: list[Axis] = [
    Fixed(1), Fixed(3), Fixed(4, "in"), Group("h", 3), Group("one", 1), HEAD, Product((HEAD, Group("d", 5, ("H",)))),
    Product((HEAD, Group("k.x", 4), Group("e", 6, ("H", "k.x", "one")), Group("one", 1))),
]  # fmt: skip
AXES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.builds(
        lambda kind, parts: kind(tuple(parts)),
        st.sampled_from([Product, Concatenation]),
        st.lists(inner, min_size=2, max_size=3),
    ),
    max_leaves=5,
)
SPACES = st.dictionaries(st.sampled_from(["w", "b", "c"]), st.lists(AXES, max_size=2), max_size=3).map(WeightSpace)


def rewritten(axis: Axis, dice: random.Random) -> Axis:
    """The same axis, said in another way."""
    if isinstance(axis, Fixed):
        n = axis.size
        choices: list[Axis] = [Fixed(n), Fixed(n, f"n{n}"), Product((Fixed(1), Fixed(n)))]
        if n > 1:
            choices.append(Concatenation((Fixed(1), Fixed(n - 1))))
        if n == 4:
            choices.append(Product((Fixed(2), Fixed(2))))
        return dice.choice(choices)
    if isinstance(axis, Group):
        alone = Fixed(axis.size) if axis.size == 1 else axis
        return dice.choice([alone, Product((alone, Fixed(1))), Product((Fixed(1), alone))])
    parts = [rewritten(child, dice) for child in children(axis)]
    if isinstance(axis, Product):
        first = axis.factors[0]
        if isinstance(first, Fixed) and first.size > 1 and dice.random() < 0.5:  # n * x = x + x + ...
            rest = parts[1] if len(parts) == 2 else Product(tuple(parts[1:]))
            return Concatenation((rest,) * first.size)
        if isinstance(first, Concatenation) and dice.random() < 0.5:  # (a + b) * x = a * x + b * x
            return Concatenation(tuple(Product((s, *parts[1:])) for s in children(first)))
        if len(parts) > 2:
            return Product((parts[0], Product(tuple(parts[1:]))))
        return Product(tuple(parts))
    if len(parts) > 2:
        return Concatenation((Concatenation(tuple(parts[:2])), *parts[2:]))
    return Concatenation(tuple(parts))


def renamed(axis: Axis, names: dict[str, str]) -> Axis:
    if isinstance(axis, Group):
        within = [names[name] for name in axis.within]
        return Group(names[axis.name], axis.size, tuple(sorted(within)))
    if isinstance(axis, Fixed):
        return axis
    return type(axis)(tuple(renamed(child, names) for child in children(axis)))


@SLOW
@given(SPACES, st.randoms(use_true_random=False))
def test_other_words_for_the_same(space, dice):
    names = [f"x{k}" for k in range(len(space.groups))]
    dice.shuffle(names)
    table = dict(zip(space.groups, names, strict=True))
    dropped = {name: Group(name, 1) for name in ["one"]}  # may vanish from the text, and then nothing may depend on it

    def other(axis: Axis) -> Axis:
        return renamed(rewritten(without_one(axis), dice), table)

    def without_one(axis: Axis) -> Axis:
        if isinstance(axis, Group):
            return Group(axis.name, axis.size, tuple(n for n in axis.within if n not in dropped))
        return axis if isinstance(axis, Fixed) else type(axis)(tuple(map(without_one, children(axis))))

    same = WeightSpace({name: [other(axis) for axis in space[name]] for name in dice.sample(list(space), len(space))})
    assert same.shapes == {name: space.shapes[name] for name in same}
    assert space.same_symmetry(same) and same.same_symmetry(space)


@SLOW
@given(SPACES)
def test_the_canonical_form_moves_the_same_entries(space):
    canonical = space.canonical()
    assert canonical.canonical() == canonical
    assert canonical.shapes == space.shapes
    # Where a segment is shorter than an entry, or empty, its groups move nothing, and vanish.
    permutations = space.random_permutations(torch.Generator().manual_seed(0))
    by_size = {group.size: (name, group) for name, group in space.groups.items()}
    translated = {}
    for name, group in canonical.groups.items():
        old, before = by_size[group.size]
        sizes = [canonical.groups[outer].size for outer in group.within]
        wanted = [by_size[size][0] for size in sizes]
        table = permutations[old].squeeze([k for k, outer in enumerate(before.within) if outer == "one"])
        order = [n for n in before.within if n != "one"]
        translated[name] = table.permute(*[order.index(n) for n in wanted], len(order))
    ids = {name: torch.arange(torch.Size(shape).numel()).reshape(shape) for name, shape in space.shapes.items()}
    one, two = space.permute(ids, permutations), canonical.permute(ids, translated)
    assert all(torch.equal(one[name], two[name]) for name in space)


def replaced(axis: Axis, index: int, leaf: Axis) -> Axis:
    if isinstance(axis, Fixed | Group):
        return leaf
    parts = list(children(axis))
    for k, part in enumerate(parts):
        count = len(list(leaves(part)))
        if index < count:
            parts[k] = replaced(part, index, leaf)
            return type(axis)(tuple(parts))
        index -= count
    raise AssertionError("no such leaf")


@SLOW
@given(SPACES, st.randoms(use_true_random=False))
def test_one_leaf_changed_is_another_symmetry(space, dice):
    sites = [
        (name, k, index, leaf)
        for name, axes in space.items()
        for k, axis in enumerate(axes)
        for index, leaf in enumerate(leaves(axis))
    ]
    everywhere = [leaf for *_, leaf in sites]
    for name, k, index, leaf in sites:
        outer = any(isinstance(other, Group) and leaf.name in other.within for other in everywhere)
        if leaf.size < 2 or outer or not space.shapes[name][k]:
            continue
        changes: list[Axis] = [Group("new", leaf.size)] if isinstance(leaf, Fixed) else [Fixed(leaf.size)]
        if isinstance(leaf, Group) and everywhere.count(leaf) > 1:
            changes.append(Group("new", leaf.size, leaf.within))
        axes = list(space[name])
        axes[k] = replaced(axes[k], index, dice.choice(changes))
        assert not space.same_symmetry(WeightSpace({**dict(space.items()), name: axes}))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("h:4+h:4+h:4", "3*h:4"),
        ("(h:4+2)*9", "h:4*9+18"),
        ("2*(h:4+k:3)", "h:4+k:3+(h:4+k:3)"),
        ("3*h:4*2*5", "(3*h:4)*10"),
        ("2*3*h:4", "h:4+5*h:4"),
        ("h:1*3", "3"),
        ("in=3+4", "7"),
        ("H:2*(d[H]:3+d[H]:3)", "H:2*2*d[H]:3"),
        ("H:1*d[H]:3", "d:3"),
        ("0+h:3", "h:3*1"),
        ("h:0*3+k:2", "k:2"),
        ("H:2*K:3*d[H,K]:4", "H:2*K:3*d[K,H]:4"),
    ],
)
def test_these_are_the_same(one, two):
    assert WeightSpace({"w": one}).same_symmetry(WeightSpace({"w": two}))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("h:4+h:4", "h:4+k:4"),
        ("h:4*2", "2*h:4"),
        ("h:4", "4"),
        ("h:4, h:4", "h:4, k:4"),
        ("H:2*d[H]:3", "H:2*d:3"),
        ("H:2*K:3*d[H,K]:4", "H:2*K:3*d[H]:4"),
        ("h:6", "h:2*k:3"),
        ("h:4+h:4+k:4", "h:4+k:4+h:4"),
        ("h:4, 3", "h:4"),
    ],
)
def test_these_are_not(one, two):
    assert not WeightSpace({"w": one}).same_symmetry(WeightSpace({"w": two}))


def test_names_of_parameters_and_buffers_count():
    space = WeightSpace({"w": "h:4", "v": "k:4"}, {"b": "h:4"})
    assert space.same_symmetry(WeightSpace({"v": "a:4", "w": "b:4"}, {"b": "b:4", "fixed": "in=3"}))
    assert not space.same_symmetry(WeightSpace({"v": "a:4", "w": "b:4"}, {"b": "a:4"}))
    assert not space.same_symmetry(WeightSpace({"v": "a:4", "w": "b:4"}))
    assert not space.same_symmetry(WeightSpace({"w": "a:4", "u": "b:4"}, {"b": "a:4"}))
    assert WeightSpace({}).same_symmetry(WeightSpace({}))


# --- git-re-basin's form ---------------------------------------------------------------------------------------------


def test_axes_to_perm_is_what_git_re_basin_writes_by_hand():
    """mlp_permutation_spec(2) there, with PyTorch's (out, in) and the permutations' names as here."""
    space = WeightSpace.linear_stack({"0.w": (8, 3), "0.b": (8,), "1.w": (5, 8), "1.b": (5,), "2.w": (2, 5)})
    axes = {"0.w": ("h0", None), "0.b": ("h0",), "1.w": ("h1", "h0"), "1.b": ("h1",), "2.w": (None, "h1")}
    assert space.axes_to_perm(strict=True) == axes
    assert space.perm_to_axes() == {
        "h0": [("0.w", 0), ("0.b", 0), ("1.w", 1)],
        "h1": [("1.w", 0), ("1.b", 0), ("2.w", 1)],
    }


def test_what_one_permutation_an_axis_cannot_say_is_left_out_everywhere():
    space = WeightSpace(
        {"a": "h:4, 3", "b": "2, h:4*9", "c": "H:2, d[H]:3", "d": "r:5, H:2*d[H]:3", "e": "r:5+r:5", "f": "z:6"},
        {"n": "z:6, r:5"},
    )
    said = space.axes_to_perm()
    assert set(itertools.chain.from_iterable(said.values())) == {"z", None}
    assert said["f"] == ("z",) and said["n"] == ("z", None)
    assert {name: len(axes) for name, axes in said.items()} == {"a": 2, "b": 2, "c": 2, "d": 2, "e": 1, "f": 1, "n": 2}
    with pytest.raises(InvalidInput, match=r"strict: the groups \['h', 'd', 'H', 'r'\]"):
        space.axes_to_perm(strict=True)


def test_fixed_axes_that_groups_depend_on_keep_a_name():
    space = WeightSpace({"w": "E=3*d[E]:4, in=2", "v": "3, E=3*d[E]:4"})
    assert space.canonical() == WeightSpace({"w": "g0=3*g1[g0]:4, 2", "v": "3, g0=3*g1[g0]:4"})
    assert space.same_symmetry(WeightSpace({"w": "K=3*h[K]:4, 2", "v": "a=3, K=3*h[K]:4"}))
    assert not space.same_symmetry(WeightSpace({"w": "K=3*h[K]:4, 2", "v": "K=3, L=3*i[L]:4"}))
    assert not space.same_symmetry(WeightSpace({"w": "K:3*h[K]:4, 2", "v": "3, K:3*h[K]:4"}))
    assert not space.same_symmetry(WeightSpace({"w": "3*h:4, 2", "v": "3, 3*h:4"}))
    assert WeightSpace({"w": "E=1*d[E]:4"}).same_symmetry(WeightSpace({"w": "d:4"}))
