"""Recurrent networks: one group of hidden units per layer and direction, the gates one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.lopt.tracing.networks.network import Axes, Make, Network, dense, network


class Recurrent(nn.Module):
    """A recurrent layer and a Linear on all its outputs; (batch, time, 3) -> (batch, time, 2)."""

    def __init__(self, rnn: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.rnn, self.leave = rnn, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.rnn(x)[0])


def _layer(suffix: str, gates: str, of: str, state: str) -> Axes:
    """The parameters of one layer and direction: inputs and the last state to the gates."""
    return {
        f"rnn.weight_ih_{suffix}": f"{gates}, {of}",
        f"rnn.weight_hh_{suffix}": f"{gates}, {state}",
        f"rnn.bias_ih_{suffix}": gates,
        f"rnn.bias_hh_{suffix}": gates,
    }


def rnn() -> Network:
    module = Recurrent(nn.RNN(3, 5, nonlinearity="relu", batch_first=True), 5)
    axes = _layer("l0", "h:5", "3", "h:5") | dense("leave", "2", "h:5")
    return network(module, (torch.randn(2, 4, 3),), axes)


def gru() -> Network:
    """The second layer and the Linear read both directions, one after the other."""
    module = Recurrent(nn.GRU(3, 5, num_layers=2, bidirectional=True, batch_first=True), 10)
    axes = dense("leave", "2", "c:5+d:5")
    axes |= _layer("l0", "a:5+a:5+a:5", "3", "a:5") | _layer("l0_reverse", "b:5+b:5+b:5", "3", "b:5")
    axes |= _layer("l1", "c:5+c:5+c:5", "a:5+b:5", "c:5") | _layer("l1_reverse", "d:5+d:5+d:5", "a:5+b:5", "d:5")
    return network(module, (torch.randn(2, 4, 3),), axes)


def lstm() -> Network:
    """Two layers and directions, with a projection: the cells (a, b, c, d) and what is passed on (p, q, s, t)."""
    module = Recurrent(nn.LSTM(3, 7, num_layers=2, bidirectional=True, proj_size=5, batch_first=True), 10)
    axes = dense("leave", "2", "s:5+t:5")
    for suffix, cell, out, of in (
        ("l0", "a:7", "p:5", "3"),
        ("l0_reverse", "b:7", "q:5", "3"),
        ("l1", "c:7", "s:5", "p:5+q:5"),
        ("l1_reverse", "d:7", "t:5", "p:5+q:5"),
    ):
        axes |= _layer(suffix, "+".join([cell] * 4), of, out) | {f"rnn.weight_hr_{suffix}": f"{out}, {cell}"}
    return network(module, (torch.randn(2, 4, 3),), axes)


class Cells(nn.Module):
    """One cell after another, step by step; the last state leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(3, 5), nn.GRUCell(5, 7), nn.RNNCell(7, 4)
        self.leave = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(len(x), 5), x.new_zeros(len(x), 5)
        g, r = x.new_zeros(len(x), 7), x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            h, c = self.lstm(step, (h, c))
            g = self.gru(h, g)
            r = self.rnn(g, r)
        return self.leave(r)


def cells() -> Network:
    axes = dense("leave", "2", "r:4")
    for name, gates, of, state in (
        ("lstm", "h:5+h:5+h:5+h:5", "3", "h:5"),
        ("gru", "g:7+g:7+g:7", "h:5", "g:7"),
        ("rnn", "r:4", "g:7", "r:4"),
    ):
        axes |= {f"{name}.weight_ih": f"{gates}, {of}", f"{name}.weight_hh": f"{gates}, {state}"}
        axes |= {f"{name}.bias_ih": gates, f"{name}.bias_hh": gates}
    return network(Cells(), (torch.randn(2, 3, 3),), axes)


class Learned(nn.Module):
    """Learned first states, one for each of two layers: (layers, 1, hidden)."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(2, 1, 5))
        self.rnn, self.leave = nn.RNN(3, 5, num_layers=2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.rnn(x, self.start.expand(-1, x.shape[1], -1).contiguous())[0])


def learned_states() -> Network:
    """Each layer's units may be permuted on their own; its row of the first states moves with them, for which a space
    has no words: one permutation on row 0, another on row 1, each tied to another layer. One group for both."""
    axes = _layer("l0", "h:5", "3", "h:5") | _layer("l1", "h:5", "h:5", "h:5")
    axes |= dense("leave", "2", "h:5") | {"start": "2, 1, h:5"}
    return network(Learned(), (torch.randn(4, 2, 3),), axes)


NETWORKS: list[Make] = [rnn, gru, lstm, cells, learned_states]
