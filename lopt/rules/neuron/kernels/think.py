"""What happens between the two passes, by a compiled kernel (think.h): `think_in_place` in one call."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lopt.rules.neuron.combine import COLUMNS, ROWS, Plan
from lopt.rules.neuron.kernels import native
from lopt.rules.neuron.layout import Layout, Sums, once_a_layout
from lopt.rules.neuron.network import TokenNetwork
from lopt.rules.neuron.think import Mind
from lopt.rules.rule import Clock, Tensors
from lopt.rules.sharded import is_distributed


class _Clock(ctypes.Structure):
    """As `Clock` in think.h."""

    _fields_ = (
        ("log_decays", ctypes.c_double * 3),
        ("step", ctypes.c_double),
        ("horizon", ctypes.c_double),
        ("loss", ctypes.c_double),
        ("has_horizon", ctypes.c_int64),
        ("has_loss", ctypes.c_int64),
    )


def think_in_place(mind: Mind, layout: Layout, sums: Tensor, state: Mapping[str, Tensors], clock: Clock) -> Plan | None:
    """As that of think.py; None, and nothing done, unless all that is read is in float32, in order, and on the CPU."""
    library = native.library()
    if library is None or layout.dtype != torch.float32 or layout.device.type != "cpu":
        return None
    counters = [[state[name][key] for name in layout.names] for key in ("step", "loss")]
    theta = _parameters(mind.network)
    if not (all(map(_readable, theta)) and all(map(_readable, counters[0])) and all(map(_readable, counters[1]))):
        return None
    about = [mind.network.read_time.out_features, len(mind.network.rounds), *map(_address, theta)]
    times, logs = [0.0 if x is None else float(x) for x in clock], map(math.log, mind.decays)
    told = _Clock((ctypes.c_double * 3)(*logs), *times, *(x is not None for x in clock[1:]))
    rows = torch.empty(ROWS, layout.n_rows, dtype=torch.float32)
    columns = torch.empty(COLUMNS, layout.n_entries - layout.n_rows, dtype=torch.float32)
    scales = torch.empty(len(layout.names), dtype=torch.float32)
    library.lopt_think(
        _space_of(layout).ctypes.data,
        (ctypes.c_int64 * len(about))(*about),
        ctypes.byref(told),
        sums.contiguous().data_ptr(),
        *((ctypes.c_int64 * len(some))(*map(_address, some)) for some in counters),
        *map(_address, (rows, columns, scales)),
        torch.get_num_threads(),
    )
    return Plan(rows, columns, scales, mind.eps**2)


def _readable(x: Tensor | None) -> bool:
    return x is None or (x.dtype == torch.float32 and x.is_cpu and x.is_contiguous() and not is_distributed(x))


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


_FIRST = ("read_neurons", "read_tensors", "read_time", "tensor_head", "neuron_head", "scale_law", "hidden_law")
_OF_A_ROUND = ("network", "tensors", "neurons", "tables")


def _parameters(network: TokenNetwork) -> list[Tensor | None]:
    """A weight and a bias of each layer, in the order of `Theta` in think.h; None: there is no bias.

    Looked up where modules keep them, since their attributes take most of the time of a step of a small network.
    """
    modules = [network._modules[name] for name in _FIRST]
    modules += [layer._modules[name] for layer in network.rounds for name in _OF_A_ROUND]
    return [module._parameters[name] for module in modules if module is not None for name in ("weight", "bias")]


@once_a_layout
def _space_of(layout: Layout) -> np.ndarray:
    """As `Space` in think.h: the addresses are those of the layout's own tensors."""
    sizes = (len(layout.names), layout.n_entries, layout.n_rows, layout.n_neurons, layout.n_tables)
    tensors = (
        *(layout.tensor, layout.inverse_size, layout.static, layout.present, layout.table),
        *(layout.to_tables.weight, layout.timescales, layout.loss_gains),
    )
    sums = (layout.to_neurons, layout.to_entries, layout.tables_to_tensors, layout.tensors_to_tables)
    return np.array([*sizes, *_addresses(tensors), *(x for each in sums for x in _about(each))], dtype=np.int64)


def _about(sums: Sums) -> list[int]:
    assert sums.source is not None
    return [len(sums.target), *_addresses((sums.source, sums.target, sums.weight))]


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    assert all(x.is_contiguous() for x in tensors)
    return [x.data_ptr() for x in tensors]
