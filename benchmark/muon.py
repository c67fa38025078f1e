"""Muon with AdamW for what Muon cannot take, as its author runs it: torch's Muon takes matrices alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lopt.errors import InvalidInput


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan and others, 2024) on hidden matrices; AdamW on vectors, convolutions, embeddings, the output layer.

    The output layer is the last matrix of the network; an embedding is known by its name. Muon's updates are brought to
    the RMS of AdamW's, so that one learning rate serves both (arXiv 2502.16982, Equation 4).

    Args:
        params: named parameters.
        lr: of both.
        weight_decay: decoupled, of both.
        momentum: of Muon.
    """

    def __init__(
        self,
        params: Sequence[tuple[str, Tensor]],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        muon = getattr(torch.optim, "Muon", None)
        if muon is None:
            raise InvalidInput(f"Muon: torch {torch.__version__} has none; it came with torch 2.9.")
        matrices = [name for name, p in params if p.dim() == 2]
        hidden = {name for name in matrices[:-1] if "embed" not in name}
        self.parts: list[torch.optim.Optimizer] = []
        if chosen := [p for name, p in params if name in hidden]:
            self.parts.append(
                muon(chosen, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw")
            )
        if others := [p for name, p in params if name not in hidden]:
            self.parts.append(torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay))
        super().__init__([p for _, p in params], {"lr": lr, "weight_decay": weight_decay})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of both."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss
