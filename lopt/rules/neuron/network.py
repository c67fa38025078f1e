r"""The functional of the Neuron rule: equivariant layers between neurons, tensors and the whole network.

Every neuron x, tensor t and the network g hold `width` channels. K(x) is the table of a neuron, and for each role r
(out-axis, in-axis, vector, other) a table meets some tensors, and a tensor some tables. One round is

    g <- relu(A [g, mean of t, mean of tables])
    t <- relu(B [t, mean of its tables in role r, for each r; g])
    x <- relu(C x + D [mean over K(x), mean of the tensors that K(x) meets in role r, for each r; g])

where a table's mean is that of its neurons. All means are over sets and all matrices are shared, so permuting the
neurons of a table (or listing the tensors in another order) permutes the result. Over each table this is the complete
linear map of a set (identity and mean); between tables and tensors it is a graph network on the graph of the
architecture, with an edge for each axis. Nothing depends on the number or size of the tensors but for their features,
which hold both, and the bound of the share, below. The features also set the scale of the update directly, by a linear
law of their logarithms, a power law, as width and depth do where a learning rate is transferred from one network to
another by hand; that of hidden matrices, whose direction may be another, is the sum of this and one of their own.
Another law goes by how often each example comes: who sees the same ones again and again learns them by heart if the
steps are large.

Legend: N neurons, K tables, T tensors, c width, R roles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lopt.rules.neuron.form import ROLES
from lopt.rules.neuron.layout import HIDDEN, STATIC, Layout
from lopt.rules.neuron.tokens import DATA_FEATURES, FEATURES, GLOBAL_FEATURES, TENSOR_FEATURES, Data

# Of the numbers for a tensor the first stand for directions, the last for these: see combine.py.
DIRECTIONS = 6
CENTRE_ROWS, CENTRE_COLUMNS, SCALE, ANNEAL = range(DIRECTIONS, DIRECTIONS + 4)
COEFFICIENTS = DIRECTIONS + 4
_R = len(ROLES)

# What is left of the scale where examples are few, at least: its logarithm; and the number of examples for each weight
# from which on all of it is left, since there are not weights enough to learn them by heart.
_LEAST_SHARE, _ENOUGH = math.log(1 / 32), 5.0


class Round(nn.Module):
    """One round of the equations above."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.Linear(3 * width, width)
        self.tensors = nn.Linear((2 + _R) * width, width)
        self.neurons = nn.Linear(width, width, bias=False)
        self.tables = nn.Linear((2 + _R) * width, width)

    def forward(self, layout: Layout, x: Tensor, t: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, c], t [T, c], g [c]."""
        tables, n_tensors, width = layout.to_tables(x), *t.shape
        mean = tables.sum(0) / max(1, layout.n_tables)
        g = F.relu(self.network(torch.cat([g, t.mean(0), mean])))
        met = layout.tables_to_tensors(tables).reshape(n_tensors, _R * width)
        t = F.relu(self.tensors(torch.cat([t, met, g.expand(n_tensors, width)], 1)))
        met = layout.tensors_to_tables(t).reshape(layout.n_tables, _R * width)
        shared = self.tables(torch.cat([tables, met, g.expand(layout.n_tables, width)], 1))
        return F.relu(self.neurons(x) + shared.index_select(0, layout.table)), t, g


class Heads(NamedTuple):
    coefficients: Tensor  # [COEFFICIENTS, T]
    law: Tensor  # [T]: what the logarithm of the scale gains
    corrections: Tensor  # [N, R]: logarithms, not yet bounded
    share: Tensor | None  # (): logarithm of the share of every scale that the data set leaves; None: all


class TokenNetwork(nn.Module):
    """Features of entries, tensors and time -> a few numbers for each tensor and each neuron; zeros at the start."""

    def __init__(self, width: int, rounds: int) -> None:
        super().__init__()
        self.read_neurons = nn.Linear((FEATURES + 1) * _R, width)
        self.read_tensors = nn.Linear(TENSOR_FEATURES, width)
        self.read_time = nn.Linear(GLOBAL_FEATURES, width)
        self.rounds = nn.ModuleList([Round(width) for _ in range(rounds)])
        self.tensor_head = nn.Linear(width, COEFFICIENTS)
        self.neuron_head = nn.Linear(width, _R)
        self.scale_law = nn.Linear(TENSOR_FEATURES, 1, bias=False)
        self.hidden_law = nn.Linear(STATIC, 1, bias=False)
        self.data_law = nn.Linear(DATA_FEATURES, 1)
        for last in (self.tensor_head, self.neuron_head, self.scale_law, self.hidden_law, self.data_law):
            for zeros in last.parameters():
                nn.init.zeros_(zeros)

    def forward(
        self, layout: Layout, entries: Tensor, tensors: Tensor, time: Tensor, data: Data | None = None
    ) -> Heads:
        """entries [E, FEATURES], tensors [T, TENSOR_FEATURES], time [GLOBAL_FEATURES]."""
        met = layout.to_neurons(entries)
        met = torch.cat([met.reshape(layout.n_neurons, _R * FEATURES), layout.present], 1)
        x, t, g = F.relu(self.read_neurons(met)), F.relu(self.read_tensors(tensors)), F.relu(self.read_time(time))
        for layer in self.rounds:
            x, t, g = layer(layout, x, t, g)
        place = tensors[:, FEATURES : FEATURES + STATIC]
        law = self.scale_law(tensors) + place[:, HIDDEN : HIDDEN + 1] * self.hidden_law(place)
        return Heads(
            self.tensor_head(t).t(), law[:, 0], self.neuron_head(x), None if data is None else self.share(data)
        )

    def share(self, data: Data) -> Tensor:
        """The logarithm of the share of every scale that the data set leaves, ()."""
        least = (data.per_weight - math.log(_ENOUGH)).clamp(min=_LEAST_SHARE)
        return torch.maximum(self.data_law(data.features)[0], least).clamp(max=0)

    @torch.no_grad()
    def change_scale(self, slopes: Tensor, shift: float, anneal: float = 1.0) -> None:
        """Adds slopes [STATIC] times the features that never change, plus a shift, to the logarithm of the scale, and
        multiplies the power of the time left by `anneal`."""
        self.scale_law.weight[0, FEATURES : FEATURES + STATIC] += slopes.to(self.scale_law.weight)
        self.tensor_head.bias[SCALE] += shift
        self.tensor_head.weight[ANNEAL] *= anneal
        self.tensor_head.bias[ANNEAL] *= anneal
