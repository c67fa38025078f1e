"""The processes that fit shards. Each shard has random numbers of its own, so that the order does not matter."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np
import torch

from examples.common import use_threads
from examples.common.shards import Shard, generator_of, write_shard
from examples.make_inrs.sirens import Fit, fit_sirens


class Job(NamedTuple):
    """A shard to make, with its images [n, C, size, size] and labels [n]; arrays, which travel by value."""

    shard: Shard
    config: Mapping[str, Any]
    images: np.ndarray
    labels: np.ndarray


class Made(NamedTuple):
    shard: Shard
    psnr: float  # mean over the shard, dB


def fit_of(config: Mapping[str, Any]) -> Fit:
    """How the configuration of a set says that images are fitted."""
    return Fit(
        tuple(config["hidden"]), **{key: config[key] for key in ("frequency", "steps", "lr", "pixels", "initial")}
    )


def make(job: Job) -> Made:
    """Fits and writes one shard."""
    shard, config = job.shard, job.config
    tensors, decibels = fit_sirens(torch.from_numpy(job.images), fit_of(config), generator_of(shard, config))
    about = {
        "label": torch.from_numpy(job.labels),
        "psnr": decibels,
        "index": torch.arange(shard.start, shard.stop),
    }
    write_shard(shard, config, {**tensors, **about})
    return Made(shard, float(decibels.mean()))


def make_all(jobs: Sequence[Job], workers: int) -> Iterator[Made]:
    """Makes all shards in `workers` processes, one thread each, or in this one; yields them as they are done.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a process was killed.
    """
    if workers == 1:
        use_threads(1)
        yield from map(make, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin) as pool:
        try:
            for future in as_completed([pool.submit(make, job) for job in jobs]):
                yield future.result()
        except BaseException:  # interrupted, or a process is gone: what is half done is thrown away
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin() -> None:
    use_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    """Ends this process when the one that started it is gone, even by kill -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
