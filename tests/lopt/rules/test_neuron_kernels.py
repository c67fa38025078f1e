"""The kernels of the Neuron rule against its pure form: values of updates and state, whatever the tensors are like.

Triton's kernels run in its interpreter on a CPU, in a process of their own, since it is chosen when Triton is imported.
"""

import importlib.util
import inspect
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lopt import LearnedOptimizer, WeightSpace
from lopt.rules.native import compiler
from lopt.rules.neuron import form, hidden
from lopt.rules.neuron import rule as rule_module
from lopt.rules.neuron.kernels import choose, cpu, gpu, kernels_here, native
from lopt.rules.neuron.layout import layout_of
from lopt.rules.neuron.passes import KEYS, Memory
from lopt.rules.rule import Clock, State
from tests.lopt.rules.test_neuron import SPACES, WAYS, clocks, gap, neuron, run, run_in_place, tensors, ways

TOLERANCE = 1e-5
MORE_SPACES = {
    **SPACES,
    "larger": {"w": "a:61, b:303", "bias": "a:61", "long": "c:3000", "conv": "b:303, a:61, 3"},
    "odd": {"w": "a:19, b:37", "bias": "a:19", "long": "c:140"},
    "empty": {"w": "a:0, b:3", "v": "b:3, a:0", "s": "", "u": "b:3"},
    "ones": {"w": "a:1, b:1", "v": "a:1", "s": ""},
    "hidden": {"w": "a:4, b:3", "v": "b:3, a:4"},
}
FOR_TRITON = ("odd", "large", "grouped", "empty", "ones", "hidden")
needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def differences(
    space: WeightSpace,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    steps: int = 2,
    **arguments,
) -> float:
    """Of some steps of the rule in place from its pure form in float64: the larger one of the updates and the state."""
    rule = neuron(**arguments).to(device)
    every = [tensors(space, s, torch.float32) for s in range(1 + steps)]
    params, *gradients = ({k: x.to(device, dtype) for k, x in some.items()} for some in every)
    times = [clock._replace(**{k: x.to(device) for k, x in clock._asdict().items()}) for clock in clocks(steps)]
    exact, *exactly = ({k: x.double() for k, x in some.items()} for some in (params, *gradients))
    wanted = run(rule, space, exact, exactly, times)
    came = run_in_place(rule.float(), space, params, gradients, times)
    # weights of half precision drift apart by a rounding, so there the first step is what must agree
    comparable = steps if dtype == torch.float32 else 1
    apart = gap(came[0][:comparable], wanted[0][:comparable])
    return max(apart, gap(came[1].tensors, wanted[1].tensors))


@pytest.fixture
def used(monkeypatch) -> list[type]:
    """The kinds of memory that took the steps."""
    kinds: list[type] = []

    def spy(*arguments):
        made = choose.memory_of(*arguments)
        kinds.append(type(made))
        return made

    monkeypatch.setattr(rule_module, "memory_of", spy)
    return kinds


# --- C++ -------------------------------------------------------------------------------------------------------------


@needs_compiler
@ways
@pytest.mark.parametrize("name", MORE_SPACES)
def test_values_on_a_cpu(name, way, used):
    assert differences(WeightSpace(MORE_SPACES[name]), steps=4, **way) < TOLERANCE
    assert set(used) == {cpu.NativeMemory}


@needs_compiler
@pytest.mark.parametrize("part", [5, 4096])
def test_values_whatever_the_parts(monkeypatch, part):
    for key, value in {
        "_PART": part,
        "_PART_ROWS": 1,
        "_GROUP": 30,
        "_table_of": inspect.unwrap(cpu._table_of),
    }.items():
        monkeypatch.setattr(cpu, key, value)
    monkeypatch.setattr(hidden, "_TOGETHER", part)
    for name in ("large", "larger", "attention", "grouped", "empty"):
        for way in WAYS.values():
            assert differences(WeightSpace(MORE_SPACES[name]), **way) < TOLERANCE


@needs_compiler
def test_bfloat16_on_a_cpu(used):
    for name in ("odd", "attention", "ones"):
        assert differences(WeightSpace(MORE_SPACES[name]), dtype=torch.bfloat16) < TOLERANCE
    assert set(used) == {cpu.NativeMemory}


@needs_compiler
def test_the_number_of_threads_does_not_change_a_bit(monkeypatch):
    monkeypatch.setattr(cpu, "_PART", 1000)
    monkeypatch.setattr(cpu, "_table_of", inspect.unwrap(cpu._table_of))
    space, rule = WeightSpace(MORE_SPACES["larger"]), neuron(deflation=8).float()
    found = []
    params, *gradients = (tensors(space, s, torch.float32) for s in range(4))
    for count in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        found.append(run_in_place(rule, space, params, gradients, clocks(3)))
    for updates, state in found[1:]:
        assert all(torch.equal(a[k], b[k]) for a, b in zip(updates, found[0][0], strict=True) for k in a)
        assert all(
            torch.equal(x, found[0][1].tensors[k][key]) for k, t in state.tensors.items() for key, x in t.items()
        )


@needs_compiler
def test_weights_and_gradients_in_another_order_of_memory(used):
    space, rule = WeightSpace({"w": "a:4, b:3, 3, 3", "v": "b:3, a:4"}), neuron().float()
    params, *gradients = (tensors(space, s, torch.float32) for s in range(3))

    def strange(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.t().contiguous().t()

    def odd(some: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: strange(x) for k, x in some.items()}

    wanted = run(rule, space, params, gradients, clocks(2))
    came = run_in_place(rule, space, odd(params), [odd(g) for g in gradients], clocks(2))
    assert gap(came[0], wanted[0]) < TOLERANCE
    assert gap(came[1].tensors, wanted[1].tensors) < TOLERANCE
    assert set(used) == {cpu.NativeMemory}


@pytest.mark.parametrize("what", ["float64", "float16", "mixed", "state", "off", "no compiler"])
def test_the_operators_take_what_the_kernels_do_not(what, used, monkeypatch):
    space = WeightSpace({"w": "a:4, b:3", "v": "a:4"})
    rule = neuron().to(torch.float64 if what == "float64" else torch.float32)
    dtypes = {"float64": (torch.float64, torch.float64), "float16": (torch.float16, torch.float16)}
    of_params, of_grads = dtypes.get(what, (torch.float32, torch.bfloat16 if what == "mixed" else torch.float32))
    params, grads = tensors(space, 0, of_params), tensors(space, 1, of_grads)
    state = rule.init_state(space, params)
    if what == "state":
        state.tensors["w"][KEYS[1]] = torch.zeros(3, 4).t()
    if what == "off":
        monkeypatch.setenv("LOPT_KERNELS", "0")
        assert kernels_here() == "none"
    if what == "no compiler":
        monkeypatch.setattr(native, "library", lambda: None)
    wanted, following = rule(space, params, grads, copied(state), clocks(1)[0])
    came = {}
    for piece in rule.updates_(space, params, grads, state, clocks(1)[0]):
        assert piece.factors is not None
        came |= {k: d * f for k, d, f in zip(piece.names, piece.directions, piece.factors, strict=True)}
    assert gap({k: came[k] for k in wanted}, wanted) < TOLERANCE
    assert gap(state.tensors, following.tensors) < TOLERANCE
    assert used == [Memory]


def copied(state: State) -> State:
    return State({k: {key: x.clone() for key, x in t.items()} for k, t in state.tensors.items()}, state.scalars)


@needs_compiler
def test_the_optimizer_takes_the_same_steps_without_kernels(monkeypatch):
    found = []
    for on in ("1", "0"):
        monkeypatch.setenv("LOPT_KERNELS", on)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3))
        optimizer = LearnedOptimizer(model.parameters(), rule=neuron().float(), weight_decay=0.1)
        for seed in range(4):
            x = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
            model.zero_grad()
            model(x).square().mean().backward()
            optimizer.step(loss=1.0 / (1 + seed))
        found.append([p.detach().clone() for p in model.parameters()])
    assert gap(*found) < TOLERANCE


@needs_compiler
def test_the_library_is_made_once(monkeypatch, tmp_path):
    monkeypatch.setenv("LOPT_CACHE", str(tmp_path))
    build = native.library.__wrapped__
    assert build() is not None
    (made,) = (tmp_path / "kernels").iterdir()
    assert made.suffix == ".so"
    monkeypatch.setattr(subprocess, "run", None)  # the compiler is not called again
    assert build() is not None


@pytest.mark.parametrize("trouble", ["fails", "damaged", "absent"])
def test_without_a_working_compiler_there_are_no_kernels(trouble, monkeypatch, tmp_path):
    monkeypatch.setenv("LOPT_CACHE", str(tmp_path))
    compiler = tmp_path / "c++"
    fails, writes_nonsense = "echo cannot >&2; exit 1", 'for x; do o=$x; done; echo no > "$o"'
    compiler.write_text(f"#!/bin/sh\n{fails if trouble == 'fails' else writes_nonsense}\n")
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(tmp_path / "nothing" if trouble == "absent" else compiler))
    build = native.library.__wrapped__
    if trouble == "absent":
        assert build() is None
        return
    with pytest.warns(
        UserWarning, match="without its kernels.*cannot" if trouble == "fails" else "without its kernels"
    ):
        assert build() is None


@needs_compiler
def test_threads_without_an_openmp_runtime(tmp_path):
    """A program of its own, into which no PyTorch has brought one."""
    source, made = tmp_path / "spread.cpp", tmp_path / "spread"
    source.write_text(
        """#include <cstdio>
        #include "threads.h"
        int main() {
            std::atomic<int64_t> sum{0}, most{0}, now{0};
            lopt::spread(100, 3, [&](int64_t i) {
                int64_t running = ++now, known = most;
                while (running > known && !most.compare_exchange_weak(known, running)) {}
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
                sum += i, --now;
            });
            std::printf("%ld %d %d", long(sum), most > 1, lopt::region() == nullptr);
        }"""
    )
    headers = Path(native.__file__).parents[2]
    command = [str(compiler()), "-std=c++17", "-pthread", f"-I{headers}", str(source), "-o", str(made), "-ldl"]
    subprocess.run(command, check=True)
    assert subprocess.run([made], check=True, capture_output=True, text=True).stdout == "4950 1 1"


# --- Triton ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the package triton")
def test_triton_in_its_interpreter():
    root = Path(__file__).parents[3]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["same"] * 2 * len(WAYS) * len(FOR_TRITON)


def compare_triton() -> None:
    """What the test above runs: two dtypes of some spaces, in all ways to move hidden matrices."""
    rule_module.memory_of = gpu.TritonMemory
    for name, dtype, way in itertools.product(FOR_TRITON, (torch.float32, torch.bfloat16), WAYS):
        apart = differences(WeightSpace(MORE_SPACES[name]), dtype=dtype, **WAYS[way])
        print("same" if apart < TOLERANCE else f"{name} {dtype} {way} {apart}")


@needs_cuda
@ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MORE_SPACES)
def test_values_on_a_gpu(name, dtype, way, used):
    assert differences(WeightSpace(MORE_SPACES[name]), "cuda", dtype, **way) < 10 * TOLERANCE
    assert set(used) == {gpu.TritonMemory if importlib.util.find_spec("triton") else Memory}


@needs_cuda
def test_a_step_on_a_gpu_does_not_wait():
    space, rule = WeightSpace(MORE_SPACES["larger"]), neuron(deflation=8).float().cuda()
    params, grads = ({k: x.cuda() for k, x in tensors(space, s, torch.float32).items()} for s in range(2))
    state, clock = rule.init_state(space, params), clocks(1, full=False)[0]
    clock = clock._replace(step=clock.step.cuda())
    list(rule.updates_(space, params, grads, state, clock))
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(rule.updates_(space, params, {k: g + 1 for k, g in grads.items()}, state, clock))
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    compare_triton()


@needs_compiler
def test_networks_in_threads_of_their_own(monkeypatch):
    """What is remembered of weight spaces is shared; more of them than are remembered come at once."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)

    def train(first: int) -> list[nn.Parameter]:
        shapes = {str(k): (first + 37 * k, first + k + 1) for k in range(20)}
        params = [nn.Parameter(x) for x in tensors(WeightSpace.from_shapes(shapes), first, torch.float32).values()]
        optimizers = [LearnedOptimizer([p], rule=rule) for p in params]
        for _ in range(4):
            for p, optimizer in zip(params, optimizers, strict=True):
                p.grad = p.detach().clone()
                optimizer.step()
        return params

    rule = neuron(deflation=8).float()
    alone = [train(first) for first in range(4, 10)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(train, range(4, 10)))
    assert all(torch.equal(a, b) for x, y in zip(alone, together, strict=True) for a, b in zip(x, y, strict=True))


@needs_compiler
def test_a_default_device_that_is_not_the_weights(used):
    space, rule = WeightSpace(MORE_SPACES["stack"]), neuron(deflation=8).float()
    params, *gradients = (tensors(space, s, torch.float32) for s in range(3))
    times = clocks(2)
    wanted = run_in_place(rule, space, params, gradients, times)
    torch.set_default_device("meta")
    try:
        came = run_in_place(rule, space, params, gradients, times)
    finally:
        torch.set_default_device(None)
    assert gap(came[0], wanted[0]) == 0
    assert set(used) == {cpu.NativeMemory}


def test_a_step_in_inference_mode_leaves_nothing_behind():
    space, rule = WeightSpace({"w": "p:5, q:3", "v": "p:5"}), neuron().float()
    params, grads = tensors(space, 0, torch.float32), tensors(space, 1, torch.float32)
    with torch.inference_mode():
        rule(space, params, grads, rule.init_state(space, params), clocks(1)[0])
    rule.requires_grad_(True)
    updates, _ = rule(space, params, grads, rule.init_state(space, params), clocks(1)[0])
    torch.stack([x.sum() for x in updates.values()]).sum().backward()
    assert all(p.grad is not None for p in rule.network.tensor_head.parameters())


def test_a_fake_layout_is_not_kept():
    space, rule = WeightSpace({"w": "p:7, q:3"}), neuron().float()
    with FakeTensorMode(allow_non_fake_inputs=True):
        params = {"w": torch.randn(7, 3)}
        rule(space, params, params, rule.init_state(space, params), Clock(torch.tensor(0.0)))
    assert differences(space) < TOLERANCE


@needs_compiler
@ways
def test_many_positions_with_few_weights_have_no_neurons(monkeypatch, way):
    """A long vector and the long side of a thin matrix; the long side of a full one keeps its own."""
    monkeypatch.setattr(form, "_MANY", 90)
    space = WeightSpace({"vector": "x:100", "thin": "x:100, y:3", "full": "x:100, z:20", "short": "z:20"})
    layout = layout_of(space, torch.device("cpu"), torch.float32)
    assert layout.n_neurons == 100 + 3 + 20
    entries = {name: len(slots) for name in space for slots in [form.form_of(name, space[name]).column_slots]}
    assert entries == {"vector": 0, "thin": 1, "full": 1, "short": 1}
    assert not form.form_of("thin", space["thin"]).row_slots
    assert form.form_of("full", space["full"]).row_slots
    assert differences(space, steps=3, **way) < TOLERANCE


@needs_compiler
def test_without_a_home_there_are_no_kernels(monkeypatch):
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LOPT_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.warns(UserWarning, match="without its kernels"):
        assert native.library.__wrapped__() is None
