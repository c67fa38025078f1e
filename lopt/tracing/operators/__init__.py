"""The rules of PyTorch's operators, by what they do to the axes of their tensors. Importing a module registers them."""

from lopt.tracing.operators import (
    attention,
    contraction,
    convolution,
    creation,
    indexing,
    movement,
    normalisation,
    pointwise,
    reading,
    reduction,
    spatial,
)

__all__ = [
    "attention",
    "contraction",
    "convolution",
    "creation",
    "indexing",
    "movement",
    "normalisation",
    "pointwise",
    "reading",
    "reduction",
    "spatial",
]
