"""python -m benchmark suite=demo: races the contenders of a suite; writes results.json, pictures and report.html."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from benchmark.anchors import HEADER as ANCHOR_HEADER
from benchmark.anchors import anchor_rows
from benchmark.cache import Cache
from benchmark.clock import cached_costs
from benchmark.command_line import prepare
from benchmark.crew import Crew
from benchmark.goals import goal_rows
from benchmark.outcome import Outcome, Race
from benchmark.progress import ConsoleWatcher
from benchmark.quick import NOTE
from benchmark.race import run_races
from benchmark.settings import Settings, read
from benchmark.table import plain_table, terminal_table
from benchmark.verdict import comparison, summary_sentences, verdict
from benchmark.wording import SUMMARY_HEADER, legend, summary_cells
from benchmark.writing import account_of, with_task_commands, write_files
from lopt.errors import InvalidInput
from meta_train.cli import run


def benchmark(config: DictConfig) -> int:
    """Runs the suite that `config` describes; 1 if a contender raised or diverged on a task, else 0."""
    settings = read(config)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    outcome = _race(settings)
    arguments = sys.argv[1:]
    account = account_of(
        shlex.join(["python", "-m", "benchmark", *arguments]),
        settings.device,
        learned=settings.learned,
        initial=settings.initial,
        note=NOTE if settings.quick else None,
        goals=goal_rows(settings.goals, [race.result for race in outcome.races]),
        anchors=anchor_rows(settings.published, outcome),
    )
    if len(outcome.races) > 1:
        account = with_task_commands(account, arguments, [race.result.task for race in outcome.races])
    published = [anchor._asdict() for anchor in settings.published]
    paths = write_files(outcome, settings.out, account, settings.config, published=published)
    _show(settings, outcome, account.anchors, account.goals, paths)
    return 0 if outcome.flawless else 1


def _race(settings: Settings) -> Outcome:
    """Races on every task, and times the steps on each."""
    with ConsoleWatcher(len(settings.tasks) > 1) as watcher:
        cache = Cache(settings.cache, watcher.say)
        with Crew(settings.workers, cache) as crew:
            results = run_races(settings.tasks, settings.contenders, settings.reference, crew, watcher)
        races = []
        for (source, _), result in zip(settings.tasks, results, strict=True):
            races.append(Race(result, cached_costs(source, settings.contenders, cache)))
    return Outcome(settings.suite, tuple(races), settings.reference)


def _show(
    settings: Settings,
    outcome: Outcome,
    anchors: Sequence[tuple[str, ...]],
    goals: Sequence[Mapping[str, Any]],
    paths: Sequence[Path],
) -> None:
    """The tables, who won, and where the files are, on stdout."""
    # A terminal folds long cells; a file or a pipe gets whole ones.
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)
    lines: list[str] = []
    for race in outcome.races:
        result = race.result
        title = f"{result.task}: {result.steps[-1]} steps, {len(result.seeds)} seeds"
        costs = race.costs.contenders
        console.print(terminal_table(race.rows, costs, title, console.width, result.failures))
        lines = verdict(result, settings.learned)
        if settings.learned is not None and settings.initial is not None:
            lines.append(comparison(result, settings.learned, settings.initial))
        if len(outcome.races) > 1:
            console.print(*lines, "", sep="\n", soft_wrap=True)
    console.print(legend(settings.reference), style="dim", soft_wrap=True)
    if len(outcome.races) > 1:
        rows = [summary_cells(summary) for summary in outcome.summaries]
        console.print("", plain_table(SUMMARY_HEADER, rows, f"all {len(outcome.races)} tasks"))
        lines = summary_sentences(outcome, settings.learned)
    if anchors:
        console.print("", plain_table(ANCHOR_HEADER, anchors, "published numbers"))
    for goal in goals:
        value = "never" if goal["value"] is None else f"{goal['value']:.3g}"
        lines.append(
            f"goal {'met' if goal['holds'] else 'missed'}: {goal['case']}, {goal['metric']}: {value}, {goal['goal']}"
        )
    if settings.quick:
        lines.append(NOTE)
    console.print("", *lines, "", *map(str, paths), sep="\n", soft_wrap=True)


if __name__ == "__main__":
    try:
        sys.argv[1:] = prepare(sys.argv[1:])
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    run("benchmark", benchmark)
