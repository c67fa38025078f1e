"""The contract of a gradient estimator. Nothing in it knows about Lightning or about processes.

Legend of shapes: N pairs of a cohort, C particles of a pair (2, antithetic; or 1, where nothing is perturbed).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from lopt.errors import InvalidInput
from lopt.rules.rule import Tensors, UpdateRule
from meta_train.unroll import Population
from tasks.task import Task, TaskFamily


class Share(NamedTuple):
    """Which of the pairs this process runs: one of so many equal `parts`."""

    rank: int = 0
    parts: int = 1

    def of(self, pairs: int) -> range:
        """The numbers of this part's pairs.

        >>> Share(rank=1, parts=2).of(8)
        range(4, 8)
        """
        if pairs % self.parts:
            raise InvalidInput(
                f"estimator.pairs: {pairs} cannot be shared equally among {self.parts} processes; give a multiple"
            )
        size = pairs // self.parts
        return range(self.rank * size, (self.rank + 1) * size)


WHOLE = Share()


class Cohort(NamedTuple):
    """Pairs whose tasks run as one population; the first particles of all pairs stand before the second ones."""

    family: TaskFamily  # whose tasks these are; drawn again from its key when a run is resumed, as are the tasks
    tasks: tuple[Task, ...]  # one a pair
    population: Population  # C N particles
    perturbation: Tensors  # what of the perturbations is remembered in this episode, (N, *θ)
    initial_loss: Tensor  # (N,): the pair's loss before its first update; nan until it is known
    left: Tensor  # (N,): truncations until the horizon
    length: Tensor  # (N,): truncations of the whole episode
    episode: Tensor  # (N,): episodes begun before this one in this cohort, which names the task and the weights
    generation: Tensor  # (): cohorts before this one in its place, which names its family


class Particles(NamedTuple):
    """What an estimator carries from one meta-gradient to the next."""

    cohorts: tuple[Cohort, ...]
    share: Share
    iteration: Tensor  # (): meta-gradients made so far


class Estimate(NamedTuple):
    """A meta-gradient: the mean over this process's pairs.

    The metrics are means over its pairs, too: "meta_loss", "adam" (that of tuned Adam, if it is known), "diverged" (the
    share of particles), and "squared_norm", of a pair's contribution, from which the variance follows.
    """

    gradient: Tensors  # like θ
    particles: Particles
    metrics: dict[str, Tensor]


class Estimator(ABC):
    """Estimates the gradient of a meta-objective by θ."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Independent contributions to a meta-gradient, over all processes."""

    @abstractmethod
    def start(self, rule: UpdateRule, family: TaskFamily, seed: int, share: Share = WHOLE) -> Particles:
        """Particles before the first meta-gradient; with a `share` only those of one process."""

    @abstractmethod
    def estimate(
        self, rule: UpdateRule, theta: Mapping[str, Tensor], family: TaskFamily, particles: Particles, seed: int
    ) -> Estimate:
        """One meta-gradient; pure, and the same for equal arguments."""

    @abstractmethod
    def pack(self, particles: Particles) -> Sequence[dict[str, Tensor]]:
        """All that a checkpoint must hold: by cohort tensors by name, first axis the pairs, or ().

        Those of several processes are joined along the first axis.
        """

    @abstractmethod
    def restore(
        self,
        rule: UpdateRule,
        family: TaskFamily,
        packed: Sequence[Mapping[str, Tensor]],
        seed: int,
        share: Share = WHOLE,
    ) -> Particles:
        """The particles that were packed, with their tasks drawn again.

        Raises:
            InvalidInput: they are not those of this rule, family, estimator and seed.
        """
