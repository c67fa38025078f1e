"""The verifier: true symmetries hold, a site left out is found, and what can go wrong on the way is told."""

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lopt import InvalidInput, WeightSpace
from lopt.verification.verify import Errors, Verification, VerificationError, telling_permutations

# --- permutations that tell groups apart -----------------------------------------------------------------------------


def test_no_two_groups_get_the_same_permutations():
    names = [f"g{i}" for i in range(40)]
    space = WeightSpace({"w": ", ".join(f"{n}:2" for n in names), "h": "H:3*d[H]:2*e[H]:2, one:1, k:3, l:3, m:50"})
    drawn = telling_permutations(space, 2, torch.Generator().manual_seed(0))
    assert 6 <= len(drawn) <= 9  # 52 pairs have to differ

    def slots(name: str) -> list[tuple[int, ...]]:
        tables = [table[name].reshape(-1, table[name].shape[-1]) for table in drawn]
        return [tuple(torch.cat([t[k] for t in tables]).tolist()) for k in range(len(tables[0]))]

    pairs = [slot for name in [*names, "d", "e"] for slot in slots(name)]
    assert len(pairs) == len(set(pairs)) == 46
    still = (0, 1) * len(drawn)
    assert still not in pairs
    assert len({*slots("H"), *slots("k"), *slots("l"), (0, 1, 2) * len(drawn)}) == 4
    assert all(sorted(table["m"].tolist()) == list(range(50)) for table in drawn)
    large = WeightSpace({"w": "a:50, b:50"})
    assert len(telling_permutations(large, 1, torch.Generator().manual_seed(0))) == 1


def test_two_pairs_are_told_apart_even_with_one_draw():
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
    wrong = WeightSpace({"0.weight": "a:2, 3", "0.bias": "a:2", "2.weight": "2, b:2", "2.bias": "2"})
    for seed in range(10):
        assert not wrong.verify(model, torch.randn(4, 3), seed=seed, draws=1)


# --- what it says ----------------------------------------------------------------------------------------------------


def test_a_failure_names_the_group_and_no_other():
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    space = {"0.weight": "r:6, 3", "0.bias": "r:6", "2.weight": "h:8, r:6", "4.weight": "2, h:8", "4.bias": "2"}
    found = WeightSpace(space | {"2.bias": "8"}).verify(module, torch.randn(4, 3))
    assert found.failed == ("h",) and not bool(found)
    assert found.groups["r"].within(1e-8) and not found.groups["h"].within(1e-3)
    assert not found.joint.within(1e-3)
    with pytest.raises(VerificationError, match=r"1 of 2 groups failed(.|\n)*failed    h: value"):
        found.raise_if_failed()
    assert isinstance(VerificationError("x"), AssertionError)


def test_and_then_is_the_worse_of_both():
    one = Verification(Errors(1.0, 0.0), {"a": Errors(1.0, 0.0), "b": Errors()}, ("a",), ("b",), ("x",))
    two = Verification(Errors(0.0, 2.0), {"a": Errors(), "b": Errors(0.0, 2.0)}, ("b",), (), ("x", "y"))
    assert one.and_then(two) == Verification(
        Errors(1.0, 2.0), {"a": Errors(1.0, 0.0), "b": Errors(0.0, 2.0)}, ("a", "b"), (), ("x", "y")
    )
    nan = float("nan")
    assert not Errors(nan, 0.0).within(1.0) and not Errors(0.0, 1.0).worst(Errors(0.0, nan)).within(9.0)


class Branches(nn.Module):
    """The second branch runs only for inputs that are never given."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.leave = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(4, 2)
        self.other = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 100:
            return self.other(self.unused(x).tanh())
        return self.leave(self.used(x).tanh())


def test_groups_that_nothing_depends_on_are_untested():
    space = WeightSpace({
        "used.weight": "a:4, 3", "used.bias": "a:4", "unused.weight": "b:5, 3", "unused.bias": "b:5",
        "leave.weight": "2, a:4", "leave.bias": "2", "other.weight": "2, b:5", "other.bias": "2",
    })  # fmt: skip
    found = space.verify(Branches(), torch.randn(4, 3))
    assert found and found.untested == ("b",)
    assert "untested  b" in repr(found)


class Norms(nn.Module):
    """A group with one site: summed over, so that permuting it is right."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w.square().sum() + 0 * self.v.sum()


def test_a_group_with_one_site_is_tested_if_the_output_depends_on_it():
    found = WeightSpace({"w": "a:4", "v": "b:3"}).verify(Norms(), torch.randn(2))
    assert found and found.untested == ("b",)


def test_dead_neurons_get_other_weights():
    torch.manual_seed(1)  # with weights and biases that are all negative they would stay dead: tensors keep their sign
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    space = WeightSpace.linear_stack(dict(module.named_parameters()))
    assert all(not space.verify(module, torch.ones(1, 1), seed=seed).untested for seed in range(20))


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())


def test_outputs_without_a_gradient_are_compared_by_value():
    names = ["up.weight", "up.bias", "down.weight", "down.bias"]
    true = WeightSpace(dict(zip(names, ["h:4, 3", "h:4", "2, h:4", "2"], strict=True)))
    wrong = WeightSpace(dict(zip(names, ["h:4, 3", "h:4", "2, 4", "2"], strict=True)))
    found = true.verify(Detached(), torch.randn(2, 3))
    assert found and not found.untested and "only values were compared" in found.notes[0]
    assert wrong.verify(Detached(), torch.randn(2, 3)).failed == ("h",)


@dataclasses.dataclass
class Answer:
    logits: Tensor
    more: dict[str, list[Tensor]]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: dict[str, Tensor], *, scale: Tensor) -> Answer:
        hidden = self.up(x["x"] * scale)
        return Answer(self.down(hidden.tanh()), {"hidden": [hidden, torch.zeros(1, dtype=torch.long)]})


def test_nests_of_outputs_and_what_to_compare():
    space = WeightSpace({"up.weight": "h:4, 3", "up.bias": "h:4", "down.weight": "2, h:4", "down.bias": "2"})
    inputs, scale = {"x": torch.randn(2, 3)}, torch.tensor(2.0)
    assert space.verify(Nested(), inputs, scale=scale).failed == ("h",)  # the hidden state is an output, too
    assert space.verify(Nested(), inputs, scale=scale, output=lambda answer: answer.logits)
    assert inputs["x"].dtype == scale.dtype == torch.float32


def test_zeros_that_a_permutation_would_not_move():
    """At initialisation nothing depends on these biases, gains and statistics: they are zeros and ones."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    for name in ("0.bias", "3.weight"):
        nn.init.zeros_(module.get_parameter(name))
    space = {"0.weight": "h:4, 3", "0.bias": "h:4", "1.weight": "h:4", "1.bias": "h:4", "3.weight": "2, h:4"}
    space |= {"3.bias": "2"}
    buffers = {"1.running_mean": "h:4", "1.running_var": "h:4"}
    assert WeightSpace(space, buffers).verify(module, torch.zeros(2, 3))
    for name in ("0.bias", "1.weight", "1.bias"):
        assert not WeightSpace(space | {name: "4"}, buffers).verify(module, torch.zeros(2, 3)), name
    for name in buffers:
        assert not WeightSpace(space, buffers | {name: "4"}).verify(module, torch.zeros(2, 3)), name
    assert not WeightSpace(space | {"0.weight": "h:4, in:3"}, buffers).verify(module, torch.zeros(2, 3))


class Chaotic(nn.Module):
    """A logistic map whose start depends on the weights: rounding grows by half a digit a step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.up, self.down, self.steps = nn.Linear(3, 32), nn.Linear(32, 2), steps

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sin(100 * self.down(self.up(x).tanh())) ** 2
        for _ in range(self.steps):
            y = 3.99 * y * (1 - y)
        return y


def test_chaos_is_told_from_a_broken_symmetry():
    space = WeightSpace({"up.weight": "h:32, 3", "up.bias": "h:32", "down.weight": "2, h:32", "down.bias": "2"})
    assert space.verify(Chaotic(5), torch.randn(2, 3))
    with pytest.raises(InvalidInput, match=r"weights that differ by 1e-13 change its outputs.*chaotic"):
        space.verify(Chaotic(200), torch.randn(2, 3))


class OwnNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.calls = nn.Parameter(torch.randn(3)), itertools.count()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w.sum() + next(self.calls)


def test_a_module_that_is_never_the_same():
    with pytest.raises(InvalidInput, match="random without a seed"):
        WeightSpace({"w": "a:3"}).verify(OwnNoise(), torch.randn(2))


class Logarithm(nn.Module):
    """Undefined far from its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([-0.1, 2.0, 3.0, 4.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.log(self.w + 0.2).sum()


def test_milder_weights_where_thorough_ones_are_undefined():
    for seed in range(5):
        assert WeightSpace({"w": "a:4"}).verify(Logarithm(), torch.randn(2), seed=seed)
    hopeless = Logarithm()
    nn.init.constant_(hopeless.w, -1.0)
    with pytest.raises(InvalidInput, match="NaN or infinite with random weights"):
        WeightSpace({"w": "a:4"}).verify(hopeless, torch.randn(2))


class Noisy(nn.Module):
    """Every kind of noise on hidden neurons, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.middle, self.down = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.rnn = nn.GRU(6, 6, num_layers=2, dropout=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.up(x), 0.5, self.training)
        x = F.alpha_dropout(x, 0.1, self.training) + torch.randn_like(x)
        x = self.rnn(x[None])[0][0] + torch.zeros_like(x).uniform_()
        x = self.middle(x).tanh()
        x = torch.distributions.Normal(x, x.exp()).rsample() + torch.normal(x, x.exp())
        x = x + torch.bernoulli(torch.sigmoid(x)) + F.gumbel_softmax(x, dim=-1)
        return self.down(x)


def test_noise_is_the_same_at_every_position():
    gates = "a:6+a:6+a:6"
    space = {
        "up.weight": "h:6, 3", "up.bias": "h:6", "middle.weight": "m:5, b:6", "middle.bias": "m:5",
        "down.weight": "2, m:5", "down.bias": "2",
        "rnn.weight_ih_l0": f"{gates}, h:6", "rnn.weight_hh_l0": f"{gates}, a:6", "rnn.bias_ih_l0": gates,
        "rnn.bias_hh_l0": gates, "rnn.weight_ih_l1": "3*b:6, a:6", "rnn.weight_hh_l1": "3*b:6, b:6",
        "rnn.bias_ih_l1": "3*b:6", "rnn.bias_hh_l1": "3*b:6",
    }  # fmt: skip
    for training in (True, False):
        found = WeightSpace(space).verify(Noisy(), torch.randn(4, 3), training=training)
        assert found and not found.untested and "it draws random numbers" in found.notes[0], found
    found = WeightSpace(space | {"middle.bias": "5"}).verify(Noisy(), torch.randn(4, 3), training=True)
    assert found.failed == ("m",)
    assert not WeightSpace({"0.weight": "h:4, 3", "0.bias": "h:4"}).verify(
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), torch.randn(4, 3), training=True
    )


class Router(nn.Module):
    """Top-1 of four experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 5, 3)), nn.Parameter(torch.randn(4, 2, 5))

    def forward(self, x: Tensor) -> Tensor:
        score, expert = self.gate(x).softmax(-1).max(-1)
        hidden = torch.einsum("nhi,ni->nh", self.up[expert], x).relu()
        return score[:, None] * torch.einsum("noh,nh->no", self.down[expert], hidden)


def test_discrete_routing():
    space = {"gate.weight": "E:4, 3", "gate.bias": "E:4", "up": "E:4, h[E]:5, 3", "down": "E:4, 2, h[E]:5"}
    x = torch.randn(32, 3)
    assert WeightSpace(space).verify(Router(), x)
    assert WeightSpace(space | {"gate.bias": "4"}).verify(Router(), x).failed == ("E",)


# --- what cannot be verified -----------------------------------------------------------------------------------------


def linear_space() -> WeightSpace:
    return WeightSpace({"weight": "2, 3", "bias": "2"})


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        (lambda: nn.LazyLinear(2), "'weight' is lazy"),
        (lambda: nn.Linear(3, 2, device="meta"), "'weight' is on the meta device"),
        (lambda: nn.Linear(3, 4), r"'weight' has shape \(4, 3\), the space says \(2, 3\)"),
        (
            lambda: nn.Linear(3, 2, bias=False),
            r"not in the space \[\]|missing \[\]|do(es)? not name the same parameters",
        ),
        (lambda: nn.Sequential(nn.Linear(3, 2)), "does not name the same parameters"),
        (lambda: torch.ao.nn.quantized.Linear(3, 2), "quantised"),
        (lambda: torch.tanh, "give an nn.Module"),
    ],
)
def test_modules_that_are_refused_by_name(module, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        linear_space().verify(module(), torch.randn(2, 3))


def test_tensors_on_several_devices():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(InvalidInput, match="meta device"):
        linear_space().verify(module, torch.randn(2, 3))


def test_other_bad_input():
    module, x = nn.Linear(3, 2), torch.randn(2, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear_space().verify(module, torch.randn(2, 4))
    with pytest.raises(InvalidInput, match="draws: 0; at least one"):
        linear_space().verify(module, x, draws=0)
    with pytest.raises(InvalidInput, match="it returns no floating tensor"):
        linear_space().verify(module, x, output=lambda y: y.argmax(-1))
    with pytest.raises(InvalidInput, match="buffer 'mean' of shape.*no such buffer"):
        WeightSpace({"weight": "h:2, 3", "bias": "h:2"}, {"mean": "h:2"}).verify(module, x)


class Constant(nn.Module):
    """Its gradients are rounding, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.b(self.a(x).tanh()), -1).sum(-1)


def test_an_output_that_depends_on_nothing_tests_nothing():
    space = WeightSpace({"a.weight": "h:5, 4", "a.bias": "h:5", "b.weight": "k:6, h:5", "b.bias": "k:6"})
    found = space.verify(Constant(), torch.randn(2, 4))
    assert found and found.untested == ("h", "k")


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())


def test_a_shared_parameter_has_any_one_of_its_names():
    x = torch.randn(2, 4)
    for name in ("a.weight", "b.weight"):
        assert WeightSpace({name: "4, 4"}).verify(Shared(), x)
        assert not WeightSpace({name: "h:4, 4"}).verify(Shared(), x)
    with pytest.raises(InvalidInput, match="does not name the same parameters"):
        WeightSpace({"a.weight": "4, 4", "b.weight": "4, 4"}).verify(Shared(), x)


def test_groups_that_depend_on_a_fixed_axis():
    """The router's experts must not be permuted here, but the hidden neurons of each on its own may be."""
    space = {"gate.weight": "E=4, 3", "gate.bias": "E=4", "up": "E=4, h[E]:5, 3", "down": "E=4, 2, h[E]:5"}
    x = torch.randn(32, 3)
    assert WeightSpace(space).verify(Router(), x)
    assert WeightSpace(space | {"down": "E=4, 2, 5"}).verify(Router(), x).failed == ("h",)
