"""The parameters of an optimizer under names: which axes each one has, and which param group it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.parameter import is_lazy

from lopt.errors import InvalidInput
from lopt.weight_space import WeightSpace

MAX_PARTS = 256  # a mixture of experts has many


class Parameters(NamedTuple):
    """The parameters by name, in the order of their weight space."""

    space: WeightSpace
    tensors: dict[str, Tensor]
    names: dict[Tensor, str]
    groups: dict[str, int]  # name -> index of its param group
    parts: dict[tuple[str, ...], WeightSpace]  # of those that had gradients, so that a pattern costs nothing twice

    def part(self, names: tuple[str, ...], whole: bool = False) -> tuple[WeightSpace, dict[str, Tensor]]:
        """The space and the parameters of these names, or with `whole` of all."""
        if whole or len(names) == len(self.space):
            return self.space, self.tensors
        if names not in self.parts:
            if len(self.parts) >= MAX_PARTS:
                self.parts.clear()
            self.parts[names] = self.space.restrict(names)
        return self.parts[names], {name: self.tensors[name] for name in names}


def flatten(param_groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """All parameters in the order of the groups."""
    return [p for group in param_groups for p in group["params"]]


def match(param_groups: Sequence[Mapping[str, Any]], given: WeightSpace | None) -> Parameters:
    """Names every parameter and finds its axes.

    Args:
        param_groups: as `torch.optim.Optimizer` keeps them, with "param_names" where they were given.
        given: the symmetry of the network, or of a larger one that holds these parameters by name. Without it every
            axis of every parameter is a group of its own.

    Raises:
        InvalidInput: complex or uninitialised parameters, several devices; names or shapes that the space does not
            have; no names where the space needs them.
    """
    params = list(dict.fromkeys(flatten(param_groups)))  # a parameter that is listed twice is one parameter
    _check_kinds(params)
    names = _names(param_groups, params, given)
    named = dict(zip(names, params, strict=True))
    if given is None:
        space = WeightSpace.from_shapes(named)
    else:
        space = given.restrict(name for name in given if name in named)
        (space if len(space) else given).check(named)  # where no name fits, the whole may say why
    index = {p: i for i, group in enumerate(param_groups) for p in group["params"]}
    tensors = {name: named[name] for name in space}
    groups = {name: index[p] for name, p in tensors.items()}
    return Parameters(space, tensors, {p: name for name, p in tensors.items()}, groups, {})


def exchange(old: Parameters, before: Sequence[Tensor], after: Sequence[Tensor]) -> Parameters:
    """The same names for other tensors of the same shapes: a wrapper that shards a network puts its own in the groups.

    Args:
        before, after: all parameters in the order of the groups, then and now; equally many.
    """
    tensors = {old.names[p]: q for p, q in zip(before, after, strict=True)}
    old.space.check(tensors)
    tensors = {name: tensors[name] for name in old.space}
    return old._replace(tensors=tensors, names={p: name for name, p in tensors.items()})


def _check_kinds(params: Sequence[Tensor]) -> None:
    for position, p in enumerate(params):
        if is_lazy(p):
            raise InvalidInput(f"params: number {position} has no shape yet. Run the lazy module once before")
        if p.is_complex():
            raise InvalidInput(
                f"params: number {position} is {p.dtype}; complex parameters are not supported. Train its real view, "
                "torch.view_as_real(p), or give it to another optimizer"
            )
    devices = sorted({str(p.device) for p in params if p.requires_grad})
    if len(devices) > 1:
        raise InvalidInput(
            f"params: they are on several devices, {', '.join(devices)}. An update rule sees all parameters together: "
            "move them to one device, shard them (torch.distributed.fsdp.fully_shard), or make an optimizer for each"
        )


def _names(
    param_groups: Sequence[Mapping[str, Any]], params: Sequence[Tensor], given: WeightSpace | None
) -> Sequence[str]:
    pairs = [
        pair for group in param_groups for pair in zip(group.get("param_names", ()), group["params"], strict=False)
    ]
    by_tensor: dict[Tensor, str] = {}
    for name, p in pairs:
        by_tensor.setdefault(p, name)
    names = list(by_tensor.values())
    if len(set(names)) < len(names) and given is not None:
        twice = sorted({name for name in names if names.count(name) > 1})
        raise InvalidInput(
            f"params: {twice} name several parameters each, so they cannot be matched with the weight space. "
            "Give every parameter a name of its own."
        )
    if len(set(names)) == len(params):
        return [by_tensor[p] for p in params]
    if given is not None and len(given) != len(params):  # without names
        raise InvalidInput(
            f"weight_space has {len(given)} parameters and the optimizer {len(params)}, without names. "
            "Pass model.named_parameters(), so that they can be matched by name."
        )
    return list(given) if given is not None else [str(i) for i in range(len(params))]
