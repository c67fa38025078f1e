"""What the Neuron rule guesses of a network that nobody traced, against what `lopt.trace` finds there."""

import pytest
import torch
from torch import Tensor, nn

import lopt
from lopt.axes import Group, leaves
from lopt.rules.neuron.ends import guess_ends, knows_shapes_alone
from lopt.rules.neuron.layout import layout_of
from lopt.weight_space import WeightSpace


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = (
            nn.Embedding(65, 32),
            nn.LSTM(32, 48, batch_first=True),
            nn.Linear(48, 65),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0])


def transformer() -> nn.Module:
    encoder = nn.TransformerEncoderLayer(24, 4, 56, batch_first=True, dropout=0.0)
    return nn.Sequential(nn.Linear(7, 24), encoder, nn.LayerNorm(24), nn.Linear(24, 10))


CNN = (nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 20), nn.Linear(20, 5))
NETWORKS = {
    "mlp": lambda: (
        nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)),
        (2, 30),
    ),
    "cnn": lambda: (nn.Sequential(*CNN), (2, 3, 6, 6)),
    "transformer": lambda: (transformer(), (2, 5, 7)),
    "lstm": lambda: (LanguageModel(), None),
}


def traced(name: str) -> WeightSpace:
    torch.manual_seed(0)
    module, shape = NETWORKS[name]()
    return lopt.trace(module.eval(), torch.randint(65, (2, 6)) if shape is None else torch.randn(shape))


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_and_outputs_are_those_that_tracing_finds(name):
    space = traced(name)
    fixed = {k: [not any(isinstance(x, Group) for x in leaves(axis)) for axis in space[k]] for k in space.shapes}
    assert any(any(ends) for ends in fixed.values()) and not all(all(ends) for ends in fixed.values())
    assert guess_ends(space.shapes) == fixed


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_then_those_of_the_traced_space_but_for_what_tensors_share(name):
    space, device = traced(name), torch.device("cpu")
    alone = WeightSpace.from_shapes(space.shapes)
    assert knows_shapes_alone(alone) and not knows_shapes_alone(space)
    known, guessed = (
        dict(zip((layout := layout_of(s, device, torch.float64)).names, layout.static, strict=True))
        for s in (space, alone)
    )
    own = [*range(9), *range(12, 16)]  # 9 to 11 count the tensors that share neurons
    for name in space.shapes:
        torch.testing.assert_close(guessed[name][own], known[name][own], rtol=0, atol=0)


def test_where_sizes_tell_nothing_no_axis_is_an_end():
    """A network of equal widths: as before, every axis counts as permuted."""
    assert not any(map(any, guess_ends({"0.weight": (4, 4), "0.bias": (4,), "1.weight": (4, 4)}).values()))
    assert guess_ends({"scale": (5,), "scalar": ()}) == {"scale": [False], "scalar": []}


def test_one_channel_is_not_what_all_others_are_multiples_of():
    """As where a convolution ends in a map of one channel."""
    one_channel = guess_ends({"first": (8, 3, 3, 3), "last": (1, 8, 3, 3)})
    assert one_channel == {"first": [False, True, True, True], "last": [True, False, True, True]}


def test_the_output_layer_of_an_untraced_network_moves_as_that_of_a_traced_one():
    """With the meta-parameters that ship, whose law knows outputs from hidden layers."""
    rule, known = lopt.load_rule("neuron-1"), traced("mlp")
    unknown = WeightSpace.from_shapes(known.shapes)
    # One shared group, and the space no longer knows shapes alone: what it does not say is fixed is permuted.
    hidden = WeightSpace(dict(unknown.items()) | {"0.bias": unknown["0.weight"][:1]})
    generator = torch.Generator().manual_seed(0)
    params, grads = (
        {k: torch.randn(shape, generator=generator) / 4 for k, shape in known.shapes.items()} for _ in range(2)
    )

    def moved(space: WeightSpace) -> float:
        clock = lopt.rules.Clock(torch.tensor(0.0), torch.tensor(100.0), None)
        updates, _ = rule(space, params, grads, rule.init_state(space, params), clock)
        return float(updates["4.weight"].detach().square().mean().sqrt())

    assert abs(moved(unknown) / moved(known) - 1) < 0.2
    assert moved(known) > 1.5 * moved(hidden)


@pytest.mark.parametrize("empty", [(0, 3, 3), (3, 0, 3), (0, 5), (5, 0), (0,)])
def test_tensors_without_an_entry(empty):
    params = [nn.Parameter(torch.zeros(empty)), nn.Parameter(torch.ones(4, 4))]
    optimizer = lopt.LearnedOptimizer(params)
    for p in params:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert (params[1] != 1).all()
