"""Recurrent language models: cells as plain functions, a loop over a short sequence. Fused kernels do not vmap.

Parameters are named and initialised as in torch.nn.RNN, GRU and LSTM, whose equations these are.

Legend of shapes: B sequences, L tokens, E embedding, H hidden units, G gates (1, 3 or 4), V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.modules.parts import Embedding


class Recurrent(nn.Module, ABC):
    """One recurrent layer, (..., L, E) -> (..., L, H), from a state of zeros."""

    gates: ClassVar[int]
    states: ClassVar[int] = 1  # tensors (..., H) that are carried on; the first is the output

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight_ih = nn.Parameter(torch.empty(self.gates * hidden, inputs))
        self.weight_hh = nn.Parameter(torch.empty(self.gates * hidden, hidden))
        self.bias_ih = nn.Parameter(torch.empty(self.gates * hidden))
        self.bias_hh = nn.Parameter(torch.empty(self.gates * hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for p in self.parameters():
            nn.init.uniform_(p, -(self.hidden**-0.5), self.hidden**-0.5)

    @abstractmethod
    def cell(self, from_input: Tensor, from_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The next state from W_ih x + b_ih and W_hh h + b_hh, (..., G * H) each."""

    def forward(self, x: Tensor) -> Tensor:
        inputs = F.linear(x, self.weight_ih, self.bias_ih)  # of all steps at once
        state = (x.new_zeros(*x.shape[:-2], self.hidden),) * self.states
        outputs = []
        for from_input in inputs.unbind(-2):
            state = self.cell(from_input, F.linear(state[0], self.weight_hh, self.bias_hh), state)
            outputs.append(state[0])
        return torch.stack(outputs, -2)


class RNN(Recurrent):
    """h = tanh(W_ih x + b_ih + W_hh h + b_hh)."""

    gates = 1

    def cell(self, from_input: Tensor, from_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.tanh(from_input + from_state),)


class GRU(Recurrent):
    """Gates r, z, n, as torch.nn.GRU has them."""

    gates = 3

    def cell(self, from_input: Tensor, from_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (r_x, z_x, n_x), (r_h, z_h, n_h) = from_input.chunk(3, -1), from_state.chunk(3, -1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        return (n + z * (state[0] - n),)


class LSTM(Recurrent):
    """Gates i, f, g, o, as torch.nn.LSTM has them."""

    gates = 4
    states = 2

    def cell(self, from_input: Tensor, from_state: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        i, f, g, o = (from_input + from_state).chunk(4, -1)
        memory = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(memory), memory


CELLS: dict[str, type[Recurrent]] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


class RecurrentLM(nn.Module):
    """Embedding, recurrent layers, Linear: tokens (B, L) -> logits of the next token (B, L, V)."""

    def __init__(self, vocabulary: int, cell: str, embedding: int, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, embedding)
        widths = [embedding] + [hidden] * layers
        self.layers = nn.Sequential(*[CELLS[cell](before, hidden) for before in widths[:-1]])
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens)))
