"""What comes in by `load_state_dict`: checked against the rule before anything changes, and kept exact.

`torch.optim.Optimizer.load_state_dict` casts every floating-point state to the dtype of its parameter, so a float32
moment of a bfloat16 weight would lose 16 bits. It leaves alone what it does not know: so the tensors pass through it in
a `Held`, and `release` takes them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lopt.errors import InvalidInput
from lopt.rules.rule import Tensors, UpdateRule
from lopt.weight_space import WeightSpace


class Held:
    """A tensor that `Optimizer.load_state_dict` does not see."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def release(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one parameter with its tensors out in the open."""
    return {key: x.tensor if isinstance(x, Held) else x for key, x in entry.items()}


def hold(
    rule: UpdateRule, space: WeightSpace, params: Mapping[str, Tensor], saved: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Held]]:
    """The saved state of some parameters as this rule keeps it: copied, on the parameter's device, in its own dtype.

    Args:
        params: every parameter that has a saved state, by name.
        saved: name -> key -> tensor, or number, as old versions kept the step.

    Raises:
        InvalidInput: other keys or shapes than the rule keeps: the state of another rule or another model.
    """
    if not saved:
        return {}
    like = {name: torch.empty(params[name].shape, dtype=params[name].dtype, device="meta") for name in saved}
    wanted = rule.init_state(space if len(saved) == len(space) else space.restrict(saved), like).tensors
    for name, entry in saved.items():
        came, keeps = _shapes(entry), _shapes(wanted[name])
        if came != keeps:
            raise InvalidInput(
                f"state_dict: the state of parameter {name!r} is {came}, and the rule {type(rule).__name__} keeps "
                f"{keeps} for it. Load the state of an optimizer with the same rule, with the same arguments and "
                "weight space, on the same model"
            )
    return {name: _adopt(entry, wanted[name], params[name].device) for name, entry in saved.items()}


def _shapes(entry: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(getattr(x, "shape", ())) for key, x in entry.items()}


def _adopt(entry: Mapping[str, Any], like: Tensors, device: torch.device) -> dict[str, Held]:
    tensors = {key: x if isinstance(x, Tensor) else torch.tensor(x) for key, x in entry.items()}
    return {key: Held(x.to(device, like[key].dtype, copy=True)) for key, x in tensors.items()}
