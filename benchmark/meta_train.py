"""python -m benchmark.meta_train: how fast meta-training runs, and where its time goes.

Counted are inner steps of a particle: a particle is one copy of a task's weights with its own θ, 32 particles are 16
antithetic pairs of one population, and a meta-step of truncation 50 is 32 x 50 of them. The clock runs over whole
meta-steps of PES: perturbations, batches, inner steps, the meta-gradient, and its mean over processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmark.layer_cases import Row
from benchmark.layers import table
from benchmark.meta_train_worker import RULES, Measured, Setting, measure
from benchmark.results import hardware, versions

CASE = "MLP 64-32-10, batch 64"
REFERENCE = 2700  # learned_optimization in JAX, its per-parameter MLP, on 2 cores: 2,700 to 3,200
GOALS = {"PerParameter": REFERENCE, "Neuron": 4 * REFERENCE}
REFERENCES = {"PerParameter": "learned_optimization 2,700 to 3,200", "Neuron": "4 x learned_optimization"}
UNIT = "inner steps of a particle a second"
PARTICLES, TRUNCATION, REPETITIONS = 32, 50, 9
GPU_PARTICLES, GPU_FACTOR = 1024, 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints a table, and writes the rows where --json says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.meta_train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="cores to use (default 2)")
    parser.add_argument("--processes", type=int, help="share the cores among so many (default: 1, and one a core)")
    parser.add_argument("--rule", choices=RULES, action="append", help="only this rule; may be given several times")
    parser.add_argument("--quick", action="store_true", help="few short meta-steps: whether it runs, not how fast")
    options = parser.parse_args(arguments)
    for name in ("threads", "processes"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name}: {value}; at least one is needed")
    ways = sorted({1, options.threads}) if options.processes is None else [options.processes]
    for count in ways:
        if options.threads % count or PARTICLES // 2 % count:
            parser.error(f"--processes: {count}; it must divide --threads {options.threads} and {PARTICLES // 2} pairs")
    rows = all_rows(options.rule or list(RULES), options.threads, ways, options.quick, measure)
    if options.json is not None:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=1) + "\n", encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table({"value": rows}))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = hardware(device) | {"threads": options.threads}
    console.print(", ".join(f"{k} {v}" for k, v in {**machine, **versions()}.items()), markup=False)
    if device.type == "cpu":
        console.print("Left out, since there is no CUDA device: the rows that say so")
    return 0


def all_rows(
    rules: Sequence[str], threads: int, ways: Sequence[int], quick: bool, measure: Callable[[Setting], Measured]
) -> list[Row]:
    """The rows of some rules; `ways` are numbers of processes that share the threads."""
    rows = []
    for rule in rules:
        found = {}
        for count in ways:
            truncation, repetitions = (4, 1) if quick else (TRUNCATION, REPETITIONS)
            setting = Setting(rule, PARTICLES, truncation, repetitions, "cpu", count, threads // count)
            found[setting] = measure(setting)
        best = min(found, key=lambda setting: found[setting].seconds)
        rows += rule_rows(found, best)
        rows += gpu_rows(rule, speed(best, found[best].seconds), quick, measure)
    return rows


def speed(setting: Setting, seconds: float) -> float:
    """Inner steps of a particle a second."""
    return setting.particles * setting.truncation / seconds


def way(setting: Setting) -> str:
    return f"{setting.processes} processes" if setting.processes > 1 else f"1 process, {setting.threads} threads"


def rule_rows(found: dict[Setting, Measured], best: Setting) -> list[Row]:
    """Throughput of every way, with a goal for the best one; and of that one what it is made of."""
    case, rows = f"{CASE}, {PARTICLES} particles, {best.rule}", []
    for setting, measured in found.items():
        goal = GOALS.get(setting.rule) if setting == best else None
        value = speed(setting, measured.seconds)
        rows.append(
            Row(
                case,
                f"compiled, {way(setting)}{', the fastest' if setting == best and len(found) > 1 else ''}",
                value,
                UNIT,
                REFERENCES.get(setting.rule, ""),
                f">= {goal:,}" if goal else "",
                value >= goal if goal else None,
            )
        )
    ours = found[best]
    rows.append(_plain(case, f"compiled, {way(best)}", speed(best, ours.cpu_seconds), f"{UNIT} of one core"))
    if ours.eager_seconds is not None:
        rows.append(_plain(case, f"eager, {way(best)}", speed(best, ours.eager_seconds), UNIT))
        rows.append(_plain(case, "compiled over eager", ours.eager_seconds / ours.seconds, "x"))
    return rows + pieces(case, ours)


def pieces(case: str, ours: Measured) -> list[Row]:
    """Where the time of a meta-step goes. A difference of two measurements says that it is one."""
    rest = ours.seconds - ours.unroll_seconds - ours.draw_seconds - ours.talk_seconds
    parts = {
        "a meta-step": ours.seconds,
        "of it: the task's forward and backward": ours.task_seconds,
        "of it: the rule (unroll less task)": ours.unroll_seconds - ours.task_seconds,
        "of it: drawing batches": ours.draw_seconds,
        "of it: the mean over processes": ours.talk_seconds,
        "of it: noise, meta-gradient, episodes (the rest)": rest,
    }
    rows = [_plain(case, name, 1000 * seconds, "ms") for name, seconds in parts.items()]
    rows.append(_plain(case, "compiling, once for an architecture", ours.compile_seconds, "s"))
    rows.append(_plain(case, "the same in a later run, from the disk", ours.again_seconds, "s"))
    return rows


def gpu_rows(rule: str, here: float, quick: bool, measure: Callable[[Setting], Measured]) -> list[Row]:
    """The same on one GPU with many particles, against the processor's best; not measured where there is no GPU."""
    case = f"{CASE}, {GPU_PARTICLES:,} particles, {rule}, CUDA"
    goal = f">= {GPU_FACTOR}"
    if not torch.cuda.is_available():
        return [
            Row(case, "compiled", None, UNIT, "", "", None),
            Row(case, "compiled", None, "x this processor", "", goal, None),
        ]
    truncation, repetitions = (4, 1) if quick else (TRUNCATION, REPETITIONS)
    setting = Setting(rule, GPU_PARTICLES, truncation, repetitions, "cuda", 1, 1)
    measured = measure(setting)
    value = speed(setting, measured.seconds)
    return [
        Row(case, "compiled", value, UNIT, "", "", None),
        Row(case, "compiled", value / here, "x this processor", "", goal, value / here >= GPU_FACTOR),
        *pieces(case, measured),
    ]


def _plain(case: str, metric: str, value: float, unit: str) -> Row:
    """A figure without a goal."""
    return Row(case, metric, value, unit, "", "", None)


if __name__ == "__main__":
    sys.exit(main())
