"""What happens between the two passes, by a compiled kernel (think.h): `think_in_place` in one call."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lopt.rules.neuron.combine import COLUMNS, ROWS, Plan
from lopt.rules.neuron.kernels import native
from lopt.rules.neuron.layout import Layout, Sums, once_a_layout
from lopt.rules.neuron.network import TokenNetwork
from lopt.rules.neuron.think import Mind
from lopt.rules.rule import Clock, Tensors
from lopt.rules.sharded import is_distributed


class _Clock(ctypes.Structure):
    """As `Clock` in mind.h."""

    _fields_ = (
        ("log_decays", ctypes.c_double * 3),
        ("step", ctypes.c_double),
        ("horizon", ctypes.c_double),
        ("loss", ctypes.c_double),
        ("dataset_size", ctypes.c_double),
        ("batch_size", ctypes.c_double),
        ("has_horizon", ctypes.c_int64),
        ("has_loss", ctypes.c_int64),
        ("has_dataset_size", ctypes.c_int64),
        ("has_batch_size", ctypes.c_int64),
    )


def think_in_place(mind: Mind, layout: Layout, sums: Tensor, state: Mapping[str, Tensors], clock: Clock) -> Plan | None:
    """As that of think.py; None, and nothing done, unless all that is read is in float32, in order, and on the CPU."""
    library = native.library()
    if library is None or layout.dtype != torch.float32 or layout.device.type != "cpu":
        return None
    counters = [[state[name][key] for name in layout.names] for key in ("step", "loss")]
    theta, sums = _parameters(mind.network), sums.contiguous()
    if theta is None or not all(map(_readable, [*theta, *counters[0], *counters[1], sums])):
        return None
    about = [mind.network.read_time.out_features, len(mind.network.rounds), *map(_address, theta)]
    times, logs = [0.0 if x is None else float(x) for x in clock], map(math.log, mind.decays)
    told = _Clock((ctypes.c_double * 3)(*logs), *times, *(x is not None for x in clock[1:]))
    shapes = (ROWS, layout.n_rows), (COLUMNS, layout.n_entries - layout.n_rows), (len(layout.names),)
    rows, columns, scales = (torch.empty(shape, dtype=torch.float32, device=layout.device) for shape in shapes)
    space = _space_of(layout)
    enough = library.lopt_think(
        space.numbers.ctypes.data,
        (ctypes.c_int64 * len(about))(*about),
        ctypes.byref(told),
        sums.data_ptr(),
        *((ctypes.c_int64 * len(some))(*map(_address, some)) for some in counters),
        *map(_address, (rows, columns, scales)),
        torch.get_num_threads(),
    )
    if not enough:
        raise MemoryError(f"the Neuron rule: no memory for a step of {layout.n_entries} rows and columns")
    return Plan(rows, columns, scales, mind.eps**2)


def _readable(x: Tensor | None) -> bool:
    return x is None or (x.dtype == torch.float32 and x.is_cpu and x.is_contiguous() and not is_distributed(x))


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


_FIRST = ("read_neurons", "read_tensors", "read_time", "tensor_head", "neuron_head")
_FIRST += ("scale_law", "hidden_law", "data_law")
_OF_A_ROUND = ("network", "tensors", "neurons", "tables")


def _parameters(network: TokenNetwork) -> list[Tensor | None] | None:
    """A weight and a bias of each layer, in the order of `Theta` in mind.h; None in it: there is no bias.

    None where a module wraps the network, or a layer makes its parameters from others. They are looked up where modules
    keep them, since their attributes would take most of the time of a step of a small network.
    """
    try:
        modules: list[Any] = [network._modules[name] for name in _FIRST]
        modules += [layer._modules[name] for layer in network.rounds for name in _OF_A_ROUND]
        return [module._parameters[name] for module in modules for name in ("weight", "bias")]
    except KeyError:
        return None


class _Space(NamedTuple):
    numbers: np.ndarray  # as `Space` in mind.h
    held: list[Tensor]  # what it has addresses of, beside the layout's own tensors


@once_a_layout
def _space_of(layout: Layout) -> _Space:
    sizes = (len(layout.names), layout.n_entries, layout.n_rows, layout.n_neurons, layout.n_tables)
    tensors = [layout.tensor, layout.inverse_size, layout.static, layout.table]
    tensors += [layout.to_tables.weight, layout.timescales, layout.loss_gains]
    for sums in (layout.to_neurons, layout.to_entries, layout.tables_to_tensors, layout.tensors_to_tables):
        tensors += _by_result(sums)
    assert all(x.is_contiguous() for x in tensors)
    return _Space(np.array([*sizes, *map(_address, tensors)], dtype=np.int64), tensors)


def _by_result(sums: Sums) -> list[Tensor]:
    """As `Sums` in mind.h: where the rows of each result begin, the rows, and the weights of the results."""
    assert sums.source is not None
    counts = torch.bincount(sums.target, minlength=len(sums.weight))
    order = sums.target.argsort(stable=True)
    return [F.pad(counts.cumsum(0), (1, 0)), sums.source[order], sums.weight]
