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
from lopt.rules.neuron.network import Round, TokenNetwork
from lopt.rules.neuron.think import Mind
from lopt.rules.rule import Clock, Tensors


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


def suits(mind: Mind, layout: Layout, state: Mapping[str, Tensors], clock: Clock) -> bool:
    """Whether the kernel can take this step: all that it reads is in float32, in order, and on the CPU."""
    if layout.device.type != "cpu" or layout.dtype != torch.float32 or native.library() is None:
        return False
    counters = [state[name][key] for name in layout.names for key in ("step", "loss")]
    if not all(type(x) is Tensor and _readable(x) for x in counters):
        return False
    times = [x for x in clock if x is not None]
    return all(x.device.type == "cpu" for x in times) and all(map(_readable, _tensors(mind.network)))


def think_in_place(mind: Mind, layout: Layout, sums: Tensor, state: Mapping[str, Tensors], clock: Clock) -> Plan:
    """As that of think.py, where it suits."""
    library, names = native.library(), layout.names
    assert library is not None
    theta = [x.data_ptr() if x is not None else 0 for x in _parameters(mind.network)]
    table = np.array([mind.network.read_time.out_features, len(mind.network.rounds), *theta], dtype=np.int64)
    counters = np.array([[state[k][key].data_ptr() for k in names] for key in ("step", "loss")], dtype=np.int64)
    times = [0.0 if x is None else float(x) for x in clock]
    has = [x is not None for x in clock[1:]]
    logs = (ctypes.c_double * 3)(*map(math.log, mind.decays))
    rows = torch.empty(ROWS, layout.n_rows, dtype=torch.float32)
    columns = torch.empty(COLUMNS, layout.n_entries - layout.n_rows, dtype=torch.float32)
    scales = torch.empty(len(names), dtype=torch.float32)
    library.lopt_think(
        _space_of(layout).ctypes.data,
        table.ctypes.data,
        ctypes.byref(_Clock(logs, *times, *has)),
        sums.contiguous().data_ptr(),
        *(row.ctypes.data for row in counters),
        *(x.data_ptr() for x in (rows, columns, scales)),
        torch.get_num_threads(),
    )
    return Plan(rows, columns, scales, mind.eps**2)


def _readable(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()


def _tensors(network: TokenNetwork) -> list[Tensor]:
    return [x for x in _parameters(network) if x is not None]


def _parameters(network: TokenNetwork) -> list[Tensor | None]:
    """A weight and a bias of each layer, in the order of `Theta` in think.h; None: there is no bias."""
    layers = [network.read_neurons, network.read_tensors, network.read_time]
    layers += [network.tensor_head, network.neuron_head, network.scale_law, network.hidden_law]
    for layer in network.rounds:
        assert isinstance(layer, Round)
        layers += [layer.network, layer.tensors, layer.neurons, layer.tables]
    return [x for layer in layers for x in (layer.weight, layer.bias)]


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
