"""Multilayer perceptrons on tables: regression and classification."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F

from tasks.arguments import check_positive, check_widths, floating_dtype, pick, usable_device
from tasks.modules.mlp import mlp
from tasks.modules.parts import ACTIVATIONS, INITIALISATIONS, NORMS
from tasks.supervised import Supervised
from tasks.tables import TABLES, load_table
from tasks.task import Split, Task, TaskFamily, weight_space_of


class Tabular(TaskFamily):
    """An MLP on a table: the mean squared error for numbers, the cross-entropy for classes.

    Inputs and numbers to predict have mean 0 and variance 1 in the train split, so a constant reaches a loss of 1.

    Args:
        data: one of `tasks.TABLES`.
        hidden: widths of the hidden layers; none for a linear model.
        activation, norm, initialisation: as in `ImageMLP`.
        batch_size: rows of a training batch, drawn with replacement.
        device, dtype: of the table and the weights. A dtype may be given by name.

    Raises:
        InvalidInput: an argument cannot be used.
    """

    name: ClassVar[str] = "tabular"

    def __init__(
        self,
        data: str = "diabetes",
        hidden: Sequence[int] = (32, 32),
        activation: str = "relu",
        norm: str = "none",
        initialisation: str = "default",
        batch_size: int = 32,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        pick("table", data, TABLES)
        pick("activation", activation, ACTIVATIONS)
        pick("norm", norm, NORMS)
        pick("initialisation", initialisation, INITIALISATIONS)
        check_positive("batch_size", batch_size)
        self.data, self.hidden, self.activation = data, check_widths("hidden", hidden), activation
        self.norm, self.initialisation, self.batch_size = norm, initialisation, batch_size
        self.device, self.dtype = usable_device(device), floating_dtype(dtype)

    @cached_property
    def task(self) -> Supervised:
        table = load_table(self.data, self.device, self.dtype)
        widths = [table.inputs["train"].shape[1], *self.hidden, table.classes or 1]
        module = mlp(widths, self.activation, self.norm, self.initialisation).to(self.dtype)
        rows: dict[Split, range] = {split: range(len(x)) for split, x in table.inputs.items()}
        return Supervised(
            f"{self.name}/{self.data}",
            module,
            weight_space_of(module, table.inputs["train"][:2]),
            table.inputs,
            table.targets,
            rows,
            self.batch_size,
            loss_function=F.cross_entropy if table.classes else F.mse_loss,
        )

    def sample(self, generator: torch.Generator) -> Task:
        return self.task
