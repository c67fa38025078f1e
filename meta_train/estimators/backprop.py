"""Truncated backpropagation through the unroll.

Legend of shapes: N particles of a cohort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lopt.rules.rule import UpdateRule
from meta_train.estimators.episodes import Episodes
from meta_train.estimators.estimator import WHOLE, Estimate, Estimator, Particles, Share
from meta_train.horizons import Horizon
from meta_train.objectives import Objective
from meta_train.reference import AdamReference
from tasks.task import TaskFamily


class TruncatedBackprop(Estimator):
    r"""The derivative of the objective over a truncation by θ, through all its inner steps.

    $$ \hat g = \frac{1}{N} \sum_{i=1}^{N} \frac{\partial L_i(\theta)}{\partial \theta} $$

    Exact for a horizon of one truncation; else short-sighted, as the state at its start counts as given. Long
    truncations cost memory, and their derivatives explode: a particle's that is not finite is left out and counted.

    Args:
        pairs: N, in each population; a pair is one particle here, as nothing is perturbed.
        others: see `Evolution`.
    """

    def __init__(
        self,
        pairs: int = 16,
        truncation: int = 50,
        horizon: int | Horizon = 500,
        loss_clip: float = 2.0,
        populations: int = 1,
        objective: Objective | None = None,
        reference: AdamReference | None = None,
        tell_horizon: float = 1.0,
        tell_symmetry: float = 1.0,
        tell_loss: float = 1.0,
    ) -> None:
        self.episodes = Episodes(
            pairs,
            populations,
            truncation,
            horizon,
            objective,
            reference,
            tell_horizon,
            tell_symmetry,
            tell_loss,
            loss_clip,
            compiled=False,  # a compiled program has no derivatives
            copies=1,
        )

    @property
    def count(self) -> int:
        return self.episodes.pairs * self.episodes.populations

    def start(self, rule: UpdateRule, family: TaskFamily, seed: int, share: Share = WHOLE) -> Particles:
        return self.episodes.start(rule, family, seed, share)

    def pack(self, particles: Particles) -> Sequence[dict[str, Tensor]]:
        return self.episodes.pack(particles)

    def restore(
        self,
        rule: UpdateRule,
        family: TaskFamily,
        packed: Sequence[Mapping[str, Tensor]],
        seed: int,
        share: Share = WHOLE,
    ) -> Particles:
        return self.episodes.restore(rule, family, packed, seed, share)

    def estimate(
        self, rule: UpdateRule, theta: Mapping[str, Tensor], family: TaskFamily, particles: Particles, seed: int
    ) -> Estimate:
        iteration = int(particles.iteration)
        cohorts, parts, squares, losses, broken = [], [], [], [], []
        for cohort, place in zip(particles.cohorts, self.episodes.places(particles, seed), strict=True):
            count = len(cohort.tasks)
            live = {k: p.detach().expand(count, *p.shape).clone().requires_grad_() for k, p in theta.items()}
            with torch.enable_grad():
                after, values, diverged = self.episodes.run(rule, live, cohort, place, iteration)
                slopes = torch.autograd.grad(values.sum(), list(live.values()), allow_unused=True)
            own = {k: torch.zeros_like(x) if g is None else g for (k, x), g in zip(live.items(), slopes, strict=True)}
            finite = torch.stack([g.reshape(len(g), -1).isfinite().all(1) for g in own.values()]).all(0)
            own = {k: torch.where(finite.view(-1, *[1] * (g.dim() - 1)), g, 0.0) for k, g in own.items()}
            parts.append({k: g.mean(0) for k, g in own.items()})
            squares.append(torch.stack([g.reshape(len(g), -1).square().sum(1) for g in own.values()]).sum(0).mean())
            losses.append(values.detach().mean())
            lost = diverged | ~finite
            broken.append(lost.float().mean())
            after = after._replace(population=pytree.tree_map(torch.Tensor.detach, after.population))
            cohorts.append(self.episodes.advance(rule, family, after, lost.cpu(), place, iteration))
        metrics = {
            "meta_loss": torch.stack(losses).mean(),
            "diverged": torch.stack(broken).mean(),
            "squared_norm": torch.stack(squares).mean(),
            **self.episodes.adam(particles),
        }
        following = Particles(tuple(cohorts), particles.share, particles.iteration + 1)
        return Estimate({k: torch.stack([part[k] for part in parts]).mean(0) for k in theta}, following, metrics)
