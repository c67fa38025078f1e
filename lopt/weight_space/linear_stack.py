"""The axes of the simplest network, a stack of Linear layers, from the shapes of its parameters alone."""

from __future__ import annotations

from collections.abc import Mapping

from lopt.axes import Axis, Fixed, Group
from lopt.errors import InvalidInput


def stack_axes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Axis]]:
    """See `WeightSpace.linear_stack`."""
    depth = sum(len(shape) == 2 for shape in shapes.values())
    parameters: dict[str, list[Axis]] = {}
    layer, before = -1, Fixed(0, "in")
    current: Fixed | Group = before
    for name, shape in shapes.items():
        if len(shape) == 2:
            layer += 1
            before = Fixed(shape[1], "in") if layer == 0 else current
            current = Fixed(shape[0], "out") if layer == depth - 1 else Group(f"h{layer}", shape[0])
        expected = (current.size, before.size) if len(shape) == 2 else (current.size,)
        if shape != expected or layer < 0:
            wanted = "(out, in)" if layer < 0 else expected
            raise InvalidInput(
                f"shapes: {name!r} has shape {shape}, a stack of Linear layers wants {wanted} here. Give weights "
                "(out, in), each followed by its bias (out,), in the order of the layers."
            )
        parameters[name] = [current, before] if len(shape) == 2 else [current]
    return parameters
