"""The race: every contender with the same steps, seeds, initial weights and batches, each at its own best setting.

`race` is one task with contenders at hand; `run_race` is the same with everything that a suite needs besides: where the
task comes from, processes, a cache. A contender that raises is a `Failure`, and the race goes on.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from benchmark.cache import Cache
from benchmark.contenders import Contender, check_field
from benchmark.crew import Crew
from benchmark.grids import Setting, settings_of
from benchmark.job import Job, pieces
from benchmark.measures import Array
from benchmark.runs import Curves, evaluation_points
from benchmark.sources import Given, Source
from benchmark.tuning import Tuning, tune, untuned
from lopt.errors import InvalidInput
from lopt.rules.rule import Clock, UpdateRule
from tasks.arguments import is_whole
from tasks.task import Split, Task

MAX_WIDENINGS = 4
ALL: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True)
class Entry:
    """How one contender did: its tuning, and its curves (S, E) at the setting that was chosen."""

    contender: Contender
    tuning: Tuning
    curves: Curves

    @property
    def label(self) -> str:
        return self.contender.label


@dataclass(frozen=True)
class Failure:
    """A contender that raised."""

    contender: Contender
    message: str  # type and text of the error, one line
    trace: str  # where it was raised

    @property
    def label(self) -> str:
        return self.contender.label


class Watcher(Protocol):
    """Is told how a race goes, from several threads."""

    def expect(self, steps: int) -> None:
        """So many more steps are to be made."""
        ...

    def begin(self, task: str, label: str) -> None:
        """A contender begins."""
        ...

    def advance(self, steps: int) -> None:
        """So many steps are done."""
        ...

    def finish(self, task: str, entry: Entry | Failure) -> None:
        """A contender is done."""
        ...


class Silent:
    """Watches and says nothing."""

    def expect(self, steps: int) -> None: ...

    def begin(self, task: str, label: str) -> None: ...

    def advance(self, steps: int) -> None: ...

    def finish(self, task: str, entry: Entry | Failure) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How long and how often every contender runs on a task.

    Args:
        steps: updates of every run.
        seeds: at least two, all different.
        evaluate_every: the losses are measured at step 0, every so many steps, and at the end.
        max_widenings: how often a grid whose winner lies on its edge may grow.
        tuning_seeds: how many of the seeds choose the setting; None: all.

    Raises:
        InvalidInput: there is nothing to measure, or no standard error to give.
    """

    steps: int
    seeds: tuple[int, ...]
    evaluate_every: int
    max_widenings: int = MAX_WIDENINGS
    tuning_seeds: int | None = None

    def __post_init__(self) -> None:
        check_length(self.steps, len(self.seeds), self.evaluate_every)
        check_whole("max_widenings", self.max_widenings, f"{MAX_WIDENINGS} is a good value, and 0 widens no grid")
        if len(set(self.seeds)) < len(self.seeds):
            raise InvalidInput(f"seeds: {list(self.seeds)} holds one twice; its runs would be the same.")
        if self.tuning_seeds is not None:
            remedy = f"give 1 to {len(self.seeds)}, or null for all"
            check_whole("tuning_seeds", self.tuning_seeds, remedy)
            if not 1 <= self.tuning_seeds <= len(self.seeds):
                raise InvalidInput(f"tuning_seeds: {self.tuning_seeds}; {remedy}.")

    @property
    def points(self) -> tuple[int, ...]:
        """The steps at which losses are measured."""
        return tuple(evaluation_points(self.steps, self.evaluate_every))


@dataclass(frozen=True, eq=False)
class Result:
    """A whole race on one task."""

    task: str
    steps: tuple[int, ...]  # the evaluation points
    seeds: tuple[int, ...]
    target: str  # label of the reference: the contender whose best loss the others are to reach
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...] = ()
    tuning_seeds: int | None = None

    def __getitem__(self, label: str) -> Entry:
        return next(entry for entry in self.entries if entry.label == label)

    @property
    def reference(self) -> Entry | None:
        """The contender whose best loss the others are to reach; None where it raised."""
        return next((entry for entry in self.entries if entry.label == self.target), None)


def check_length(steps: int, seeds: int, evaluate_every: int) -> None:
    """Raises `InvalidInput` unless there is something to measure, and a standard error to give."""
    check_whole("steps", steps, "500 is a good value")
    check_whole("evaluate_every", evaluate_every, "10 is a good value")
    if evaluate_every < 1:
        raise InvalidInput(f"evaluate_every: {evaluate_every} is not positive; 10 is a good value.")
    if steps < evaluate_every:
        raise InvalidInput(
            f"steps: {steps} is less than evaluate_every, {evaluate_every}. Run longer or evaluate more often."
        )
    if seeds < 2:
        raise InvalidInput(f"seeds: {seeds} gives no standard error; use at least 2, and 5 for a figure to be quoted.")


def check_whole(name: str, value: object, remedy: str) -> None:
    """Raises `InvalidInput` unless this is a whole number of at least 0."""
    if not is_whole(value):
        raise InvalidInput(f"{name}: {value!r} is not a whole number of at least 0; {remedy}.")


def check_fit(task: Task, contenders: Sequence[Contender]) -> None:
    """Lets every rule make one update of the task's weights, so that one which does not fit says so at once.

    Raises:
        InvalidInput: as the rule raises it.
    """
    params = task.init(torch.Generator().manual_seed(0))
    grads = {name: torch.zeros_like(value) for name, value in params.items()}
    step = torch.zeros((), device=next(iter(params.values())).device)
    for contender in contenders:
        rule = contender.optimizer
        if not isinstance(rule, UpdateRule):
            continue
        with torch.no_grad():
            state = rule.init_state(task.weight_space, params)
            try:
                rule(task.weight_space, params, grads, state, Clock(step))
            except InvalidInput as error:
                raise InvalidInput(f"contender {contender.label!r} does not fit {task.name}: {error}") from error


def race(
    task: Task,
    contenders: Sequence[Contender],
    *,
    steps: int,
    seeds: Sequence[int],
    evaluate_every: int,
    target: str = "Adam",
    max_widenings: int = MAX_WIDENINGS,
    watcher: Watcher | None = None,
) -> Result:
    """Races `contenders` on one task.

    A seed fixes the initial weights and all batches, for every contender and every setting. Settings are chosen on the
    mean final validation loss over seeds; a run that diverged counts as infinite there.

    Args:
        steps, seeds, evaluate_every, max_widenings: see `Plan`.
        target: label of the contender whose best loss the others are to reach.
        watcher: is told how far the race is.

    Raises:
        InvalidInput: before anything is trained: see `Plan`, `check_field` and `check_fit`.
    """
    plan = Plan(steps, tuple(seeds), evaluate_every, max_widenings)
    check_field([contender.label for contender in contenders], reference=target)
    check_fit(task, contenders)
    with Crew(1, Cache(None)) as crew:
        return run_races([(Given(task), plan)], contenders, target, crew, watcher or Silent())[0]


def run_races(
    tasks: Sequence[tuple[Source, Plan]],
    contenders: Sequence[Contender],
    target: str,
    crew: Crew,
    watcher: Watcher,
) -> list[Result]:
    """Races `contenders` on several tasks, as many contenders at once as keep the crew busy."""
    if crew.cache.folder is not None:  # here, since threads would draw from PyTorch's one random state at once
        for source, _ in tasks:
            _ = source.content
    pairs = [(source, plan, contender) for source, plan in tasks for contender in contenders]
    for source, plan, contender in pairs:
        final, tuning = _final(source, plan, contender, ()), _tuning(source, plan, contender)
        watcher.expect(plan.steps * (pieces(final) + (pieces(tuning) if contender.tuned else 0)))

    def enter(pair: tuple[Source, Plan, Contender]) -> Entry | Failure:
        return _enter(*pair, crew, watcher)

    if crew.workers > 1:
        with ThreadPoolExecutor(2 * crew.workers) as threads:
            outcomes = list(threads.map(enter, pairs))
    else:
        outcomes = list(map(enter, pairs))
    results = []
    for number, (source, plan) in enumerate(tasks):
        own = outcomes[number * len(contenders) : (number + 1) * len(contenders)]
        entries = tuple(outcome for outcome in own if isinstance(outcome, Entry))
        failures = tuple(outcome for outcome in own if isinstance(outcome, Failure))
        results.append(Result(source.label, plan.points, plan.seeds, target, entries, failures, plan.tuning_seeds))
    return results


def _tuning(source: Source, plan: Plan, contender: Contender, settings: Sequence[Setting] | None = None) -> Job:
    """The runs that choose a setting: they see validation data, before the first step and at the end."""
    some = settings_of(contender.axes) if settings is None else settings
    return Job(source, contender, tuple(some), plan.seeds[: plan.tuning_seeds], (0, plan.steps), ("validation",))


def _final(source: Source, plan: Plan, contender: Contender, setting: Setting) -> Job:
    """The runs that are shown."""
    return Job(source, contender, (setting,), plan.seeds, plan.points, ALL)


def _enter(source: Source, plan: Plan, contender: Contender, crew: Crew, watcher: Watcher) -> Entry | Failure:
    """Tunes and runs one contender on one task."""
    watcher.begin(source.label, contender.label)
    try:
        outcome = _run(source, plan, contender, crew, watcher)
    except Exception as error:  # whatever a contender does, the race goes on
        text = " ".join(str(error).split()) or "no message"
        outcome = Failure(contender, f"{type(error).__name__}: {text}", traceback.format_exc())
    watcher.finish(source.label, outcome)
    return outcome


def _run(source: Source, plan: Plan, contender: Contender, crew: Crew, watcher: Watcher) -> Entry:
    expected = pieces(_tuning(source, plan, contender)) * plan.steps

    def validation(settings: Sequence[Setting]) -> Array:
        nonlocal expected
        job = _tuning(source, plan, contender, settings)
        watcher.expect(max(pieces(job) * plan.steps - expected, 0))  # a grid that was widened
        expected = 0
        return crew.do(job, watcher.advance)["validation"]

    tuning = tune(contender.axes, validation, plan.max_widenings) if contender.tuned else None
    setting = settings_of(contender.axes)[0] if tuning is None else tuning.settings[tuning.chosen]
    losses = crew.do(_final(source, plan, contender, setting), watcher.advance)
    if tuning is None:
        tuning = untuned(setting, losses["validation"])
    return Entry(contender, tuning, Curves(**{name: loss[0] for name, loss in losses.items()}))
