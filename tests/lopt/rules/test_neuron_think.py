"""What lies between the two passes, by its kernel against PyTorch's operators in float64: the plan and the counters."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lopt import WeightSpace
from lopt.rules import Neuron
from lopt.rules.neuron import think as operators
from lopt.rules.neuron.combine import Plan
from lopt.rules.neuron.kernels import native, plan_of, think
from lopt.rules.neuron.layout import layout_of
from lopt.rules.neuron.think import Mind
from lopt.rules.neuron.tokens import MOMENTS
from lopt.rules.rule import Clock
from tests.lopt.rules.test_neuron import clocks, generator, neuron, run_in_place, tensors
from tests.lopt.rules.test_neuron_kernels import MORE_SPACES, needs_compiler

CPU = torch.device("cpu")
TOLERANCE = 3e-5  # of the largest number of a row: what float32 leaves of sums of products
RULES = {
    "ships": {},
    "narrow": {"width": 5, "rounds": 1},
    "no rounds": {"width": 3, "rounds": 0},
    "wide": {"width": 24, "rounds": 1},
}
TIMES = {
    "told": clocks(4)[3],
    "not told": Clock(torch.tensor(3.0)),
    "last": Clock(torch.tensor(9.0), torch.tensor(9.0)),
    "long": Clock(torch.tensor(2e4), None, None, torch.tensor(1e5), torch.tensor(4.0)),
    "much data": Clock(torch.tensor(3.0), None, None, torch.tensor(1e6), torch.tensor(8.0)),
    "hardly any data": Clock(torch.tensor(3.0), torch.tensor(1e5), None, torch.tensor(1.0), torch.tensor(0.0)),
}


def sums_for(space: WeightSpace, seed: int = 0) -> Tensor:
    """Sums over rows and columns of what could have been moments, [MOMENTS, E]; each tensor of another size."""
    layout = layout_of(space, CPU, torch.float64)
    size = torch.rand(len(layout.names) or 1, generator=generator(seed)).double().exp()
    size = size[layout.tensor[: layout.n_entries]] / layout.inverse_size[: layout.n_entries]
    x = torch.randn(MOMENTS, layout.n_entries, generator=generator(seed + 1)).double()
    squares = torch.arange(MOMENTS)[:, None] < 4
    return torch.where(squares, x.square() + 0.1, 0.1 * x) * size * 1e-3


def state_for(space: WeightSpace, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """Counters that differ from tensor to tensor, as where some parameters had no gradient for a while."""
    g = generator(seed)
    return {
        k: {
            "step": torch.tensor(float(3 + i % 5)),
            "loss": torch.cat([torch.tensor([float(i % 4)]), torch.rand(3, generator=g)]),
        }
        for i, k in enumerate(space)
    }


def in_float64(state: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {k: {"step": x["step"].clone(), "loss": x["loss"].double()} for k, x in state.items()}


def doubled(mind: Mind) -> Mind:
    return mind._replace(network=copy.deepcopy(mind.network).double())


def mind_of(**arguments) -> Mind:
    """With a law of the data that takes something away from the scale at "told" and "long"."""
    mind = neuron(**arguments).float()._mind
    mind.network.data_law.weight.fill_(-3.0)
    mind.network.data_law.bias.fill_(0.2)
    return mind


def compared(space: WeightSpace, mind: Mind, clock: Clock, sums: Tensor) -> tuple[Plan, Plan]:
    """The kernel's plan and that of the operators in float64; the counters are compared."""
    came, wanted = state_for(space), in_float64(state_for(space))
    plan = think.think_in_place(mind, layout_of(space, CPU, torch.float32), sums.float(), came, clock)
    assert plan is not None
    exact = operators.think_in_place(doubled(mind), layout_of(space, CPU, torch.float64), sums, wanted, clock)
    for name, entries in wanted.items():
        assert torch.equal(came[name]["step"], entries["step"])
        torch.testing.assert_close(came[name]["loss"].double(), entries["loss"], rtol=1e-6, atol=1e-6)
    return plan, exact


def assert_close(came: Plan, wanted: Plan) -> None:
    for row, exact in zip(
        (*came.rows, *came.columns, came.scales), (*wanted.rows, *wanted.columns, wanted.scales), strict=True
    ):
        if exact.numel():
            assert (row - exact).abs().max() <= TOLERANCE * exact.abs().max()
    assert came.floor == wanted.floor


@needs_compiler
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MORE_SPACES)
def test_values(name, rule, time):
    space = WeightSpace(MORE_SPACES[name])
    assert_close(*compared(space, mind_of(**RULES[rule]), TIMES[time], sums_for(space)))


@needs_compiler
@pytest.mark.parametrize("parameter", dict(mind_of().network.named_parameters()))
def test_every_meta_parameter_counts_as_it_does_for_the_operators(parameter):
    space, mind = WeightSpace(MORE_SPACES["attention"]), mind_of()
    before, _ = compared(space, mind, TIMES["told"], sums_for(space))
    changed = mind_of()
    with torch.no_grad():
        dict(changed.network.named_parameters())[parameter].mul_(1.5)
    after, exact = compared(space, changed, TIMES["told"], sums_for(space))
    assert any(not torch.equal(a, b) for a, b in zip(before[:3], after[:3], strict=True))
    assert_close(after, exact)


@needs_compiler
def test_sums_of_nothing():
    space = WeightSpace(MORE_SPACES["stack"])
    assert_close(*compared(space, mind_of(), TIMES["told"], torch.zeros_like(sums_for(space))))


@needs_compiler
def test_what_is_not_a_number_is_not_hidden():
    space, clock = WeightSpace(MORE_SPACES["stack"]), TIMES["told"]
    sums = sums_for(space)
    sums[0, 0] = torch.nan
    came, wanted = compared(space, mind_of(), clock, sums)
    assert torch.equal(came.scales.isnan(), wanted.scales.isnan())  # through which no weight escapes
    assert came.scales.isnan().any()


@needs_compiler
def test_the_number_of_threads_does_not_change_a_bit(monkeypatch):
    space, mind, found = WeightSpace(MORE_SPACES["larger"]), mind_of(), []
    for count in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        layout = layout_of(space, CPU, torch.float32)
        found.append(think.think_in_place(mind, layout, sums_for(space).float(), state_for(space), TIMES["told"]))
    for plan in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(plan[:3], found[0][:3], strict=True))


@pytest.mark.parametrize("what", ["θ in float64", "θ in another order", "step", "loss", "no compiler", "off"])
def test_the_operators_take_what_the_kernel_does_not(what, monkeypatch):
    space, mind, clock = WeightSpace(MORE_SPACES["stack"]), mind_of(), TIMES["told"]
    state, first = state_for(space), next(iter(space))
    if what == "θ in float64":
        mind.network.read_time.double()
    if what == "θ in another order":
        head = mind.network.neuron_head
        head.weight = nn.Parameter(head.weight.detach().t().contiguous().t())
    if what == "step":
        state[first]["step"] = state[first]["step"].double()
    if what == "loss":
        state[first]["loss"] = state[first]["loss"].repeat_interleave(2)[::2]
    if what == "no compiler":
        monkeypatch.setattr(native, "library", lambda: None)
    if what == "off":
        monkeypatch.setenv("LOPT_KERNELS", "0")
    before, layout = copy.deepcopy(state), layout_of(space, CPU, torch.float32)
    if what != "off":
        assert think.think_in_place(mind, layout, sums_for(space).float(), state, clock) is None
        assert all(torch.equal(x, before[k][key]) for k, entries in state.items() for key, x in entries.items())
    if what == "θ in float64":
        return  # no rule has θ of two dtypes
    plan = plan_of(mind, layout, sums_for(space).float(), state, clock)
    exact = operators.think_in_place(
        doubled(mind), layout_of(space, CPU, torch.float64), sums_for(space), in_float64(before), clock
    )
    assert_close(plan, exact)


def test_a_network_that_is_wrapped():
    """A module around the network, and a layer whose weight is made from another, hold their parameters elsewhere."""
    space = WeightSpace(MORE_SPACES["stack"])
    wanted = taken(space, neuron().float())
    compiled, parametrized = neuron().float(), neuron().float()
    wrapped: Any = torch.compile(compiled.network, backend="eager")
    compiled.network = wrapped
    parametrizations.weight_norm(parametrized.network.tensor_head)
    for rule in (compiled, parametrized):
        came = taken(space, rule)
        assert all((came[k] - x).abs().max() <= 1e-4 * x.abs().max() for k, x in wanted.items())


def taken(space: WeightSpace, rule: Neuron) -> dict[str, Tensor]:
    """The updates of a step in place."""
    params, grads = tensors(space, 0, torch.float32), tensors(space, 1, torch.float32)
    return run_in_place(rule, space, params, [grads], clocks(1))[0][0]


@needs_compiler
def test_sums_in_another_order_of_memory():
    space, mind = WeightSpace(MORE_SPACES["stack"]), mind_of()
    layout, sums = layout_of(space, CPU, torch.float32), sums_for(space).float()
    plans = [
        think.think_in_place(mind, layout, x, state_for(space), TIMES["told"])
        for x in (sums, sums.t().contiguous().t())
    ]
    assert plans[0] is not None and plans[1] is not None
    assert all(torch.equal(a, b) for a, b in zip(plans[0][:3], plans[1][:3], strict=True))


@needs_compiler
def test_too_little_memory_is_an_error(monkeypatch):
    """The kernel says so; the process goes on."""

    class Full:
        @staticmethod
        def lopt_think(*arguments):
            return 0

    space = WeightSpace(MORE_SPACES["stack"])
    monkeypatch.setattr(native, "library", Full)
    with pytest.raises(MemoryError, match="no memory for a step of"):
        think.think_in_place(
            mind_of(), layout_of(space, CPU, torch.float32), sums_for(space).float(), state_for(space), TIMES["told"]
        )
