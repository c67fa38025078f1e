"""Running somebody's module leaves nothing behind, whatever it does; and exact arithmetic is exact."""

import random
import warnings
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lopt import InvalidInput, WeightSpace
from lopt.verification.isolation import check_module, exact, exactly, isolated
from lopt.verification.tensor_tree import map_tensors, tensors_in


class Messy(nn.Module):
    """Does to itself what modules do, and more."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("average", torch.zeros(2))
        self.average: Tensor
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.table, self.calls, self.fails_at = torch.tensor([1.5, -0.25]), 0, fails_at
        self.cache: dict[str, Any] = {"x": [torch.ones(2)]}
        self.recent: deque[int] = deque([1], maxlen=2)
        self.hidden = [nn.Linear(2, 2)]  # not registered
        self.memory = SimpleNamespace(last=torch.zeros(2), count=0)
        self.noise = torch.Generator().manual_seed(3)
        self.steps = torch.tensor(7)
        self.average.grad = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.new = x
        if self.calls == self.fails_at:
            self.train()
            raise KeyError("thrown on the way")
        random.random()
        np.random.rand()
        hidden = self.dropout(self.norm(self.up(x)).tanh())
        y = self.hidden[0](self.down(hidden)) * self.table + self.frozen
        y = y + 0.1 * torch.randn(2, generator=self.noise, dtype=y.dtype)
        self.average.mul_(0.9).add_(0.1 * y.mean(0))  # with a history
        self.cache["x"].append(y)
        self.cache["y"] = y
        self.recent.append(self.calls)
        self.memory.last, self.memory.count = y, self.memory.count + 1
        self.steps += 1
        with torch.no_grad():
            self.up.bias.add_(1.0)
            self.table *= 2
        self.down.bias.requires_grad_(False)
        self.up.weight.grad = torch.ones_like(self.up.weight)
        self.dropout.train(not self.dropout.training)
        self._forward_hooks.clear()
        return y


SPACE = WeightSpace(
    {
        "frozen": "2", "up.weight": "h:4, 3", "up.bias": "h:4", "norm.weight": "h:4", "norm.bias": "h:4",
        "down.weight": "2, h:4", "down.bias": "2",
    },
    {"norm.running_mean": "h:4", "norm.running_var": "h:4"},
)  # fmt: skip


def everything(module: Messy) -> dict[str, Any]:
    """What a module is: objects, by identity, and values, as bits."""
    parts = [*module.modules(), module.hidden[0]]
    tensors = [*module.parameters(), *module.buffers(), *module.hidden[0].parameters(), module.table, module.steps]
    tensors += [module.cache["x"][0], module.memory.last]
    return {
        "dicts": [{k: id(v) for k, v in part.__dict__.items() if k != "training"} for part in parts],
        "inner": [{k: id(v) for k, v in d.items()} for part in parts for d in (part._parameters, part._buffers)],
        "modes": [part.training for part in parts],
        "tensors": [(id(t), t.data_ptr(), t.dtype, t.numpy(force=True).tobytes()) for t in tensors],
        "flags": [
            (t.requires_grad, t.is_leaf, t.is_leaf and t.grad is not None and float(t.grad.sum())) for t in tensors
        ],
        "containers": (list(module.cache), len(module.cache["x"]), list(module.recent), module.recent.maxlen),
        "attributes": (module.calls, module.memory.count, len(module._forward_hooks)),
        "noise": module.noise.get_state().tolist(),
    }


def process() -> list[Any]:
    """The state outside the module."""
    return [
        torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()), torch.get_default_dtype(),
        torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"),
    ]  # fmt: skip


def make(fails_at: int = -1) -> Messy:
    torch.manual_seed(0)
    module = Messy(fails_at)
    module.norm.eval()  # modes of its own
    module.up.weight.grad = torch.full_like(module.up.weight, 2.0)
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize("training", [False, True])
def test_verification_leaves_no_trace(training):
    module, x = make(), torch.randn(4, 3)
    before, outside, inputs = everything(module), process(), x.clone()
    with torch.no_grad():
        outside_without_gradients = process()
        assert SPACE.verify(module, x, training=training)
        assert process() == outside_without_gradients
    assert everything(module) == before
    assert process() == outside
    assert torch.equal(x, inputs) and x.dtype == torch.float32
    assert not hasattr(module, "new")


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("fails_at", [1, 2])
def test_nor_does_a_run_that_fails(double, fails_at):
    module, x = make(fails_at), torch.randn(4, 3, dtype=torch.float64 if double else torch.float32)
    before, outside = everything(module), process()
    with pytest.raises(KeyError, match="thrown"), isolated(module, training=False, double=double):
        assert not module.dropout.training
        module(x)
        module(x)
    assert everything(module) == before
    assert process() == outside
    with pytest.raises(KeyError, match="thrown"):
        SPACE.verify(make(1), x)


def test_this_module_does_leave_traces_otherwise():
    module = make()
    before = everything(module)
    module(torch.randn(4, 3))
    after = everything(module) | {"containers": None}
    assert [key for key, value in before.items() if after[key] == value] == ["inner"]


def test_without_copies_only_flags_and_attributes_come_back():
    module = make()
    pointer, bias = module.up.bias.data_ptr(), module.up.bias.detach().clone()
    with isolated(module, copy=False):
        assert module.up.bias.data_ptr() == pointer
        module(torch.randn(4, 3))
    assert torch.equal(module.up.bias, bias + 1.0)
    assert module.calls == 0 and module.up.weight.grad is not None and float(module.up.weight.grad[0, 0]) == 2.0


def test_a_weight_with_a_history_comes_back():
    """The old weight_norm keeps a computed, non-leaf tensor, which copy.deepcopy refuses."""
    module = nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module)
    module(torch.randn(1, 3))
    weight, value = module.weight, module.weight.detach().clone()
    with isolated(module, double=True):
        assert module(torch.randn(1, 3, dtype=torch.float64)).dtype == torch.float64
    assert module.weight is weight and torch.equal(weight, value) and weight.grad_fn is not None


def test_a_module_under_fake_tensors():
    with torch._subclasses.FakeTensorMode():
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        with isolated(module, training=True, double=True), exact():
            assert module(torch.randn(2, 3)).dtype == torch.float64
        assert {p.dtype for p in module.parameters()} == {torch.float32}


# --- exact arithmetic ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cast",
    [
        lambda x: x.float(), lambda x: x.half(), lambda x: x.bfloat16(), lambda x: x.to(torch.float32),
        lambda x: x.to("cpu", torch.float16), lambda x: x.to(dtype=torch.bfloat16), lambda x: x.type(torch.float32),
        lambda x: x.type(torch.FloatTensor), lambda x: x.type("torch.HalfTensor"),
        lambda x: torch.softmax(x, 0, dtype=torch.float32), lambda x: F.softmax(x, 0, dtype=torch.float32),
        lambda x: x.sum(0, dtype=torch.float32), lambda x: x + torch.zeros(3, dtype=torch.float16),
        lambda x: x * torch.tensor(np.ones(3, np.float32)), lambda x: torch.arange(3.0),
        lambda x: x.new_zeros(3, dtype=torch.float32), lambda x: F.rms_norm(x.float(), (3,)),
    ],
)  # fmt: skip
def test_nothing_is_rounded_below_float64(cast):
    x = torch.tensor([0.1, 0.2, 1 / 3], dtype=torch.float64)
    with exact():
        y = cast(x)
    assert y.dtype == torch.float64
    if y.shape == x.shape and bool(y.sum() != y.round().sum()):
        assert not torch.equal(y, y.float().double())  # not rounded on the way either


def test_what_exact_leaves_alone():
    x = torch.ones(3, dtype=torch.float64)
    with exact():
        assert x.view(torch.int32).shape == (6,)
        assert x.long().dtype == x.to(torch.int64).dtype == torch.int64
        assert x.bool().dtype == (x > 0).dtype == torch.bool
        assert x.to(torch.complex64).dtype == torch.complex128
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.linear(x, torch.ones(2, 3)).dtype == torch.float64
    assert exactly(torch.ones(1, dtype=torch.complex64)).dtype == torch.complex128


def test_an_up_cast_puts_no_floor_under_the_check():
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.up, self.down = nn.Parameter(torch.ones(64)), nn.Linear(3, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.up(x).float()
            x = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-6)
            return self.down((self.w * x).type_as(self.w))

    names = {"w": "h:64", "up.weight": "h:64, 3", "up.bias": "h:64", "down.weight": "2, h:64", "down.bias": "2"}
    found = WeightSpace(names).verify(Norm(), torch.randn(4, 3))
    assert found and max(found.joint.value, found.joint.gradient) < 1e-12


def test_the_encoder_has_no_fast_path():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    parts = {"attention": "H:2*q[H]:4 + H:2*q[H]:4 + H:2*v[H]:4"}
    space = WeightSpace({
        "self_attn.in_proj_weight": f"{parts['attention']}, 8", "self_attn.in_proj_bias": parts["attention"],
        "self_attn.out_proj.weight": "8, H:2*v[H]:4", "self_attn.out_proj.bias": "8",
        "linear1.weight": "h:16, 8", "linear1.bias": "h:16", "linear2.weight": "8, h:16", "linear2.bias": "8",
        "norm1.weight": "8", "norm1.bias": "8", "norm2.weight": "8", "norm2.bias": "8",
    })  # fmt: skip
    found = space.verify(layer, torch.randn(2, 3, 8))
    assert found and not found.notes and found.joint.value < 1e-12


# --- nests, and what is refused --------------------------------------------------------------------------------------


def test_nests():
    x = torch.ones(1)
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    changed = map_tensors({"a": (x, [x, "text"]), "b": packed, "c": None}, exactly)
    assert changed["b"].data.dtype == torch.float64 and changed["b"].batch_sizes.dtype == torch.int64
    assert isinstance(changed["b"], nn.utils.rnn.PackedSequence)
    assert [t.dtype for t in tensors_in(changed["a"])] == [torch.float64] * 2
    loop: list[Any] = [x]
    loop.append(loop)
    assert len(tensors_in([loop, SimpleNamespace(y=x, module=nn.Linear(2, 2)), torch.distributions.Normal(x, x)])) == 4


def test_modules_are_checked_for_values_only_if_these_are_needed():
    module = nn.Linear(3, 2, device="meta")
    check_module(module, values=False)
    with pytest.raises(InvalidInput, match="to_empty"):
        check_module(module)
    with pytest.raises(InvalidInput, match="several devices: 'weight' on cpu, 'bias' on meta"):
        mixed = nn.Linear(3, 2)
        mixed.bias = nn.Parameter(torch.zeros(2, device="meta"))
        check_module(mixed, values=False)


def test_grouped_products_have_float64():
    rows, matrices = torch.randn(7, 16).bfloat16(), torch.randn(3, 16, 8).bfloat16()
    ends = torch.tensor([2, 5, 7], dtype=torch.int32)
    grouped_mm: Any = vars(torch)["_grouped_mm"]  # private, and what mixtures of experts use
    rounded = grouped_mm(rows, matrices, offs=ends)
    with exact():
        came = grouped_mm(rows.double(), matrices.double(), offs=ends)
    assert came.dtype == torch.float64
    torch.testing.assert_close(rounded.double(), came, rtol=1e-2, atol=5e-2)
