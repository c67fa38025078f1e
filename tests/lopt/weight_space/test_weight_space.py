"""Weight spaces: the text form, the checks, and the action of permutations against plain indexing."""

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from lopt import InvalidInput, WeightSpace
from lopt.axes import Axis, Concatenation, Fixed, Group, Product

SLOW = settings(max_examples=60, deadline=None, derandomize=True)

HEAD = Group("H", 2)
LEAVES: list[Axis] = [
    Fixed(0),
    Fixed(1),
    Fixed(3),
    Fixed(4, "in"),
    Group("h", 3),
    Group("layers.0.k", 2),
    HEAD,
    Product((HEAD, Group("d", 3, ("H",)))),
    Product((Product((HEAD, Fixed(2))), Group("d", 3, ("H",)))),
    Product((HEAD, Group("k.x", 2), Group("e", 2, ("H", "k.x")))),
]
AXES = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.builds(
        lambda kind, parts: kind(tuple(parts)),
        st.sampled_from([Product, Concatenation]),
        st.lists(inner, min_size=2, max_size=3),
    ),
    max_leaves=4,
)
SPACES = st.dictionaries(st.sampled_from(["w", "b.0", "it's"]), st.lists(AXES, max_size=2), max_size=3).map(WeightSpace)


def ids(space: WeightSpace) -> dict[str, torch.Tensor]:
    """Tensors whose every entry is different."""
    return {name: torch.arange(torch.Size(shape).numel()).reshape(shape) for name, shape in space.shapes.items()}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- a value ---------------------------------------------------------------------------------------------------------


@SLOW
@given(SPACES)
def test_text_and_copies_are_the_same_value(space):
    for same in (
        eval(repr(space), {"WeightSpace": WeightSpace}),
        pickle.loads(pickle.dumps(space)),
        copy.deepcopy(space),
        copy.copy(space),
    ):
        assert same == space
        assert hash(same) == hash(space)
        assert same.groups == space.groups
        assert repr(same) == repr(space)


def test_different_spaces_differ():
    one = WeightSpace({"w": "h:4, 3", "b": "h:4"})
    others = [
        WeightSpace({"w": "h:4, k:3", "b": "h:4"}),
        WeightSpace({"w": "h:4, in=3", "b": "h:4"}),
        WeightSpace({"b": "h:4", "w": "h:4, 3"}),
        WeightSpace({"w": "h:4, 3"}),
    ]
    assert all(one != other for other in others)
    assert one != "WeightSpace"
    assert len({one, *others, WeightSpace({"w": "h:4, 3", "b": "h:4"})}) == 5


def test_a_space_is_frozen():
    space = WeightSpace({"w": "h:4"})
    with pytest.raises(AttributeError, match="frozen"):
        space.groups = {}


def test_spaces_are_free_in_the_text():
    text = "  H:4 * d[ H ]:8+ ( in = 3 ) ,2*(h:3+1)"
    assert repr(WeightSpace({"w": text})) == "WeightSpace({'w': 'H:4*d[H]:8+in=3, 2*(h:3+1)'})"
    assert WeightSpace({"scalar": ""}).shapes == {"scalar": ()}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("h:-1", "cannot read 'h:-1'"),
        ("h", "cannot read 'h'.*An axis is written as"),
        ("h:4 in=", "cannot read 'in='"),
        ("2x:4", "unexpected 'x:4'"),
        ("h:4,,3", "an axis is missing"),
        ("h:4+", "an axis is missing"),
        ("*3", "an axis is missing"),
        ("(h:4", "a parenthesis is not closed"),
        ("h:4)", r"unexpected '\)'"),
        ("h:4 5", "unexpected '5'"),
    ],
)
def test_text_that_does_not_parse(text, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        WeightSpace({"w": text})


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"w": "h:4", "b": "h:5"}, "parameter 'b': axis 'h' is h:5 here and h:4 elsewhere"),
        ({"w": "H:2*d[H]:3", "b": "d:3"}, r"axis 'd' is d:3 here and d\[H\]:3 elsewhere"),
        ({"w": "h:4", "b": "h=4"}, "axis 'h' is h=4 here and h:4 elsewhere"),
        ({"w": "in=4, in=5"}, "axis 'in' is in=5 here and in=4 elsewhere"),
        ({"w": "H:2*d[H]:3", "b": "d[H]:3"}, r"parameter 'b': group 'd' depends on \['H'\], absent"),
        ({"w": "(H:2+1), d[H]:3"}, r"depends on \['H'\], absent"),
        ({"w": "a[b]:2*b[a]:2"}, "which depend on"),
        ({"w": "a:2*b[a]:2*c[b]:2"}, r"group 'c' depends on \['b'\], which depend on \['a'\]"),
    ],
)
def test_spaces_that_are_no_symmetry(parameters, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        WeightSpace(parameters)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fixed(-1),
        lambda: Fixed(3, "two words"),
        lambda: Group("", 3),
        lambda: Group("2h", 3),
        lambda: Group("h", 3, ("a,b",)),
        lambda: Product((Fixed(3),)),
        lambda: Concatenation(()),
    ],
)
def test_axes_that_would_not_read_back(make):
    with pytest.raises(InvalidInput):
        make()


# --- making one from another -----------------------------------------------------------------------------------------


def test_from_shapes_shares_nothing():
    space = WeightSpace.from_shapes({"w": torch.zeros(4, 4), "s": (), "b": torch.Size([4])})
    assert space == WeightSpace({"w": "g0:4, g1:4", "s": "", "b": "g2:4"})


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (
            {"0.w": (8, 3), "0.b": (8,), "1.w": (5, 8), "1.b": (5,), "2.w": (2, 5), "2.b": (2,)},
            {
                "0.w": "h0:8, in=3",
                "0.b": "h0:8",
                "1.w": "h1:5, h0:8",
                "1.b": "h1:5",
                "2.w": "out=2, h1:5",
                "2.b": "out=2",
            },
        ),
        ({"0.w": (8, 3), "1.w": (2, 8), "1.b": (2,)}, {"0.w": "h0:8, in=3", "1.w": "out=2, h0:8", "1.b": "out=2"}),
        ({"w": (2, 3)}, {"w": "out=2, in=3"}),
    ],
)
def test_linear_stack(shapes, expected):
    assert WeightSpace.linear_stack(shapes) == WeightSpace(expected)


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ({"0.b": (8,), "0.w": (8, 3)}, r"'0.b' has shape \(8,\).*wants \(out, in\) here"),
        ({"0.w": (8, 3), "0.b": (7,)}, r"'0.b' has shape \(7,\).*wants \(8,\)"),
        ({"0.w": (8, 3), "1.w": (2, 7)}, r"'1.w' has shape \(2, 7\).*wants \(2, 8\)"),
        ({"conv": (8, 3, 3, 3)}, r"'conv' has shape \(8, 3, 3, 3\)"),
        ({"0.w": (8, 3), "temperature": ()}, r"'temperature' has shape \(\)"),
    ],
)
def test_shapes_that_are_no_linear_stack(shapes, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        WeightSpace.linear_stack(shapes)


def test_relaxed_frees_named_axes_only():
    space = WeightSpace({"w": "h:4*9, in=3", "v": "2*(in=3+h:4)"})
    assert space.relaxed() == WeightSpace({"w": "h:4*9, in:3", "v": "2*(in:3+h:4)"})


def test_independent_drops_dependence():
    space = WeightSpace({"w": "H:2*(d[H]:3+e[H]:1), in=3"})
    assert space.independent() == WeightSpace({"w": "H:2*(d:3+e:1), in=3"})


def test_restrict_keeps_the_order_of_the_space():
    space = WeightSpace({"w": "h:4, in=3", "b": "h:4", "v": "out=2, h:4"})
    assert space.restrict(["v", "w"]) == WeightSpace({"w": "h:4, in=3", "v": "out=2, h:4"})
    assert list(space.restrict(["b"]).groups) == ["h"]
    with pytest.raises(InvalidInput, match=r"\['x'\] are not in this WeightSpace"):
        space.restrict(["x", "w"])


def test_check():
    space = WeightSpace({"w": "h:4, in=3", "b": "h:4"})
    space.check({"b": torch.zeros(4), "w": (4, 3)})
    with pytest.raises(InvalidInput, match=r"missing \['b'\], not in the space \['c'\]"):
        space.check({"w": (4, 3), "c": (4,)})
    with pytest.raises(InvalidInput, match=r"'w' has shape \(3, 4\), the space says \(4, 3\)"):
        space.check({"w": (3, 4), "b": (4,)})


# --- permutations ----------------------------------------------------------------------------------------------------


def test_random_permutations_are_permutations_and_seeded():
    space = WeightSpace({"w": "H:3*K:2*d[H,K]:5, h:7, in=4, z:0"})
    drawn = space.random_permutations(generator())
    assert {name: tuple(table.shape) for name, table in drawn.items()} == {
        "H": (3,), "K": (2,), "d": (3, 2, 5), "h": (7,), "z": (0,),
    }  # fmt: skip
    for table in drawn.values():
        assert (table.sort(-1).values == torch.arange(table.shape[-1])).all()
    assert len({tuple(row) for row in drawn["d"].reshape(6, 5).tolist()}) > 1
    again, other = space.random_permutations(generator()), space.random_permutations(generator(1))
    assert all(torch.equal(again[k], drawn[k]) for k in drawn)
    assert not torch.equal(other["h"], drawn["h"])


def test_every_permutation_is_drawn():
    space, g = WeightSpace({"w": "h:3"}), generator()
    assert len({tuple(space.random_permutations(g)["h"].tolist()) for _ in range(100)}) == 6


@SLOW
@given(SPACES)
def test_permuting_moves_entries_and_the_identity_moves_none(space):
    x, permutations = ids(space), space.random_permutations(generator())
    moved = space.permute(x, permutations)
    for name in space:
        assert moved[name].shape == x[name].shape
        assert sorted(moved[name].flatten().tolist()) == x[name].flatten().tolist()
    still = {k: torch.arange(t.shape[-1]).expand(t.shape) for k, t in permutations.items()}
    assert all(torch.equal(t, x[name]) for name, t in space.permute(x, still).items())


@SLOW
@given(SPACES.map(WeightSpace.independent))
def test_permuting_twice_is_permuting_by_the_composition(space):
    x, g = ids(space), generator()
    p, q = space.random_permutations(g), space.random_permutations(g)
    twice = space.permute(space.permute(x, p), q)
    once = space.permute(x, {k: p[k][q[k]] for k in p})
    assert all(torch.equal(twice[name], once[name]) for name in space)


def test_plain_groups_are_plain_indexing():
    space = WeightSpace({"w": "h:4, in=3", "hh": "h:4, h:4", "b": "h:4", "s": "", "f": "2, 3"})
    x, p = ids(space), space.random_permutations(generator())
    h = p["h"]
    expected = {"w": x["w"][h], "hh": x["hh"][h][:, h], "b": x["b"][h], "s": x["s"], "f": x["f"]}
    moved = space.permute(x, p)
    assert all(torch.equal(moved[name], expected[name]) for name in space)
    assert not torch.equal(moved["w"], x["w"])


def test_product_and_concatenation_are_plain_indexing():
    space = WeightSpace({"flat": "2, c:3*4", "gates": "h:5+h:5+2, c:3", "mixed": "2*(c:3+1)"})
    x, p = ids(space), space.random_permutations(generator(1))
    c, h = p["c"], p["h"]
    rows = torch.cat([h, 5 + h, torch.tensor([10, 11])])
    expected = {
        "flat": x["flat"].reshape(2, 3, 4)[:, c].reshape(2, 12),
        "gates": x["gates"][rows][:, c],
        "mixed": x["mixed"].reshape(2, 4)[:, [*c.tolist(), 3]].flatten(),
    }
    moved = space.permute(x, p)
    assert all(torch.equal(moved[name], expected[name]) for name in space)


@pytest.mark.parametrize("text", ["H:3*d[H]:4, in=2", "H:3, d[H]:4, in=2", "d[H]:4, in=2, H:3", "d[H]:4*H:3, in=2"])
def test_dependent_groups_permute_for_each_position_of_the_outer_one(text):
    space = WeightSpace({"w": text})
    x, p = ids(space)["w"], space.random_permutations(generator())
    head_first = text.startswith("H")
    y = space.permute({"w": x}, p)["w"]
    sizes = {"H:3*d": (3, 4, 2), "H:3, ": (3, 4, 2), "d[H]:4,": (4, 2, 3), "d[H]:4*": (4, 3, 2)}
    shape = next(size for start, size in sizes.items() if text.startswith(start))
    x, y = x.reshape(shape), y.reshape(shape)
    if not head_first:
        order = (2, 0, 1) if shape == (4, 2, 3) else (1, 0, 2)
        x, y = x.permute(order), y.permute(order)
    for i, j, k in itertools.product(range(3), range(4), range(2)):
        assert y[i, j, k] == x[p["H"][i], p["d"][i, j], k]


def test_dependent_groups_compose():
    space = WeightSpace({"w": "H:3*d[H]:4, in=2"})
    x, g = ids(space), generator()
    p, q = space.random_permutations(g), space.random_permutations(g)
    composed = {"H": p["H"][q["H"]], "d": torch.stack([p["d"][q["H"][i]][q["d"][i]] for i in range(3)])}
    assert torch.equal(space.permute(space.permute(x, p), q)["w"], space.permute(x, composed)["w"])


def test_batch_axes_and_channels():
    space = WeightSpace({"w": "H:2*d[H]:3, h:4"})
    p = space.random_permutations(generator())
    x = torch.randn(5, 7, 6, 4, 2, generator=generator())
    y = space.permute({"w": x}, p, channels=True)["w"]
    for b, c in ((0, 0), (4, 1)):
        one = space.permute({"w": x[b, 3, ..., c]}, p)["w"]
        assert torch.equal(y[b, 3, ..., c], one)
        assert torch.equal(space.permute({"w": x[..., c]}, p)["w"][b, 3], one)


@pytest.mark.parametrize(
    ("tensors", "channels", "complaint"),
    [
        ({"v": torch.zeros(4, 3)}, False, "'v' is not in this WeightSpace"),
        ({"w": torch.zeros(5, 3)}, False, r"'w' has shape \(5, 3\)"),
        ({"w": torch.zeros(3)}, False, r"'w' has shape \(3,\)"),
        ({"w": torch.zeros(4, 3)}, True, "channels"),
    ],
)
def test_tensors_of_another_space(tensors, channels, complaint):
    space = WeightSpace({"w": "h:4, in=3"})
    with pytest.raises(InvalidInput, match=complaint):
        space.permute(tensors, space.random_permutations(), channels)


def test_an_mlp_computes_the_same_after_a_permutation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2)).double()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    space, x = WeightSpace.linear_stack(weights), torch.randn(8, 3, dtype=torch.float64)
    moved = space.permute(weights, space.random_permutations(generator()))
    assert not torch.allclose(moved["2.weight"], weights["2.weight"])
    torch.testing.assert_close(functional_call(model, moved, x), functional_call(model, weights, x))
    uncoupled = WeightSpace.from_shapes(weights)
    broken = uncoupled.permute(weights, uncoupled.random_permutations(generator()))
    assert not torch.allclose(functional_call(model, broken, x), functional_call(model, weights, x))


def test_attention_computes_the_same_after_a_permutation_within_each_head():
    space = WeightSpace({"qkv": "H:2*d[H]:3 + H:2*d[H]:3 + H:2*e[H]:4, in=5", "o": "in=5, H:2*e[H]:4"})
    g = generator()
    weights = {k: torch.randn(s, generator=g, dtype=torch.float64) for k, s in space.shapes.items()}
    x = torch.randn(7, 5, generator=g, dtype=torch.float64)

    def attention(w):
        q, k, v = (part.unflatten(-1, (2, -1)) for part in (x @ w["qkv"].T).split([6, 6, 8], -1))
        weight = torch.einsum("shd,thd->hst", q, k).softmax(-1)
        return torch.einsum("hst,the->she", weight, v).flatten(1) @ w["o"].T

    permutations = space.random_permutations(g)
    moved = space.permute(weights, permutations)
    assert not torch.equal(permutations["d"][0], permutations["d"][1])
    assert not torch.allclose(moved["qkv"], weights["qkv"])
    torch.testing.assert_close(attention(moved), attention(weights))


# --- buffers ---------------------------------------------------------------------------------------------------------

NORM = WeightSpace(
    {"conv.weight": "c:4, in=3, 9", "norm.weight": "c:4", "head": "H:2*d[H]:3, c:4"},
    buffers={"norm.running_mean": "c:4", "table": "H:2, in=3", "both": "c:4, H:2"},
)


def test_buffers_are_part_of_the_value():
    text = (
        "WeightSpace({'conv.weight': 'c:4, in=3, 9', 'norm.weight': 'c:4', 'head': 'H:2*d[H]:3, c:4'}, "
        "buffers={'norm.running_mean': 'c:4', 'table': 'H:2, in=3', 'both': 'c:4, H:2'})"
    )
    assert repr(NORM) == text
    copies = [eval(text, {"WeightSpace": WeightSpace}), pickle.loads(pickle.dumps(NORM)), copy.deepcopy(NORM)]
    assert all(same == NORM and hash(same) == hash(NORM) and same.buffers == NORM.buffers for same in copies)
    without = WeightSpace(dict(NORM.items()))
    assert without != NORM and without.buffers == {}
    assert WeightSpace(dict(NORM.items()), dict(reversed(NORM.buffers.items()))) == NORM
    assert WeightSpace(dict(NORM.items()), {**NORM.buffers, "table": "2, in=3"}) != NORM
    assert list(NORM) == list(NORM.shapes) == ["conv.weight", "norm.weight", "head"] and len(NORM) == 3
    assert list(NORM.groups) == ["c", "H", "d"] and "table" not in NORM


def test_buffers_follow_their_groups():
    assert NORM.relaxed().buffers["table"] == (Group("H", 2), Group("in", 3))
    assert NORM.independent().buffers == NORM.buffers
    assert list(NORM.restrict(["norm.weight"]).buffers) == ["norm.running_mean"]
    assert list(NORM.restrict(["head"]).buffers) == ["norm.running_mean", "table", "both"]
    with pytest.raises(InvalidInput, match=r"no parameter has the groups \['k'\]"):
        WeightSpace({"w": "h:4"}, {"b": "k:4"})
    with pytest.raises(InvalidInput, match=r"\['w'\] are parameters"):
        WeightSpace({"w": "h:4"}, {"w": "h:4"})
    with pytest.raises(InvalidInput, match="axis 'h' is h:5 here and h:4 elsewhere"):
        WeightSpace({"w": "h:4"}, {"b": "h:5"})


def test_buffers_are_permuted_by_the_same_permutations():
    p = NORM.random_permutations(generator())
    mean, table = torch.randn(4), torch.randn(2, 3)
    moved = NORM.permute({"norm.running_mean": mean, "table": table, "norm.weight": mean}, p)
    assert torch.equal(moved["norm.running_mean"], mean[p["c"]]) and torch.equal(moved["table"], table[p["H"]])
    assert torch.equal(moved["norm.weight"], moved["norm.running_mean"])
    with pytest.raises(InvalidInput, match="'norm.running_var' is not in this WeightSpace"):
        NORM.permute({"norm.running_var": mean}, p)


def test_a_group_that_stands_twice_is_read_at_the_nearest_place():
    """A matrix from heads of channels to heads of channels, whose axes are not merged."""
    split, merged = WeightSpace({"w": "H:3, d[H]:4, H:3, d[H]:4"}), WeightSpace({"w": "H:3*d[H]:4, H:3*d[H]:4"})
    x, p = torch.randn(12, 12), split.random_permutations(generator())
    moved = split.permute({"w": x.reshape(3, 4, 3, 4)}, p)["w"]
    assert torch.equal(moved.reshape(12, 12), merged.permute({"w": x}, p)["w"])
