"""The evolution strategies, which differ in when the perturbation ε is drawn and in what ξ multiplies the losses."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from meta_train.estimators.estimator import Cohort
from meta_train.estimators.evolution import Evolution


class PES(Evolution):
    r"""Persistent evolution strategies (arXiv 2112.13835, equation 10, antithetic): unbiased from truncated unrolls.

    ε is new in every truncation, and ξ is the sum of those of the episode so far, since all of them had a part in the
    present loss:

    $$ \xi_i = \sum_{\tau \le t} \epsilon_{i, \tau} $$

    Its variance grows with the number of truncations. Arguments: see `Evolution`.
    """

    def name(self, cohort: Cohort, row: int, iteration: int) -> tuple[int, ...]:
        return (iteration,)

    def sum(self, before: Tensor, noise: Tensor) -> Tensor:
        return before + noise


class ESSingle(Evolution):
    r"""ES-Single (arXiv 2304.11153): one perturbation a pair and episode, ξ = ε.

    Truncated full-unroll ES, in other words, whose variance does not grow with the number of truncations. It is
    unbiased for θ that stays as it is in an episode, up to the smoothing by σ; PES also forgets what an older θ did.
    Arguments: see `Evolution`.
    """

    def name(self, cohort: Cohort, row: int, iteration: int) -> tuple[int, ...]:
        return (int(cohort.episode[row]), 0)  # two numbers, where a meta-step is one

    def sum(self, before: Tensor, noise: Tensor) -> Tensor:
        return noise


class TruncatedES(Evolution):
    """Evolution strategies on single truncations: ε is new in each, ξ = ε.

    Little variance and a bias: what θ did in earlier truncations counts as given, so the gradient is short-sighted.
    Arguments: see `Evolution`.
    """

    def name(self, cohort: Cohort, row: int, iteration: int) -> tuple[int, ...]:
        return (iteration,)

    def sum(self, before: Tensor, noise: Tensor) -> Tensor:
        return noise


class FullES(Evolution):
    """Evolution strategies on whole episodes: a meta-gradient for each horizon, unbiased up to the smoothing by σ.

    The truncation only says how many steps are drawn at a time. Arguments: see `Evolution`.
    """

    whole: ClassVar[bool] = True

    def name(self, cohort: Cohort, row: int, iteration: int) -> tuple[int, ...]:
        return (iteration,)

    def sum(self, before: Tensor, noise: Tensor) -> Tensor:
        return noise
