"""The work of a race in pieces: a job is some settings and seeds of one contender on one task.

Legend of shapes: L settings, S seeds, E evaluation points.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmark.contenders import Contender
from benchmark.grids import Setting
from benchmark.measures import Array
from benchmark.runs import is_population, runs
from benchmark.sources import Source
from tasks.task import Split

# Particles of a job. On two cores the time a particle falls up to some 20; above, convolutions leave the cache.
PARTICLES = 20


@dataclass(frozen=True)
class Job:
    """Some runs of one contender on one task."""

    source: Source
    contender: Contender
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    points: tuple[int, ...]
    splits: tuple[Split, ...]

    def do(self) -> dict[str, Array]:
        """Losses (L, S, E) by split."""
        return runs(self.contender, self.source.load(), self.settings, self.seeds, self.points, self.splits)


def divide(job: Job) -> list[list[Job]]:
    """A job as rows of smaller ones: a row for each piece of its settings, in it one for each piece of its seeds."""
    population = is_population(job.contender)
    wide = PARTICLES if population else 1
    settings = _pieces(job.settings, wide)
    deep = max(1, PARTICLES // len(settings[0])) if population else 1
    return [
        [Job(job.source, job.contender, some, seeds, job.points, job.splits) for seeds in _pieces(job.seeds, deep)]
        for some in settings
    ]


def _pieces(items: tuple, size: int) -> list[tuple]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def pieces(job: Job) -> int:
    """How many jobs it is divided into."""
    return sum(map(len, divide(job)))
