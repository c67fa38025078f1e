"""Neuron: the flagship. A neural functional over neurons, not weights, steers Adam-like directions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lopt.errors import InvalidInput
from lopt.rules.moments import check_decay
from lopt.rules.neuron.deflate import MOST, SUBSPACE, deflate, first_subspace, rank_of, subspaces_of
from lopt.rules.neuron.form import form_of
from lopt.rules.neuron.hidden import hidden_updates
from lopt.rules.neuron.kernels import memory_of, plan_of
from lopt.rules.neuron.layout import layout_of
from lopt.rules.neuron.network import TokenNetwork
from lopt.rules.neuron.orthogonalise import orthogonal_direction
from lopt.rules.neuron.passes import KEYS
from lopt.rules.neuron.pure import advance, combine, scaled, stacked, sums_of, unstacked
from lopt.rules.neuron.think import Mind, counters, think
from lopt.rules.rule import Clock, State, Tensors, UpdateRule, Updates
from lopt.rules.sharded import device_of, is_distributed, whole
from lopt.weight_space import WeightSpace

_LEAST_BYTES = 4  # of a number that the rule computes with


class Neuron(UpdateRule):
    r"""A neural functional over neurons, not weights, that steers Adam's directions: near Adam's cost, any network.

    *State*: two momenta and a second moment, float32 whatever the parameter's dtype (more exactly, of the dtype of θ):

    $$ m \leftarrow 0.9\, m + 0.1\, g,\quad s \leftarrow 0.99\, s + 0.01\, g,\quad
       v \leftarrow 0.999\, v + 0.001\, g^2 $$

    *Update* of the weight in row i and column j of a tensor, all moments bias-corrected, σ the learned scale:

    $$ u_{ij} = \sigma\, \frac{d_{ij}}{\mathrm{RMS}(d)},\quad d_{ij} = r_i b_j \Big(
       \frac{(1 + h_m)\, m + h_s\, s + h_g\, \rho\, g}{\sqrt{v + \epsilon^2 \bar v}} + h_w\, \rho\, \frac{w}{\bar w}
       + h_1 \frac{m}{\sqrt{\bar v}} + h_f \frac{m}{\sqrt{v_i v_j / \bar v}} \Big)_{ij}
       + r_i b_j\, h_r \frac{m_i}{\sqrt{v_i}} + b_j\, h_c \frac{m_j}{\sqrt{v_j}} $$

    where a single index (m_i, v_j) is a mean over a row or a column, v̄ is the mean of v, w̄ the RMS of w, and ρ =
    RMS(m) / v̄^½ brings g and w to about the size of m / √v. The last two terms broadcast means over rows and columns,
    as the equivariant linear map of a matrix does: h_r = -1 centres the inputs of a layer. The coefficients h and σ
    belong to a tensor, the corrections r (of rows) and b (of columns), between 1/e and e, to a neuron on an axis of one
    role. The logarithm of σ gains a linear function of the tensor's features, a power law of its sizes and its place in
    the network, and σ falls as a learned power of 1 - t / T, for which 1/2 stands where the horizon T is not known. All
    come from a functional over tokens of neurons, tensors and the network (tokens.py, network.py); the step, and the
    horizon and the loss if given, are among its inputs. Where the sizes of the data set and of a batch are given, σ is
    multiplied by a learned power of how often an example comes until the horizon, between 1/32 and 1 (and not below a
    fifth of the number of examples for each weight). Its last layers start at zero: h = 0, r = b = σ = 1, which is Adam
    brought to RMS 1.

    So lr is the RMS change of a weight in a step; σ is at most 10, and at least 1/1000 before it falls. A tensor of one
    element moves by ± lr σ. Nothing depends on the scale of the loss, and nothing in θ on the shape or number of the
    tensors.

    A long vector and the long side of a thin matrix (more than 65,536 positions with fewer than 8 weights each) have no
    neurons: r = b = 1 there. With a convolution's taps the columns are (in-channel, tap). Where axes hold dependent
    groups (channels within heads), rows and columns are told apart so far that the update permutes with all of the
    group (form.py).

    Args:
        width: channels of a token.
        rounds: rounds of the functional.
        decays: of the two momenta, between 0 and 1.
        second_decay: of the second moment, between 0 and 1.
        eps: ε, above 0: gradients below this share of their tensor's RMS count as this share.
        orthogonalise: move hidden matrices (both axes hold groups; a convolution counts as (out, in * taps)) along
            Muon's orthogonalised momentum: it is d there, and of the learned numbers σ alone counts. Give the true
            weight space: in the default one inputs and outputs of the network are guessed from sizes (ends.py). It
            costs 15 matrix products a step and matrix.
        deflation: bring down so many of the largest singular values of d, at most 8 and a quarter of all, in hidden
            matrices (deflate.py): d takes fewer steps along the same few directions. It costs three products with a
            matrix of so many columns, and does nothing beside `orthogonalise`.

    State: "momentum", "slow_momentum", "second_moment", and "loss" (four numbers), 12 bytes a parameter in float32.
        With deflation "subspace", too: so many numbers for each row or column of a hidden matrix's shorter side.

    Raises:
        InvalidInput: an argument out of its range; in use, θ of half precision.

    >>> rule = Neuron()
    >>> sum(p.numel() for p in rule.parameters())
    9883
    """

    default_lr: ClassVar[float] = 1e-3
    takes_shards: ClassVar[bool] = True
    zero_if_absent: ClassVar[tuple[str, ...]] = ("network.data_law.weight", "network.data_law.bias")

    def __init__(
        self,
        width: int = 16,
        rounds: int = 2,
        decays: tuple[float, float] = (0.9, 0.99),
        second_decay: float = 0.999,
        eps: float = 1e-4,
        orthogonalise: bool = False,
        deflation: int = 0,
    ) -> None:
        super().__init__()
        if len(decays) != 2:
            raise InvalidInput(f"decays: {decays}; the rule keeps two momenta, give two decays")
        for decay in (*decays, second_decay):
            check_decay(decay)
        for name, count, least in (("width", width, 1), ("rounds", rounds, 0)):
            if count < least:
                raise InvalidInput(f"{name}: {count}; it must be at least {least}")
        if not isinstance(deflation, int) or not 0 <= deflation <= MOST:
            raise InvalidInput(f"deflation: {deflation}; it must be 0, which is none, to {MOST}, and an integer")
        if not 0 < eps < math.inf:
            raise InvalidInput(f"eps: {eps}; it must be above 0 and finite")
        self._arguments = {
            "width": width,
            "rounds": rounds,
            "decays": list(decays),
            "second_decay": second_decay,
            "eps": eps,
            "orthogonalise": orthogonalise,
            "deflation": deflation,
        }
        self._decays, self._eps, self._orthogonalise = (*decays, second_decay), eps, orthogonalise
        self._deflation = 0 if orthogonalise else deflation
        self.network = TokenNetwork(width, rounds)

    @property
    def arguments(self) -> Mapping[str, Any]:
        return self._arguments

    def init_state(self, space: WeightSpace, params: Mapping[str, Tensor]) -> State:
        dtype = self._dtype

        def entries(name: str, p: Tensor) -> Tensors:
            zeros = {key: torch.zeros_like(p, dtype=dtype, memory_format=torch.contiguous_format) for key in KEYS}
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            loss = torch.zeros(4, dtype=dtype, device=p.device)
            entry = {"step": step, **zeros, "loss": loss}
            form = form_of(name, space[name]) if self._deflation else None
            if form is not None and (rank := rank_of(form, self._deflation)):
                entry[SUBSPACE] = first_subspace(form, whole(p.detach()).to(dtype), rank)
            return entry

        return State({name: entries(name, p) for name, p in params.items()}, {})

    def forward(
        self,
        space: WeightSpace,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        clock: Clock,
    ) -> tuple[Tensors, State]:
        if any(map(is_distributed, params.values())):
            return self.on_whole_tensors(space, params, grads, state, clock)
        layout = layout_of(space, device_of(params), self._dtype)
        steps, losses = counters(layout, state.tensors, clock.loss)
        advanced = []
        for stack in layout.stacks:
            names = layout.names[stack.tensors]
            g, w = (stacked(layout, stack, [x[k] for k in names]) for x in (grads, params))
            old = [stacked(layout, stack, [state.tensors[k][key] for k in names]) for key in KEYS]
            advanced.append(advance(g, w, old, self._gains))
        plan = think(self._mind, layout, sums_of(x.products() for x in advanced), steps, losses, clock)
        updates, following, subspaces = {}, {}, subspaces_of(layout, state.tensors)
        counted = zip(layout.names, steps.float().unbind(0), losses.unbind(0), strict=True)
        for stack, x in zip(layout.stacks, advanced, strict=True):
            names = layout.names[stack.tensors]
            along_muon = self._orthogonalise and stack.hidden
            u = orthogonal_direction(x.m) if along_muon else combine(layout, stack, plan, x)
            if held := [subspaces[k] for k in names if k in subspaces]:
                u, p = deflate(u, torch.cat(held).to(layout.dtype))
                subspaces |= zip(names, p.split(stack.form.batch), strict=True)
            found = (scaled(layout, stack, plan, u), x.m, x.s, x.v)
            pieces = [unstacked(layout, stack, y) for y in found]
            for update, *moments in zip(*pieces, strict=True):
                name, step, loss = next(counted)
                updates[name] = update
                moved = {"step": step, **dict(zip(KEYS, moments, strict=True)), "loss": loss}
                following[name] = {**state.tensors[name], **moved}
        for name, p in subspaces.items():
            following[name][SUBSPACE] = p
        return {k: updates[k] for k in params}, State({k: following[k] for k in params}, state.scalars)

    @torch.no_grad()
    def updates_(
        self,
        space: WeightSpace,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: State,
        clock: Clock,
    ) -> Iterator[Updates]:
        layout = layout_of(space, device_of(params), self._dtype)
        stop = layout.n_others if self._orthogonalise else len(layout.names)
        memory = memory_of(layout, params, grads, state.tensors, stop)
        plan = plan_of(self._mind, layout, memory.advance(self._gains), state.tensors, clock)
        yield from memory.combine(plan, subspaces_of(layout, state.tensors))
        if self._orthogonalise:
            yield from hidden_updates(layout, plan, params, state.tensors)

    @property
    def _dtype(self) -> torch.dtype:
        dtype = self.network.read_time.weight.dtype
        if dtype.itemsize < _LEAST_BYTES:
            raise InvalidInput(
                f"the meta-parameters are of {dtype}, in which averages over 1,000 steps stand still. "
                "Use rule.float(): the weights may be of any precision"
            )
        return dtype

    @property
    def _mind(self) -> Mind:
        return Mind(self.network, self._decays, self._eps)

    @property
    def _gains(self) -> list[float]:
        return [1 - decay for decay in self._decays]
