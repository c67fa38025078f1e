"""What the evolution strategies share: antithetic pairs of perturbed particles, and the sum over them.

Legend of shapes: N antithetic pairs of a cohort, 2N particles, those at θ + ε first.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lopt.rules.rule import Tensors, UpdateRule
from meta_train.arguments import check_above_zero
from meta_train.estimators.episodes import Episodes, Place
from meta_train.estimators.estimator import WHOLE, Cohort, Estimate, Estimator, Particles, Share
from meta_train.horizons import Horizon
from meta_train.objectives import Objective
from meta_train.reference import AdamReference
from tasks.task import TaskFamily


class Evolution(Estimator):
    r"""Evolution strategies over antithetic pairs.

    $$ \hat g = \frac{1}{2 \sigma^2 N} \sum_{i=1}^{N} \xi_i\, (L_i^+ - L_i^-), \quad
       \epsilon \sim \mathcal N(0, \sigma^2 I) $$

    where L is the objective over a truncation under θ ± ε; the estimators differ in when ε is drawn, and in what ξ is.
    A loss is clipped at `loss_clip` times the pair's initial loss (see `ceiling`), and one that is not finite counts as
    that; such a pair is counted and begins a new episode, so nothing that diverges reaches θ.

    Args:
        pairs: N, in each population; over all processes.
        populations: how many run in a meta-step, each with an architecture of its own where the family is a mixture.
        truncation: inner steps between two meta-gradients.
        horizon: inner steps of an episode: a multiple of the truncation; or a `Horizon`, rounded to one.
        std: σ, the standard deviation of the perturbations of θ.
        loss_clip: the largest loss that counts, in units of the initial loss.
        difference_clip: the largest difference L+ - L- that counts; it bounds what one pair can do to θ, at the price
            of a bias. None: any.
        objective: what is minimised; by default `MeanLoss`.
        reference: brings losses to the scale of what Adam reaches; None: they stay as they are.
        tell_horizon: the share of cohorts whose rule is told the horizon.
        tell_symmetry: the share of cohorts whose rule is told the weight space of the task; the others have what
            `LearnedOptimizer` knows of a model that nobody traced, the shapes.
        tell_loss: the share of cohorts whose rule is told the loss of each step.
        compiled: run the inner step as one compiled program; compiling takes a minute or so for each architecture.
    """

    whole: ClassVar[bool] = False  # whether a meta-gradient sees whole episodes

    def __init__(
        self,
        pairs: int = 16,
        truncation: int = 50,
        horizon: int | Horizon = 500,
        std: float = 0.01,
        loss_clip: float = 2.0,
        difference_clip: float | None = None,
        populations: int = 1,
        objective: Objective | None = None,
        reference: AdamReference | None = None,
        tell_horizon: float = 1.0,
        tell_symmetry: float = 1.0,
        tell_loss: float = 1.0,
        compiled: bool = False,
    ) -> None:
        highest = math.inf if difference_clip is None else difference_clip
        check_above_zero(**{"estimator.std": std, "estimator.difference_clip": highest})
        self.std, self.difference_clip = std, difference_clip
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
            compiled,
            in_step=self.whole,
        )

    @abstractmethod
    def name(self, cohort: Cohort, row: int, iteration: int) -> tuple[int, ...]:
        """What names the noise of a pair: equal names, equal noise."""

    @abstractmethod
    def sum(self, before: Tensor, noise: Tensor) -> Tensor:
        """ξ from that of the truncation before (zero at the start of an episode) and this one's ε."""

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

    @torch.no_grad()
    def estimate(
        self, rule: UpdateRule, theta: Mapping[str, Tensor], family: TaskFamily, particles: Particles, seed: int
    ) -> Estimate:
        iteration = int(particles.iteration)
        cohorts, parts, squares, losses, broken = [], [], [], [], []
        for cohort, place in zip(particles.cohorts, self.episodes.places(particles, seed), strict=True):
            noise = self._noise(theta, cohort, place, iteration)
            both = {k: torch.cat([theta[k] + e, theta[k] - e]) for k, e in noise.items()}
            after, values, diverged = self._values(rule, both, cohort, place, iteration)
            plus, minus = values.unflatten(0, (2, -1))
            difference = plus - minus
            if self.difference_clip is not None:
                difference = difference.clamp(-self.difference_clip, self.difference_clip)
            xi = {k: self.sum(cohort.perturbation[k], e) for k, e in noise.items()}
            weight = difference / (2 * self.std**2)
            parts.append({k: torch.tensordot(weight.to(x.dtype), x, dims=1) / len(weight) for k, x in xi.items()})
            norms = torch.stack([x.reshape(len(x), -1).square().sum(1) for x in xi.values()]).sum(0)
            squares.append((weight.square() * norms).mean())
            losses.append(values.mean())
            broken.append(diverged.float().mean())
            lost = diverged.unflatten(0, (2, -1)).any(0).cpu()
            after = after._replace(perturbation=xi)
            cohorts.append(self.episodes.advance(rule, family, after, lost, place, iteration))
        metrics = {
            "meta_loss": torch.stack(losses).mean(),
            "diverged": torch.stack(broken).mean(),
            "squared_norm": torch.stack(squares).mean(),
            **self.episodes.adam(particles),
        }
        following = Particles(tuple(cohorts), particles.share, particles.iteration + 1)
        return Estimate({k: torch.stack([part[k] for part in parts]).mean(0) for k in theta}, following, metrics)

    def _values(
        self, rule: UpdateRule, theta: Tensors, cohort: Cohort, place: Place, iteration: int
    ) -> tuple[Cohort, Tensor, Tensor]:
        """The cohort after one truncation, or at the end of its episode; the objective and who diverged, (2N,)."""
        count = int(cohort.left[0]) if self.whole else 1
        total, broken = [], []
        for piece in range(count):
            cohort, values, diverged = self.episodes.run(rule, theta, cohort, place, iteration, piece)
            total.append(values)
            broken.append(diverged)
            if piece < count - 1:
                cohort = cohort._replace(left=cohort.left - 1)
        return cohort, torch.stack(total).mean(0), torch.stack(broken).any(0)

    def _noise(self, theta: Mapping[str, Tensor], cohort: Cohort, place: Place, iteration: int) -> Tensors:
        """ε of every pair, (N, *θ), drawn on the device of θ."""
        first = next(iter(theta.values()))
        sizes = [p.numel() for p in theta.values()]
        drawn = [
            torch.randn(
                sum(sizes),
                generator=place.source("perturbation", i, *self.name(cohort, row, iteration), device=first.device),
                dtype=first.dtype,
                device=first.device,
            )
            for row, i in enumerate(place.pairs)
        ]
        parts = (self.std * torch.stack(drawn)).split(sizes, 1)
        return {
            k: x.unflatten(1, p.shape) if p.dim() else x[:, 0] for (k, p), x in zip(theta.items(), parts, strict=True)
        }
