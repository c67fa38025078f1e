"""FourierFeatures against a loop, and against the kernel that its random features approximate."""

import math

import torch

from lopt.functionals import FourierFeatures
from lopt.weight_space import WeightSpace


def test_values_are_those_of_a_loop():
    torch.manual_seed(0)
    layer, x = FourierFeatures(WeightSpace({"w": "h:5"}), 2, 3), torch.randn(5, 2)
    found = layer({"w": x})["w"]
    for row, values in zip(x.tolist(), found.tolist(), strict=True):
        angles = [
            2 * math.pi * sum(v * b for v, b in zip(row, frequency, strict=True))
            for frequency in layer.frequencies.t().tolist()
        ]
        wanted = row + [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(torch.tensor(values), torch.tensor(wanted))


def test_products_of_features_are_a_gaussian_kernel():
    # E[cos(2π B (x - y))] = exp(-2 π² scale² (x - y)²): random features in the sense of Rahimi and Recht.
    torch.manual_seed(0)
    scale, count = 0.3, 40_000
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    layer = FourierFeatures(WeightSpace({"w": "h:7"}), 1, count, scale).double()
    waves = layer({"w": x[:, None]})["w"][:, 1:].detach()
    distance = x[:, None] - x
    kernel = torch.exp(-2 * math.pi**2 * scale**2 * distance**2)
    torch.testing.assert_close(waves @ waves.t() / count, kernel, rtol=0, atol=4 / count**0.5)


def test_frequencies_are_learned():
    torch.manual_seed(0)
    layer = FourierFeatures(WeightSpace({"w": "h:3"}), 1, 4).double()
    x = torch.randn(3, 1, dtype=torch.float64, requires_grad=True)
    assert [name for name, _ in layer.named_parameters()] == ["frequencies"]
    assert torch.autograd.gradcheck(
        lambda x, b: torch.func.functional_call(layer, {"frequencies": b}, ({"w": x},))["w"], (x, layer.frequencies)
    )
