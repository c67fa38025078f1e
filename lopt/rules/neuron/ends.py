"""Which axes look like inputs and outputs of a network that nobody traced: a guess, from sizes alone.

In a weight space of shapes alone every axis is a group of its own, so none is fixed, and the matrix that writes the
classes looks like any other. But how large its steps should be depends on that. A size that matrices write and none
reads is an output; one that a single matrix reads and none writes is an input. The guess serves the features of a
tensor, and says which matrices are hidden ones, whose updates may be deflated or orthogonalised; it never decides the
symmetry. Where it is wrong, steps are of another size or direction, and all else holds. A part of a traced space in
which no group stands twice, such as a single hidden matrix, looks as if nobody had traced it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lopt.axes import Group
from lopt.weight_space import WeightSpace

_GATES = (1, 2, 3, 4)  # what is written may be so many times what is read: gates, and queries, keys and values


def knows_shapes_alone(space: WeightSpace) -> bool:
    """Whether every axis is a group of its own, as in `WeightSpace.from_shapes`."""
    axes = [axis for name in space.shapes for axis in space[name]]
    groups = {axis.name for axis in axes if isinstance(axis, Group)}
    return len(groups) == len(axes)


def guess_ends(shapes: Mapping[str, Sequence[int]]) -> dict[str, list[bool]]:
    """For each axis of each tensor, whether it looks like an input, an output, or the taps of a convolution.

    >>> guess_ends({"0.weight": (32, 64), "0.bias": (32,), "1.weight": (10, 32), "1.bias": (10,)})
    {'0.weight': [False, True], '0.bias': [False], '1.weight': [True, False], '1.bias': [True]}
    """
    matrices = [shape for shape in shapes.values() if len(shape) > 1]
    written, read = {shape[0] for shape in matrices}, Counter(shape[1] for shape in matrices)
    channels = {shape[0] for shape in matrices if len(shape) > 2} - {0, 1}  # flattened, they are read as a multiple

    def output(size: int) -> bool:
        gated = any(size % k == 0 and size // k in read for k in _GATES)
        return size == 1 or not (gated or (size in channels and any(other % size == 0 for other in read)))

    def input_(size: int) -> bool:
        shared = size in written or read[size] > 1 or any(size % other == 0 for other in channels)
        return size == 1 or not shared

    def ends(shape: Sequence[int]) -> list[bool]:
        if len(shape) < 2:
            return [size == 1 or (size in written and output(size)) for size in shape]
        return [output(shape[0]), input_(shape[1]), *(True for _ in shape[2:])]

    return {name: ends(shape) for name, shape in shapes.items()}
