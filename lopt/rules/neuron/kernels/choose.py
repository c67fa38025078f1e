"""Which code runs the parts of a step: what the tensors of the step allow, and nothing that went before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lopt.rules.native import enabled
from lopt.rules.neuron import think as operators
from lopt.rules.neuron.combine import Plan
from lopt.rules.neuron.kernels import cpu, gpu, native, think
from lopt.rules.neuron.layout import Layout
from lopt.rules.neuron.passes import Memory
from lopt.rules.neuron.think import Mind
from lopt.rules.rule import Clock, Tensors, Updates


class Passes(Protocol):
    """The two passes of one step; see `Memory` in passes.py."""

    def advance(self, gains: Sequence[float]) -> Tensor: ...
    def combine(self, plan: Plan, subspaces: Mapping[str, Tensor]) -> Iterator[Updates]: ...


def memory_of(
    layout: Layout,
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    state: Mapping[str, Mapping[str, Tensor]],
    stop: int,
) -> Passes:
    """Kernels where they can take the step and LOPT_KERNELS is not 0, else PyTorch's operators.

    Args:
        stop: the second pass is for so many tensors, the first of the layout.
    """
    if enabled():
        if cpu.suits(layout, params, grads, state):
            return cpu.NativeMemory(layout, params, grads, state, stop)
        if gpu.suits(layout, params, grads, state):
            return gpu.TritonMemory(layout, params, grads, state, stop)
    return Memory(layout, params, grads, state, stop)


def plan_of(mind: Mind, layout: Layout, sums: Tensor, state: Mapping[str, Tensors], clock: Clock) -> Plan:
    """What lies between the passes: the plan of the second from the sums of the first, by a kernel where it can."""
    plan = think.think_in_place(mind, layout, sums, state, clock) if enabled() else None
    return operators.think_in_place(mind, layout, sums, state, clock) if plan is None else plan


def kernels_here() -> str:
    """Which kernels this machine has, in words."""
    found = ["C++"] if enabled() and native.library() is not None else []
    if enabled() and torch.cuda.is_available() and gpu.kernels(torch.device("cuda")) is not None:
        found.append("Triton")
    return ", ".join(found) or "none"
