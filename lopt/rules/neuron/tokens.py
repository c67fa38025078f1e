r"""From sums over rows, columns and tensors to tokens: numbers without a unit, about 1 in size.

Eight moments of each row, column and tensor (means of v, of m, and of products of two of g, m, s, w, where s is the
slow momentum) give eight features, logarithms of ratios and correlations:

    w w / that of the tensor,  v / that of the tensor,  g g / v,  m m / v,
    g m / sqrt(gg mm),  m s / sqrt(mm v),  s w / sqrt(v ww),  m m' / mm: the part of mm that is a common mean

None changes if the loss is multiplied by a constant.

Legend: E entries without those of the tensors, T tensors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.rules.moments import RMS_GUARD, TIMESCALES, time_features
from lopt.rules.neuron.layout import STATIC, Layout
from lopt.rules.rule import Clock

MOMENTS = 8
GG, MM, WW, V, GM, MS, SW, M = range(MOMENTS)
FEATURES = 8  # of an entry
_LOSSES = 3  # features of the loss, and whether there is one
TENSOR_FEATURES = FEATURES + STATIC + _LOSSES
GLOBAL_FEATURES = len(TIMESCALES) + 5
DATA_FEATURES = 1

# A second moment below this share of its tensor's counts as this share: the logarithm of nothing is finite.
RELATIVE_GUARD = 1e-8
LOG_UNIT = 4.0  # logarithms of ratios of second moments lie within some 18 of 0
_WEIGHT_GUARD = 1e-8  # a mean square below which a tensor of weights counts as zero
_UNKNOWN_REST = 0.5  # what is left of a horizon that is not known
_LEAST_HORIZON = 1000.0  # of which a horizon that is not known has at least so many steps
_LOSS_GUARD = 1e-12  # share of the squared mean loss below which its variance is rounding


class Moments(NamedTuple):
    """What is known of each row, column and tensor, bias-corrected."""

    means: Tensor  # [MOMENTS, E + T]
    logs: Tensor  # [4, E + T]: of g g, m m, w w and v, guarded
    features: Tensor  # [FEATURES, E + T]


def moments_of(layout: Layout, sums: Tensor, log_debiases: Tensor) -> Moments:
    """Sums over rows and columns [MOMENTS, E], log(1 - decay^t) [3, T] -> the moments of all entries and tensors."""
    m, s, v = log_debiases.unbind(0)
    none = torch.zeros_like(m)
    correction = torch.exp(-torch.stack([none, m + m, none, v, m, m + s, s, m]))
    totals = [
        sums[:, stack.rows].reshape(MOMENTS, stack.n_tensors, stack.form.batch * stack.form.rows).sum(-1)
        for stack in layout.stacks
    ]
    means = torch.cat([sums, *totals], 1) * correction.index_select(1, layout.tensor) * layout.inverse_size
    floor = means[WW : V + 1, layout.n_entries :] * RELATIVE_GUARD + RMS_GUARD
    floor = floor.index_select(1, layout.tensor)
    logs = (means[: V + 1] + torch.cat([floor[1:], floor[1:], floor])).log()
    relative = logs[WW:] - logs[WW:, layout.n_entries :].index_select(1, layout.tensor)
    noise = logs[:WW] - logs[V]
    norms = logs[:V] + torch.cat([logs[MM : MM + 1], logs[V:].expand(2, -1)])
    correlations = means[GM:M] * torch.exp(-0.5 * norms)
    common = means[M:].square() * torch.exp(-logs[MM : MM + 1])
    return Moments(means, logs, torch.cat([relative / LOG_UNIT, noise / LOG_UNIT, correlations, common]))


def tensor_features(layout: Layout, moments: Moments, losses: Tensor) -> Tensor:
    """[T, TENSOR_FEATURES]: as for an entry, but weight and gradient against fixed scales and the network's."""
    weight, gradient = moments.means[WW : V + 1, layout.n_entries :].unbind(0)
    network = gradient.mean()
    weight = (weight + _WEIGHT_GUARD).log()
    gradient = (gradient + RELATIVE_GUARD * network + RMS_GUARD).log() - (network + RMS_GUARD).log()
    scales = torch.stack([weight, gradient]) / (2 * LOG_UNIT)
    own = torch.cat([scales, moments.features[2:, layout.n_entries :]])
    return torch.cat([own.t(), layout.static, losses], 1)


def global_features(layout: Layout, clock: Clock) -> Tensor:
    """[GLOBAL_FEATURES]: the time, and how much of it is left, if known."""
    step = clock.step.to(layout.dtype)
    if clock.horizon is None:
        rest = step.new_zeros(4)
    else:
        horizon = clock.horizon.to(layout.dtype)
        done = (step / horizon).clamp(max=1)
        rest = torch.stack([torch.ones_like(done), done, 1 - done, horizon.log() / 10])
    return torch.cat([time_features(step, layout.timescales), step.log1p().unsqueeze(0) / 10, rest])


def log_rest(layout: Layout, clock: Clock) -> Tensor:
    """log(1 - t / T): of what is left of the horizon, from the last step on that of one step. If it is not known, half
    is: steps that suit the first half of a run are too large to end at, and nobody says when it ends."""
    step = clock.step.to(layout.dtype)
    if clock.horizon is None:
        return torch.full_like(step, math.log(_UNKNOWN_REST))
    horizon = clock.horizon.to(layout.dtype)
    return ((horizon - step).clamp(min=1) / horizon.clamp(min=1)).log()


class Data(NamedTuple):
    """What is known of the data set."""

    features: Tensor  # [DATA_FEATURES]: logarithm of how often an example will have come when the horizon is there
    per_weight: Tensor  # (): logarithm of the number of examples for each weight of the network


def data_of(layout: Layout, clock: Clock) -> Data | None:
    """None: nobody said how many examples there are, in all and in a batch."""
    if clock.dataset_size is None or clock.batch_size is None:
        return None
    batch = clock.batch_size.to(layout.dtype).clamp(min=1).log()
    size = clock.dataset_size.to(layout.dtype).clamp(min=1).log()
    if clock.horizon is None:
        horizon = (clock.step.to(layout.dtype) / (1 - _UNKNOWN_REST)).clamp(min=_LEAST_HORIZON)
    else:
        horizon = clock.horizon.to(layout.dtype).clamp(min=1)
    times = horizon.log() + batch - size
    return Data(times.unsqueeze(0) / LOG_UNIT, size - math.log(sum(max(1, n) for n in layout.sizes)))


def follow_loss(layout: Layout, losses: Tensor, loss: Tensor | None) -> Tensor:
    """Advances what each tensor remembers of the loss [T, 4]: count, fast mean, slow mean, variance about it.

    Plain means at first, moving averages at 0.9, 0.99 and 0.99 later.
    """
    if loss is None:
        return losses
    loss, count = loss.to(losses.dtype), losses[:, :1]
    gains = torch.maximum(1 / (count + 1), layout.loss_gains)
    surprise = (loss - losses[:, 2:3]).square() * count.clamp(max=1)
    told = loss.expand(losses.shape[0], 2)
    return torch.cat([count + 1, torch.lerp(losses[:, 1:], torch.cat([told, surprise], 1), gains)], 1)


def loss_features(losses: Tensor, loss: Tensor | None) -> Tensor:
    """[T, 3]: is there a loss; its trend and this step's deviation, in units of its spread, bounded."""
    if loss is None:
        return losses.new_zeros(losses.shape[0], _LOSSES)
    _, fast, slow, variance = losses.split(1, 1)
    spread = torch.rsqrt(variance + _LOSS_GUARD * slow.square() + RMS_GUARD)
    told = torch.cat([fast, loss.to(losses.dtype).expand_as(fast)], 1)
    return torch.cat([torch.ones_like(fast), torch.tanh((told - slow) * spread)], 1)
