"""How a run begins: anew or from a checkpoint, and in which folder. What does not fit is refused before any work.

A run that is resumed comes to the θ of the one that was never interrupted. So a checkpoint holds the settings that θ
depends on, and a run with others does not go on from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from lopt.errors import InvalidInput

AUTO = "auto"  # a ckpt_path: the run's own last checkpoint if there is one
SETTINGS, VALIDATION = "settings", "validation"  # where a checkpoint holds them, and those of the meta-validation
# What θ does not depend on, but for rounding: these may change from one part of a run to the next. `steps` may, but not
# what is made of it: a schedule made for other steps (T_max: ${steps}) is another schedule.
FREE = {"name", "out", "overwrite", "steps", "threads", "ckpt_path", "checkpoint_minutes", "validation", "trainer"}
FREE |= {"estimator.compiled"}
PRECISION = "trainer.precision"  # of those that are free this is not
_SINGLE = (None, 32, "32", "32-true")  # the same to Lightning
# What a run leaves in its folder: the first four are worth something.
LEFT = ("last.ckpt", "rule.safetensors", "best.safetensors", "log.jsonl")
LEFT += ("initial.safetensors", "config.yaml", "curves.png")
_OF_A_RUN = {"state_dict", "optimizer_states", "loops", "particles", "seed"}
_SHOWN = 8  # settings that an error names


class Beginning(NamedTuple):
    """Where a run begins."""

    checkpoint: Path | None  # that it goes on from
    anew: bool  # whether what its folder holds is of another run


def settings_of(config: DictConfig) -> dict[str, Any]:
    """The settings that θ depends on, by their names on the command line, in numbers, strings and lists."""
    whole: Any = OmegaConf.to_container(config, resolve=True)
    found = {**_flat(whole), "device": torch.device(whole["device"]).type}  # whose kind the random numbers depend on
    free = {key for key in found if key in FREE or key.partition(".")[0] in FREE}
    settings = {key: value for key, value in found.items() if key not in free}
    precision = found.get(PRECISION)
    return settings if precision in _SINGLE else {**settings, PRECISION: precision}


def validation_of(config: DictConfig) -> dict[str, Any]:
    """The settings that a meta-validation's loss depends on, likewise: losses under others cannot be compared."""
    whole: Any = OmegaConf.to_container(config, resolve=True)
    found = _flat(whole.get("validation") or {})
    return {key: value for key, value in found.items() if key != "every"}


def beginning(config: DictConfig) -> Beginning:
    """Where the run of a configuration begins.

    Raises:
        InvalidInput: the checkpoint cannot be read, or is of a run with other settings; or the folder of this run holds
            another.
    """
    out, path = Path(config.out), config.ckpt_path
    own = out / "last.ckpt"
    if path == AUTO:
        path = own if own.is_file() else None
    checkpoint = None if path is None else Path(str(path))
    if checkpoint is not None:
        _check_fits(checkpoint, settings_of(config))
    anew = checkpoint is None or checkpoint.resolve() != own.resolve()
    found = [name for name in LEFT[:4] if (out / name).is_file() and (out / name).stat().st_size]
    if anew and found and not config.overwrite and config.ckpt_path != AUTO:
        raise InvalidInput(
            f"out: '{out}' holds a run already ({', '.join(found)}). Go on with it by ckpt_path=auto, replace it by "
            "overwrite=true, or give this run another name="
        )
    return Beginning(checkpoint, anew)


def remove_left(folder: Path) -> None:
    """Removes what another run left in this folder, so that nothing of it passes for the new one's."""
    for name in LEFT:
        (folder / name).unlink(missing_ok=True)


def _check_fits(path: Path, settings: Mapping[str, Any]) -> None:
    saved = _read(path)
    if SETTINGS not in saved:  # of an earlier version; its particles are compared with the estimator's later
        return
    before = saved[SETTINGS]
    other = [key for key in sorted({*before, *settings}) if before.get(key, _NONE) != settings.get(key, _NONE)]
    if not other:
        return
    said = [f"{key} was {before.get(key, _NONE)} and is {settings.get(key, _NONE)}" for key in other[:_SHOWN]]
    more = [f"and {len(other) - _SHOWN} more"] if len(other) > _SHOWN else []
    raise InvalidInput(
        f"ckpt_path: '{path}' is of a run with another rule, family, estimator or seed, or fitted in another way: "
        f"{', '.join([*said, *more])}. Give what it was (see that run's config.yaml), or begin a new run from its θ "
        f"with rule=fitted rule.source={path.parent / 'rule.safetensors'}"
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InvalidInput(f"ckpt_path: there is no file '{path}'. A run saves runs/<name>/last.ckpt")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInput(
            f"ckpt_path: '{path}' cannot be read ({reason}). Resume from another, or begin anew"
        ) from None
    if not isinstance(saved, dict) or not saved.keys() >= _OF_A_RUN:
        raise InvalidInput(f"ckpt_path: '{path}' is no checkpoint of a run. Give the last.ckpt that a run saved")
    return saved


class _Nothing:
    def __repr__(self) -> str:
        return "not set"


_NONE = _Nothing()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots.

    >>> _flat({"a": {"b": 1, "c": [2]}, "d": None})
    {'a.b': 1, 'a.c': [2], 'd': None}
    """
    found = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
