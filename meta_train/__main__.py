"""python -m meta_train rule=neuron family=image_mlp steps=300

Meta-trains an update rule on a task family. Into `out` (runs/<name>) go the resolved configuration, the log of every
metric (log.jsonl) and its plot (curves.png), a checkpoint that `ckpt_path=` resumes (last.ckpt), and the rule as
.safetensors: before, after, and the best by meta-validation.
"""

from __future__ import annotations

import inspect
import logging
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import hydra
import lightning as L
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from lopt import save_rule
from lopt.errors import InvalidInput
from lopt.rules import UpdateRule
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
from meta_train.validation import MetaValidation
from tasks.task import TaskFamily

UNSAVED, LOST, INTERRUPTED = 1, 3, 130  # exit codes; 2 is bad input
AUTO = "auto"  # a ckpt_path: the run's own last checkpoint if there is one


def make_rule(config: DictConfig, family: TaskFamily, seed: int) -> UpdateRule:
    """The rule of a configuration. A rule that is bound to a weight space gets the one of the family's tasks."""
    L.seed_everything(seed, verbose=False)  # the initial θ
    make = hydra.utils.instantiate(config, _partial_=True)
    if "space" in inspect.signature(make.func).parameters and "space" not in config:
        return make(space=family.sample(generator(seed, "task", 0, 0)).weight_space)
    return make()


def train(config: DictConfig) -> int:
    keep_freed_memory()
    keep_programs()
    out = Path(config.out)
    resumed = check(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if str(config.device) == "cuda":
        torch.cuda.set_device(place_on_machine())  # each process on a GPU of its own
    family: TaskFamily = hydra.utils.instantiate(config.family)
    module = make_module(config, family)
    card: dict[str, Any] = {"config": OmegaConf.to_container(config)}
    keep, saving = KeepRun(out, config.checkpoint_minutes), AtomicCheckpoints()
    trainer = make_trainer(config, out, [MetaProgress(config.name), KeepRecord(out, card), keep], saving)
    if trainer.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, out / "config.yaml")
        if resumed is None:
            save_rule(out / "initial.safetensors", module.rule, {**card, "meta_steps": 0})
    started = time.monotonic()
    try:
        trainer.fit(module, ckpt_path=resumed)
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
    if keep.stopping:
        print(f"stopped at meta-step {trainer.global_step} of {config.steps}; resume with {_resume(out)}")
    else:
        print(f"meta-trained {config.name} in {card['seconds']} s; saved {out / 'rule.safetensors'}", file=sys.stderr)
    return code


def _resume(out: Path) -> str:
    return f"ckpt_path={out}/last.ckpt"


def check(config: DictConfig) -> Path | None:
    """What no class checks, before any work starts. Returns the checkpoint to resume from, if any."""
    if config.steps < 1:
        raise InvalidInput(f"steps: {config.steps}; give the number of meta-steps, at least 1")
    if not isinstance(getattr(torch, config.dtype, None), torch.dtype):
        raise InvalidInput(f"dtype: {config.dtype!r}; give a PyTorch dtype, such as float32 or float64")
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"device: {config.device!r} cannot be used: {str(error).splitlines()[0]}") from None
    path = config.ckpt_path
    if path == AUTO:
        path = Path(config.out) / "last.ckpt"
        path = path if path.is_file() else None
    if path is not None:
        check_checkpoint(Path(path))
    return None if path is None else Path(path)


def check_checkpoint(path: Path) -> None:
    if not path.is_file():
        raise InvalidInput(f"ckpt_path: there is no file '{path}'. A run saves runs/<name>/last.ckpt")
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInput(
            f"ckpt_path: '{path}' cannot be read ({reason}). Resume from another, or begin anew"
        ) from None


def make_trainer(config: DictConfig, out: Path, callbacks: list[L.Callback], saving: AtomicCheckpoints) -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")  # advice about data loaders that a meta-step has not
    loggers: list[Logger] = [TensorBoardLogger(out, name="tensorboard")] if find_spec("tensorboard") else []
    device, settings = torch.device(config.device), config.trainer
    devices = settings.devices
    if device.type == "cuda" and device.index is not None and devices == 1:
        devices = [device.index]
    return L.Trainer(
        accelerator=device.type,
        devices=devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        plugins=[saving],
        max_steps=config.steps,
        max_epochs=-1,
        logger=loggers or False,
        log_every_n_steps=1,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


if __name__ == "__main__":
    run("meta_train", train)
