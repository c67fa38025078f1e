"""Images of INRs that move, against the same INR asked at other places."""

import math

import pytest
import torch

from examples.common.mlps import by_name
from examples.common.movements import Movements
from lopt.errors import InvalidInput

FREQUENCY, COUNT = 3.0, 50


def inrs(seed=0):
    g = torch.Generator().manual_seed(seed)
    shapes = [(8, 2), (8,), (1, 8), (1,)]
    return by_name([torch.randn(COUNT, *shape, generator=g, dtype=torch.float64) for shape in shapes])


def show(tensors, x):
    w, b, v, c = tensors.values()
    return torch.sin(FREQUENCY * (x @ w.mT + b[:, None])) @ v.mT + c[:, None]


def test_each_image_is_turned_scaled_and_shifted():
    tensors, movements = inrs(), Movements(rotation=30, shift=0.2, scale=0.3)
    moved = movements(tensors, torch.Generator().manual_seed(1))
    # f(s R x + δ) = f'(x): at 0 the shift alone, at the unit vectors the columns of s R. They are found from W' and b'.
    w, b = tensors["0.weight"], tensors["0.bias"]
    turn = torch.linalg.lstsq(w, moved["0.weight"]).solution  # [B, 2, 2]
    shift = torch.linalg.lstsq(w, (moved["0.bias"] - b).unsqueeze(-1)).solution[..., 0]
    factor = torch.linalg.det(turn).sqrt()
    angle = torch.atan2(turn[:, 1, 0], turn[:, 0, 0])
    identity = torch.eye(2, dtype=torch.float64).expand(COUNT, 2, 2)
    torch.testing.assert_close(turn @ turn.mT, factor.square()[:, None, None] * identity)
    x = torch.rand(COUNT, 20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(show(moved, x), show(tensors, x @ turn.mT + shift[:, None]))
    for amount, most in ((angle, math.radians(30)), (shift, 0.2), (factor.log(), 0.3)):
        assert 0.8 * most < amount.abs().max() <= most + 1e-9  # by an amount of its own
        assert amount.min() < -0.5 * most and amount.max() > 0.5 * most
    assert all(moved[name] is tensors[name] for name in ("2.weight", "2.bias"))


def test_no_movement_changes_nothing_and_a_seed_gives_the_same():
    tensors = inrs()
    still = Movements()(tensors, torch.Generator().manual_seed(1))
    for name, x in tensors.items():
        torch.testing.assert_close(still[name], x)
    one, two = (Movements(10, 0.1, 0.1)(tensors, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_negative_amount_is_an_error():
    with pytest.raises(InvalidInput, match="shift=-0.1"):
        Movements(shift=-0.1)
