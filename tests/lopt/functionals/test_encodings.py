"""Encodings: the code that every entry gets, and that it tells apart what a shared layer does not."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from lopt import InvalidInput, WeightSpace
from lopt.functionals import EquivariantLinear
from lopt.functionals.encodings import LayerEncoding, PositionEncoding, sinusoidal_code
from lopt.testing import assert_equivariant, equivariance_error

STACK = WeightSpace({"0.weight": "h:5, in=3", "0.bias": "h:5", "2.weight": "out=2, h:5", "2.bias": "out=2"})


def features(space: WeightSpace, channels: int, *batch: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    return {k: torch.randn(*batch, *s, channels, generator=g, dtype=torch.float64) for k, s in space.shapes.items()}


def zeros(space: WeightSpace, channels: int, *batch: int) -> dict[str, Tensor]:
    return {name: torch.zeros(*batch, *shape, channels) for name, shape in space.shapes.items()}


# --- codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_sinusoidal_codes_against_loops(width):
    code = sinusoidal_code(7, width)
    for j, d in itertools.product(range(7), range(width)):
        angle = j / 10_000 ** (2 * (d // 2) / width)
        assert code[j, d] == pytest.approx(math.cos(angle) if d % 2 else math.sin(angle), abs=1e-6)


def test_a_thousand_sinusoidal_codes_are_apart():
    code = sinusoidal_code(1000, 8)
    distance = torch.cdist(code, code) + torch.eye(1000)
    assert distance.min() > 1e-2
    assert torch.equal(sinusoidal_code(10, 8), code[:10])  # however many there are
    assert sinusoidal_code(0, 4).shape == (0, 4)


# --- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_positions_get_the_code_of_their_axis(kind):
    encode = PositionEncoding(STACK, 4, kind)
    assert encode.axes == ("in", "out")
    inputs, outputs = encode.table("in"), encode.table("out")
    y = encode(zeros(STACK, 4, 2))
    for b, j in itertools.product(range(2), range(5)):
        assert all(torch.equal(y["0.weight"][b, j, i], inputs[i]) for i in range(3))
        assert all(torch.equal(y["2.weight"][b, o, j], outputs[o]) for o in range(2))
        assert not y["0.bias"][b, j].any()
    assert torch.equal(y["2.bias"][1], outputs)  # one table for all tensors that share the axis
    assert len(list(encode.parameters())) == (2 if kind == "learned" else 0)
    with pytest.raises(InvalidInput, match="unknown axis 'inn'; did you mean 'in'"):
        encode.table("inn")


def test_concatenated_codes_leave_the_features():
    encode = PositionEncoding(STACK, 4, how="concatenate", width=3).double()
    x = features(STACK, 4, 2)
    y = encode(x)
    assert encode.out_channels == 7
    for name in STACK:
        assert y[name].shape == (*x[name].shape[:-1], 7)
        assert torch.equal(y[name][..., :4], x[name])
    assert not y["0.bias"][..., 4:].any()
    assert PositionEncoding(STACK, 4, how="concatenate").out_channels == 8


def test_positions_within_products_and_concatenations():
    space = WeightSpace({"a": "h:2*in=3", "b": "h:2+in=3, out=2", "c": "in=3*out=2", "d": "2, k:2"})
    encode = PositionEncoding(space, 2)
    inputs, outputs = encode.table("in"), encode.table("out")
    y = encode(zeros(space, 2))
    for h, i in itertools.product(range(2), range(3)):
        assert torch.equal(y["a"][3 * h + i], inputs[i])
    for o in range(2):
        assert all(torch.equal(y["b"][h, o], outputs[o]) for h in range(2))
        assert all(torch.equal(y["b"][2 + i, o], inputs[i] + outputs[o]) for i in range(3))
        assert all(torch.equal(y["c"][2 * i + o], inputs[i] + outputs[o]) for i in range(3))
    assert not y["d"].any()


def test_axes_without_a_name_have_tables_of_their_own():
    space = WeightSpace({"a.b": "h:2, 3, 3", "a_b": "3"})
    encode = PositionEncoding(space, 2, unnamed=True)
    rows, columns, other = map(encode.table, encode.axes)
    assert rows.shape == columns.shape == other.shape == (3, 2)
    y = encode(zeros(space, 2))
    for h, i, j in itertools.product(range(2), range(3), range(3)):
        assert torch.equal(y["a.b"][h, i, j], rows[i] + columns[j])
    assert torch.equal(y["a_b"], other)


def test_axes_without_positions():
    space = WeightSpace({"w": "in=0+h:2", "v": "out=2, in=0"})
    y = PositionEncoding(space, 3, how="concatenate")(zeros(space, 3))
    assert y["w"].shape == (2, 6)
    assert not y["w"].any()
    assert y["v"].shape == (2, 0, 6)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_with_encodings_a_relaxed_layer_tells_inputs_apart(kind):
    torch.manual_seed(0)
    plain = EquivariantLinear(STACK.relaxed(), 4, 3).double()
    layer = nn.Sequential(PositionEncoding(STACK, 4, kind), plain).double()
    x = features(STACK, 4, 2)
    assert_equivariant(plain, STACK.relaxed(), x, channels=True)
    assert_equivariant(layer, STACK, x, channels=True)
    errors = equivariance_error(layer, STACK.relaxed(), x, channels=True, draws=5)
    assert all(errors[name] > 1e-3 for name in ("0.weight", "2.weight", "2.bias"))


# --- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_every_tensor_gets_its_code(kind):
    space = WeightSpace({**dict(STACK.items()), "scale": ""})
    added = LayerEncoding(space, 4, kind)
    beside = LayerEncoding(space, 4, kind, how="concatenate", width=6)
    assert (added.out_channels, beside.out_channels) == (4, 10)
    x = {name: t.float() for name, t in features(space, 4, 2).items()}
    for row, name in enumerate(space):
        y = beside(x)[name]
        for entry in itertools.product(range(2), *map(range, space.shapes[name])):
            torch.testing.assert_close(added(x)[name][entry], x[name][entry] + added.codes.table[row])
            assert torch.equal(y[entry], torch.cat([x[name][entry], beside.codes.table[row]]))
    codes = added.codes.table
    assert torch.cdist(codes, codes).add(torch.eye(len(space))).min() > 1e-2


def test_sinusoidal_tables_are_no_parameters_and_follow_the_features():
    encode = LayerEncoding(STACK, 4, "sinusoidal")
    assert not encode.state_dict()
    assert all(
        t.dtype == torch.bfloat16 for t in encode({k: t.bfloat16() for k, t in zeros(STACK, 4).items()}).values()
    )
