"""What no class checks of a command line, before any work starts."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from lopt.errors import InvalidInput
from meta_train.arguments import check_above_zero, check_whole
from meta_train.cli import check_keys, unwritable

DTYPES = ("float32", "float64")
LARGEST_SEED = 2**32 - 1


def check_settings(config: DictConfig) -> None:
    """Raises InvalidInput where a setting cannot be used."""
    check_keys(config, "meta_train", ("rule", "family", "estimator"))
    check_whole(steps=config.steps)
    check_whole(least=0, most=LARGEST_SEED, seed=config.seed)
    if config.threads is not None:
        check_whole(threads=config.threads)
    check_above_zero(clip=config.clip, checkpoint_minutes=config.checkpoint_minutes)
    for owner in ("estimator", "validation"):
        reference = OmegaConf.select(config, f"{owner}.reference")
        if reference is not None and not (isinstance(reference, DictConfig) and "_target_" in reference):
            raise InvalidInput(
                f"{owner}.reference: {reference} names no class, as where an experiment sets what a reference is made "
                f"of and the objective takes none. Add {owner}.reference=null"
            )
    if config.dtype not in DTYPES:
        raise InvalidInput(
            f"dtype: {config.dtype!r}; give {' or '.join(DTYPES)}: a meta-gradient is made of small differences, which "
            "fewer bits do not hold"
        )
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidInput(f"device: {config.device!r} cannot be used: {str(error).splitlines()[0]}") from None
    try:
        Path(config.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"out: {unwritable(error)}") from None
