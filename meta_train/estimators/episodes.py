"""Episodes: which tasks the particles of an estimator train on, and for how long. What every estimator shares.

A cohort is a population of pairs with one architecture. Where all tasks of the family have the same one, the cohort
lives as long as the run, and its pairs stand at different points of their episodes, so that every meta-gradient sees
all of the horizon. Where the family is a mixture, the pairs of a cohort run in step; when their horizon is reached, a
new cohort takes their place, with an architecture of its own. Every random number is named by the place of the cohort,
its generation, the pair and its episode (or the meta-step), so nothing depends on which process runs a pair.

Legend of shapes: N pairs of a cohort, C particles of a pair, T steps of a truncation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lopt.errors import InvalidInput
from lopt.functionals.checks import check_probability
from lopt.rules.rule import UpdateRule
from lopt.weight_space import WeightSpace
from meta_train.arguments import check_above_zero, check_whole
from meta_train.estimators.estimator import Cohort, Particles, Share
from meta_train.horizons import Horizon, as_horizon, truncations
from meta_train.keys import generator
from meta_train.objectives import MeanLoss, Objective, ceiling, clipped
from meta_train.reference import AdamReference, Unit, losses_on, normalise
from meta_train.unroll import Population, draw, sizes_of, start, unroll
from tasks.task import Batch, Split, Task, TaskFamily


class Place(NamedTuple):
    """Where a cohort stands: this names its random numbers."""

    seed: int
    pairs: range  # the numbers of its pairs that this process runs
    number: int
    generation: int

    def source(self, purpose: str, *indices: int, device: torch.device | str = "cpu") -> torch.Generator:
        return generator(self.seed, purpose, self.number, self.generation, *indices, device=device)


class Piece(NamedTuple):
    """What came of one truncation."""

    cohort: Cohort  # after it
    values: Tensor  # (C N,): the objective
    diverged: Tensor  # (C N,)


class Episodes:
    """The life of cohorts; see the estimators for the arguments.

    Args:
        copies: C.
        in_step: let all pairs of a cohort begin and end together, whatever the family.
    """

    def __init__(
        self,
        pairs: int,
        populations: int,
        truncation: int,
        horizon: int | Horizon,
        objective: Objective | None,
        reference: AdamReference | None,
        tell_horizon: float,
        tell_symmetry: float,
        tell_loss: float,
        loss_clip: float,
        compiled: bool,
        copies: int = 2,
        in_step: bool = False,
    ) -> None:
        counts = {"pairs": pairs, "populations": populations, "truncation": truncation}
        check_whole(**{f"estimator.{name}": value for name, value in counts.items()})
        check_above_zero(**{"estimator.loss_clip": loss_clip})
        shares = {"tell_horizon": tell_horizon, "tell_symmetry": tell_symmetry, "tell_loss": tell_loss}
        check_probability(**{f"estimator.{name}": share for name, share in shares.items()})
        self.pairs, self.populations, self.truncation = pairs, populations, truncation
        self.horizon = as_horizon(horizon, truncation)
        self.objective, self.reference = objective or MeanLoss(), reference
        self.tell_horizon, self.tell_symmetry, self.tell_loss = tell_horizon, tell_symmetry, tell_loss
        self.loss_clip, self.compiled = loss_clip, compiled
        self.copies, self.in_step = copies, in_step

    # --- the life of a cohort ----------------------------------------------------------------------------------------

    def start(self, rule: UpdateRule, family: TaskFamily, seed: int, share: Share) -> Particles:
        places = [Place(seed, share.of(self.pairs), number, 0) for number in range(self.populations)]
        return Particles(tuple(self.begin(rule, family, place, 0) for place in places), share, torch.tensor(0))

    def places(self, particles: Particles, seed: int) -> list[Place]:
        pairs = particles.share.of(self.pairs)
        return [Place(seed, pairs, k, int(cohort.generation)) for k, cohort in enumerate(particles.cohorts)]

    def begin(self, rule: UpdateRule, family: TaskFamily, place: Place, iteration: int) -> Cohort:
        """A new cohort in this place. The first episodes of a run are shorter, so that they end one after the other."""
        member, pairs = family.member(place.source("member")), place.pairs
        alone = self._alone(family, member)
        length = torch.stack([self._length(place, (i, 0) if alone else (), iteration) for i in pairs])
        if place.generation == 0 and alone:
            length = length - torch.tensor(list(pairs)) * length // self.pairs
        elif place.generation == 0 and not self.in_step:
            length = length - place.number * length // self.populations
        cohort = self._blank(rule, member, place, [0] * len(pairs))
        return cohort._replace(left=length, length=length)

    def advance(
        self, rule: UpdateRule, family: TaskFamily, cohort: Cohort, diverged: Tensor, place: Place, iteration: int
    ) -> Cohort:
        """After a truncation: new episodes for the pairs that reached the horizon, and for those that diverged, (N,).

        Where pairs run in step, a pair that diverged begins anew for the truncations that are left.
        """
        left, alone = cohort.left - 1, self._alone(family, cohort.family)
        if bool((left == 0).all()) and not alone:
            return self.begin(rule, family, place._replace(generation=place.generation + 1), iteration + 1)
        done = (left == 0) | diverged
        if not bool(done.any()):
            return cohort._replace(left=left)
        episode, length = cohort.episode + done, cohort.length.clone()
        chosen = done.nonzero()[:, 0].tolist()
        for row in chosen:
            name = (place.pairs[row], int(episode[row]))
            length[row] = self._length(place, name, iteration + 1) if alone else left[row]
        names = [(place.pairs[row], int(episode[row])) for row in chosen]
        tasks = self._tasks(cohort.family, place, names)
        fresh = self._population(rule, tasks, place, names)
        rows = torch.tensor(chosen, device=cohort.population.step.device)
        everywhere = torch.cat([rows + copy * len(place.pairs) for copy in range(self.copies)])
        replaced = dict(zip(chosen, tasks, strict=True))
        return cohort._replace(
            tasks=tuple(replaced.get(row, task) for row, task in enumerate(cohort.tasks)),
            population=pytree.tree_map(lambda old, new: old.index_copy(0, everywhere, new), cohort.population, fresh),
            perturbation={k: x.index_fill(0, rows, 0.0) for k, x in cohort.perturbation.items()},
            initial_loss=cohort.initial_loss.index_fill(0, rows, torch.nan),
            left=torch.where(done, length, left),
            length=length,
            episode=episode,
        )

    def _alone(self, family: TaskFamily, member: TaskFamily) -> bool:
        """Whether every pair has a horizon of its own."""
        return member is family and not self.in_step

    def _length(self, place: Place, name: tuple[int, ...], iteration: int) -> Tensor:
        """Truncations of an episode, (): of the pair and episode of this name, or of all pairs, where it has none."""
        return torch.tensor(truncations(self.horizon.draw(place.source("horizon", *name), iteration), self.truncation))

    def _tasks(self, member: TaskFamily, place: Place, names: Sequence[tuple[int, int]]) -> tuple[Task, ...]:
        return tuple(member.sample(place.source("task", *name)) for name in names)

    def _population(
        self, rule: UpdateRule, tasks: Sequence[Task], place: Place, names: Sequence[tuple[int, int]]
    ) -> Population:
        """All particles of the pairs named (pair, episode); those of a pair have the same initial weights."""
        inits = [task.init(place.source("init", *name)) for task, name in zip(tasks, names, strict=True)]
        return start(rule, tasks[0], inits * self.copies)

    def _blank(self, rule: UpdateRule, member: TaskFamily, place: Place, episodes: Sequence[int]) -> Cohort:
        """A cohort at the start of these episodes, one a pair."""
        names = list(zip(place.pairs, episodes, strict=True))
        tasks = self._tasks(member, place, names)
        population = self._population(rule, tasks, place, names)
        device, count = population.step.device, len(names)
        return Cohort(
            member,
            tasks,
            population,
            {
                k: torch.zeros(count, *p.shape, dtype=p.dtype, device=device)
                for k, p in rule.named_parameters()
                if p.requires_grad
            },
            torch.full((count,), torch.nan, device=device),
            torch.zeros(count, dtype=torch.int64),
            torch.zeros(count, dtype=torch.int64),
            torch.tensor(list(episodes)),
            torch.tensor(place.generation),
        )

    # --- a truncation ------------------------------------------------------------------------------------------------

    def run(
        self,
        rule: UpdateRule,
        theta: Mapping[str, Tensor],
        cohort: Cohort,
        place: Place,
        iteration: int,
        piece: int = 0,
    ) -> Piece:
        """Trains a cohort for one truncation, the `piece`-th of this meta-step; theta (C N, *θ)."""
        task, population = cohort.tasks[0], cohort.population
        weight = next(iter(population.params.values()))
        drawn = self._draw(cohort, "train", place, iteration, piece, self.truncation)
        told = self._falls(place, "tell", self.tell_horizon)
        traced = self._falls(place, "symmetry", self.tell_symmetry)
        horizon = (cohort.length * float(self.truncation)).repeat(self.copies).to(weight.device)
        population, losses = unroll(
            rule,
            theta,
            task,
            population,
            drawn,
            weight.new_full((self.truncation, self.copies * len(cohort.tasks)), rule.default_lr),
            stacked_theta=True,
            horizon=horizon if told else None,
            sizes=sizes_of(cohort.tasks * self.copies, weight),
            space=task.weight_space if traced else WeightSpace.from_shapes(task.weight_space.shapes),
            tell_loss=self._falls(place, "tell loss", self.tell_loss),
            compiled=self.compiled,
        )
        seen, validation = losses.detach(), None
        if self.objective.validates:
            batches = self._draw(cohort, "validation", place, iteration, piece, 1)
            validation = losses_on(task, population.params, batches)
            seen = torch.cat([seen, validation.detach()[None]])
        first = losses[0].detach().unflatten(0, (self.copies, -1)).mean(0)
        initial = torch.where(cohort.initial_loss.isnan(), first.to(cohort.initial_loss.dtype), cohort.initial_loss)
        values = self._value(cohort, losses, validation, initial)
        return Piece(cohort._replace(population=population, initial_loss=initial), values, ~seen.isfinite().all(0))

    @staticmethod
    def _falls(place: Place, purpose: str, share: float) -> bool:
        """Whether a cohort is among this share of all; the same at every truncation."""
        return float(torch.rand((), generator=place.source(purpose))) < share

    def _value(self, cohort: Cohort, losses: Tensor, validation: Tensor | None, initial: Tensor) -> Tensor:
        """The objective of every particle, (C N,), of losses that are clipped and brought to Adam's scale."""
        initial = initial.to(losses.dtype).repeat(self.copies)
        highest = ceiling(initial, self.loss_clip)
        seen = None if validation is None else clipped(validation, highest)
        measured = self.objective.measure(clipped(losses, highest), seen)
        left, length = (x.repeat(self.copies) for x in (cohort.left, cohort.length))
        weight = self.objective.weight(left, length).to(losses)
        if self.reference is None:
            return weight * measured
        rho = losses.new_tensor([unit.rho for unit in self.units(cohort)]).repeat(self.copies)
        return weight * normalise(measured, initial, rho)

    def units(self, cohort: Cohort) -> list[Unit]:
        """What Adam reaches on the cohort's tasks in the length of every pair's episode."""
        assert self.reference is not None
        lengths = cohort.length.tolist()
        known = {
            count: self.reference.unit(cohort.family, self.objective, self.truncation, count)
            for count in sorted(set(lengths), reverse=True)  # the longest first: it holds the others
        }
        return [known[count] for count in lengths]

    def adam(self, particles: Particles) -> dict[str, Tensor]:
        """The objective of tuned Adam on the present episodes, as a metric, if there is a reference."""
        if self.reference is None:
            return {}
        values = [unit.adam for cohort in particles.cohorts for unit in self.units(cohort)]
        return {"adam": torch.tensor(values).mean()}

    def _draw(self, cohort: Cohort, split: Split, place: Place, iteration: int, piece: int, steps: int) -> Batch:
        """Batches (T, C N, ...), drawn on the device: all particles of a pair see the same."""
        device = cohort.population.step.device
        sources = [place.source(f"{split} batch", i, iteration, piece, device=device) for i in place.pairs]
        return pytree.tree_map(lambda x: torch.cat([x] * self.copies, 1), draw(cohort.tasks, split, sources, steps))

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def pack(self, particles: Particles) -> list[dict[str, Tensor]]:
        """See `Estimator.pack`."""
        return [
            {
                **{f"population.{k}": self._by_pair(x) for k, x in enumerate(pytree.tree_leaves(cohort.population))},
                **{f"perturbation.{k}": x for k, x in cohort.perturbation.items()},
                **{key: getattr(cohort, key) for key in ("initial_loss", "left", "length", "episode", "generation")},
                "iteration": particles.iteration,
            }
            for cohort in particles.cohorts
        ]

    def restore(
        self, rule: UpdateRule, family: TaskFamily, packed: Sequence[Mapping[str, Tensor]], seed: int, share: Share
    ) -> Particles:
        """See `Estimator.restore`."""
        counts = [len(saved["episode"]) for saved in packed]
        if counts != [self.pairs] * self.populations:
            raise InvalidInput(f"it holds populations of {counts} pairs, and not {self.populations} of {self.pairs}")
        pairs, cohorts = share.of(self.pairs), []
        for number, saved in enumerate(packed):
            place = Place(seed, pairs, number, int(saved["generation"]))
            own = {key: x[pairs.start : pairs.stop] if x.dim() else x for key, x in saved.items()}
            blank = self._blank(rule, family.member(place.source("member")), place, own["episode"].tolist())
            cohorts.append(self._filled(blank, own))
        return Particles(tuple(cohorts), share, packed[0]["iteration"].cpu())

    def _filled(self, blank: Cohort, saved: Mapping[str, Tensor]) -> Cohort:
        device = blank.population.step.device
        leaves, spec = pytree.tree_flatten(blank.population)
        wanted = {f"population.{k}": self._by_pair(x) for k, x in enumerate(leaves)}
        wanted |= {f"perturbation.{k}": x for k, x in blank.perturbation.items()}
        for name in saved.keys() - wanted.keys():
            if name.startswith(("population.", "perturbation.")):
                raise InvalidInput(f"{name} is of it, and not of this run")
        for name, x in wanted.items():
            if name not in saved or (saved[name].shape, saved[name].dtype) != (x.shape, x.dtype):
                raise InvalidInput(f"{name} does not fit")
        population = [saved[f"population.{k}"].transpose(0, 1).flatten(0, 1).to(device) for k in range(len(leaves))]
        return blank._replace(
            population=pytree.tree_unflatten(population, spec),
            perturbation={k: saved[f"perturbation.{k}"].to(device) for k in blank.perturbation},
            initial_loss=saved["initial_loss"].to(device),
            left=saved["left"].cpu(),
            length=saved["length"].cpu(),
        )

    def _by_pair(self, x: Tensor) -> Tensor:
        """(C N, ...) -> (N, C, ...)."""
        return x.unflatten(0, (self.copies, -1)).transpose(0, 1)
