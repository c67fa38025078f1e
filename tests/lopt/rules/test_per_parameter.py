"""PerParameter's steps in place against its pure form, whatever the code, the sizes, dtypes and orders of memory."""

import subprocess
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lopt import LearnedOptimizer, WeightSpace
from lopt.rules import Clock, PerParameter, State, UpdateRule, native
from lopt.rules.features import BASE, normalise_rms
from lopt.rules.per_parameter import cpu, step
from lopt.rules.per_parameter import rule as rule_module
from tests.lopt.rules.test_neuron import gap, tensors

SPACE = WeightSpace({"w": "a:13, b:7", "v": "b:7", "s": "", "none": "c:0, b:7", "conv": "a:13, b:7, 3, 3"})
# around a strip of the kernel (24) and a part (6144)
SIZES = WeightSpace({str(n): f"a{n}:{n}" for n in (1, 23, 24, 25, 47, 48, 49, 6143, 6144, 6145, 12289)})
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="needs a C++ compiler")


def drawn(width: int = 8, layers: int = 3) -> PerParameter:
    torch.manual_seed(3)
    rule = PerParameter(width, layers)
    with torch.no_grad():
        rule.update.a.fill_(0.05)  # α and β away from their start: α β is as large as α
        rule.update.b.fill_(0.7)
        for p in rule.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return rule.requires_grad_(False)


def copied(state: State) -> State:
    return State({k: {key: x.clone() for key, x in t.items()} for k, t in state.tensors.items()}, state.scalars)


def in_place(rule: UpdateRule, space: WeightSpace, params, grads, state: State, clock: Clock, rate: float = 0.1):
    """One step; each parameter is written as soon as its update was handed out."""
    came: dict[str, Tensor] = {}
    for piece in rule.updates_(space, params, grads, state, clock):
        assert piece.factors is None
        for k, x in zip(piece.names, piece.directions, strict=True):
            came[k] = x.clone()
            params[k].sub_(came[k], alpha=rate)
    return came


def apart(rule: PerParameter, space: WeightSpace, dtype: torch.dtype, order: Callable = lambda x: x) -> float:
    """How far three steps in place are from those of the pure form, in updates and state."""
    params, *gradients = ({k: order(x) for k, x in tensors(space, s, dtype).items()} for s in range(4))
    state, worst = rule.init_state(space, params), 0.0
    for number, grads in enumerate(gradients):
        clock = Clock(torch.tensor(float(10**number)))
        wanted, following = rule(space, params, grads, copied(state), clock)
        came = in_place(rule, space, params, grads, state, clock)
        assert list(came) == list(wanted)
        assert {k: (x.dtype, x.shape) for k, x in came.items()} == {k: (x.dtype, x.shape) for k, x in wanted.items()}
        full = {k: x for k, x in wanted.items() if x.numel()}
        worst = max(worst, *(float((came[k] - x).abs().max() / x.abs().max()) for k, x in full.items()))
        for k, entries in following.tensors.items():
            assert torch.equal(state.tensors[k]["step"], entries["step"])
            worst = max(worst, gap(state.tensors[k]["momenta"], entries["momenta"]) if k in full else 0.0)
    return worst


@pytest.fixture
def taken(monkeypatch) -> list[str]:
    """Which code took the steps."""
    codes: list[str] = []

    def spy(where, name: str, label: str) -> None:
        plain = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *arguments: codes.append(label) or plain(*arguments))

    spy(cpu, "native_updates", "kernel")
    spy(rule_module, "updates_in_chunks", "operators")
    spy(UpdateRule, "updates_", "pure form")
    return codes


def strange(x: Tensor) -> Tensor:
    """The same values in another order of memory."""
    if x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x.mT.contiguous().mT if x.dim() > 1 else x


# --- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 10, 8192])
@pytest.mark.parametrize(
    ("dtype", "theta", "tolerance"),
    [(F32, F32, 1e-5), (F64, F64, 1e-12), (F64, F32, 1e-5), (BF16, F32, 1e-5), (F16, F32, 1e-5)],
)
def test_by_operators_it_takes_the_same_steps(monkeypatch, taken, size, dtype, theta, tolerance):
    monkeypatch.setenv("LOPT_KERNELS", "0")
    monkeypatch.setattr(step, "chunk_size", lambda device: size)
    assert apart(drawn().to(theta), SPACE, dtype) < tolerance
    assert set(taken) == {"operators"}


# --- the kernel ------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize(("width", "layers"), [(32, 3), (8, 1), (5, 2), (1, 4)])
@pytest.mark.parametrize("space", [SPACE, SIZES], ids=["shapes", "sizes"])
def test_by_the_kernel_it_takes_the_same_steps(taken, space, width, layers):
    assert apart(drawn(width, layers), space, F32) < 1e-5
    assert set(taken) == {"kernel"}


@needs_compiler
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_the_kernel_takes_weights_of_half_precision(taken, dtype):
    assert apart(drawn(), SPACE, dtype) < 1e-5
    assert set(taken) == {"kernel"}


@needs_compiler
@pytest.mark.parametrize("group", [1, 100, 900])
def test_the_kernel_takes_tensors_in_groups(monkeypatch, taken, group):
    monkeypatch.setattr(cpu, "GROUP", group)
    assert apart(drawn(), SPACE, F32) < 1e-5
    assert set(taken) == {"kernel"}


@pytest.mark.parametrize("kernels", ["0", "1"])
def test_other_orders_of_memory(monkeypatch, kernels):
    monkeypatch.setenv("LOPT_KERNELS", kernels)
    assert apart(drawn(), SPACE, F32, strange) < 1e-5


@pytest.mark.parametrize("kernels", ["0", "1"])
def test_a_gradient_that_is_kept_with_the_other_sign(monkeypatch, kernels):
    monkeypatch.setenv("LOPT_KERNELS", kernels)
    rule, params, clock = drawn(), tensors(SPACE, 0, F32), Clock(torch.tensor(0.0))
    grads = tensors(SPACE, 1, F32)
    signed = {k: torch.ops.aten._neg_view(-g) for k, g in grads.items()}
    wanted, _ = rule(SPACE, params, grads, rule.init_state(SPACE, params), clock)
    came = in_place(rule, SPACE, params, signed, rule.init_state(SPACE, params), clock)
    assert gap({k: x for k, x in came.items() if x.numel()}, {k: x for k, x in wanted.items() if x.numel()}) < 1e-5


@needs_compiler
def test_the_number_of_threads_does_not_change_a_bit(monkeypatch):
    rule, gradients, found = drawn(32), [tensors(SIZES, s, F32) for s in (1, 2)], []
    for count in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        params = tensors(SIZES, 0, F32)
        state = rule.init_state(SIZES, params)
        for number, grads in enumerate(gradients):
            in_place(rule, SIZES, params, grads, state, Clock(torch.tensor(float(number))))
        found.append({k: (p, state.tensors[k]["momenta"]) for k, p in params.items()})
    for other in found[1:]:
        assert all(torch.equal(a, b) for k in other for a, b in zip(other[k], found[0][k], strict=True))


@needs_compiler
def test_the_kernel_in_arithmetic_of_one_weight():
    """Against the formula written out, in float64: no chunk, no padding, no folded bias."""
    rule, space = drawn(), WeightSpace({"w": "a:31"})
    params, grads = tensors(space, 0, F32), tensors(space, 1, F32)
    state = rule.init_state(space, params)
    state.tensors["w"]["momenta"].copy_(torch.randn(31, 6, generator=torch.Generator().manual_seed(2)))
    old, clock = state.tensors["w"]["momenta"].double(), Clock(torch.tensor(17.0))
    came = in_place(rule, space, params, grads, state, clock, rate=0.0)["w"]
    rule.double()
    w, g = params["w"].double(), grads["w"].double()
    momenta = [d * old[:, k] + (1 - d) * g for k, d in enumerate((0.1, 0.5, 0.9, 0.99, 0.999, 0.9999))]
    scales = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
    time = torch.tanh(17.0 / torch.tensor(scales, dtype=F64) - 1)
    x = torch.stack([*map(normalise_rms, (w, g, *momenta)), *(t.expand(31) for t in time)], -1)
    layers = [rule.features.first, *rule.features.rest]
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        x = (x @ layer.weight.t() + layer.bias).clamp(min=0)
    f = x @ rule.head.weight[0] + rule.head.bias
    wanted = rule.update.alpha * (momenta[BASE] + rule.update.beta * f)
    assert float((came - wanted).abs().max() / wanted.abs().max()) < 1e-6


# --- numbers that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["0", "1"])
def test_zeros_stay_finite(monkeypatch, kernels):
    monkeypatch.setenv("LOPT_KERNELS", kernels)
    params, rule = tensors(SPACE, 0, F32), drawn()
    zeros = {k: torch.zeros_like(p) for k, p in params.items()}
    state = rule.init_state(SPACE, params)
    for piece in rule.updates_(SPACE, zeros, zeros, state, Clock(torch.tensor(0.0))):
        assert all(x.isfinite().all() for x in piece.directions)


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_the_kernel_hands_on_what_is_not_finite_as_the_pure_form_does(taken, value, where):
    space, rule, clock = WeightSpace({"w": "a:30", "v": "b:30"}), drawn(), Clock(torch.tensor(3.0))
    params, grads = tensors(space, 0, F32), tensors(space, 1, F32)
    (params if where == "weight" else grads)["w"][7] = value
    state = rule.init_state(space, params)
    wanted, following = rule(space, params, grads, copied(state), clock)
    came = in_place(rule, space, params, grads, state, clock, rate=0.0)
    assert taken == ["kernel"]
    assert wanted["w"][7].isnan()
    assert wanted["v"].isfinite().all()
    for k, x in wanted.items():
        torch.testing.assert_close(came[k], x, rtol=1e-5, atol=1e-5, equal_nan=True)
        momenta = following.tensors[k]["momenta"]
        torch.testing.assert_close(state.tensors[k]["momenta"], momenta, rtol=1e-5, atol=1e-5, equal_nan=True)


# --- which code takes a step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("plain", "kernel"),
        ("off", "operators"),
        ("no compiler", "operators"),
        ("float64", "operators"),
        ("theta", "operators"),
        ("order", "pure form"),
    ],
)
def test_a_step_is_taken_by_the_code_that_can(monkeypatch, taken, what, code):
    if what == "plain" and native.compiler() is None:
        pytest.skip("needs a C++ compiler")
    if what == "off":
        monkeypatch.setenv("LOPT_KERNELS", "0")
    if what == "no compiler":
        monkeypatch.setattr(cpu, "library", lambda: None)
    rule, dtype = drawn().to(F64 if what == "theta" else F32), F64 if what == "float64" else F32
    params = tensors(SPACE, 0, dtype)
    state, grads = rule.init_state(SPACE, params), tensors(SPACE, 1, dtype)
    if what == "order":
        state.tensors["w"]["momenta"] = torch.zeros(6, 13, 7).movedim(0, -1)
    wanted, _ = rule(SPACE, params, grads, copied(state), Clock(torch.tensor(0.0)))
    came = in_place(rule, SPACE, params, grads, state, Clock(torch.tensor(0.0)))
    assert taken == [code]
    assert gap({k: x for k, x in came.items() if x.numel()}, {k: x for k, x in wanted.items() if x.numel()}) < 1e-5


def test_with_a_compiler_that_fails_it_warns_once_and_steps(monkeypatch, tmp_path, taken):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho cannot >&2; exit 1\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("LOPT_CACHE", str(tmp_path))
    cpu.library.cache_clear()
    try:
        model = nn.Linear(3, 2)
        optimizer = LearnedOptimizer(model.parameters(), rule=drawn())
        model(torch.ones(1, 3)).sum().backward()
        with pytest.warns(UserWarning, match="PerParameter rule runs without its kernels.*cannot") as told:
            optimizer.step()
            optimizer.step()
        assert len(told) == 1
    finally:
        cpu.library.cache_clear()
    assert taken == ["operators"] * 2


@needs_compiler
def test_a_changed_source_or_header_is_made_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("LOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_HEADERS", tmp_path)
    source, header, values = tmp_path / "kernel.cpp", tmp_path / "value.h", []
    for body, value in (("VALUE", 1), ("VALUE", 2), ("10 + VALUE", 2)):
        header.write_text(f"#define VALUE {value}\n")
        source.write_text(f'#include "value.h"\nextern "C" int value() {{ return {body}; }}\n')
        made = native.load(source, "Test")
        assert made is not None
        values.append(made.value())
    assert values == [1, 2, 12]
    monkeypatch.setattr(subprocess, "run", None)  # what is in the cache is not made again
    again = native.load(source, "Test")
    assert again is not None
    assert again.value() == 12
