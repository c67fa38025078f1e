r"""The law that would have chosen best: a linear function of features, added to the logarithm of the scale.

    Δ_t = a + b · z_t for each tensor t,    minimise the mean over probes of regret(Σ_t w_t Δ_t)
                                                     + ridge (a² + |b|² + mean over probes of var_t Δ_t)

where z are the features, standardised over all tensors, w the weights of the tensors, and the regret at a shift of the
logarithm is read off the probe's curve, linear between its multiples and beyond. A probe changes the steps of all
tensors alike, so it tells nothing of shifts among them: these are kept small.

Legend of shapes: N probes, F features of a tensor, M multiples, B fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.errors import InvalidInput
from lopt.rules import Neuron
from meta_train.calibration.probing import MULTIPLES, Probe

FOLDS = 8
RIDGES = (1e-3, 3e-3, 1e-2, 3e-2)
_STEPS, _LR = 400, 0.02
_BEYOND = 1.0  # how far past the outermost multiples the law may reach, in the logarithm
_LEAST_SPREAD = 1e-3  # of a feature that tells tensors apart


class Law(NamedTuple):
    """What is added to the logarithm of the scale: weights · features + bias."""

    weights: Tensor  # [F]
    bias: float

    def add_to(self, rule: Neuron) -> None:
        """Changes the rule's θ."""
        rule.network.shift_scale(self.weights, self.bias)


class _Curves(NamedTuple):
    """Probes side by side."""

    features: Tensor  # [N, F]: of the mean tensor, standardised
    within: Tensor  # [F, F]: covariance of the features of the tensors of a probe, mean over probes
    regrets: Tensor  # [N, M]


def fit_law(probes: Sequence[Probe], ridge: float) -> Law:
    """The law of the least mean regret."""
    curves, mean, spread = _standardised(probes)
    found = _minimise(curves, torch.ones(1, len(probes)), torch.tensor([ridge]))[0]
    weights = torch.where(spread > 0, found[:-1] / spread.clamp(min=_LEAST_SPREAD), 0)
    return Law(weights, float(found[-1] - (weights * mean).sum()))


def cross_validate(probes: Sequence[Probe], ridges: Sequence[float] = RIDGES, seed: int = 0) -> dict[float, float]:
    """For each ridge the mean regret on probes that the law was not fitted to, over `FOLDS` parts.

    Raises:
        InvalidInput: fewer probes than parts.
    """
    if len(probes) < FOLDS:
        raise InvalidInput(f"probes: {len(probes)}; a law is chosen by what it does to others, give at least {FOLDS}")
    curves, _, _ = _standardised(probes)
    order = torch.randperm(len(probes), generator=torch.Generator().manual_seed(seed))
    used = torch.ones(FOLDS, len(probes))
    for fold in range(FOLDS):
        used[fold, order[fold::FOLDS]] = 0
    every = used.repeat(len(ridges), 1)  # all fits side by side: they are many and small
    found = _minimise(curves, every, torch.tensor(ridges).repeat_interleave(FOLDS))
    left_out = (_regrets(curves, found) * (1 - every)).sum(1).unflatten(0, (len(ridges), FOLDS)).sum(1) / len(probes)
    return dict(zip(ridges, left_out.tolist(), strict=True))


def regret_of(probes: Sequence[Probe], law: Law | None = None) -> float:
    """The mean regret of a law, by default of the rule as it was probed."""
    weights, bias = (0.0, 0.0) if law is None else law
    shifts = torch.stack([((p.weights @ p.features) * weights).sum() + bias for p in probes])
    return float(_read_off(torch.stack([p.regrets for p in probes]), shifts).mean())


def _standardised(probes: Sequence[Probe]) -> tuple[_Curves, Tensor, Tensor]:
    """The probes, and the mean and the spread of each feature over all tensors, 0 where it tells nothing."""
    spread, mean = torch.std_mean(torch.cat([p.features for p in probes]), 0)
    spread = torch.where(spread < _LEAST_SPREAD, 0, spread)
    every = [torch.where(spread > 0, (p.features - mean) / spread.clamp(min=_LEAST_SPREAD), 0) for p in probes]
    features = torch.stack([p.weights @ x for p, x in zip(probes, every, strict=True)])
    within = torch.stack([(x - x.mean(0)).t() @ (x - x.mean(0)) / len(x) for x in every]).mean(0)
    return _Curves(features, within, torch.stack([p.regrets for p in probes])), mean, spread


def _minimise(curves: _Curves, used: Tensor, ridges: Tensor) -> Tensor:
    """b and a of each fit, [B, F + 1]; used [B, N] is 1 for the probes of a fit, else 0."""
    found = torch.zeros(len(ridges), curves.features.shape[-1] + 1, requires_grad=True)
    optimizer = torch.optim.Adam([found], _LR)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        fitted = (_regrets(curves, found) * used).sum(1) / used.sum(1)
        unlike = ((found[:, :-1] @ curves.within) * found[:, :-1]).sum(1)
        (fitted + ridges * (found.square().sum(1) + unlike)).sum().backward()
        optimizer.step()
    return found.detach()


def _regrets(curves: _Curves, found: Tensor) -> Tensor:
    """[B, N]."""
    return _read_off(curves.regrets, found[:, :-1] @ curves.features.t() + found[:, -1:])


def _read_off(regrets: Tensor, shifts: Tensor) -> Tensor:
    """The regret [.., N] at shifts of the logarithm [.., N], from those at the multiples [N, M]."""
    at = torch.tensor([math.log(multiple) for multiple in MULTIPLES])
    shifts = shifts.clamp(float(at[0]) - _BEYOND, float(at[-1]) + _BEYOND)
    place = torch.bucketize(shifts.detach(), at[1:-1])
    every = regrets.expand(*shifts.shape, len(MULTIPLES))
    left, right = (every.gather(-1, (place + k).unsqueeze(-1))[..., 0] for k in (0, 1))
    return left + (right - left) * (shifts - at[place]) / (at[place + 1] - at[place])
