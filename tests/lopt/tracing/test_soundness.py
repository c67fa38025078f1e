"""What cannot be followed is fixed and told, never guessed; and the module is afterwards what it was.

The escapes are bodies between two Linear layers: h is hidden, (batch 4, 6 neurons), and what the body returns is read
out. In a body that depends on the order of the neurons, none may be free, even without verification.
"""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import lopt
from lopt import InvalidInput, WeightSpace
from lopt.tracing import TraceWarning, analyse, register, trace
from lopt.tracing.registry import RULES

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "not used by the example", ".*no rule", "`torch.jit.script` is deprecated", "__array_wrap__",
        "Complex modules", "torch.quantize_per_tensor",
    )
]  # fmt: skip


class Body(nn.Module):
    """enter, the body, leave; `other` is a second hidden layer, `table` a buffer, `ones` a uniform one."""

    table: Tensor
    ones: Tensor

    def __init__(self, body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.other, self.leave = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)
        self.register_buffer("table", torch.arange(6.0))
        self.register_buffer("ones", torch.ones(6))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.body(self, x, torch.tanh(self.enter(x))))


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def free_axis(space: WeightSpace, name: str, axis: int) -> bool:
    """Whether a group permutes some of an axis."""
    return ":" in str(space[name][axis])


def zeros(h: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=h.dtype)


def into(made: Tensor, write) -> Tensor:
    write(made)
    return made


# --- escapes ---------------------------------------------------------------------------------------------------------


class Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.cumsum(1)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0].flip(1).cumsum(1).flip(1)


class Labelled(Tensor):
    pass


@torch.jit.script
def scripted(h: Tensor) -> Tensor:
    return torch.cumsum(h, 1)


compiled = torch.compile(lambda h: torch.cumsum(h, 1), backend="eager")


def with_data(h: Tensor) -> Tensor:
    made = torch.zeros_like(h)
    made.data = h
    return made


def inner_gradient(h: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        (leaf.tanh().square()).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def swapped(h: Tensor) -> Tensor:
    made, copied = torch.zeros_like(h), h.detach().clone()
    torch.utils.swap_tensors(made, copied)
    return made


def out_of_two(h: Tensor) -> Tensor:
    values, places = h.new_empty(4), torch.empty(4, dtype=torch.long)
    torch.max(h, 1, out=(values, places))
    return h + places[:, None].to(h.dtype)


ORDERED = {
    "numpy": lambda m, x, h: torch.from_numpy(h.detach().numpy()).cumsum(1),
    "numpy's own functions": lambda m, x, h: torch.as_tensor(np.cumsum(h.detach(), 1)),
    "asarray": lambda m, x, h: torch.from_numpy(np.asarray(h.detach())).cumsum(1),
    "tolist": lambda m, x, h: torch.tensor(h.tolist(), dtype=h.dtype).cumsum(1),
    "items": lambda m, x, h: torch.tensor([[v.item() for v in row] for row in h], dtype=h.dtype).cumsum(1),
    "dlpack": lambda m, x, h: torch.from_dlpack(h.detach()).cumsum(1),
    "pickle": lambda m, x, h: pickle.loads(pickle.dumps(h.detach())).cumsum(1),
    "deepcopy": lambda m, x, h: copy.deepcopy(h.detach()).cumsum(1),
    "copy": lambda m, x, h: copy.copy(h.detach()).cumsum(1),
    "autograd.Function": lambda m, x, h: Sums.apply(h),
    "autograd.grad inside": lambda m, x, h: inner_gradient(h).cumsum(1),
    "torch.func.grad": lambda m, x, h: torch.func.grad(lambda v: v.cumsum(1).square().sum())(h),
    "torch.func.vmap": lambda m, x, h: torch.func.vmap(lambda v: v.cumsum(0))(h),
    "torch.func.jvp": lambda m, x, h: torch.func.jvp(lambda v: v.cumsum(1), (h,), (h,))[1],
    "scripted": lambda m, x, h: scripted(h),
    "compiled": lambda m, x, h: compiled(h),
    "a Parameter made of it": lambda m, x, h: nn.Parameter(h.detach()).cumsum(1),
    "a subclass": lambda m, x, h: h.as_subclass(Labelled).cumsum(1).as_subclass(Tensor),
    "data": lambda m, x, h: h.data.cumsum(1),
    "data of another": lambda m, x, h: with_data(h).cumsum(1),
    "set_": lambda m, x, h: torch.zeros_like(h).set_(h.detach()).cumsum(1),
    "swap_tensors": lambda m, x, h: swapped(h).cumsum(1),
    "copy on write": lambda m, x, h: torch.ops.aten._lazy_clone(h).cumsum(1),
    "out": lambda m, x, h: into(zeros(h, 4, 6), lambda t: torch.sin(h.detach(), out=t)).cumsum(1),
    "out of a view": lambda m, x, h: into(zeros(h, 4, 7), lambda t: torch.sin(h, out=t[:, :6])).cumsum(1)[:, 1:],
    "out resized": lambda m, x, h: into(h.new_empty(0), lambda t: torch.sin(h.detach(), out=t)).cumsum(1),
    "out of two": lambda m, x, h: out_of_two(h.detach()),
    "as_strided": lambda m, x, h: h + h.as_strided((4, 6), (6, 1)).cumsum(1),
    "into slices of zeros": lambda m, x, h: into(zeros(h, 4, 8), lambda t: t[:, 1:7].copy_(h)).cumsum(1)[:, :6],
    "into steps of zeros": lambda m, x, h: into(zeros(h, 4, 12), lambda t: t[:, ::2].copy_(h)).cumsum(1)[:, :6],
    "in place in a view": lambda m, x, h: into(h.clone(), lambda t: t[:, :3].add_(h[:, 3:])).cumsum(1),
    "in place in the base": lambda m, x, h: (lambda t: (t[:, :], t.cumsum_(1))[0])(h.clone()),
    "in place shape": lambda m, x, h: into(h.clone(), lambda t: t.transpose_(0, 1).cumsum_(0)).t(),
    "squeeze_": lambda m, x, h: into(h.clone(), lambda t: t.unsqueeze_(1).squeeze_(1).cumsum_(1)),
    "a buffer": lambda m, x, h: h * m.table,
    "a uniform buffer": lambda m, x, h: h * m.ones,
    "a uniform constant from outside": lambda m, x, h: h + torch.tensor([0.0] * 6),
    "sorted": lambda m, x, h: h.sort(1)[0],
    "a mask of neurons": lambda m, x, h: h[h > -5].reshape(4, 6),
    "a loop over neurons": lambda m, x, h: torch.stack([h[:, i] * i for i in range(6)], 1),
    "map_": lambda m, x, h: into(h.detach().clone(), lambda t: t.map_(m.table.to(h).expand(4, 6), lambda a, b: a * b)),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERED)
def test_what_depends_on_the_order_is_fixed(name):
    found = analyse(Body(ORDERED[name]), X, verify=False)
    assert not free_axis(found.space, "enter.weight", 0), found.space
    assert not free_axis(found.space, "leave.weight", 1), found.space


LEAVING = ("numpy", "numpy's own functions", "asarray", "tolist", "dlpack", "pickle", "deepcopy", "set_", "map_")


@pytest.mark.parametrize("name", LEAVING)
def test_what_leaves_pytorch_is_told(name):
    found = analyse(Body(ORDERED[name]), X)
    assert found.unknown and not found.space.groups
    with pytest.warns(TraceWarning, match="no rule"):
        trace(Body(ORDERED[name]), X)


# What keeps the neurons free, however it is written: the whole layer, both layers tied, or both each on its own.
FREE = {
    "autograd.Function": (1, lambda m, x, h: TwiceTanh.apply(h)),
    "vmap": (1, lambda m, x, h: torch.func.vmap(torch.tanh)(h)),
    "jvp": (1, lambda m, x, h: torch.func.jvp(torch.tanh, (h,), (h,))[1]),
    "a gradient inside": (1, lambda m, x, h: inner_gradient(h)),
    "scripted": (1, lambda m, x, h: scripted_tanh(h)),
    "a Parameter made of it": (1, lambda m, x, h: nn.Parameter(h.detach()) * 2),
    "data": (1, lambda m, x, h: h.data * 2),
    "where": (1, lambda m, x, h: torch.where(m.other(x) > 0, h, 0.2)),
    "masked_fill_": (1, lambda m, x, h: h.clone().masked_fill_(m.other(x) > 0, 0.2)),
    "out": (1, lambda m, x, h: into(zeros(h, 4, 6), lambda t: torch.add(h.detach(), m.other(x).detach(), out=t))),
    "uniform, made inside": (1, lambda m, x, h: h + torch.ones(6) + torch.zeros_like(h)),
    "into halves of zeros": (
        2, lambda m, x, h: into(zeros(h, 4, 12), lambda t: (t[:, :6].copy_(h), t[:, 6:].copy_(m.other(x))))[:, :6]
        + m.other(x).sum(1, keepdim=True),
    ),
    "in place on views": (1, lambda m, x, h: into(h.clone(), lambda t: t[:2].add_(m.other(x)[:2]))),
    "in place shape": (1, lambda m, x, h: into(h.clone(), lambda t: t.transpose_(0, 1)).t()),
    "a module twice": (1, lambda m, x, h: h + torch.tanh(m.enter(x * 2))),
    "a number": (1, lambda m, x, h: h * h.sum().item()),
    "dropout in evaluation": (1, lambda m, x, h: F.dropout(h, 0.5, m.training)),
}  # fmt: skip


class TwiceTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h.tanh())
        return h.tanh() * 2

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * 2 * (1 - ctx.saved_tensors[0] ** 2)


@torch.jit.script
def scripted_tanh(h: Tensor) -> Tensor:
    return torch.tanh(h) * 2


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_depend_on_the_order_stays_free(name):
    groups, body = FREE[name]
    module = Body(body)
    found = analyse(module, X, verify=False)
    assert len(found.space.groups) == groups, found.space
    assert free_axis(found.space, "leave.weight", 1)
    assert not found.unknown
    found.space.verify(module, X).raise_if_failed()


def test_random_numbers():
    """A mask of noise is no function of the weights. In evaluation there is none."""
    noisy = Body(lambda m, x, h: F.dropout(h, 0.5, m.training))
    for found in (analyse(noisy, X, training=True), analyse(noisy, X, training=True, verify=False)):
        assert found.space.verify(noisy, X, training=True)
    assert analyse(noisy, X).space.groups
    cumulative = Body(lambda m, x, h: (h + torch.randn_like(h)).cumsum(1))
    assert not analyse(cumulative, X).space.groups


# --- parameters ------------------------------------------------------------------------------------------------------


def test_a_parameter_used_twice_ties_what_it_meets():
    module = Body(lambda m, x, h: h @ m.enter.weight @ m.enter.weight.T)
    assert len(trace(module, X).groups) == 1
    square = Body(lambda m, x, h: F.linear(torch.tanh(F.linear(h, m.square)), m.square))
    square.square = nn.Parameter(torch.randn(6, 6))
    space = trace(square, X)
    assert str(space["square"][0]) == str(space["square"][1]) == str(space["leave.weight"][1])


def test_tied_parameters_go_by_the_first_name():
    module = Body(lambda m, x, h: h)
    module.other.weight = module.enter.weight
    space = trace(module, X)
    assert "other.weight" not in space and free_axis(space, "enter.weight", 0)


def test_a_sliced_parameter_has_segments():
    module = Body(lambda m, x, h: torch.tanh(F.linear(x, m.both[:6])) + 0 * F.linear(x, m.both[6:]).sum())
    module.both = nn.Parameter(torch.randn(9, 3))
    space = trace(module, X)
    assert [part.size for part in space["both"][0].segments] == [6, 3]  # type: ignore[union-attr]
    assert str(space["both"][0].segments[0]) == str(space["leave.weight"][1])  # type: ignore[union-attr]


def test_what_is_not_used_is_fixed_and_named():
    module = Body(lambda m, x, h: h + m.positions[:4])
    module.positions = nn.Parameter(torch.randn(9, 6))
    found = analyse(module, X)
    assert set(found.unused) == {"other.weight", "other.bias", "positions"}
    assert not free_axis(found.space, "other.weight", 0) and not free_axis(found.space, "other.weight", 1)
    assert not free_axis(found.space, "positions", 0) and free_axis(found.space, "positions", 1)
    with pytest.warns(TraceWarning, match="not used by the example.*'other.weight'"):
        trace(module, X)


class Routed(nn.Module):
    """Top-1 of four experts; with few tokens some stay without one. `careful` mixes the order in a rare expert."""

    def __init__(self, ordered: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.gate, self.leave = nn.Linear(3, 4), nn.Linear(5, 2)
        self.ups = nn.ModuleList(nn.Linear(3, 6) for _ in range(4))
        self.downs = nn.ModuleList(nn.Linear(6, 5) for _ in range(4))
        self.ordered = ordered
        nn.init.constant_(self.gate.bias, 0.0)
        with torch.no_grad():
            self.gate.bias[0] = 20.0  # at first the first expert gets every token

    def forward(self, x: Tensor) -> Tensor:
        chosen, out = self.gate(x).argmax(-1), x.new_zeros(len(x), 5)
        for i, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            mine = (chosen == i).nonzero()[:, 0]
            if mine.numel():
                hidden = torch.tanh(up(x[mine]))
                out[mine] = down(hidden.cumsum(1) if self.ordered and i == 3 else hidden)
        return self.leave(out)


def test_experts_that_no_token_reaches():
    found = analyse(Routed(ordered=False), torch.randn(8, 3))
    assert found.routed and not found.unused
    assert len(found.space.groups) == 5  # four hidden layers, and what the experts write to
    ordered = analyse(Routed(ordered=True), torch.randn(8, 3), verify=False).space
    assert not free_axis(ordered, "ups.3.weight", 0) and free_axis(ordered, "ups.2.weight", 0)


# --- rules of one's own ----------------------------------------------------------------------------------------------


@pytest.fixture
def library():
    """An operator that PyTorch knows nothing of: the running sum, twice."""
    made = torch.library.Library("lopt_test", "FRAGMENT")
    made.define("sums(Tensor x) -> Tensor")
    made.define("twice(Tensor x) -> Tensor")
    made.impl("sums", lambda x: torch.from_numpy(np.cumsum(x.detach().numpy(), 1)), "CPU")
    made.impl("twice", lambda x: torch.from_numpy(2 * x.detach().numpy()), "CPU")
    for name in ("sums", "twice"):
        made.impl(name, torch.library.fallthrough_kernel, "Autograd")
    before = dict(RULES)
    yield torch.ops.lopt_test
    RULES.clear()
    RULES.update(before)
    made._destroy()


def call_sums(m, x, h):
    return torch.ops.lopt_test.sums(h)


def call_twice(m, x, h):
    return torch.ops.lopt_test.twice(h)


@pytest.mark.parametrize("body", [call_sums, call_twice])
def test_an_operator_without_a_rule_is_fixed_and_named(body, library):
    found = analyse(Body(body), X, verify=False)
    assert not found.space.groups
    (what,) = found.unknown
    assert "lopt_test::" in what and "no rule" in what
    with pytest.warns(TraceWarning, match="lopt_test::"):
        trace(Body(body), X)


def test_a_rule_of_ones_own(library):
    @register("lopt_test::twice")
    def twice(call):
        call.set(call.out, call.labels(call["x"]))

    def body(m, x, h):
        return call_twice(m, x, h) + torch.tanh(m.other(x)).sum(1, keepdim=True)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(trace(Body(body), X).groups) == 2


def test_a_wrong_rule_is_caught_and_its_group_named(library):
    @register("lopt_test::sums")
    def wrong(call):
        call.set(call.out, call.terms(call["x"]))

    module = Body(call_sums)
    (name,) = analyse(module, X, verify=False).space.groups
    with pytest.warns(TraceWarning, match=f"{name}.*failed the numeric check"):
        space = trace(module, X)
    assert not space.groups and space.verify(module, X)


@pytest.mark.parametrize(
    "say", [lambda call: (), lambda call: call.terms(call["x"])[:1], lambda call: call.terms(call["x"])[::-1]]
)
def test_a_rule_that_gives_another_shape_is_not_believed(say, library):
    @register("lopt_test::sums")
    def wrong(call):
        call.set(call.out, say(call))

    found = analyse(Body(call_sums), X, verify=False)
    assert not found.space.groups and found.unknown


def in_a_thread(m, x, h):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.cumsum, h, 1).result()


def test_what_no_tracer_can_see_is_found_by_the_verification():
    """PyTorch's modes belong to a thread: what another one does cannot be seen."""
    with pytest.warns(TraceWarning, match="failed the numeric check"):
        assert not trace(Body(in_a_thread), X).groups


def test_an_operator_needs_a_namespace():
    with pytest.raises(InvalidInput, match="namespace::name"):
        register("cumsum")


# --- the module afterwards -------------------------------------------------------------------------------------------


class Untidy(nn.Module):
    """Caches, counts, changes its mode, draws random numbers, updates buffers, writes into what it is given."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("late", None)
        self.cache, self.history, self.broken = None, [], broken
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.late = torch.ones(1)
        self.norm.train()
        x.add_(1)
        hidden = self.norm(self.enter(x)) * self.frozen
        self.cache = hidden
        self.history.append(hidden)
        self.made = torch.rand(()) + random.random() + float(np.random.rand())
        self.enter.bias.data.add_(1)
        if self.broken:
            raise RuntimeError("in the middle of it")
        return self.leave(hidden)


def everything(module: nn.Module) -> list[object]:
    """All that can be told of a module."""
    told: list[object] = []
    for part in module.modules():
        told += [part.training, sorted(part.__dict__), list(part._buffers), id(part.__dict__.get("cache"))]
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        told += [name, id(tensor), tensor.data_ptr(), tensor.requires_grad, tensor._version * 0]
        told += [tensor.detach().numpy().tobytes(), None if tensor.grad is None else tensor.grad.numpy().tobytes()]
    return told


def random_state() -> list[object]:
    return [torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state())]


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_nothing_is_left_behind(broken, training, verify):
    torch.manual_seed(0)
    module = Untidy(broken)
    module.norm.eval()
    module.enter.weight.grad = torch.randn(6, 3)
    x = torch.randn(4, 3)
    before, drawn, given = everything(module), random_state(), x.clone()
    if broken:
        with pytest.raises(RuntimeError, match="in the middle of it"):
            analyse(module, x, training=training, verify=verify)
    else:
        analyse(module, x, training=training, verify=verify)
    assert everything(module) == before and random_state() == drawn
    assert torch.equal(x, given)
    assert module.history == [] and module.cache is None and module.late is None
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_mode_is_as_asked():
    seen = []
    module = Body(lambda m, x, h: (seen.append(m.training), h)[1])
    for training in (False, True):
        for mode in (False, True):
            module.train(mode)
            trace(module, X, training=training, verify=False)
            assert module.training == mode
        assert set(seen) == {training}
        seen.clear()


def test_output_picks_what_matters():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Body(lambda m, x, h: h)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.body(x), "hidden": self.body.enter(x)}

    module = Two()
    assert not trace(module, X).groups
    space = trace(module, X, output=lambda out: out["logits"])
    assert len(space.groups) == 1
    assert space.verify(module, X, output=lambda out: out["logits"])


def test_inputs_that_do_not_fit_raise_the_modules_own_error():
    with pytest.raises(RuntimeError, match="4x7 and 3x6"):
        trace(Body(lambda m, x, h: h), torch.randn(4, 7))
    with pytest.raises(TypeError, match="positional argument"):
        trace(Body(lambda m, x, h: h), X, X)


# --- what a parameter may be -----------------------------------------------------------------------------------------


def test_parameters_without_values_or_shape_or_place():
    with pytest.raises(InvalidInput, match="'0.weight' is lazy"):
        trace(nn.Sequential(nn.LazyLinear(4)), X)
    quantised = nn.Linear(3, 2)
    quantised.register_buffer("q", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    with pytest.raises(InvalidInput, match="'q' is quantised"):
        trace(quantised, X)
    split = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, device="meta"))
    with pytest.raises(InvalidInput, match="several devices: '0.weight' on cpu, '1.weight' on meta"):
        trace(split, X)
    with pytest.raises(InvalidInput, match="give an nn.Module"):
        trace(torch.tanh, X)  # type: ignore[arg-type]


EXPECTED = WeightSpace.linear_stack({"0.weight": (8, 3), "0.bias": (8,), "2.weight": (2, 8), "2.bias": (2,)})


def same_symmetry(space: WeightSpace) -> bool:
    return str(space["0.weight"][0]) == str(space["2.weight"][1]) and len(space.groups) == len(EXPECTED.groups)


def network(device: str = "cpu") -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8, device=device), nn.ReLU(), nn.Linear(8, 2, device=device))


def test_meta_and_fake_parameters_have_a_symmetry_without_values():
    meta = analyse(network("meta"), X)
    assert same_symmetry(meta.space) and meta.verification is None
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = network()
    fake = analyse(module, X)
    assert same_symmetry(fake.space) and fake.verification is None


def test_a_value_that_leaves_a_fake_network_raises():
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = Body(ORDERED["numpy"])
    with pytest.raises(Exception, match=r"(?i)numpy|fake|meta"):
        trace(module, X)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_same_in_every_context(context):
    module = nn.Sequential(nn.Linear(3, 8), nn.PReLU(8), nn.Linear(8, 2))
    with context():
        inside = trace(module, torch.ones(4, 3))
    assert inside == trace(module, torch.ones(4, 3)) and same_symmetry(inside)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_other_kinds_of_numbers(dtype):
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    assert same_symmetry(trace(module, X.to(dtype)))


def test_a_module_without_parameters_or_without_symmetry():
    assert trace(nn.Tanh(), X) == WeightSpace({})
    assert not trace(nn.Linear(3, 2), X).groups


def test_trace_is_the_packages_own():
    assert lopt.trace is trace
