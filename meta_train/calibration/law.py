r"""The law that would have chosen best: a linear function of features, added to the logarithm of the scale.

    Δ_t = a + b · z_t for each tensor t,    minimise the mean over probes of regret(Σ_t w_t Δ_t)
                                                     + ridge (a² + |b|² + mean over probes of var_t Δ_t)

where z are the features, standardised over all tensors, w the shares of the tensors, and the regret at a shift is read
off the probe's curve, linear between those tried. Outside of them it only rises: nobody ran such steps. A probe changes
the steps of all tensors alike, so it tells nothing of shifts among them: these are kept small.

Each power of the time left has a law of its own; the best power is that whose law does best on architectures left out.

Legend of shapes: N probes, F features of a tensor, A powers, M shifts, B fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lopt.errors import InvalidInput
from lopt.rules import Neuron
from meta_train.calibration.probing import ANNEALS, FACTORS, Probe

FOLDS = 8
RIDGES = (1e-3, 3e-3, 1e-2, 3e-2)
_STEPS, _LR = 400, 0.02
_OUTSIDE = 0.1  # what the regret rises by, at least, over a factor e past the outermost of the shifts tried
_LEAST_SPREAD = 1e-3  # of a feature that tells tensors apart


class Law(NamedTuple):
    """What is added to the logarithm of the scale, slopes · features + shift, and what multiplies its power."""

    slopes: Tensor  # [F]
    shift: float
    anneal: float = 1.0  # one of ANNEALS

    def add_to(self, rule: Neuron) -> None:
        """Changes the rule's θ."""
        rule.network.change_scale(self.slopes, self.shift, self.anneal)


class _Curves(NamedTuple):
    """Probes side by side."""

    features: Tensor  # [N, F]: of the mean tensor, standardised
    within: Tensor  # [F, F]: covariance of the features of the tensors of a probe, mean over probes
    regrets: Tensor  # [N, M]


def fit_law(probes: Sequence[Probe], ridge: float, anneal: float = 1.0) -> Law:
    """The law of the least mean regret among those of one power."""
    curves, mean, spread = _standardised(probes, anneal)
    found = _minimise(curves, torch.ones(1, len(probes)), torch.tensor([ridge]))[0]
    slopes = torch.where(spread > 0, found[:-1] / spread.clamp(min=_LEAST_SPREAD), 0)
    return Law(slopes, float(found[-1] - (slopes * mean).sum()), anneal)


def cross_validate(
    probes: Sequence[Probe], ridges: Sequence[float] = RIDGES, seed: int = 0
) -> dict[tuple[float, float], Tensor]:
    """For each power and ridge the regret [N] of every probe at a law that was fitted without its fold of the
    architectures.

    Raises:
        InvalidInput: fewer architectures than folds.
    """
    folds = _folds(probes, seed)
    used = (folds != torch.arange(FOLDS).unsqueeze(1)).float().repeat(len(ridges), 1)  # all fits side by side
    left_out = {}
    for anneal in ANNEALS:
        curves, _, _ = _standardised(probes, anneal)
        found = _minimise(curves, used, torch.tensor(ridges).repeat_interleave(FOLDS))
        regrets = (_regrets(curves, found) * (1 - used)).unflatten(0, (len(ridges), FOLDS)).sum(1)
        left_out |= {(anneal, ridge): regret for ridge, regret in zip(ridges, regrets, strict=True)}
    return left_out


def regrets_of(probes: Sequence[Probe], law: Law | None = None) -> Tensor:
    """The regret [N] of a law, by default of the rule as it was probed."""
    slopes, shift, anneal = (0.0, 0.0, 1.0) if law is None else law
    shifts = torch.stack([((p.shares @ p.features) * slopes).sum() + shift for p in probes])
    return _read_off(_of_power(probes, anneal), shifts)


def _folds(probes: Sequence[Probe], seed: int) -> Tensor:
    """[N]: the fold of each probe; all of one architecture in one, or a law would be tried on what it has seen."""
    kinds: dict[bytes, list[int]] = {}
    for place, p in enumerate(probes):
        kinds.setdefault(_kind(p.features), []).append(place)
    check_variety(p.features for p in probes)
    folds = torch.empty(len(probes), dtype=torch.long)
    order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))
    for fold, places in zip(order.tolist(), kinds.values(), strict=True):
        folds[places] = fold % FOLDS
    return folds


def check_variety(features: Iterable[Tensor]) -> None:
    """Raises InvalidInput where tasks with these features [T, F] are of fewer architectures than folds.

    It looks at no more of them than it takes.
    """
    kinds: set[bytes] = set()
    for one in features:
        kinds.add(_kind(one))
        if len(kinds) == FOLDS:
            return
    raise InvalidInput(
        f"probes: of {len(kinds)} architectures; a law is chosen by what it does to others, give tasks of at "
        f"least {FOLDS}: another family=, or more tasks="
    )


def _kind(features: Tensor) -> bytes:
    """What tells architectures apart: a law sees no more of them."""
    return features.numpy().tobytes()


def _of_power(probes: Sequence[Probe], anneal: float) -> Tensor:
    """The regrets [N, M] of the shifts with one power."""
    return torch.stack([p.regrets[ANNEALS.index(anneal)] for p in probes])


def _standardised(probes: Sequence[Probe], anneal: float) -> tuple[_Curves, Tensor, Tensor]:
    """The probes with one power; mean and spread of each feature over all tensors, 0 where it tells nothing."""
    spread, mean = torch.std_mean(torch.cat([p.features for p in probes]), 0)
    spread = torch.where(spread < _LEAST_SPREAD, 0, spread)
    every = [torch.where(spread > 0, (p.features - mean) / spread.clamp(min=_LEAST_SPREAD), 0) for p in probes]
    features = torch.stack([p.shares @ x for p, x in zip(probes, every, strict=True)])
    within = torch.stack([(x - x.mean(0)).t() @ (x - x.mean(0)) / len(x) for x in every]).mean(0)
    return _Curves(features, within, _of_power(probes, anneal)), mean, spread


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
    """The regret [.., N] at shifts [.., N], from those at the shifts tried [N, M]."""
    at = torch.tensor([math.log(factor) for factor in FACTORS])
    inside = shifts.clamp(float(at[0]), float(at[-1]))
    place = torch.bucketize(inside.detach(), at[1:-1])
    every = regrets.expand(*shifts.shape, len(FACTORS))
    left, right = (every.gather(-1, (place + k).unsqueeze(-1))[..., 0] for k in (0, 1))
    slope = (right - left) / (at[place + 1] - at[place])
    outside = (slope * (shifts - inside).sign()).clamp(min=_OUTSIDE) * (shifts - inside).abs()
    return left + slope * (inside - at[place]) + outside
