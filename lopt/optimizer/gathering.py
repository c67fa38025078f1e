"""What takes part in one step of LearnedOptimizer, in the form that a rule wants."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lopt.errors import InvalidInput
from lopt.optimizer.nonfinite import all_zero
from lopt.optimizer.writing import Rates, Targets
from lopt.rules.rule import Clock, State, Tensors, UpdateRule
from lopt.rules.sharded import is_distributed
from lopt.weight_space import WeightSpace


class Work(NamedTuple):
    """What takes part in one step."""

    space: WeightSpace
    params: Tensors
    grads: Tensors
    state: State
    clock: Clock
    targets: Targets
    finite: Tensor | None  # () bool where the device decides whether the step counts; None: it does


def check_dense(grads: Tensors) -> None:
    for name, g in grads.items():
        if g.layout is not torch.strided:
            raise InvalidInput(
                f"the gradient of parameter {name!r} is sparse ({g.layout}), and update rules want dense ones. "
                "Use sparse=False in the embedding, or give that parameter to torch.optim.SparseAdam"
            )


def mean_loss(loss: Tensor | float, device: torch.device) -> Tensor:
    """The loss as one number on the device, the mean over all processes: their replicas must take the same step."""
    if not isinstance(loss, Tensor):
        told = torch.full((), float(loss), dtype=torch.float32, device=device)
    elif loss.numel() != 1:
        raise InvalidInput(f"loss: a tensor of shape {tuple(loss.shape)}; give the step's loss as one number")
    else:
        whole: Any = loss.detach()
        told = whole.full_tensor() if is_distributed(whole) else whole
        told = told.reshape(()).to(device, torch.promote_types(told.dtype, torch.float32))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        told = told.clone()
        dist.all_reduce(told)
        told /= dist.get_world_size()
    return told


def without_autocast(params: Tensors) -> contextlib.AbstractContextManager[Any]:
    """A rule computes in the precision of its state, also where `step` is called inside autocast."""
    kind = next(iter(params.values())).device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def current_rates(group: Mapping[str, Any], compiled: bool) -> Rates:
    """The rates of a param group now. A learning rate on the CPU is a number, which needs no waiting; in a compiled
    step it is a tensor, so that a schedule does not compile it again."""
    lr = group["lr"]
    if compiled or group["capturable"]:
        lr = lr.reshape(()) if isinstance(lr, Tensor) else torch.tensor(lr, dtype=torch.float64)
    elif isinstance(lr, Tensor):
        lr = float(lr) if lr.device.type == "cpu" else lr.reshape(())
    return Rates(lr, group["weight_decay"], group["foreach"])


def only_makes_state(rates: Sequence[Rates], grads: Tensors) -> bool:
    """Whether this is a step with rates of zero and gradients of zero."""
    if any(isinstance(r.lr, Tensor) and r.lr.device.type != "cpu" for r in rates) or any(float(r.lr) for r in rates):
        return False
    return bool(all_zero(list(grads.values())))


def descent(grads: Tensors, groups: Sequence[Mapping[str, Any]], index: Mapping[str, int]) -> Tensors:
    """The gradients of what is to fall: turned round where a group climbs."""
    if not any(group["maximize"] for group in groups):
        return grads
    return {name: -g if groups[index[name]]["maximize"] else g for name, g in grads.items()}


def complete(
    rule: UpdateRule, space: WeightSpace, params: Tensors, grads: Tensors, state: Mapping[str, Tensors]
) -> tuple[Tensors, dict[str, Tensors]]:
    """Gradients and states for all parameters, for a rule that wants its whole network.

    One without a gradient takes part with a gradient of zero and a copy of its state, since what the rule makes of it
    is dropped.
    """
    absent = {name: p for name, p in params.items() if name not in grads}
    new = {name: p for name, p in absent.items() if name not in state}
    states = {**state, **(rule.init_state(space.restrict(new), new).tensors if new else {})}
    states |= {name: {key: x.clone() for key, x in states[name].items()} for name in absent}
    zeros = {name: torch.zeros_like(p) for name, p in absent.items()}
    return {k: grads[k] if k in grads else zeros[k] for k in params}, {k: states[k] for k in params}
