"""Checkpoints: written whole or not at all, every few minutes, at the end, and when the run is asked to stop."""

from __future__ import annotations

import io
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from meta_train.arguments import check_above_zero
from meta_train.module import MetaTraining
from meta_train.ranks import any_rank
from meta_train.resuming import SETTINGS, VALIDATION
from meta_train.saving import write_atomically


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint so that the last one stays until the new one is on the disk.

    What hinders it (a full disk, a folder that may not be written) is kept in `problem` and printed, and the run goes
    on: the checkpoint before is still there, and the next attempt may succeed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.problem: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            write_atomically(Path(path), content.getvalue())
            self.problem = None
        except OSError as error:
            before = "the one before is as it was" if Path(path).exists() else "there is none yet"
            self.problem = f"the checkpoint '{path}' could not be written: {error.strerror or error}; {before}"
            print(f"warning: {self.problem}", file=sys.stderr, flush=True)


class KeepRun(Callback):
    """Saves `last.ckpt` every few minutes and at the end, and ends the run well on Ctrl-C or SIGTERM.

    At the first signal the meta-step under way is finished, so that what is saved is whole; at the second Ctrl-C the
    run stops at once, and the last checkpoint is the one of some minutes ago. Of several processes the first keeps the
    time, and a signal to any of them stops all.

    Args:
        folder: of the run.
        minutes: between two checkpoints.
        settings, validation: kept in each checkpoint, to be compared with those of the run that goes on from it. Where
            it validates in another way, what was the best so far is forgotten.
    """

    def __init__(
        self, folder: Path, minutes: float, settings: Mapping[str, Any], validation: Mapping[str, Any]
    ) -> None:
        check_above_zero(checkpoint_minutes=minutes)
        self.settings, self.validation = dict(settings), dict(validation)
        self.path, self.interval = folder / "last.ckpt", 60 * minutes
        self.saved = 0.0
        self.received: int | None = None
        self.stopping = False
        self.before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        def handle(number: int, frame: FrameType | None) -> None:
            if self.received is not None:
                raise KeyboardInterrupt
            self.received = number
            print("\nstopping after this meta-step; once more to stop at once", file=sys.stderr, flush=True)

        self.saved = time.monotonic()
        self.before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        device = pl_module.device
        if any_rank(self.received is not None, device):
            trainer.should_stop = self.stopping = True
        if any_rank(trainer.is_global_zero and time.monotonic() - self.saved > self.interval, device):
            trainer.save_checkpoint(self.path)
            self.saved = time.monotonic()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[SETTINGS], checkpoint[VALIDATION] = self.settings, self.validation

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, MetaTraining)
        before = checkpoint.get(VALIDATION, self.validation)
        if not self.validation:  # a stretch without: the next one may go on as it was before
            self.validation = dict(before)
        elif before and before != self.validation:
            pl_module.best = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.path)
        self.restore_handlers()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.restore_handlers()

    def restore_handlers(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
