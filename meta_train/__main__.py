"""python -m meta_train rule=neuron family=image_mlp steps=300

Meta-trains an update rule on a task family. Into `out` (runs/<name>) go the resolved configuration, the log of every
metric (log.jsonl) and its plot (curves.png), a checkpoint that `ckpt_path=` resumes (last.ckpt), and the rule as
.safetensors: before, after, and the best by meta-validation. A folder that holds a run is not written over, unless by
overwrite=true.
"""

from __future__ import annotations

import inspect
import logging
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from lopt import save_rule
from lopt.errors import InvalidInput
from lopt.rules import UpdateRule
from meta_train.arguments import check_call
from meta_train.cli import run
from meta_train.keep import AtomicCheckpoints, KeepRun
from meta_train.keys import generator
from meta_train.matching import names_matching
from meta_train.memory import keep_freed_memory
from meta_train.module import MetaTraining
from meta_train.programs import keep_programs
from meta_train.progress import MetaProgress
from meta_train.ranks import WorkerLost, place_on_machine
from meta_train.record import KeepRecord
from meta_train.resuming import beginning, settings_of, validation_of
from meta_train.settings import check_settings
from meta_train.validation import MetaValidation
from tasks.task import TaskFamily

UNSAVED, LOST, INTERRUPTED = 1, 3, 130  # exit codes; 2 is bad input
LAUNCHERS = (TorchElasticEnvironment, SLURMEnvironment)  # in the order in which Lightning looks for them


def make_rule(config: DictConfig, family: TaskFamily, seed: int) -> UpdateRule:
    """The rule of a configuration. A rule that is bound to a weight space gets the one of the family's tasks."""
    L.seed_everything(seed, verbose=False)  # the initial θ
    make = hydra.utils.instantiate(config, _partial_=True)
    bound = "space" in inspect.signature(make.func).parameters and "space" not in config
    given = {"space": family.sample(generator(seed, "task", 0, 0)).weight_space} if bound else {}
    check_call("rule", make.func, {**make.keywords, **given})
    return make(**given)


def train(config: DictConfig) -> int:
    keep_freed_memory()
    keep_programs()
    check_settings(config)
    out, (checkpoint, anew) = Path(config.out), beginning(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if str(config.device) == "cuda":
        torch.cuda.set_device(place_on_machine())  # each process on a GPU of its own
    card: dict[str, Any] = {"config": OmegaConf.to_container(config, resolve=True)}
    saving = AtomicCheckpoints()
    keep = KeepRun(out, config.checkpoint_minutes, settings_of(config), validation_of(config))
    trainer = make_trainer(config, out, [MetaProgress(config.name), KeepRecord(out, card, anew), keep], saving)
    family: TaskFamily = hydra.utils.instantiate(config.family)
    module = make_module(config, family)
    started = time.monotonic()
    try:
        trainer.fit(module, ckpt_path=checkpoint)
    except MisconfigurationException as error:  # settings of the trainer that do not go with a meta-step
        raise InvalidInput(f"trainer: {error}") from None
    except WorkerLost as error:
        print(f"error: {error}. The run has ended; resume with {_resume(out)}", file=sys.stderr)
        return LOST
    return finish(config, trainer, module, keep, saving, {**card, "seconds": round(time.monotonic() - started)})


def make_module(config: DictConfig, family: TaskFamily) -> MetaTraining:
    estimator = hydra.utils.instantiate(config.estimator)
    rule = make_rule(config.rule, family, config.seed).to(dtype=getattr(torch, config.dtype), device=config.device)
    chosen = names_matching(rule, config.fit)
    for name, p in rule.named_parameters():
        p.requires_grad_(name in chosen)
    validation: MetaValidation | None = None
    if config.validation is not None:
        options = {} if config.validation.get("family") else {"family": family}
        validation = hydra.utils.instantiate(config.validation, **options)
    optimizer, scheduler = hydra.utils.instantiate(config.optimizer), hydra.utils.instantiate(config.scheduler)
    return MetaTraining(rule, family, estimator, optimizer, scheduler, config.clip, config.seed, validation)


def finish(
    config: DictConfig,
    trainer: L.Trainer,
    module: MetaTraining,
    keep: KeepRun,
    saving: AtomicCheckpoints,
    card: dict[str, Any],
) -> int:
    """Saves θ and says how it went; returns the exit code."""
    out, code = Path(config.out), INTERRUPTED if keep.stopping else 0
    if not trainer.is_global_zero:
        return code
    card |= {"meta_steps": trainer.global_step}
    try:
        save_rule(out / "rule.safetensors", module.rule, card)
    except OSError as error:
        saving.problem = f"'{out / 'rule.safetensors'}' could not be written: {error.strerror or error}"
    if saving.problem is not None:
        print(f"error: {saving.problem}. Make room, and resume with {_resume(out)}", file=sys.stderr)
        return UNSAVED
    if trainer.global_step < config.steps:  # by a signal, or by what Lightning was told
        print(f"stopped at meta-step {trainer.global_step} of {config.steps}; resume with {_resume(out)}")
    else:
        print(f"meta-trained {config.name} in {card['seconds']} s; saved {out / 'rule.safetensors'}", file=sys.stderr)
    return code


def _resume(out: Path) -> str:
    return f"ckpt_path={out}/last.ckpt"


def make_trainer(config: DictConfig, out: Path, callbacks: list[L.Callback], saving: AtomicCheckpoints) -> L.Trainer:
    """Lightning's trainer, with what the configuration says to it and what a meta-training needs.

    Raises:
        InvalidInput: a setting that it does not take or that is not for a person to make, or another number of
            processes than were launched.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")  # advice about data loaders that a meta-step has not
    loggers: list[Logger] = [TensorBoardLogger(out, name="tensorboard")] if find_spec("tensorboard") else []
    device, asked = torch.device(config.device), OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(asked, dict)
    settings: dict[str, Any] = {str(key): value for key, value in asked.items()}
    if device.type == "cuda" and device.index is not None and settings["devices"] == 1:
        settings["devices"] = [device.index]
    own: dict[str, Any] = {
        "accelerator": device.type,
        "plugins": [saving],
        "max_steps": config.steps,
        "max_epochs": -1,
        "logger": loggers or False,
        "log_every_n_steps": 1,
        "callbacks": callbacks,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if taken := sorted(own.keys() & settings.keys()):
        raise InvalidInput(f"trainer.{taken[0]}: the command sets it itself. Leave it out; see configs/meta_train.yaml")
    check_call("trainer", L.Trainer, settings)
    try:
        trainer = L.Trainer(**own, **settings)
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        raise InvalidInput(f"trainer: {error}") from None
    check_launched(trainer.num_devices, trainer.num_nodes)
    return trainer


def check_launched(devices: int, nodes: int) -> None:
    """Raises InvalidInput where a launcher started another number of processes than the trainer is told.

    They would not know of each other, and each would write a whole run of its own into the same folder.
    """
    started = next((kind().world_size() for kind in LAUNCHERS if kind.detect()), None)
    if started not in (None, devices * nodes):
        raise InvalidInput(
            f"trainer.devices: {devices} with trainer.num_nodes={nodes}, but the launcher started {started} "
            "processes in all. Set both as the launcher does, as docs/scale.md shows, or start one process without it"
        )


if __name__ == "__main__":
    run("meta_train", train)
