"""The second pass of hidden matrices that move along their orthogonalised momenta, a handful of one form at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from lopt.rules.neuron.combine import Plan
from lopt.rules.neuron.layout import Layout, handfuls
from lopt.rules.neuron.orthogonalise import orthogonal_direction
from lopt.rules.neuron.passes import KEYS
from lopt.rules.neuron.pure import scaled, stacked, unstacked
from lopt.rules.rule import Updates
from lopt.rules.sharded import part_of, whole

_TOGETHER = 1 << 22  # weights of the matrices that run as one, unless one of them has more


def hidden_updates(
    layout: Layout, plan: Plan, params: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[Updates]:
    """The updates of all hidden matrices, from momenta that were advanced. Each process makes whole those it shares."""
    for stack in layout.stacks:
        for tensors in handfuls(stack, stack.tensors, _TOGETHER) if stack.hidden else ():
            part = stack._replace(tensors=tensors)  # where its entries are does not matter here
            names = layout.names[part.tensors]
            momenta = stacked(layout, part, [whole(state[name][KEYS[0]]) for name in names])
            found = unstacked(layout, part, scaled(layout, part, plan, orthogonal_direction(momenta)))
            yield Updates(names, [part_of(u, params[name]) for name, u in zip(names, found, strict=True)])
