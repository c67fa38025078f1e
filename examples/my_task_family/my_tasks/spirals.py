"""Two spirals that a small residual network is to tell apart: a module and a data set of your own as a task family."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tasks import OwnData, Task, TaskFamily


class SpiralData(Dataset[tuple[Tensor, Tensor]]):
    """Points (2,) on two arms, and which arm (): any Dataset does."""

    def __init__(self, count: int = 600, turns: float = 1.5) -> None:
        generator = torch.Generator().manual_seed(0)
        self.arm = torch.arange(count) % 2
        radius = torch.rand(count, generator=generator) + 0.1
        angle = 2 * torch.pi * turns * radius + torch.pi * self.arm
        clean = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        self.points = clean + 0.03 * torch.randn(count, 2, generator=generator)

    def __len__(self) -> int:
        return len(self.arm)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.arm[index]


class ResidualMLP(nn.Module):
    """Any module does whose layers have `reset_parameters`; its symmetry is found by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.inner, self.leave = nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.enter(x))
        return self.leave(x + torch.tanh(self.inner(x)))


class Spirals(TaskFamily):
    """Every task is the same data with initial weights and batches of its own."""

    name = "spirals"

    def __init__(self, width: int = 16, turns: float = 1.5, batch_size: int = 32, device: str = "cpu") -> None:
        points, arms = map(torch.stack, zip(*SpiralData(turns=turns), strict=True))
        data = points.to(device), arms.to(device)
        self.own = OwnData(ResidualMLP(width), *data, batch_size=batch_size)

    def sample(self, generator: torch.Generator) -> Task:
        return self.own.sample(generator)
