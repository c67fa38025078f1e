"""What a person sees of a run while it goes on: how far it is, how well it does, and how long it will take."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from meta_train.module import MetaTraining

SMOOTHING = 0.9  # of what stands on the bar; the log has every value
PLAIN_INTERVAL = 20.0  # seconds between lines where there is no terminal
SHOWN = {
    "meta_loss": "meta-loss {:.4f}",
    "adam": "(Adam {:.4f})",
    "meta_gradient_norm": "gradient {:.2g}",
    "meta_gradient_snr": "signal/noise {:.2f}",
    "diverged": "diverged {:.1%}",
}


class MetaProgress(Callback):
    """A bar with the time left and the metrics; a line now and then where there is no terminal."""

    def __init__(self, label: str) -> None:
        self.label = label
        console = Console(stderr=True)
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        columns += [TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[status]}")]
        self.progress = Progress(*columns, console=console) if console.is_terminal else None
        self.smooth: dict[str, float] = {}
        self.started = self.printed = time.monotonic()
        self.first = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = self.printed = time.monotonic()
        self.first = trainer.global_step
        if self.progress and trainer.is_global_zero:
            self.progress.start()
            self.bar = self.progress.add_task(self.label, total=trainer.max_steps, completed=self.first, status="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, MetaTraining)
        if not trainer.is_global_zero:
            return
        smooth(self.smooth, pl_module.metrics)
        status = describe(self.smooth)
        done, now = trainer.global_step, time.monotonic()
        if self.progress:
            self.progress.update(self.bar, completed=done, status=status)
        elif now - self.printed > PLAIN_INTERVAL:
            self.printed = now
            left = (now - self.started) / max(1, done - self.first) * (trainer.max_steps - done)
            print(f"{self.label}: {done}/{trainer.max_steps}, {left:.0f} s left, {status}", file=sys.stderr, flush=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.progress:
            self.progress.stop()


def smooth(before: dict[str, float], metrics: Mapping[str, float]) -> None:
    """Moves the averages `before` towards the metrics, in place."""
    for name, value in metrics.items():
        if math.isfinite(value):
            old = before.get(name, value)
            before[name] = SMOOTHING * old + (1 - SMOOTHING) * value


def describe(metrics: Mapping[str, float]) -> str:
    """The metrics in words.

    >>> describe({"meta_loss": 0.5, "adam": 0.25, "diverged": 0.0})
    'meta-loss 0.5000 (Adam 0.2500) diverged 0.0%'
    """
    return " ".join(words.format(metrics[name]) for name, words in SHOWN.items() if name in metrics)
