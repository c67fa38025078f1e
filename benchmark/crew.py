"""Does jobs, in this process or in several, each looked up in the cache first.

Legend of shapes: L settings, S seeds, E evaluation points.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch

from benchmark.cache import Cache
from benchmark.job import Job, divide
from benchmark.measures import Array

# Freed memory stays in the process: an unroll allocates the same large tensors at every step, and the page faults of
# taking them again cost as much as the arithmetic (mallopt(3); glibc reads it when a process starts: in workers alone).
ALLOCATION = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}


class Crew:
    """Does jobs, in this process or in several.

    Args:
        workers: processes; 1: this one.
        cache: of results.
    """

    def __init__(self, workers: int, cache: Cache) -> None:
        self.workers, self.cache = workers, cache
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Crew:
        if self.workers > 1:
            os.environ.update({name: os.environ.get(name, value) for name, value in ALLOCATION.items()})
            # Forked processes would share the locks of running threads; spawned ones start clean.
            self.pool = ProcessPoolExecutor(
                self.workers, get_context("spawn"), initializer=_prepare, initargs=(torch.get_num_threads(),)
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def do(self, job: Job, advance: Callable[[int], None]) -> dict[str, Array]:
        """Losses (L, S, E) by split.

        Args:
            advance: is told how many steps are done, as many as the runs are long for each piece.
        """
        done = []
        for begun in [[self._begin(piece) for piece in row] for row in divide(job)]:
            parts = []
            for get in begun:
                parts.append(get())
                advance(job.points[-1])
            done.append({name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]})
        return {name: np.concatenate([part[name] for part in done]) for name in done[0]}

    def _begin(self, job: Job) -> Callable[[], dict[str, Array]]:
        """Looks a job up, or has it begun where there is a pool; what is returned waits for its losses."""
        found = self.cache.load(job)
        if found is not None:
            return lambda: found
        do = job.do if self.pool is None else self.pool.submit(job.do).result

        def get() -> dict[str, Array]:
            losses = do()
            self.cache.save(job, losses)
            return losses

        return get


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)
