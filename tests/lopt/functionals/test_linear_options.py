"""The options of EquivariantLinear: which terms, sharing by role, the initialisation, a width for the global terms."""

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from lopt import InvalidInput, WeightSpace
from lopt.functionals import EquivariantLinear, Term
from lopt.functionals.basis import kind_of
from lopt.testing import assert_equivariant, equivariance_error


def stack(*widths: int) -> WeightSpace:
    """Linear layers of these widths, inputs and outputs permuted."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n, m) in enumerate(itertools.pairwise(widths)):
        shapes |= {f"{i}.weight": (m, n), f"{i}.bias": (m,)}
    return WeightSpace.linear_stack(shapes).relaxed()


CONVOLUTIONS = {
    "c1.weight": "a:6, in:3, 3, 3",
    "c1.bias": "a:6",
    "c2.weight": "b:8, a:6, 3, 3",
    "c2.bias": "b:8",
    "fc.weight": "out:4, b:8",
    "fc.bias": "out:4",
}
SPACES = {
    "narrow": stack(3, 4, 2),
    "wide": stack(100, 64, 10),
    "deep": stack(2, 8, 8, 8, 8, 1),
    "convolutions": WeightSpace(CONVOLUTIONS),
    "recurrent": WeightSpace({"ih": "h:12, in=2", "hh": "h:12, h:12", "b": "h:12"}),
    "residual": WeightSpace({"a": "h:8, h:8", "b": "h:8, k:6", "c": "h:8, k:6", "d": "k:6, h:8", "s": ""}),
}


@pytest.fixture(params=SPACES)
def space(request) -> WeightSpace:
    return SPACES[request.param]


def features(space: WeightSpace, channels: int, *batch: int, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(*batch, *s, channels, generator=g, dtype=torch.float64) for k, s in space.shapes.items()}


def layer_of(space: WeightSpace, c_in: int = 2, c_out: int = 3, **options) -> EquivariantLinear:
    torch.manual_seed(0)
    layer = EquivariantLinear(space, c_in, c_out, **options).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    return layer


# --- which terms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", ["pointwise", "tensor", "shared", "global", ["pointwise", "global"], []])
def test_the_terms_of_some_kinds(space, kinds):
    full, part = layer_of(space), layer_of(space, terms=kinds)
    names = [kinds] if isinstance(kinds, str) else kinds
    assert set(part.terms) == {term for term in full.terms if kind_of(term, full.atoms) in names}
    counts = Counter(kind_of(term, part.atoms) for term in part.terms)
    assert all(f"{count} {kind}" in repr(part) for kind, count in counts.items())
    assert_equivariant(part, space, features(space, 2), channels=True)


@pytest.mark.parametrize("sharing", ["tensor", "role"])
def test_the_layer_is_the_sum_of_its_parts(space, sharing):
    """With the coefficients of each term copied across, the parts add up to the whole."""
    torch.manual_seed(0)
    whole = EquivariantLinear(space, 2, 3, bias=False, sharing=sharing).double()
    parts = [EquivariantLinear(space, 2, 3, False, terms=k, sharing=sharing).double() for k in _halves(whole)]
    if sharing == "tensor":
        theta = dict(_blocks(whole))
        for part in parts:
            for term, block in _blocks(part):
                block.copy_(theta[term])
    else:
        for part in parts:  # a role that loses some of its tensors is the mean of fewer: keep each role in one part
            for role, weight in part.weights.items():
                weight.data.copy_(whole.weights[role])
    x = features(space, 2, 2)
    total = {name: sum(part(x)[name] for part in parts) for name in space}
    for name, y in whole(x).items():
        torch.testing.assert_close(total[name], y)


def _halves(layer: EquivariantLinear):
    half = set(layer.terms[::2]) if layer._options["sharing"] == "tensor" else {t for t in layer.terms if t.key}
    return [lambda term: term in half, lambda term: term not in half]


@torch.no_grad()
def _blocks(layer: EquivariantLinear):
    """Each term with its block of coefficients."""
    for product, weight in zip(layer._products, layer.weights, strict=True):
        terms = product.terms()
        for w in product.writings:
            for r in product.readings:
                yield next(terms), weight.data[r.start : r.stop, w.start : w.stop]


def test_a_predicate_of_a_term():
    def within_rows(term: Term) -> bool:
        return len(term.key) == 1

    layer = layer_of(SPACES["narrow"], terms=within_rows, bias=False)
    assert layer.terms
    assert all(len(term.key) == 1 for term in layer.terms)


def test_without_terms_there_is_only_the_bias():
    layer = layer_of(SPACES["narrow"], terms=[])
    y = layer(features(SPACES["narrow"], 2, 3))
    assert all(torch.equal(t, t[..., :1, :].expand_as(t)) for t in y.values())
    assert layer_of(SPACES["narrow"], terms=[], bias=False)(features(SPACES["narrow"], 2))["0.bias"].eq(0).all()


# --- sharing by role -------------------------------------------------------------------------------------------------


def test_role_sharing_is_equivariant_and_knows_the_coupling(space):
    layer = layer_of(space, sharing="role")
    assert_equivariant(layer, space, features(space, 2), channels=True)
    apart = WeightSpace.from_shapes(space.shapes)
    assert max(equivariance_error(layer, apart, features(space, 2), channels=True).values()) > 1e-2


@pytest.mark.parametrize("widths", [(3, 4, 2), (5, 7, 6, 7, 8, 4, 2), (30, 30)])
def test_one_set_of_parameters_serves_stacks_of_any_depth(widths):
    layer = layer_of(stack(3, 5, 4, 2), sharing="role")
    other = layer.on(stack(*widths))
    assert other.space == stack(*widths)
    assert all(other.weights[role] is layer.weights[role] for role in other.weights)
    assert_equivariant(other, other.space, features(other.space, 2), channels=True)


def test_the_number_of_parameters_does_not_depend_on_depth():
    counts = {sum(p.numel() for p in layer_of(stack(*[9] * n), sharing="role").parameters()) for n in (5, 9, 17)}
    assert len(counts) == 1


def test_one_set_of_parameters_serves_convolutions_and_stacks():
    space = WeightSpace(CONVOLUTIONS)
    layer = layer_of(WeightSpace({**CONVOLUTIONS, "w": "n:5, m:4", "v": "l:3, n:5", "b": "n:5"}), sharing="role")
    assert_equivariant(layer.on(space), space, features(space, 2), channels=True)
    deep = stack(3, 7, 2)
    assert_equivariant(layer.on(deep), deep, features(deep, 2), channels=True)


def test_gradients_reach_the_shared_parameters():
    layer = layer_of(stack(3, 5, 4, 2), sharing="role")
    other = layer.on(stack(4, 4))
    torch.stack([y.sum() for y in other(features(other.space, 2)).values()]).sum().backward()
    assert all(other.weights[role].grad is layer.weights[role].grad for role in other.weights)
    assert any(weight.grad is not None for weight in layer.parameters())


def test_renaming_changes_nothing():
    """Roles know axes, not names: a space with its groups in another alphabetical order gives the same values."""
    layer = layer_of(WeightSpace({"a": "x:3, y:4", "b": "x:3", "c": "z:2, x:3", "d": "x:3, y:4"}), sharing="role")
    renamed = layer.on(WeightSpace({"a": "q:3, p:4", "b": "q:3", "c": "a:2, q:3", "d": "q:3, p:4"}))
    x = features(layer.space, 2)
    for name, y in renamed(x).items():
        torch.testing.assert_close(y, layer(x)[name])


def test_equal_tensors_are_treated_equally_and_told_apart():
    space = WeightSpace({"a": "h:3, k:4", "b": "h:3, k:4"})
    layer, x = layer_of(space, sharing="role"), features(space, 2)
    y, swapped = layer(x), layer({"a": x["b"], "b": x["a"]})
    torch.testing.assert_close(swapped["a"], y["b"])
    assert not torch.allclose(y["a"], y["b"])


def test_roles_that_are_missing_are_named():
    with pytest.raises(InvalidInput, match=r"roles without coefficients: .*\*9"):
        layer_of(stack(3, 4, 2), sharing="role").on(WeightSpace(CONVOLUTIONS))
    with pytest.raises(InvalidInput, match="sharing='role'"):
        layer_of(stack(3, 4, 2)).on(stack(3, 4, 2))


def test_moving_to_another_space_leaves_the_random_state():
    layer = layer_of(stack(3, 4, 2), sharing="role")
    before = torch.random.get_rng_state()
    layer.on(stack(3, 4, 4, 2))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- a width for the global terms ------------------------------------------------------------------------------------


def test_a_global_width_makes_coefficients_linear_in_depth():
    def count(depth: int, **options) -> int:
        layer = EquivariantLinear(stack(*[8] * (depth + 1)), 4, 4, **options)
        return sum(p.numel() for p in layer.parameters())

    assert count(12, global_width=8) - count(8, global_width=8) == count(8, global_width=8) - count(4, global_width=8)
    assert count(12) - count(8) > count(8) - count(4)


def test_a_global_width_is_a_factorisation():
    space = SPACES["deep"]
    thin, full = layer_of(space, global_width=3), layer_of(space)
    own = dict(thin.named_parameters())
    last = len(full.weights)
    with torch.no_grad():
        for i, weight in enumerate(full.weights):
            shared = own[f"weights.{i}"] if i else own["weights.0"] @ own[f"weights.{last}"]
            weight.copy_(shared)
        assert full.bias is not None
        full.bias.copy_(own["bias"])
    x = features(space, 2, 3)
    for name, y in thin(x).items():
        torch.testing.assert_close(y, full(x)[name])


# --- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"sharing": "role"}, {"global_width": 16}, {"terms": ["tensor", "shared"]}], ids=str
)
def test_the_variance_of_independent_features_stays_at_one(space, options):
    total, written = dict.fromkeys(space, 0.0), set()
    for seed in range(12):
        torch.manual_seed(seed)
        layer = EquivariantLinear(space, 16, 32, **options).double()
        for name, y in layer(features(space, 16, 8, seed=seed)).items():
            total[name] += float(y.detach().square().mean()) / 12
        written = {layer.atoms[term.writing.atom].parameter for term in layer.terms}
    # One standard deviation serves all tensors of a role, whose poolings have different widths.
    low, high = (0.4, 2.0) if options.get("sharing") == "role" else (0.75, 1.3)
    assert all(low < total[name] < high for name in written), total


@pytest.mark.parametrize("options", [{}, {"sharing": "role"}, {"global_width": 4}], ids=str)
def test_pointwise_initialisation(space, options):
    """Every entry of the output depends on the same entry of the input, and on nothing else."""
    torch.manual_seed(0)
    layer = EquivariantLinear(space, 16, 16, init="pointwise", **options).double()
    x = features(space, 16)
    y = layer(x)
    for name in space:
        others = {other: t if other == name else torch.randn_like(t) for other, t in x.items()}
        torch.testing.assert_close(layer(others)[name], y[name])
        assert 0.5 < float(y[name].square().mean()) < 2 or y[name].numel() < 200
    assert layer.bias is None or layer.bias.eq(0).all()


def test_constant_features_grow_by_no_more_than_the_number_of_terms(space):
    layer = EquivariantLinear(space, 16, 16).double()
    ones = {
        name: torch.randn(16, 16, dtype=torch.float64).mean(0).expand_as(x) * 4
        for name, x in features(space, 16).items()
    }
    for name, y in layer(ones).items():
        terms = sum(layer.atoms[term.writing.atom].parameter == name for term in layer.terms)
        assert float(y.square().mean()) < 4 * terms


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"terms": "pointwyse"}, "unknown kind of term 'pointwyse'; did you mean 'pointwise'"),
        ({"sharing": "layer"}, "sharing: 'layer'; known are tensor, role"),
        ({"init": "zeros"}, "init: 'zeros'; known are variance, pointwise"),
        ({"global_width": 0}, "global_width: 0"),
        ({"global_width": 4, "sharing": "role"}, "global_width: 4; leave it out"),
    ],
)
def test_options_that_cannot_be(options, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        EquivariantLinear(stack(3, 4, 2), 2, 2, **options)


def test_too_wide_for_full_matrices():
    space = WeightSpace.linear_stack({"w": (128, 784), "v": (10, 128)})
    with pytest.raises(InvalidInput, match=r"coefficients, over 50,000,000.*space\.relaxed\(\).*encodings"):
        EquivariantLinear(space, 16, 16)
