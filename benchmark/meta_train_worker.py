"""One process of `python -m benchmark.meta_train`: meta-trains a rule for a while, and says where the time goes.

Several processes share the pairs of the population and average their meta-gradients, as a run does. All of them measure
side by side, so each sees the machine as it is in a run; the first one's figures count.

Legend of shapes: P particles of this process, T steps of a truncation.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.multiprocessing.spawn import start_processes
from torch.utils import _pytree as pytree

from lopt.rules import Adam, Functional, Neuron, PerParameter, UpdateRule
from meta_train.estimators import PES, Cohort, Particles, Share
from meta_train.keys import generator
from meta_train.memory import keep_freed_memory
from meta_train.programs import program
from meta_train.ranks import mean_over_ranks
from meta_train.unroll import draw, sizes_of, unroll
from tasks import ImageMLP
from tasks.task import TaskFamily

RULES: dict[str, Callable[[], UpdateRule]] = {
    "PerParameter": PerParameter,
    "Neuron": Neuron,
    "Functional": lambda: Functional(_family("cpu").sample(generator(0, "task", 0, 0)).weight_space),
    "Adam": Adam,
}
LIVE = 100  # steps in which the loss must fall ..
FALLS = 0.9  # .. to below this share of the initial loss
AGREE = 5  # steps after which compiled and eager are compared; later, rounding is amplified
TOLERANCE = 1e-3


class Setting(NamedTuple):
    """What is measured."""

    rule: str
    particles: int  # of all processes, two a pair
    truncation: int
    repetitions: int  # meta-steps, of which the median counts
    device: str
    processes: int
    threads: int  # of each
    hidden: int = 32
    batch: int = 64
    eager: bool = True  # whether the step as it is written is measured, too


class Measured(NamedTuple):
    """Medians, in seconds, of one meta-step unless it says otherwise."""

    seconds: float  # of the compiled meta-step
    cpu_seconds: float  # of all processes
    eager_seconds: float | None
    compile_seconds: float  # once for each architecture
    again_seconds: float  # where a run before has compiled it
    draw_seconds: float
    unroll_seconds: float
    task_seconds: float  # the forward and backward passes alone, compiled
    talk_seconds: float  # the mean over processes


def measure(setting: Setting) -> Measured:
    """Measures in processes of its own, with an empty cache of programs.

    Raises:
        AssertionError: the losses do not fall, or compiled and eager steps differ.
    """
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        own = {"OMP_NUM_THREADS": str(setting.threads), "TORCHINDUCTOR_CACHE_DIR": folder, "OMP_WAIT_POLICY": "PASSIVE"}
        os.environ.update(own)
        try:
            start_processes(_worker, (setting, folder), nprocs=setting.processes, start_method="spawn")
        finally:
            os.environ.clear()
            os.environ.update(before)
        return Measured(*torch.load(Path(folder) / "measured", weights_only=True))


def _worker(rank: int, setting: Setting, folder: str) -> None:
    keep_freed_memory()
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    if setting.processes > 1:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=setting.processes)
    found = measure_here(setting, Share(rank, setting.processes))
    if rank == 0:
        torch.save(tuple(found), Path(folder) / "measured")
    if setting.processes > 1:
        dist.barrier()
        dist.destroy_process_group()


def measure_here(setting: Setting, share: Share) -> Measured:
    """What this process sees of the measurement; all processes call it together."""
    family, rule = _family(setting.device, setting.hidden, setting.batch), RULES[setting.rule]().to(setting.device)
    theta = {name: p.detach() for name, p in rule.named_parameters()}
    compiled, eager = (
        PES(setting.particles // 2, setting.truncation, 10 * setting.truncation, compiled=way) for way in (True, False)
    )
    run = Run(rule, family, theta, setting, compiled.start(rule, family, 0, share))
    compile_seconds = run.seconds(lambda: run.unroll(1, compiled=True))
    run.check()
    seconds, cpu_seconds = run.meta_steps(compiled, setting.repetitions)
    eager_seconds = run.meta_steps(eager, max(1, setting.repetitions // 3))[0] if setting.eager else None
    pieces = run.pieces(setting.repetitions)
    return Measured(seconds, cpu_seconds, eager_seconds, compile_seconds, run.again(), *pieces)


def _family(device: str, hidden: int = 32, batch: int = 64) -> ImageMLP:
    return ImageMLP("digits", hidden=(hidden,), batch_size=batch, device=device)


class Run:
    """A rule on a population, and ways to time its parts."""

    def __init__(
        self,
        rule: UpdateRule,
        family: TaskFamily,
        theta: Mapping[str, Tensor],
        setting: Setting,
        particles: Particles,
    ) -> None:
        self.rule, self.family, self.theta, self.setting, self.particles = rule, family, theta, setting, particles
        self.device = torch.device(setting.device)
        self.cohort: Cohort = particles.cohorts[0]
        count = len(self.cohort.tasks) * 2  # P
        noise = torch.Generator(self.device).manual_seed(0)
        self.stacked = {
            k: p + 0.01 * torch.randn(count, *p.shape, device=self.device, generator=noise) for k, p in theta.items()
        }
        self.tasks, self.steps = self.cohort.tasks * 2, setting.truncation
        self.lr = torch.full((self.steps, count), rule.default_lr, device=self.device)
        self.horizon = torch.full((count,), 10.0 * self.steps, device=self.device)
        self.sizes = sizes_of(self.tasks, self.horizon)
        self.drawn = self.draw()

    def draw(self) -> Any:
        """Batches of a truncation: one generator for each pair, as in a run."""
        pairs = self.cohort.tasks
        sources = [generator(0, "batch", i, device=self.device) for i in range(len(pairs))]
        return pytree.tree_map(lambda x: torch.cat([x, x], 1), draw(pairs, "train", sources, self.steps))

    def unroll(self, steps: int, compiled: bool, population: Any = None) -> tuple[Any, Tensor]:
        return unroll(
            self.rule,
            self.stacked,
            self.tasks[0],
            self.cohort.population if population is None else population,
            pytree.tree_map(lambda x: x[:steps], self.drawn),
            self.lr[:steps],
            stacked_theta=True,
            horizon=self.horizon,
            sizes=self.sizes,
            compiled=compiled,
        )

    @torch.no_grad()
    def check(self) -> None:
        """The regime is live, and the program computes what is written."""
        some = min(AGREE, self.steps)
        (ours, losses), (plain, wanted) = (self.unroll(some, compiled=way) for way in (True, False))
        torch.testing.assert_close(losses, wanted, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(ours.params, plain.params, rtol=TOLERANCE, atol=TOLERANCE)
        population, seen = self.cohort.population, []
        for _ in range(-(-LIVE // self.steps)):
            population, losses = self.unroll(self.steps, True, population)
            seen.append(losses)
        every = torch.cat(seen)
        assert every.isfinite().all(), "a loss is not finite"
        first, last = float(every[0].mean()), float(every[-1].mean())
        assert last < FALLS * first, f"the mean loss goes from {first:.3f} to {last:.3f}: nothing is learned"

    def meta_steps(self, estimator: PES, repetitions: int) -> tuple[float, float]:
        """Seconds of a meta-step and its mean over processes, and processor seconds of all processes: medians."""
        particles, times, costs = self.particles, [], []
        for _ in range(repetitions + 1):  # the first warms up
            self.wait()
            begun, used = time.perf_counter(), time.process_time()
            estimate = estimator.estimate(self.rule, self.theta, self.family, particles, 0)
            mean_over_ranks(estimate.gradient)
            self.wait()
            times.append(time.perf_counter() - begun)
            spent = mean_over_ranks({"cpu": torch.tensor(time.process_time() - used, dtype=torch.float64)})["cpu"]
            costs.append(float(spent) * self.setting.processes)
            particles = estimate.particles
        return statistics.median(times[1:]), statistics.median(costs[1:])

    def pieces(self, repetitions: int) -> tuple[float, float, float, float]:
        """Medians of a meta-step, in seconds: drawing, the unroll, the task's passes alone, the talk."""
        task, params = self.tasks[0], self.cohort.population.params

        def passes(params: Any, drawn: Any) -> Any:
            return vmap(lambda p, d: grad_and_value(task.loss)(p, task.gather("train", d)))(params, drawn)

        def at(t: int) -> Any:
            return pytree.tree_map(lambda x: x[t], self.drawn)

        alone = program(passes, ("passes", task.population), (params, at(0)))

        def all_passes() -> None:
            for t in range(self.steps):
                alone(params, at(t))

        calls = (
            self.draw,
            lambda: self.unroll(self.steps, compiled=True),
            all_passes,
            lambda: mean_over_ranks(self.theta),
        )
        found = []
        for call in calls:
            call()
            found.append(statistics.median(self.seconds(call) for _ in range(repetitions)))
        draws, unrolled, passed, talked = found
        return draws, unrolled, passed, talked

    def again(self) -> float:
        """Seconds to compile what a run before has compiled: from what lies on the disk."""
        family = _family(self.setting.device, self.setting.hidden, self.setting.batch)  # other modules, other programs
        estimator = PES(self.setting.particles // 2, self.steps, 10 * self.steps)
        particles = estimator.start(self.rule, family, 0, self.particles.share)
        other = Run(self.rule, family, self.theta, self.setting, particles)
        return self.seconds(lambda: other.unroll(1, compiled=True))

    def seconds(self, call: Callable[[], object]) -> float:
        self.wait()
        begun = time.perf_counter()
        with torch.no_grad():
            call()
        self.wait()
        return time.perf_counter() - begun

    def wait(self) -> None:
        """For the device, and for the other processes."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.setting.processes > 1:
            dist.barrier()
