"""ChannelNorm against loops over entries, and FeatureDropout against the statistics that it promises."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from lopt import WeightSpace
from lopt.functionals.dropout import FeatureDropout
from lopt.functionals.norm import VARIANCE_FLOOR, ChannelNorm
from lopt.testing import equivariance_error

SPACE = WeightSpace({"w": "h:4, in=3", "b": "h:4", "t": ""})


def features(channels: int, *batch: int, space: WeightSpace = SPACE) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = space.shapes.items()
    return {k: 3 + 2 * torch.randn(*batch, *s, channels, generator=g, dtype=torch.float64) for k, s in shapes}


def normalised(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / math.sqrt(variance + VARIANCE_FLOOR) for v in values]


@pytest.mark.parametrize("over", ["channels", "tensor"])
def test_norm_is_its_slow_twin(over):
    norm, x = ChannelNorm(SPACE, 5, over).double(), features(5, 2)
    for p in norm.parameters():
        nn.init.normal_(p)
    y, (scale, shift) = norm(x), norm.parameters()
    for row, (name, shape) in enumerate(SPACE.shapes.items()):
        expected = torch.zeros_like(x[name])
        entries = list(itertools.product(*map(range, shape)))
        for network in range(2):
            if over == "channels":
                for entry in entries:
                    expected[(network, *entry)] = torch.tensor(normalised(x[name][(network, *entry)].tolist()))
            else:
                for c in range(5):
                    column = normalised([float(x[name][(network, *entry, c)]) for entry in entries])
                    for entry, value in zip(entries, column, strict=True):
                        expected[(network, *entry, c)] = value
        torch.testing.assert_close(y[name], expected * scale[row] + shift[row])


def test_norm_over_channels_does_not_see_other_entries_and_over_tensor_does_not_see_other_channels():
    x = features(5)
    changed = {name: t.clone() for name, t in x.items()}
    changed["w"][0, 0, 0] += 10
    for over, same in (("channels", (slice(1, None), slice(1, None))), ("tensor", (..., slice(1, None)))):
        norm = ChannelNorm(SPACE, 5, over)
        before, after = norm(x), norm(changed)
        assert torch.equal(before["w"][same], after["w"][same])
        assert torch.equal(before["b"], after["b"])
        assert not torch.equal(before["w"], after["w"])


def test_norm_of_what_has_no_spread_is_the_shift():
    constant = {name: torch.full_like(t, 7).requires_grad_() for name, t in features(5).items()}
    for over in ("channels", "tensor"):
        y = ChannelNorm(SPACE, 5, over).double()(constant)
        assert all(not t.any() for t in y.values())
        grads = torch.autograd.grad([t.sum() for t in y.values()], list(constant.values()))
        assert all(g.isfinite().all() for g in grads)
    one = ChannelNorm(SPACE, 5, "tensor").double()(features(5))
    assert not one["t"].any()
    assert len(list(ChannelNorm(SPACE, 5, affine=False).parameters())) == 0


def test_one_network_does_not_see_the_others_of_its_batch():
    norm, x = ChannelNorm(SPACE, 5, "tensor").double(), features(5, 2)
    alone = norm({name: t[:1] for name, t in x.items()})
    assert all(torch.equal(y[:1], alone[name]) for name, y in norm(x).items())


def test_a_norm_with_a_scale_for_each_neuron_is_not_equivariant():
    norm = nn.LayerNorm([4, 3, 5]).double()
    nn.init.normal_(norm.weight)
    space = SPACE.restrict(["w"])
    errors = equivariance_error(lambda t: {"w": norm(t["w"])}, space, {"w": features(5)["w"]}, channels=True)
    assert errors["w"] > 0.1


# --- dropout ---------------------------------------------------------------------------------------------------------

WIDE = WeightSpace({"w": "h:30, in=20", "b": "h:30"})


def ones(channels: int, *batch: int) -> dict[str, Tensor]:
    return {name: torch.ones(*batch, *shape, channels) for name, shape in WIDE.shapes.items()}


def test_entries_are_dropped_one_by_one():
    torch.manual_seed(0)
    y = FeatureDropout(WIDE, entries=0.2)(ones(40))["w"]
    assert set(y.unique().tolist()) == {0.0, 1.25}
    silent = (y == 0).double()
    sigma = math.sqrt(0.2 * 0.8 / y.numel())
    assert abs(silent.mean() - 0.2) < 4 * sigma
    assert abs((silent[0] * silent[1]).mean() - 0.04) < 4 * math.sqrt(0.04 / silent[0].numel())  # independent


def test_channels_are_dropped_whole():
    torch.manual_seed(0)
    y = FeatureDropout(WIDE, channels=0.5)(ones(50, 40))
    for name, t in y.items():
        mask = t.flatten(1, -2)
        assert torch.equal(mask, mask[:, :1].expand_as(mask)), name
        assert set(t.unique().tolist()) == {0.0, 2.0}
        assert abs(mask[:, 0].mean() - 1) < 4 * 1 / math.sqrt(mask[:, 0].numel())
    agree = (y["w"][:, 0, 0] == y["b"][:, 0]).double().mean()
    assert abs(agree - 0.5) < 4 * 0.5 / math.sqrt(40 * 50)  # every tensor has masks of its own


def test_both_keep_the_mean():
    torch.manual_seed(0)
    y = FeatureDropout(WIDE, channels=0.3, entries=0.3)(ones(200, 20))
    assert abs(y["w"].mean() - 1) < 4 * math.sqrt(0.3 / 0.7 / (200 * 20))


def test_channel_dropout_is_equivariant_draw_by_draw():
    def seeded(x):
        torch.manual_seed(3)
        return FeatureDropout(SPACE, channels=0.5)(x)

    assert max(equivariance_error(seeded, SPACE, features(6, 2), channels=True).values()) == 0


def test_entry_dropout_is_equivariant_in_distribution_only():
    def seeded(x):
        torch.manual_seed(3)
        return FeatureDropout(SPACE, entries=0.5)(x)

    assert max(equivariance_error(seeded, SPACE, features(6, 2), channels=True).values()) > 0.1
    torch.manual_seed(0)
    drop = FeatureDropout(WeightSpace({"b": "h:3"}), entries=0.5)
    kept = drop({"b": torch.ones(4000, 3, 1)})["b"].squeeze(-1) > 0
    codes = (kept * torch.tensor([1, 2, 4])).sum(-1).bincount(minlength=8) / 4000  # of every pattern of neurons
    assert (codes - 1 / 8).abs().max() < 4 * math.sqrt(7 / 64 / 4000)


def test_dropout_only_in_training_and_at_the_ends():
    x = features(6)
    assert all(torch.equal(t, x[name]) for name, t in FeatureDropout(SPACE, 0.9, 0.9).eval()(x).items())
    assert all(torch.equal(t, x[name]) for name, t in FeatureDropout(SPACE)(x).items())
    for drop in (FeatureDropout(SPACE, channels=1.0), FeatureDropout(SPACE, entries=1)):
        assert all(not t.any() for t in drop(x).values())


def test_dropout_under_vmap_and_gradients():
    drop, x = FeatureDropout(SPACE, channels=0.5, entries=0.5), features(6, 3)
    y = vmap(drop, randomness="different")(x)
    assert y["w"].shape == (3, 4, 3, 6)
    assert len({tuple((row == 0).flatten().tolist()) for row in y["w"]}) == 3
    w = x["w"].requires_grad_()
    out = drop(x)["w"]
    (grad,) = torch.autograd.grad(out.sum(), w)
    assert torch.equal(grad == 0, out == 0)
