"""python -m meta_train.calibration rule.source=runs/neuron_scale/rule.safetensors tasks=150

Probes tasks of a family, fits the law of the rule's scale to what they tell, and writes into `out` the probes
(probes.jsonl), the regrets (calibration.json) and the rule (rule.safetensors). What was stopped goes on where it was,
and with more tasks= it goes further.
"""

from __future__ import annotations

import itertools
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lopt import save_rule
from lopt.errors import InvalidInput
from lopt.rules import Neuron
from meta_train.calibration.law import FOLDS, cross_validate, fit_law, regret_of
from meta_train.calibration.probing import PIECE, Probe, probe
from meta_train.cli import run
from meta_train.horizons import Horizon
from meta_train.keys import generator
from meta_train.memory import keep_freed_memory
from meta_train.saving import write_atomically
from tasks.arguments import floating_dtype, usable_device
from tasks.task import TaskFamily

PROBES = "probes.jsonl"


def calibrate(config: DictConfig) -> int:
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.tasks < FOLDS:
        raise InvalidInput(f"tasks: {config.tasks}; a law is chosen by what it does to others, give at least {FOLDS}")
    rule, out = hydra.utils.instantiate(config.rule), Path(config.out)
    if not isinstance(rule, Neuron):
        raise InvalidInput(f"rule: {type(rule).__name__} has no law of its scale; only Neuron has")
    about = {"about": _about(config, rule)}
    rule.to(dtype=floating_dtype(config.dtype), device=usable_device(config.device))
    found = _kept(out / PROBES, about)[: config.tasks]
    out.mkdir(parents=True, exist_ok=True)
    if not found:
        (out / PROBES).write_text(json.dumps(about) + "\n", encoding="utf-8")
    try:
        _probe_all(config, rule, found, out / PROBES)
    except KeyboardInterrupt:
        print(f"stopped after {len(found)} of {config.tasks} probes; the same command goes on", file=sys.stderr)
        return 130
    return _fit(config, rule, found, out)


def _about(config: DictConfig, rule: Neuron) -> dict[str, Any]:
    """All that a probe depends on besides its number."""
    theta = 0
    for name, value in sorted(rule.state_dict().items()):
        theta = zlib.crc32(value.contiguous().numpy().data, zlib.crc32(name.encode(), theta))
    kept = {key: OmegaConf.to_container(config[key]) for key in ("family", "horizon")}
    return {**kept, "seeds": config.seeds, "seed": config.seed, "theta": theta}


def _kept(path: Path, about: dict[str, Any]) -> list[Probe]:
    """The probes that an earlier run made, up to the first that is missing; the last line of a file may be cut off.

    Raises:
        InvalidInput: they are of another rule, family or seed.
    """
    if not path.is_file():
        return []
    *lines, cut = path.read_text(encoding="utf-8").split("\n")
    if lines and json.loads(lines[0]) != about:
        raise InvalidInput(f"out: {path} holds probes of another rule, family, horizon or seed. Give another out=")
    if cut:
        write_atomically(path, "".join(line + "\n" for line in lines).encode())
    # By number, since two commands may have written at once: they made the same probes.
    records = {record["number"]: record for record in map(json.loads, lines[1:])}
    return [Probe.of(records[number]) for number in itertools.takewhile(records.__contains__, itertools.count())]


def _probe_all(config: DictConfig, rule: Neuron, found: list[Probe], path: Path) -> None:
    """Adds to `found` what is missing, and keeps each probe as it is made."""
    family: TaskFamily = hydra.utils.instantiate(config.family)
    horizon: Horizon = hydra.utils.instantiate(config.horizon)
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left:")]
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("probes", total=config.tasks, completed=len(found))
        for number in range(len(found), config.tasks):
            steps = max(PIECE, round(horizon.draw(generator(config.seed, "horizon", number), number)))
            task = family.sample(generator(config.seed, "task", number))
            made = probe(rule, task, steps, config.seeds, config.seed)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"number": number, **made.record()}) + "\n")
            found.append(made)
            progress.advance(bar)
            if not console.is_terminal:
                costs = ", ".join(f"{regret:.3f}" for regret in made.regrets.tolist())
                console.print(f"{number + 1} of {config.tasks}: {steps} steps, regrets {costs}")


def _fit(config: DictConfig, rule: Neuron, probes: list[Probe], out: Path) -> int:
    left_out = cross_validate(probes)
    ridge = min(left_out, key=lambda ridge: left_out[ridge])
    before, law = regret_of(probes), fit_law(probes, ridge)
    result = {
        "probes": len(probes),
        "regret_before": before,
        "regret_left_out": left_out[ridge],
        "regret_fitted": regret_of(probes, law),
        "ridge": ridge,
    }
    write_atomically(out / "calibration.json", (json.dumps(result, indent=1) + "\n").encode())
    print(f"mean regret over {len(probes)} tasks: {before:.4f} as it was, {left_out[ridge]:.4f} on tasks left out")
    if left_out[ridge] >= before:
        print("no law does better on tasks that it was not fitted to: the rule stays as it was", file=sys.stderr)
        return 1
    law.add_to(rule.to(dtype=torch.float32, device="cpu"))
    card = {"config": OmegaConf.to_container(config), **result}
    print(f"saved {save_rule(out / 'rule.safetensors', rule, card)}")
    return 0


if __name__ == "__main__":
    run("calibration", calibrate)
