"""The papers' layers over networks of every kind that they treat; the spaces are written by hand, proven on modules."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lopt import InvalidInput, WeightSpace
from lopt.functionals import EquivariantLinear, Pointwise, presets
from lopt.testing import assert_equivariant, equivariance_error

PRESETS = list(presets.PRESETS)


class Residual(nn.Module):
    """x + block(x) twice: every block reads and writes one stream, whose neurons are one group."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.up = nn.ModuleList(nn.Linear(4, 5) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(5, 4) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(torch.tanh(up(x)))
        return self.head(self.norm(x))


class Transformer(nn.Module):
    """One block of 2 heads of 3 channels on a stream of 4, with token and position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(5, 4), nn.Embedding(6, 4)
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 18), nn.Linear(6, 4)
        self.up, self.down, self.head = nn.Linear(4, 7), nn.Linear(7, 4), nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, T] -> [B, T, 5]
        x = self.token(x) + self.position.weight[: x.shape[1]]
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)  # [B, heads, T, 3]
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return self.head(x + self.down(torch.relu(self.up(x))))


class Recurrent(nn.Module):
    """A recurrent cell over time and a Linear on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def convolutional(pool: nn.Module, features: int) -> nn.Module:
    convolutions = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.ReLU()]
    return nn.Sequential(*convolutions, pool, nn.Flatten(), nn.Linear(features, 2))


HEADS = "H:2*d[H]:3+H:2*d[H]:3+H:2*v[H]:3"  # query and key are tied through their product, value and output likewise
CONVOLUTIONS = {"0.weight": "c:4, in=2, 3, 3", "0.bias": "c:4", "2.weight": "d:3, c:4, 2, 2", "2.bias": "d:3"}
INPUTS = torch.Generator().manual_seed(0)
IMAGES = torch.randn(2, 2, 6, 6, generator=INPUTS)

# Name -> module, space by hand, an input.
NETWORKS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)),
        {"0.weight": "h:4, in=3", "0.bias": "h:4", "2.weight": "k:5, h:4", "2.bias": "k:5"}
        | {"4.weight": "out=2, k:5", "4.bias": "out=2"},
        torch.randn(6, 3, generator=INPUTS),
    ),
    "cnn, globally pooled": (
        lambda: convolutional(nn.AdaptiveAvgPool2d(1), 3),
        CONVOLUTIONS | {"6.weight": "out=2, d:3", "6.bias": "out=2"},
        IMAGES,
    ),
    "cnn, flattened": (
        lambda: convolutional(nn.Identity(), 27),
        CONVOLUTIONS | {"6.weight": "out=2, d:3*9", "6.bias": "out=2"},
        IMAGES,
    ),
    "rnn": (
        Recurrent,
        {"rnn.weight_ih_l0": "h:4, in=3", "rnn.weight_hh_l0": "h:4, h:4", "rnn.bias_ih_l0": "h:4"}
        | {"rnn.bias_hh_l0": "h:4", "head.weight": "out=2, h:4", "head.bias": "out=2"},
        torch.randn(2, 5, 3, generator=INPUTS),
    ),
    "residual": (
        Residual,
        {"embed.weight": "r:4, in=3", "embed.bias": "r:4"}
        | {f"up.{i}.{k}": v for i in range(2) for k, v in {"weight": f"h{i}:5, r:4", "bias": f"h{i}:5"}.items()}
        | {f"down.{i}.{k}": v for i in range(2) for k, v in {"weight": f"r:4, h{i}:5", "bias": "r:4"}.items()}
        | {"norm.weight": "r:4", "norm.bias": "r:4", "head.weight": "out=2, r:4", "head.bias": "out=2"},
        torch.randn(6, 3, generator=INPUTS),
    ),
    "transformer": (
        Transformer,
        {"token.weight": "tokens=5, r:4", "position.weight": "6, r:4", "norm.weight": "r:4", "norm.bias": "r:4"}
        | {"qkv.weight": f"{HEADS}, r:4", "qkv.bias": HEADS, "out.weight": "r:4, H:2*v[H]:3", "out.bias": "r:4"}
        | {"up.weight": "m:7, r:4", "up.bias": "m:7", "down.weight": "r:4, m:7", "down.bias": "r:4"}
        | {"head.weight": "tokens=5, r:4"},
        torch.tensor([[0, 3, 1, 4], [2, 2, 0, 1]]),
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request) -> str:
    return request.param


def space_of(network: str) -> WeightSpace:
    return WeightSpace(NETWORKS[network][1])


def features(space: WeightSpace, channels: int, *batch: int, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(*batch, *s, channels, generator=g, dtype=torch.float64) for k, s in space.shapes.items()}


def seeded(module: nn.Module) -> nn.Module:
    """Other numbers than the initial ones, so that no bias or head hides what it does by being 0."""
    g = torch.Generator().manual_seed(1)
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=p.dtype) / max(1, p.shape[0]) ** 0.5)
    return module


def test_the_spaces_are_those_of_the_networks(network):
    """A permutation of the space changes the parameters and not the function."""
    build, _, x = NETWORKS[network]
    module, space = seeded(build()), space_of(network)
    x = x.double() if x.is_floating_point() else x
    params = {name: p.detach() for name, p in module.named_parameters()}
    space.check(params)
    moved = space.permute(params, space.random_permutations(torch.Generator().manual_seed(3)))
    assert any(not torch.equal(moved[name], params[name]) for name in params)
    torch.testing.assert_close(functional_call(module, moved, (x,)), module(x))


@pytest.mark.parametrize("preset", PRESETS)
def test_stacks_are_equivariant_on_every_network(preset, network):
    space = space_of(network)
    net = seeded(presets.stack(preset, space, [2, 3, 2], nn.Tanh))
    x = features(space, 2)
    assert {name: tuple(y.shape) for name, y in net(x).items()} == {k: (*s, 2) for k, s in space.shapes.items()}
    symmetry = space.relaxed() if preset == "np" else space
    assert_equivariant(net, symmetry.independent(), x, channels=True, draws=2)
    errors = equivariance_error(net, WeightSpace.from_shapes(space.shapes), x, channels=True)
    assert max(errors.values()) > 1e-3  # and to no more than that: the tensors are coupled


@pytest.mark.parametrize("preset", PRESETS)
def test_invariant_networks_are_invariant(preset, network):
    space = space_of(network)
    net = seeded(presets.invariant(preset, space, [2, 3, 2], [4, 3], nn.Tanh))
    x = features(space, 2, 5)
    symmetry = (space.relaxed() if preset == "np" else space).independent()
    moved = symmetry.permute(x, symmetry.random_permutations(torch.Generator().manual_seed(3)), channels=True)
    y = net(x)
    assert y.shape == (5, 3)
    torch.testing.assert_close(net(moved), y)
    other = WeightSpace.from_shapes(space.shapes)
    broken = other.permute(x, other.random_permutations(torch.Generator().manual_seed(3)), channels=True)
    assert (net(broken) - y).abs().amax() > 1e-6


def test_only_np_shares_along_inputs_and_outputs():
    def count(preset: str, inputs: int) -> int:
        space = WeightSpace({"0.weight": f"h:4, in={inputs}", "0.bias": "h:4", "2.weight": "out=3, h:4"})
        return sum(w.numel() for w in presets.PRESETS[preset](space, 1, 1).weights.parameters())

    assert count("np", 2) == count("np", 200)
    assert all(count(preset, 2) < count(preset, 200) for preset in ("hnp", "dws", "unf"))


def test_hnp_is_not_np():
    space = space_of("mlp")
    x = features(space, 2)
    errors = equivariance_error(seeded(presets.hnp(space, 2, 2)), space.relaxed(), x, channels=True)
    assert errors["0.weight"] > 1e-2


def test_np_contains_the_maps_that_hnp_shares(network):
    """A larger symmetry group: never more coefficients, and fewer where inputs or outputs are fixed."""
    space = space_of(network)
    shared, full = (
        sum(w.numel() for w in preset(space, 1, 1).weights.parameters()) for preset in (presets.np, presets.hnp)
    )
    assert shared < full


def test_dws_hnp_and_unf_agree_where_all_apply():
    space, layers = space_of("mlp"), []
    for preset in (presets.dws, presets.hnp, presets.unf):
        torch.manual_seed(0)
        layers.append(preset(space, 2, 3).double())
    x = features(space, 2)
    for layer in layers[1:]:
        torch.testing.assert_close(layer(x), layers[0](x), rtol=0, atol=0)


def test_a_stack_is_layers_with_activations_between_them():
    space = space_of("mlp")
    net = presets.stack(presets.np, space, [1, 4, 5, 6], nn.GELU, bias=False)
    assert [type(part) for part in net] == [
        EquivariantLinear,
        Pointwise,
        EquivariantLinear,
        Pointwise,
        EquivariantLinear,
    ]
    layers = [part for part in net if isinstance(part, EquivariantLinear)]
    assert [(layer.in_channels, layer.out_channels) for layer in layers] == [(1, 4), (4, 5), (5, 6)]
    assert all(layer.bias is None and layer.space == space.relaxed() for layer in layers)
    assert all(isinstance(part.module, nn.GELU) for part in net if isinstance(part, Pointwise))


def test_a_stack_of_ones_own_layer():
    made = []

    def own(space: WeightSpace, before: int, after: int) -> EquivariantLinear:
        made.append((before, after))
        return EquivariantLinear(space, before, after)

    presets.stack(own, space_of("rnn"), [1, 2, 1])
    assert made == [(1, 2), (2, 1)]


def test_an_invariant_network_learns_a_property_of_networks():
    """DWSNets' use: from weights to a number that no permutation changes, here the mean of the squared weights."""
    torch.manual_seed(0)
    space = space_of("mlp")
    net = presets.invariant("dws", space, [1, 4], [8, 1])
    x = {k: torch.randn(64, 1, generator=torch.Generator().manual_seed(1)) for k in ("scale",)}["scale"].abs()
    g = torch.Generator().manual_seed(2)
    batch = {
        k: torch.randn(64, *s, 1, generator=g) * x.reshape(-1, *[1] * (len(s) + 1)) for k, s in space.shapes.items()
    }
    target = torch.cat([t.flatten(1) for t in batch.values()], 1).square().mean(1, keepdim=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (net(batch) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * target.var().item()


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda space: presets.stack("hpn", space, [1, 2]), "unknown preset 'hpn'; did you mean 'hnp'"),
        (lambda space: presets.stack("np", space, [1]), r"channels: \[1\]; a stack needs"),
        (lambda space: presets.stack("np", space, [1, 0]), "out_channels: 0"),
        (lambda space: presets.invariant("np", space, [1, 2], []), "widths"),
        (lambda space: presets.invariant("np", space, [1, 2], [1], reduction="median"), "median"),
    ],
    ids=["name", "channels", "no channels", "widths", "reduction"],
)
def test_presets_that_cannot_be(call, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        call(space_of("mlp"))


def test_hnp_on_wide_inputs_says_how_many_coefficients():
    wide = WeightSpace({"0.weight": "h:4, in=3072", "0.bias": "h:4", "2.weight": "out=10, h:4"})
    with pytest.raises(InvalidInput, match="coefficients, over 50,000,000"):
        presets.hnp(wide, 2, 2)
    assert len(presets.np(wide, 2, 2).terms) == 22
