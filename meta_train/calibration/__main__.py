"""python -m meta_train.calibration rule.source=runs/neuron_scale/rule.safetensors tasks=150

Probes tasks of a family, fits the law and the power of the rule's scale to what they tell, and writes into `out` the
probes (probes.jsonl), the regrets (calibration.json) and the rule (rule.safetensors). What was stopped goes on where it
was, and with more tasks= it goes further.
"""

from __future__ import annotations

import copy
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
from lopt.functionals.checks import check_probability
from lopt.rules import Neuron
from meta_train.arguments import check_whole
from meta_train.calibration.law import check_variety, cross_validate, fit_law, regrets_of
from meta_train.calibration.probing import ANNEALS, FACTORS, LATE, PIECE, Probe, known_space, places, probe
from meta_train.cli import run
from meta_train.horizons import Horizon
from meta_train.keys import generator
from meta_train.memory import keep_freed_memory
from meta_train.saving import write_atomically
from tasks.arguments import floating_dtype, usable_device
from tasks.task import Task, TaskFamily

PROBES = "probes.jsonl"
FORMAT = 4  # raise it when what a probe is changes


def calibrate(config: DictConfig) -> int:
    keep_freed_memory()
    check_whole(tasks=config.tasks)
    check_whole(least=0, seed=config.seed)
    if config.threads is not None:
        check_whole(threads=config.threads)
        torch.set_num_threads(config.threads)
    for key in ("tell_horizon", "tell_symmetry"):
        check_probability(**{key: config[key]})
    rule, out = hydra.utils.instantiate(config.rule), Path(config.out)
    if not isinstance(rule, Neuron):
        raise InvalidInput(f"rule: {type(rule).__name__} has no law of its scale; only Neuron has")
    about = {"about": _about(config, rule)}
    found = _kept(out / PROBES, about)[: config.tasks]
    try:
        _probe_all(config, rule, found, out / PROBES, about)
    except KeyboardInterrupt:
        print(f"stopped after {len(found)} of {config.tasks} probes; the same command goes on", file=sys.stderr)
        return 130
    return _fit(config, rule, found, out)


def _about(config: DictConfig, rule: Neuron) -> dict[str, Any]:
    """All that a probe depends on besides its number."""
    theta = 0
    for name, value in sorted(rule.state_dict().items()):
        theta = zlib.crc32(value.contiguous().numpy().data, zlib.crc32(name.encode(), theta))
    kept = ("family", "horizon", "runs", "seed", "tell_horizon", "tell_symmetry", "device", "dtype")
    settings: Any = OmegaConf.to_container(config)
    about = {key: settings[key] for key in kept} | {"format": FORMAT, "piece": PIECE}
    about |= {"factors": list(FACTORS), "anneals": list(ANNEALS), "late": LATE}
    return {**about, "rule": dict(rule.arguments), "theta": theta}


def _kept(path: Path, about: dict[str, Any]) -> list[Probe]:
    """The probes that an earlier run made, up to the first that is missing; the last line of a file may be cut off.

    Raises:
        InvalidInput: they are of another rule, family or seed, or a line cannot be read.
    """
    if not path.is_file():
        return []
    *lines, cut = path.read_text(encoding="utf-8").split("\n")
    try:
        head, *records = [json.loads(line) for line in lines] or [about]
        # By number, since two commands may have written at once: they made the same probes.
        made = {record["number"]: Probe.of(record) for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"out: {path} is damaged ({error}). Remove it, or give another out=") from None
    if records and head != about:
        raise InvalidInput(f"out: {path} holds probes of another rule, family, horizon or seed. Give another out=")
    if cut or not records:
        write_atomically(path, "".join(line + "\n" for line in lines if records).encode())
    return [made[number] for number in itertools.takewhile(made.__contains__, itertools.count())]


def _probe_all(config: DictConfig, rule: Neuron, found: list[Probe], path: Path, about: dict[str, Any]) -> None:
    """Adds to `found` what is missing, and keeps each probe as it is made."""
    family: TaskFamily = hydra.utils.instantiate(config.family)
    horizon: Horizon = hydra.utils.instantiate(config.horizon)
    probed = copy.deepcopy(rule).to(dtype=floating_dtype(config.dtype), device=usable_device(config.device))
    drawn = (_drawn(config, family, number) for number in range(config.tasks))
    check_variety(places(known_space(task, knows["traced"]))[0] for task, knows in drawn)  # before hours of probes
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("left:")]
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("probes", total=config.tasks, completed=len(found))
        for number in range(len(found), config.tasks):
            steps = horizon.draw(generator(config.seed, "horizon", number), number)
            task, knows = _drawn(config, family, number)
            made = probe(probed, task, steps, config.runs, config.seed, number, **knows)
            _append(path, about, {"number": number, **made.record()})
            found.append(made)
            progress.advance(bar)
            if not console.is_terminal:
                costs = "; ".join(", ".join(f"{x:.3f}" for x in one) for one in made.regrets.tolist())
                line = f"{number + 1} of {config.tasks}: {steps:.0f} steps, regrets {costs}"
                console.print(line, soft_wrap=True)


def _drawn(config: DictConfig, family: TaskFamily, number: int) -> tuple[Task, dict[str, bool]]:
    """The task of a probe, and whether the rule is told the horizon, and the symmetry."""
    told, traced = torch.rand(2, generator=generator(config.seed, "tell", number)).tolist()
    knows = {"told": told < config.tell_horizon, "traced": traced < config.tell_symmetry}
    return family.sample(generator(config.seed, "task", number)), knows


def _append(path: Path, about: dict[str, Any], record: dict[str, Any]) -> None:
    """Adds a line at once, after one that says what the probes are of where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.is_file() and path.stat().st_size > 0
    lines = [record] if begun else [about, record]
    with path.open("ab", buffering=0) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def _fit(config: DictConfig, rule: Neuron, probes: list[Probe], out: Path) -> int:
    left_out = cross_validate(probes)
    anneal, ridge = best = min(left_out, key=lambda settings: float(left_out[settings].mean()))
    before, law = regrets_of(probes), fit_law(probes, ridge, anneal)
    gain = before - left_out[best]
    error = float(gain.std() / len(probes) ** 0.5)
    edges = sum(int(p.regrets[ANNEALS.index(anneal)].argmin()) in (0, len(FACTORS) - 1) for p in probes)
    result = {
        "probes": len(probes),
        "regret_before": float(before.mean()),
        "regret_left_out": float(left_out[best].mean()),
        "gain_error": error,
        "regret_fitted": float(regrets_of(probes, law).mean()),
        "ridge": ridge,
        "anneal": anneal,
        "best_at_an_edge": edges,
    }
    write_atomically(out / "calibration.json", (json.dumps(result, indent=1) + "\n").encode())
    print(
        f"mean regret over {len(probes)} tasks: {result['regret_before']:.4f} as it was, "
        f"{result['regret_left_out']:.4f} on architectures left out, a gain of {float(gain.mean()):.4f} ± {error:.4f}; "
        f"the power of the time left x {anneal}; {edges} tasks would have the smallest or largest steps tried"
    )
    if not float(gain.mean()) > error:
        (out / "rule.safetensors").unlink(missing_ok=True)
        print("no law surely does better on architectures left out: no rule is written", file=sys.stderr)
        return 1
    law.add_to(rule)
    print(f"saved {save_rule(out / 'rule.safetensors', rule, {'config': OmegaConf.to_container(config), **result})}")
    return 0


if __name__ == "__main__":
    run("calibration", calibrate)
