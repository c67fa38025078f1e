"""Weight-space attention: against loops over tokens, against nfn's layer, and that its symmetry is no larger."""

import itertools
import math
from typing import TypeVar

import pytest
import torch
from nfn.common import ArraySpec, NetworkSpec, WeightSpaceFeatures
from nfn.layers import NPAttention
from torch import Tensor, nn

from lopt import WeightSpace
from lopt.axes import Group
from lopt.functionals import Pointwise, mlp
from lopt.functionals.attention import WeightSpaceAttention, nft_block
from lopt.functionals.encodings import LayerEncoding, PositionEncoding
from lopt.functionals.pool import InvariantPool
from lopt.testing import assert_equivariant, equivariance_error

M = TypeVar("M", bound=nn.Module)

SPACES = {
    "linear stack": {"0.weight": "h:4, in=3", "0.bias": "h:4", "2.weight": "out=2, h:4", "2.bias": "out=2"},
    "convolution": {"conv.weight": "c:3, 2, 2, k:2", "conv.bias": "c:3", "fc.weight": "out=2, c:3*4"},
    "recurrent": {"ih": "h:3, in=2", "hh": "h:3, h:3", "b": "h:3", "t": ""},
    "rank 3": {"cube": "h:2, k:3, h:2", "b": "k:3"},
}
SHARING = ("tensor", "all")


def features(space: WeightSpace, channels: int, *batch: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {k: torch.randn(*batch, *s, channels, generator=g, dtype=torch.float64) for k, s in space.shapes.items()}


def randomised(module: M) -> M:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, std=0.7)
    return module.double()


@pytest.fixture(params=SPACES)
def space(request) -> WeightSpace:
    return WeightSpace(SPACES[request.param])


# --- slow twins ------------------------------------------------------------------------------------------------------


def slow_attend(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    scores = [math.exp(float((query * key).sum()) / math.sqrt(key.numel())) for key in keys]
    return sum((s * v for s, v in zip(scores, values, strict=True)), torch.zeros(())) / sum(scores)


def slow_projection(layer: WeightSpaceAttention, x: dict[str, Tensor]) -> list[dict[tuple[int, ...], Tensor]]:
    """For each atom, at each entry (the position in its groups, then the fixed position): [heads, q k v, size].

    Only for spaces without products: fixed axes are found by their place in the parameter.
    """
    found = []
    for number, atom in enumerate(layer.atoms):
        axes = layer.space[atom.parameter]
        fixed = [axis.size for axis in axes if not isinstance(axis, Group)]
        projected = {}
        for entry in itertools.product(*map(range, atom.sizes)):
            rows = []
            for taps in itertools.product(*map(range, fixed)):
                at, tap = iter(entry), iter(taps)
                rows.append(x[atom.parameter][tuple(next(at if isinstance(axis, Group) else tap) for axis in axes)])
            one = layer.sharing == "all"
            for tap, token in enumerate(rows if one else [torch.cat(rows)]):
                qkv = layer.projections[0 if one else number](token)
                projected[(*entry, tap)] = qkv.reshape(layer.heads, 3, -1)
        found.append(projected)
    return found


def slow_attention(layer: WeightSpaceAttention, x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Entry by entry, head by head."""
    projected = slow_projection(layer, x)
    mixed = [{key: torch.zeros_like(qkv[:, 0]) for key, qkv in entries.items()} for entries in projected]
    for head in range(layer.heads):
        means = [torch.stack([qkv[head] for qkv in entries.values()]).mean(0) for entries in projected]
        for mean, entries in zip(means, mixed, strict=True):
            for y in entries.values():
                y[head] += slow_attend(mean[0], [m[1] for m in means], [m[2] for m in means])
        for group in layer.space.groups.values():
            tokens = [
                [(n, (*rest[:axis], j, *rest[axis + 1 :])) for j in range(group.size)]
                for n, atom in enumerate(layer.atoms)
                for axis, name in enumerate(atom.groups)
                if name == group.name
                for rest in dict.fromkeys((*key[:axis], -1, *key[axis + 1 :]) for key in projected[n])
            ]
            q, k, v = (
                [torch.stack([projected[n][key][head, part] for n, key in t]) for t in tokens] for part in range(3)
            )
            for token, query in zip(tokens, q, strict=True):
                for (n, key), value in zip(token, slow_attend(query, k, v), strict=True):
                    mixed[n][key][head] += value
    outs = [layer.outs[0 if layer.sharing == "all" else n] for n in range(len(layer.atoms))]
    return {
        atom.parameter: torch.stack([out(y.flatten()) for y in entries.values()])
        for atom, out, entries in zip(layer.atoms, outs, mixed, strict=True)
    }


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("name", ["linear stack", "recurrent", "rank 3"])
def test_attention_is_its_slow_twin(name, sharing):
    space = WeightSpace(SPACES[name])
    layer, x = randomised(WeightSpaceAttention(space, 4, heads=2, sharing=sharing)), features(space, 4)
    with torch.no_grad():
        y, slow = layer(x), slow_attention(layer, x)
    for atom in layer.atoms:
        came = y[atom.parameter]
        if len(atom.sizes) < len(space[atom.parameter]):  # the fixed axis behind the groups, as the twin has it
            came = came.movedim(0, -2) if atom.parameter.startswith("2.") else came
        torch.testing.assert_close(came.reshape(-1), slow[atom.parameter].reshape(-1))


def test_shared_attention_is_the_layer_of_nfn():
    sizes, channels, heads = (3, 5, 4, 2), 8, 4
    theirs = NPAttention(
        NetworkSpec([ArraySpec((b, a)) for a, b in itertools.pairwise(sizes)], [ArraySpec((b,)) for b in sizes[1:]]),
        channels,
        num_heads=heads,
    ).double()
    axes = ["in=3", "a:5", "b:4", "out=2"]
    parameters = {f"w{i}": f"{axes[i + 1]}, {axes[i]}" for i in range(3)} | {f"b{i}": axes[i + 1] for i in range(3)}
    space = WeightSpace(parameters).relaxed()
    ours = WeightSpaceAttention(space, channels, heads, sharing="all").double()
    with torch.no_grad():
        ours.projections[0].load_state_dict(theirs.to_qkv.linear.state_dict())
        ours.outs[0].load_state_dict({"weight": torch.eye(channels), "bias": torch.zeros(channels)})
    x = features(space, channels, 6)
    first = {name: t.movedim(-1, 1) for name, t in x.items()}
    wanted = theirs(WeightSpaceFeatures([first[f"w{i}"] for i in range(3)], [first[f"b{i}"] for i in range(3)]))
    y = ours(x)
    for i, (weight, bias) in enumerate(wanted):
        torch.testing.assert_close(y[f"w{i}"].movedim(-1, 1), weight)
        torch.testing.assert_close(y[f"b{i}"].movedim(-1, 1), bias)


# --- symmetry --------------------------------------------------------------------------------------------------------

TINY = WeightSpace({"w": "h:2, i:2", "b": "h:2"})


def commuting(layer, space: WeightSpace, channels: int) -> set[tuple[int, ...]]:
    """All permutations of all entries, of the many that mix tensors too, that the layer commutes with."""
    total = sum(math.prod(shape) for shape in space.shapes.values())
    orders = torch.tensor(list(itertools.permutations(range(total))))
    flat = torch.randn(total, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(entries: Tensor) -> Tensor:
        parts = entries.split([math.prod(shape) for shape in space.shapes.values()], dim=-2)
        x = {
            n: p.unflatten(-2, s) if s else p.squeeze(-2) for (n, s), p in zip(space.shapes.items(), parts, strict=True)
        }
        return torch.cat([y.reshape(*entries.shape[:-2], -1, channels) for y in layer(x).values()], -2)

    with torch.no_grad():
        gap = (run(flat[orders]) - run(flat)[orders]).flatten(1).abs().amax(1)
    return {tuple(order) for order, error in zip(orders.tolist(), gap.tolist(), strict=True) if error < 1e-9}


def allowed(space: WeightSpace) -> set[tuple[int, ...]]:
    total = sum(math.prod(shape) for shape in space.shapes.values())
    ids = torch.arange(total).split([math.prod(shape) for shape in space.shapes.values()])
    named = {name: part.reshape(shape) for part, (name, shape) in zip(ids, space.shapes.items(), strict=True)}
    generator = torch.Generator().manual_seed(0)
    moved = [space.permute(named, space.random_permutations(generator)) for _ in range(100)]
    return {tuple(torch.cat([t.flatten() for t in m.values()]).tolist()) for m in moved}


@pytest.mark.parametrize("sharing", SHARING)
def test_attention_is_minimally_equivariant(sharing):
    layer = randomised(WeightSpaceAttention(TINY, 4, heads=2, sharing=sharing))
    assert len(allowed(TINY)) == 4
    assert commuting(layer, TINY, 4) == allowed(TINY)  # 4 of 720


def test_shared_attention_needs_layer_encodings_to_tell_tensors_apart():
    twins = WeightSpace({"b": "h:3", "c": "h:3"})
    layer = randomised(WeightSpaceAttention(twins, 4, sharing="all"))
    encoded = randomised(nn.Sequential(LayerEncoding(twins, 4), layer))
    assert len(commuting(layer, twins, 4)) == 12  # the two tensors may change places
    assert commuting(encoded, twins, 4) == allowed(twins)
    assert commuting(randomised(WeightSpaceAttention(twins, 4)), twins, 4) == allowed(twins)


def test_fixed_positions_stand_still_unless_all_is_shared():
    space = WeightSpace(SPACES["convolution"])
    larger = WeightSpace({"conv.weight": "c:3, x:2, y:2, k:2", "conv.bias": "c:3", "fc.weight": "out:2, c:3*z:4"})
    x = features(space, 4)
    own, shared = (randomised(WeightSpaceAttention(space, 4, sharing=sharing)) for sharing in SHARING)
    encoded = nn.Sequential(PositionEncoding(space, 4, unnamed=True), shared).double()
    for layer in (own, encoded):
        assert_equivariant(layer, space, x, channels=True)
        assert equivariance_error(layer, larger, x, channels=True)["conv.weight"] > 1e-3
    assert_equivariant(shared, larger, x, channels=True)


@pytest.mark.parametrize("sharing", SHARING)
def test_both_directions_carry_information(space, sharing):
    """A change in one tensor is seen in every other that shares a group with it, and differently by each neuron."""
    layer, x = randomised(WeightSpaceAttention(space, 4, sharing=sharing)), features(space, 4)
    before = layer(x)
    for source in space:
        changed = layer(x | {source: x[source].flip(-1)})
        for name, y in changed.items():
            assert (y - before[name]).abs().max() > 1e-6, (source, name)
            if name != source and name in ("0.bias", "conv.bias") and source in ("0.weight", "conv.weight"):
                gap = y - before[name]
                assert (gap - gap[:1]).abs().max() > 1e-6


# --- blocks and networks ---------------------------------------------------------------------------------------------


def test_a_block_is_its_formula(space):
    block, x = randomised(nft_block(space, 4, heads=2, factor=3)), features(space, 4, 2)
    (norm, attention, _), (second, pointwise, _) = (list(residual.children())[0].children() for residual in block)
    assert [p.shape[0] for p in pointwise.parameters()] == [12, 12, 4, 4]
    middle = attention(norm(x))
    middle = {name: x[name] + middle[name] for name in space}
    end = pointwise(second(middle))
    y = block(x)
    for name in space:
        torch.testing.assert_close(y[name], middle[name] + end[name])


def test_a_neural_functional_transformer():
    space = WeightSpace(SPACES["linear stack"])
    relaxed = space.relaxed()
    pool = InvariantPool(relaxed, 8, "attention")
    trunk = nn.Sequential(
        Pointwise(nn.Linear(2, 8)),
        PositionEncoding(space, 8, "sinusoidal"),
        LayerEncoding(space, 8),
        *(nft_block(relaxed, 8, heads=4, sharing="all", dropout=0.1) for _ in range(2)),
    )
    torch.manual_seed(0)
    net = nn.Sequential(trunk, pool, mlp([pool.out_features, 16, 1])).double().eval()
    x = features(space, 2, 5)
    assert_equivariant(trunk, space, x, channels=True)
    assert max(equivariance_error(trunk, relaxed, x, channels=True).values()) > 1e-3
    moved = space.permute(x, space.random_permutations(torch.Generator().manual_seed(0)), channels=True)
    torch.testing.assert_close(net(moved), net(x), rtol=1e-12, atol=1e-12)
    net.train()
    assert not torch.equal(net(x), net(x))  # dropout
    net(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_tensors_without_entries_are_left_out():
    space = WeightSpace({"w": "h:0, k:2", "b": "k:2"})
    for sharing in SHARING:
        layer = randomised(WeightSpaceAttention(space, 4, sharing=sharing))
        alone = WeightSpaceAttention(space.restrict(["b"]), 4, sharing=sharing).double()
        alone.projections[0].load_state_dict(layer.projections[-1].state_dict())
        alone.outs[0].load_state_dict(layer.outs[-1].state_dict())
        y = layer(features(space, 4))
        assert y["w"].shape == (0, 2, 4)
        torch.testing.assert_close(y["b"], alone({"b": features(space, 4)["b"]})["b"])
    nothing = space.restrict(["w"])
    assert WeightSpaceAttention(nothing, 4).double()(features(nothing, 4))["w"].shape == (0, 2, 4)


def test_the_scores_have_second_derivatives():
    space = WeightSpace({"b": "h:2", "t": ""})
    layer = randomised(WeightSpaceAttention(space, 2))
    x = [t.requires_grad_() for t in features(space, 2).values()]
    assert torch.autograd.gradgradcheck(lambda *t: tuple(layer(dict(zip(space, t, strict=True))).values()), x)
