"""The files of a suite: results.json, the pictures, report.html."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmark.outcome import Outcome
from benchmark.plots import draw_race
from benchmark.report import Account, html_report
from benchmark.results import as_json, commit, hardware, versions, write_json
from benchmark.suite_plots import draw_gains, draw_profiles


def account_of(command: str, device: torch.device, **more: Any) -> Account:
    """What a page says of where and how it was made."""
    return Account(command, versions(), hardware(device), commit(), **more)


def write_files(outcome: Outcome, out: Path, account: Account, config: Mapping[str, Any], **more: Any) -> list[Path]:
    """Writes everything and returns the paths. A race on one task has its curves in curves.png, others by name."""
    out.mkdir(parents=True, exist_ok=True)
    results = as_json(
        outcome,
        config=config,
        machine=account.machine,
        learned=account.learned,
        initial=account.initial,
        goals=account.goals,
        note=account.note,
        **more,
    )
    write_json(out / "results.json", results)
    pictures = _draw(outcome, out)
    page = html_report(outcome, {name: path.read_bytes() for name, path in pictures.items()}, account)
    (out / "report.html").write_text(page, encoding="utf-8")
    return [out / "results.json", *pictures.values(), out / "report.html"]


def _draw(outcome: Outcome, out: Path) -> dict[str, Path]:
    """Draws every picture; returns their paths by the names that the report knows them by."""
    if len(outcome.races) == 1:
        result = outcome.races[0].result
        draw_race(result, out / "curves.png")
        return {result.task: out / "curves.png"}
    paths = {}
    for race in outcome.races:
        paths[race.result.task] = out / f"curves-{race.result.task}.png"
        draw_race(race.result, paths[race.result.task])
    draw_profiles(outcome, out / "profiles.png")
    draw_gains(outcome, out / "gains.png")
    return {**paths, "profiles": out / "profiles.png", "gains": out / "gains.png"}


def with_task_commands(account: Account, arguments: list[str], tasks: list[str]) -> Account:
    """The same, with a command for the figure of each task of a suite: that which races on it alone."""
    others = [each for each in arguments if not each.startswith(("tasks=", "out="))]
    commands = {task: shlex.join(["python", "-m", "benchmark", *others, f"tasks=[{task}]"]) for task in tasks}
    return replace(account, task_commands=commands)
