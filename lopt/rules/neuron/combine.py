r"""From the heads to the update: coefficients for each row and column, and the elementwise formula that uses them.

With m, s, v the stored (not bias-corrected) moments and q = 1 / sqrt(k v + ε²), where k v is 1 on average over the
tensor, the update before it is brought to RMS 1:

    u_ij = b_j ( (a_g g + a_m m + a_s s)_ij q_ij + a_w w_ij + (a_1 + a_f c_j) m_ij + a_i ) + d_j

The six a and a_i, and k, belong to rows (constants of the tensor times the correction of the row's neurons), c, b and
d to columns: c_j is the column's part of the factored second moment, b_j the correction of the column's neurons. a_i
and d_j are multiples of the mean momentum of row i and of column j: the broadcast terms of an equivariant linear map.
Taking a row's mean away centres the inputs of its neuron, which makes up for most of a bad condition.

Legend: E entries without those of the tensors, E_r row entries, E_c column entries, T tensors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.rules.moments import RMS_GUARD
from lopt.rules.neuron.layout import Layout
from lopt.rules.neuron.network import ANNEAL, CENTRE_COLUMNS, CENTRE_ROWS, DIRECTIONS, SCALE, Heads
from lopt.rules.neuron.tokens import LOG_UNIT, MM, M, Moments, V

ROWS, COLUMNS = 8, 3  # numbers for each row, for each column

# Before it falls with the time left, the learned scale lies between 1/1000 and 10. At 10 and the default lr an update
# changes weights by 0.01 (RMS), as much as any layer bears; at 1/1000 a tensor stands still.
_DECADES_DOWN, _DECADES_UP = 3.0, 1.0


class Plan(NamedTuple):
    """What the second pass over memory needs."""

    rows: Tensor  # [ROWS, E_r]: a_g, a_m, a_s, a_w, a_1, a_f, k, a_i
    columns: Tensor  # [COLUMNS, E_c]: c, b, d
    scales: Tensor  # [T]: the RMS of the update
    floor: float  # ε²


def bounded_scale(x: Tensor) -> Tensor:
    r"""10^{4 σ(κx + ln 3) - 3}: between 1/1000 and 10, 1 at x = 0, and there as steep as e^x."""
    down, up = _DECADES_DOWN, _DECADES_UP
    kappa = (down + up) / (down * up * math.log(10))
    return torch.exp(math.log(10) * ((down + up) * torch.sigmoid(kappa * x + math.log(down / up)) - down))


def brought_to(scales: Tensor, mean_squares: Tensor) -> Tensor:
    """The factor that brings an update of this mean square to an RMS of `scales`; zeros stay zeros."""
    return scales * torch.rsqrt(mean_squares + RMS_GUARD)


def make_plan(
    layout: Layout,
    moments: Moments,
    heads: Heads,
    log_debiases: Tensor,
    log_rest: Tensor,
    eps: float,
) -> Plan:
    r"""Directions are measured so that a coefficient of 1 gives about the RMS of the base direction, ρ.

    $$ a_g = h_g \rho / \bar v^{1/2},\; a_m = (1 + h_m) / (d_m \bar v^{1/2}),\; a_s = h_s / (d_s \bar v^{1/2}),\;
       a_w = h_w \rho / \overline{w^2}^{1/2},\; a_1 = h_1 / (d_m \bar v^{1/2}),\; a_f = h_f r_i / d_m,\;
       k = 1 / (d_v \bar v),\; a_i = h_r \bar m_i / v_i^{1/2},\; d_j = h_c \bar m_j / v_j^{1/2} $$

    with d = 1 - decay^t, ρ² the mean of m² over that of v, and r_i c_j = (v_i v_j / v)^{-1/2} from row, column and
    tensor means of v. The scale is the bounded one of h_0 + law, times (1 - t / T)^h_d, or 2^-h_d where the horizon T
    is not known, times the share that the data set leaves, and never above the bound. Power and share stand outside:
    inside, a scale near the bound would hardly fall.
    """
    _, log_m, log_w, log_v = moments.logs[:, layout.n_entries :].unbind(0)
    dm, ds, dv = log_debiases.unbind(0)
    size, root = 0.5 * (log_m - log_v), 0.5 * log_v
    base = -dm - root
    known = moments.means[MM, layout.n_entries :] * torch.exp(-log_m)  # 1; where there never was a gradient, 0
    units = torch.stack([size - root, base, -ds - root, size - 0.5 * log_w, base, -dm, -log_v - dv]).exp()
    h = heads.coefficients[:DIRECTIONS]
    h = torch.cat([h[:1], 1 + h[1:2], h[2:3], h[3:4] * known, h[4:]])
    constants = torch.cat([units[:DIRECTIONS] * h, units[DIRECTIONS:], heads.coefficients[CENTRE_ROWS, None]])
    corrections, half = _corrections(layout, heads.corrections).exp(), -0.5 * LOG_UNIT * moments.features[1]
    n_rows, n_entries = layout.n_rows, layout.n_entries
    row, column = corrections[:n_rows], corrections[n_rows:]
    roots = torch.exp(-0.5 * moments.logs[V, :n_entries])
    centres = moments.means[M, :n_entries] * roots
    rows = constants.index_select(1, layout.tensor[:n_rows])
    rows = torch.cat(
        [rows[:5] * row, rows[5:6] * (row * half[:n_rows].exp()), rows[6:7], rows[7:] * (row * centres[:n_rows])]
    )
    shift = (
        column * centres[n_rows:] * heads.coefficients[CENTRE_COLUMNS].index_select(0, layout.tensor[n_rows:n_entries])
    )
    fall = heads.coefficients[ANNEAL] * log_rest
    fall = torch.exp(fall if heads.share is None else fall + heads.share)
    scales = (bounded_scale(heads.coefficients[SCALE] + heads.law) * fall).clamp(max=10**_DECADES_UP)
    return Plan(rows, torch.stack([roots[n_rows:], column, shift]), scales, eps**2)


def _corrections(layout: Layout, corrections: Tensor) -> Tensor:
    """The logarithm of the factor of each row and column, from those of the neurons that stand there: [E].

    Each lies between -1 and 1; where several neurons stand (two group axes on one side), theirs add up.
    """
    return layout.to_entries(corrections.tanh().flatten())
