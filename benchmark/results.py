"""results.json: all that was measured. Only what stands under "times" differs between two runs of the same command."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.outcome import Outcome, Race
from benchmark.race import Failure
from benchmark.standings import Row, compare
from benchmark.verdict import comparison, verdict

_TIMED = ("clock", "clock_where_reached")  # of a summary: what differs from run to run
PACKAGES = ("lopt", "torch", "numpy", "schedulefree", "pytorch_optimizer")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def hardware(device: torch.device) -> dict[str, str | int]:
    """The machine, in words."""
    about: dict[str, str | int] = {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        about["accelerator"] = torch.cuda.get_device_name(device)
    return about


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def commit() -> str | None:
    """The commit that this code is at, with "-dirty" where it was changed since; None outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def as_json(
    outcome: Outcome,
    *,
    config: Mapping[str, Any],
    machine: Mapping[str, str | int],
    learned: str | None = None,
    initial: str | None = None,
    goals: Sequence[Mapping[str, Any]] = (),
    published: Sequence[Mapping[str, Any]] = (),
    note: str | None = None,
) -> dict[str, Any]:
    """All of a suite as JSON values. null: not finite, never reached, or not measured.

    A suite of one task has what was measured at the top; of several, a list of races.
    """
    races = [race_json(race, learned, initial) for race in outcome.races]
    times = {race.result.task: _times(race) for race in outcome.races}
    content: dict[str, Any] = {"suite": outcome.suite} | ({"note": note} if note else {})
    if len(races) == 1:
        content |= races[0]
        times = next(iter(times.values()))
    else:
        summaries = [summary._asdict() for summary in outcome.summaries]
        for summary in summaries:
            summary["profile"] = summary["profile"]._asdict()
            for name in _TIMED:
                del summary[name]
        content |= {"reference": outcome.reference, "summary": summaries, "races": races}
        times["summary"] = {
            summary.label: {name: getattr(summary, name) for name in _TIMED} for summary in outcome.summaries
        }
    content |= {"goals": list(goals), "published": list(published), "config": config}
    content |= {"versions": versions(), "commit": commit(), "hardware": machine, "times": times}
    return _plain(content)


def race_json(race: Race, learned: str | None, initial: str | None) -> dict[str, Any]:
    """One task."""
    result = race.result
    content: dict[str, Any] = {
        "task": result.task,
        "verdict": verdict(result, learned),
        "reference": result.target,
        "contenders": [_contender(row) for row in race.rows],
        "raised": [_failure(failure) for failure in result.failures],
        "evaluation_steps": result.steps,
        "seeds": result.seeds,
        "tuning_seeds": len(result.seeds) if result.tuning_seeds is None else result.tuning_seeds,
    }
    if learned is not None and initial is not None:
        difference = compare(result, learned, initial)
        content["meta_training"] = {
            "sentence": comparison(result, learned, initial),
            "difference": None if difference is None else difference._asdict(),
            "significant": None if difference is None else difference.significant,
        }
    return content


def _times(race: Race) -> dict[str, Any]:
    costs = race.costs
    by_label = {
        row.label: {**costs.contenders[row.label]._asdict(), "clock_factor": race.clock(row)}
        for row in race.rows
        if row.label in costs.contenders
    }
    return {
        "torch.optim.Adam, milliseconds a step": costs.adam,
        "gradient, milliseconds": costs.gradient,
        "contenders": by_label,
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content`, one line for each innermost list: curves stay readable."""
    path.write_text(_lines(content, "") + "\n", encoding="utf-8")


def _contender(row: Row) -> dict[str, Any]:
    entry = row.entry
    return {
        "label": row.label,
        "about": entry.contender.about,
        "rule": entry.contender.kind,
        "schedule": entry.contender.schedule,
        "arguments": entry.contender.arguments,
        "lr": entry.tuning.lr,
        "lr_kind": row.lr_kind,
        "setting": entry.tuning.setting,
        "final_test_loss": row.final._asdict(),
        "best_test_loss": row.best._asdict(),
        "area_under_test_curve": row.area._asdict(),
        "speed": row.speed._asdict() if row.speed else None,
        "speed_interval": row.interval._asdict() if row.interval else None,
        "speed_significant": row.significant,
        "speed_by_seed": row.seed_factors,
        "factor_to_final_loss": row.final_factor,
        "seeds_that_reached": row.reached,
        "diverged": row.diverged,
        "tuning": {
            "settings": [dict(setting) for setting in entry.tuning.settings],
            "losses": entry.tuning.losses,
            "diverged": entry.tuning.diverged,
            "chosen": entry.tuning.chosen,
            "widenings": entry.tuning.widenings,
            "on_edge": entry.tuning.on_edge,
        },
        "curves": entry.curves._asdict(),
        "card": entry.contender.card,
    }


def _failure(failure: Failure) -> dict[str, Any]:
    return {"label": failure.label, "message": failure.message}


def _plain(value: Any) -> Any:
    """Lists, dicts and finite numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _lines(value: Any, indent: str) -> str:
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        inside = [f"{deeper}{json.dumps(key)}: {_lines(each, deeper)}" for key, each in value.items()]
        return "{\n" + ",\n".join(inside) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(each, list | dict) for each in value):
        return "[\n" + ",\n".join(deeper + _lines(each, deeper) for each in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
