"""Images beside what their INRs say."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor


def save_rows(path: Path, rows: dict[str, Tensor]) -> None:
    """A picture with a row of images for each title.

    Shapes:
        rows: title -> [count, C, H, W], values in [0, 1], C of 1 or 3; what lies outside is cut off.
    """
    count = max(map(len, rows.values()))
    figure = Figure(figsize=(0.9 * count + 1.2, 0.95 * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, torch.as_tensor(images).clamp(0, 1), strict=False):
            axis.imshow(image.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, rotation=0, ha="right", va="center")
    figure.savefig(path)
