"""What a user's own package might hold; `python -m benchmark task=...` finds it by its import path."""

from __future__ import annotations

import torch
from torch import nn

from tasks.own_data import OwnData
from tasks.task import Task, TaskFamily

not_callable = 3


def family() -> TaskFamily:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 3, generator=generator)
    return OwnData(nn.Linear(3, 1), inputs, inputs.sum(1, keepdim=True), nn.functional.mse_loss, batch_size=8)


def task() -> Task:
    return family().sample(torch.Generator())


def nothing() -> int:
    return 3


def no_optimizer(params: object, lr: float) -> torch.optim.Optimizer:
    raise TypeError("this makes no optimizer")
