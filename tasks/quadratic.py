"""Noisy quadratics: problems whose optimum, gradients and unrolls are known in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from lopt.errors import InvalidInput
from lopt.weight_space import WeightSpace
from tasks.arguments import floating_dtype
from tasks.task import Split, Task, TaskFamily


class Quadratic(TaskFamily):
    r"""Minimise a quadratic bowl whose minimum is seen through noise.

    $$ L(w; z) = \frac{1}{2 d} \sum_j \lambda_j (w_j - \sigma z_j)^2, \quad z \sim \mathcal N(0, I), \quad
       \lambda_j = \kappa^{-(j - 1)/(d - 1)} $$

    The expected training loss at the optimum w = 0 is σ² mean(λ) / 2; validation and test are without noise, with
    optimum 0. No axis can be permuted, since every coordinate has a curvature of its own.

    Args:
        dimensions: d.
        condition: κ, the ratio of the largest to the smallest curvature.
        noise: σ.
    """

    name: ClassVar[str] = "quadratic"

    def __init__(
        self,
        dimensions: int = 16,
        condition: float = 100.0,
        noise: float = 0.1,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        if dimensions < 1 or not condition >= 1 or not noise >= 0:
            raise InvalidInput(
                f"dimensions, condition, noise: {dimensions}, {condition}, {noise}; they must be at least 1, 1 and 0"
            )
        exponents = torch.linspace(0, -1, dimensions, device=device, dtype=floating_dtype(dtype))
        self.task = QuadraticTask(condition**exponents, noise)

    def sample(self, generator: torch.Generator) -> Task:
        return self.task


class QuadraticTask(Task):
    """One noisy quadratic; see `Quadratic`."""

    name = "quadratic"

    def __init__(self, curvature: Tensor, noise: float) -> None:
        self.curvature, self.noise = curvature, noise
        self.module = nn.ParameterDict({"w": nn.Parameter(torch.zeros_like(curvature))})
        self.weight_space = WeightSpace({"w": str(len(curvature))})
        self.optimum = {"w": torch.zeros_like(curvature)}

    def init(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {"w": self._normal(generator)}

    def loss(self, params: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return (self.curvature * (params["w"] - batch).square()).mean() / 2

    def draw(self, split: Split, generator: torch.Generator) -> Tensor:
        scale = self.noise if split == "train" else 0.0
        return scale * self._normal(generator)

    def gather(self, split: Split, drawn: Tensor) -> Tensor:
        return drawn

    def evaluation_batch(self, split: Split) -> Tensor:
        return torch.zeros_like(self.curvature)

    def _normal(self, generator: torch.Generator) -> Tensor:
        z = torch.randn(len(self.curvature), generator=generator, device=generator.device, dtype=torch.float64)
        return z.to(self.curvature)
