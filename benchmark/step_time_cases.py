"""What `python -m benchmark.step_time` measures: one step of optimizers, side by side with torch.optim.Adam.

Every time is a median over rounds in which all contenders take turns in one process, each on its own copy of the same
weights and gradients; every comparison is a ratio of such medians. Before that, the step is checked.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import lopt
from benchmark.layer_cases import Row, medians
from benchmark.live_bytes import LiveBytes
from lopt.rules import Adam, Clock, Functional, Neuron, PerParameter, State, UpdateRule
from lopt.weight_space import WeightSpace

LR = 1e-6  # so small that the weights stay where they are: the time should not depend on a run's fate
WARM = 4  # steps before anything is compared
TOLERANCE = 1e-5
ADAM_BYTES, NEURON_BYTES = 28, 56  # a float32 parameter: what one pass, and two without deflation, read and write
COPY = 1 << 28  # numbers that are copied to find the memory's bandwidth
FOREACH, FUSED = "Adam(foreach)", "Adam(fused)"
ORTHOGONAL = "Neuron, Muon's direction"


class Case(NamedTuple):
    """A network, and what is aimed at on it."""

    name: str
    make: Callable[[], nn.Module]
    example: tuple[int, ...]  # shape of an input, to trace with
    reference: str  # what others need, in steps of Adam
    goal: float  # of Neuron, in steps of Adam(foreach)
    more: bool  # whether slower ones run as well, which take a second for a million weights


class GpuCase(NamedTuple):
    name: str
    make: Callable[[int], nn.Module]  # number of blocks -> the parameters
    blocks: int
    goal: float


def mlp(*widths: int) -> nn.Sequential:
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*layers[:-1], layers[-1][0])


def cnn(*channels: int) -> nn.Sequential:
    """Three convolutions on 3x12x12 images, to 3x3; two Linear layers."""
    a, b, c, d = channels
    return nn.Sequential(
        *(nn.Conv2d(3, a, 3, 2, 1), nn.ReLU(), nn.Conv2d(a, b, 3, 2, 1), nn.ReLU(), nn.Conv2d(b, c, 3, 1, 1)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(9 * c, d), nn.ReLU(), nn.Linear(d, 10)),
    )


class Shapes(nn.Module):
    """Parameters and nothing else."""

    def __init__(self, shapes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(0.05 * torch.randn(*shape)) for shape in shapes])


def transformer_block(width: int) -> list[tuple[int, ...]]:
    """Of ViT and of GPT-2: two norms, fused qkv, its output, and an MLP of four times the width."""
    matrices = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [(width,)] * 4 + [shape for n, m in matrices for shape in ((n, m), (n,))]


def vit_base(blocks: int) -> Shapes:
    """ViT-B/16 on 224 x 224 images and 1000 classes."""
    first = [(1, 1, 768), (1, 197, 768), (768, 3, 16, 16), (768,)]
    return Shapes([*first, *transformer_block(768) * blocks, (768,), (768,), (1000, 768), (1000,)])


def gpt2_medium(blocks: int) -> Shapes:
    """GPT-2 medium, its output tied to its embedding."""
    return Shapes([(50257, 1024), (1024, 1024), *transformer_block(1024) * blocks, (1024,), (1024,)])


CASES = (
    Case("MLP 784-784-512-10", lambda: mlp(784, 784, 512, 10), (2, 784), "PyLO 172 to 475", 4, True),
    Case("MLP 784-2560-2560-512-10", lambda: mlp(784, 2560, 2560, 512, 10), (2, 784), "PyLO 235 to 532", 3, False),
    Case("CNN 32-64-128-128", lambda: cnn(32, 64, 128, 128), (2, 3, 12, 12), "PyLO 93 to 126", 6, True),
)
GPU_CASES = (GpuCase("ViT-B/16", vit_base, 12, 2), GpuCase("GPT-2 medium", gpt2_medium, 24, 2))
NS_GOAL, EXTRA_GOAL, STATE_GOAL, MAKING_GOAL = 80, 12, 12, 50
MADE_BLOCKS = 14  # of the ViT that the constructor is timed on
GPU_REFERENCE = "PyLO's CUDA kernels 20"


def rows(device: torch.device | None) -> list[Row]:
    """Everything that is measured; without a device the rows of a GPU stay empty."""
    found = [*(row for case in CASES for row in on_cpu(case)), making()]
    if device is None:
        return found + [row for case in GPU_CASES for row in absent(case)]
    bandwidth = copy_bandwidth(device)
    return found + [row for case in GPU_CASES for row in on_gpu(case, device, bandwidth)]


# --- a case ----------------------------------------------------------------------------------------------------------


def on_cpu(case: Case) -> list[Row]:
    torch.manual_seed(0)
    model, cpu = with_gradients(case.make()), torch.device("cpu")
    space = lopt.trace(model, torch.zeros(case.example))
    rules: dict[str, tuple[UpdateRule, WeightSpace | None]] = {
        "Neuron": (neuron(), None),
        "Neuron, traced space": (neuron(), space),
        "our Adam": (Adam(), None),
    }
    if case.more:
        rules |= {"PerParameter": (PerParameter(), None), "Functional": (Functional(space), space)}
    for rule, known in rules.values():
        check(rule, known, model)
    count = sum(p.numel() for p in model.parameters())
    name = f"{case.name}, {count / 1e6:.2f}M"
    optimizers, seconds = timed(model, rules, cpu)
    found = times(name, seconds, rules, case.reference, {k: case.goal for k in rules if k.startswith("Neuron")})
    if case.more:
        each, goal = 1e9 * seconds["PerParameter"] / count, f"<= {NS_GOAL}"
        found.append(Row(name, "PerParameter", each, "ns a parameter", "PyLO 208 to 605", goal, each <= NS_GOAL))
    for label in (FOREACH, *rules):
        found += memory(name, label, optimizers[label], count, label.startswith("Neuron"))
    if case.more:
        rule = neuron(orthogonalise=True)
        check(rule, space, model)
        found += apart(name, model, rule, space, cpu)
    return found


def on_gpu(case: GpuCase, device: torch.device, bandwidth: float) -> list[Row]:
    """Parameters and random gradients alone. The check runs on the first blocks: the pure form needs much memory.

    Muon's direction is not checked here: in bfloat16 two ways to the same momentum are further apart than is allowed.
    """
    torch.manual_seed(0)
    rules: dict[str, tuple[UpdateRule, WeightSpace | None]] = {"Neuron": (neuron().to(device), None)}
    check(rules["Neuron"][0], None, with_gradients(case.make(2).to(device)))
    model = with_gradients(case.make(case.blocks).to(device))
    count = sum(p.numel() for p in model.parameters())
    name = f"{case.name}, {count / 1e6:.0f}M, CUDA"
    optimizers, seconds = timed(model, rules, device)
    found = times(name, seconds, rules, GPU_REFERENCE, {"Neuron": case.goal})
    copied = f"a copy moves {bandwidth / 1e9:,.0f} GB/s"
    for label, moved in ((FOREACH, ADAM_BYTES), (FUSED, ADAM_BYTES), ("Neuron", NEURON_BYTES)):
        reached = moved * count / seconds[label] / bandwidth
        found.append(
            Row(name, f"{label}, {moved} bytes a parameter", reached, "of a copy's bandwidth", copied, "", None)
        )
    found += memory(name, "Neuron", optimizers["Neuron"], count, True)
    return found + apart(name, model, neuron(orthogonalise=True).to(device), None, device)


def apart(name: str, model: nn.Module, rule: UpdateRule, space: WeightSpace | None, device: torch.device) -> list[Row]:
    """Muon's direction, by turns with Adam alone: its products of matrices slow down what has its turn after them."""
    rules = {ORTHOGONAL: (rule, space)}
    optimizers, seconds = timed(model, rules, device)
    found = [row for row in times(name, seconds, rules, "", {}) if row.metric == ORTHOGONAL]
    count = sum(p.numel() for p in model.parameters())
    return found + memory(name, ORTHOGONAL, optimizers[ORTHOGONAL], count, False)


def making() -> Row:
    """The time of the constructor, but for that of loading torch's compiler, which any first optimizer takes."""
    model, times = vit_base(MADE_BLOCKS), []
    count = sum(p.numel() for p in model.parameters())
    for _ in range(5):
        begin = time.perf_counter()
        lopt.LearnedOptimizer(model.named_parameters())
        times.append(1000 * (time.perf_counter() - begin))
    taken, name = statistics.median(times), f"ViT of {MADE_BLOCKS} blocks, {count / 1e6:.0f}M"
    return Row(name, "constructor", taken, "ms", "", f"<= {MAKING_GOAL}", taken <= MAKING_GOAL)


def absent(case: GpuCase) -> list[Row]:
    """The rows of a case without a device: what is aimed at stays, `holds` is open."""
    name = f"{case.name}, CUDA"
    return [
        Row(name, "Neuron", None, f"x {FOREACH}", GPU_REFERENCE, f"<= {case.goal:g}", None),
        Row(name, "Neuron", None, f"x {FUSED}", "", "", None),
        Row(name, "Neuron", None, "of a copy's bandwidth", "", "", None),
        Row(name, ORTHOGONAL, None, f"x {FOREACH}", "", "", None),
        Row(name, "Neuron, peak extra memory", None, "bytes a parameter", "118 to 1,032", f"<= {EXTRA_GOAL}", None),
    ]


# --- its figures -----------------------------------------------------------------------------------------------------


def times(
    name: str, seconds: Mapping[str, float], rules: Mapping[str, object], reference: str, goals: Mapping[str, float]
) -> list[Row]:
    foreach, fused = seconds[FOREACH], seconds[FUSED]
    found = [Row(name, label, 1000 * seconds[label], "ms", "", "", None) for label in seconds]
    for label in rules:
        ratio, goal = seconds[label] / foreach, goals.get(label)
        limit = ("", None) if goal is None else (f"<= {goal:g}", ratio <= goal)
        found.append(Row(name, label, ratio, f"x {FOREACH}", reference if goal else "", *limit))
        found.append(Row(name, label, seconds[label] / fused, f"x {FUSED}", "", "", None))
    return found


def memory(name: str, label: str, optimizer: torch.optim.Optimizer, count: int, aimed: bool) -> list[Row]:
    """The most bytes alive during a step beyond those before it, and the bytes of the state."""
    with LiveBytes() as live:
        optimizer.step()
    extra = live.peak / count
    state = sum(x.nbytes for entry in optimizer.state.values() for x in entry.values()) / count
    limit = (f"<= {EXTRA_GOAL}", extra <= EXTRA_GOAL) if aimed else ("", None)
    found = [Row(name, f"{label}, peak extra memory", extra, "bytes a parameter", "118 to 1,032", *limit)]
    # a step counter, what is remembered of the loss, and a subspace belong to a tensor or its neurons, not its weights
    limit = (f"<= {STATE_GOAL}", state <= 1.01 * STATE_GOAL) if aimed else ("", None)
    return [*found, Row(name, f"{label}, state", state, "bytes a parameter", "PyLO 16", *limit)]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    x, taken = torch.zeros(COPY, device=device), []
    y = torch.empty_like(x)
    for _ in range(5):
        torch.cuda.synchronize(device)
        begin = time.perf_counter()
        y.copy_(x)
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begin)
    return 2 * x.nbytes / statistics.median(taken)


# --- contenders, and whether they are right --------------------------------------------------------------------------


def with_gradients(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(p)
    return model


def drawn(rule: UpdateRule) -> UpdateRule:
    """With θ moved away from its start, where a rule's heads are zero and hide what is before them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in rule.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator).to(p))
    return rule


def neuron(**arguments: bool) -> UpdateRule:
    """The rule that ships, with another θ."""
    return drawn(Neuron(**{**lopt.load_rule("neuron-1").arguments, **arguments}))


def contenders(
    model: nn.Module, rules: Mapping[str, tuple[UpdateRule, WeightSpace | None]]
) -> dict[str, torch.optim.Optimizer]:
    """Optimizers that have made some steps, each on a copy of the model."""

    def twin() -> nn.Module:
        other = copy.deepcopy(model)
        for p, q in zip(other.parameters(), model.parameters(), strict=True):
            p.grad = None if q.grad is None else q.grad.clone()
        return other

    made: dict[str, torch.optim.Optimizer] = {
        FOREACH: torch.optim.Adam(twin().parameters(), lr=LR, foreach=True),
        FUSED: torch.optim.Adam(twin().parameters(), lr=LR, fused=True),
    }
    for label, (rule, space) in rules.items():
        parameters = twin().named_parameters()
        made[label] = lopt.LearnedOptimizer(parameters, lr=LR, rule=rule, weight_space=space)
    for optimizer in made.values():
        for _ in range(WARM):
            optimizer.step()
    return made


def timed(
    model: nn.Module, rules: Mapping[str, tuple[UpdateRule, WeightSpace | None]], device: torch.device
) -> tuple[dict[str, torch.optim.Optimizer], dict[str, float]]:
    """The contenders, and the seconds of a step of each by turns."""
    optimizers = contenders(model, rules)
    taken = medians([optimizer.step for optimizer in optimizers.values()], device)
    return optimizers, dict(zip(optimizers, taken, strict=True))


def check(rule: UpdateRule, space: WeightSpace | None, model: nn.Module) -> None:
    """Raises AssertionError unless a step in place is the step of the pure form, from a state that has seen gradients.

    The gradients change from step to step, so that a moment which is not advanced shows.
    """
    with torch.no_grad():
        params = {k: p.detach().clone() for k, p in model.named_parameters()}
        first = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        space = WeightSpace.from_shapes(params) if space is None else space
        state = rule.init_state(space, params)
        for step in range(WARM):
            grads = {k: (1 + 0.5 * step) * g.roll(step) for k, g in first.items()}
            clock = Clock(torch.full((), float(step), device=grads[next(iter(grads))].device))
            held = State({k: {key: x.clone() for key, x in t.items()} for k, t in state.tensors.items()}, state.scalars)
            wanted, following = rule(space, params, grads, held, clock)
            came: dict[str, Tensor] = {}
            for piece in rule.updates_(space, params, grads, state, clock):
                factors = [1.0] * len(piece.names) if piece.factors is None else piece.factors
                for k, x, factor in zip(piece.names, piece.directions, factors, strict=True):
                    came[k] = x * factor
                    params[k].sub_(came[k], alpha=1e-3)
            for k in first:
                _compare(f"the update of {k}", came[k], wanted[k])
                for key, x in state.tensors[k].items():
                    _compare(f"{key} of {k}", x, following.tensors[k][key])
        for k, g in first.items():
            assert g.abs().max() > 0, f"the gradient of {k} is zero"
            for key, x in state.tensors[k].items():
                assert key in ("step", "loss") or x.abs().max() > 0, f"{key} of {k} is zero after {WARM} steps"


def _compare(what: str, came: Tensor, wanted: Tensor) -> None:
    """Each difference against the largest number of the tensor."""
    gap = float((came - wanted).abs().max()) if came.numel() else 0.0
    size = float(wanted.abs().max()) if wanted.numel() else 0.0
    assert gap <= TOLERANCE * size, f"{what} differs from the pure form by {gap:.2e}, of {size:.2e}"
