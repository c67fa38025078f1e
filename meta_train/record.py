"""What a run leaves behind besides checkpoints: its settings, the log of its metrics, a plot, and the best θ so far."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from lopt import save_rule
from meta_train.module import MetaTraining
from meta_train.plots import draw_run
from meta_train.resuming import remove_left

FLUSH_EVERY = 10  # meta-steps
PLOT_INTERVAL = 30.0  # seconds


class KeepRecord(Callback):
    """Appends the metrics of every meta-step to `log.jsonl`; draws `curves.png` and saves `best.safetensors`.

    Nothing is written before a checkpoint that the run goes on from has been accepted; then come `config.yaml`, and
    `initial.safetensors` where there was none.

    The plot is drawn at every evaluation, or every `plot_every` meta-steps where there is none, though not more often
    than every half minute, and at the end. The best θ is that of the least loss on held-out tasks. A resumed run goes
    on in the log of the one before. Where a file cannot be written a warning says so, and the run goes on.

    Args:
        folder: of the run.
        card: what the saved rule's card says besides its evaluation; "config" holds the settings.
        anew: whether what the folder holds is of another run, to be removed.
        plot_every: meta-steps between plots of a run that is not validated.
    """

    def __init__(self, folder: Path, card: Mapping[str, Any], anew: bool, plot_every: int = 100) -> None:
        self.folder, self.card, self.anew, self.plot_every = folder, dict(card), anew, plot_every
        self.records: list[dict[str, float]] = []
        self.unwritten: list[str] = []
        self.plotted = time.monotonic()

    @property
    def path(self) -> Path:
        return self.folder / "log.jsonl"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if self.anew:
            remove_left(self.folder)
        self._write(OmegaConf.to_yaml(self.card["config"]), "w", self.folder / "config.yaml")
        if trainer.global_step == 0:
            self._save("initial.safetensors", pl_module, {"meta_steps": 0})
        self.records = [record for record in read_log(self.path) if record["step"] < trainer.global_step]
        self._write("".join(map(_line, self.records)), "w", self.path)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MetaTraining)
        metrics, step = pl_module.metrics, trainer.global_step
        better = "validation" in metrics and (pl_module.best is None or metrics["validation"] < pl_module.best)
        if better:
            pl_module.best = metrics["validation"]
        if not trainer.is_global_zero:
            return
        record = {"step": step - 1, **metrics}
        self.records.append(record)
        self.unwritten.append(_line(record))
        if len(self.unwritten) >= FLUSH_EVERY or "validation" in metrics:
            self._flush()
        if better:
            seen = {key: value for key, value in metrics.items() if key.startswith("validation")}
            self._save("best.safetensors", pl_module, {"meta_steps": step, **seen})
        due = "validation" in metrics or (pl_module.validation is None and step % self.plot_every == 0)
        if due and time.monotonic() - self.plotted > PLOT_INTERVAL:
            self._plot()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.is_global_zero:  # before the checkpoint: a run resumed from it does not see these steps again
            self._flush()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._flush()
            self._plot()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero:
            self._flush()

    def _flush(self) -> None:
        if self.unwritten:
            self._write("".join(self.unwritten), "a", self.path)
        self.unwritten = []

    def _save(self, name: str, module: L.LightningModule, seen: Mapping[str, float]) -> None:
        assert isinstance(module, MetaTraining)
        try:
            save_rule(self.folder / name, module.rule, {**self.card, **seen})
        except OSError as error:
            _warn(self.folder / name, error)

    def _plot(self) -> None:
        self.plotted = time.monotonic()
        try:
            draw_run(self.records, self.folder / "curves.png")
        except OSError as error:
            _warn(self.folder / "curves.png", error)

    def _write(self, text: str, mode: str, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            _warn(path, error)


def read_log(path: Path) -> list[dict[str, float]]:
    """The records of a log; none where there is no file. A last line that was cut off is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _line(record: Mapping[str, float]) -> str:
    whole = {key: value if math.isfinite(value) else None for key, value in record.items()}  # JSON has no infinity
    return json.dumps(whole) + "\n"


def _warn(path: Path, error: OSError) -> None:
    print(f"warning: '{path}' could not be written: {error.strerror or error}", file=sys.stderr, flush=True)
