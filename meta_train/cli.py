"""How a command-line program starts: names are checked first, Hydra composes, and errors read like help."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import hydra
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lopt.errors import InvalidInput, unknown

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def check_choices(overrides: Sequence[str], configs: Path = CONFIGS) -> None:
    """Raises InvalidInput, with the near matches, for `group=choice` where no folder of the group has such a file.

    The folders are ours, and the one that `--config-dir` names.
    """
    folders = [configs, *map(Path, config_dirs(overrides))]
    for override in overrides:
        group, separator, choice = override.lstrip("+").partition("=")
        found = [folder / group for folder in folders if separator and group and (folder / group).is_dir()]
        known = [path.stem for folder in found for path in folder.glob("*.yaml")]
        if found and not any((folder / f"{choice}.yaml").is_file() for folder in found):
            raise unknown(group, choice, known)


def check_keys(config: Iterable[object], name: str, groups: Sequence[str]) -> None:
    """Raises InvalidInput where a key is neither one of configs/<name>.yaml nor one of the groups that it composes."""
    known = {*groups, *map(str, OmegaConf.load(CONFIGS / f"{name}.yaml"))} - {"defaults", "hydra"}
    for key in map(str, config):
        if key not in known:
            raise unknown("key", key, known)


def config_dirs(words: Sequence[str]) -> list[str]:
    """What stands after --config-dir, with a space or an equals sign."""
    flags = ("--config-dir", "-cd")
    pairs = [following for word, following in zip(words, words[1:], strict=False) if word in flags]
    return pairs + [word.partition("=")[2] for word in words if word.partition("=")[0] in flags and "=" in word]


def run(config_name: str, job: Callable[[DictConfig], int | None]) -> None:
    """Composes `configs/<config_name>.yaml` with the overrides of the command line and runs the job.

    What the caller did wrong is printed without a traceback, and the exit code is 2.
    """

    begun: list[bool] = []

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)
    def start(config: DictConfig) -> None:
        begun.append(True)
        try:
            OmegaConf.resolve(config)
            sys.exit(job(config))
        except (InvalidInput, OmegaConfBaseException) as error:
            sys.exit(_fail(error))
        except InstantiationException as error:  # what a constructor refused
            if _refused(error.__cause__):
                sys.exit(_fail(str(error.__cause__)))
            if (unlocated := _unlocated(error)) is None:
                raise
            sys.exit(_fail(unlocated))

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # a defect of ours keeps its traceback
    try:
        check_choices(sys.argv[1:])
        start()
    except (InvalidInput, HydraException) as error:  # a name, or an override that Hydra cannot read
        sys.exit(_fail(error))
    except OmegaConfBaseException as error:  # what Hydra itself reads, such as its folder, `out`
        if begun:
            raise
        sys.exit(_fail(str(error).splitlines()[0]))
    except OSError as error:
        if begun:
            raise
        sys.exit(_fail(f"out: {unwritable(error)}"))  # Hydra makes the folder before it calls the job


def unwritable(error: OSError) -> str:
    """A folder or file that cannot be made, in words."""
    return f"'{error.filename}' cannot be made: {error.strerror or error}. Give another folder, out="


def _unlocated(error: InstantiationException) -> InvalidInput | None:
    """Where a `_target_` names nothing, that in words, with the near matches of its module."""
    found = re.match(r"Error locating target '([^']+)'.*full_key: (\S+)", str(error), flags=re.DOTALL)
    if found is None:
        return None
    target, key = found.groups()
    path = target.rpartition(".")[0]
    if path not in sys.modules:
        cause = " ".join(str(error.__cause__ or error).split())
        return InvalidInput(f"{key}._target_: {target!r} cannot be found, or not be imported: {cause}")
    known = [name for name, x in vars(sys.modules[path]).items() if inspect.isclass(x) or inspect.isfunction(x)]
    return unknown(f"{key}._target_", target, [f"{path}.{name}" for name in known if not name.startswith("_")])


def _refused(cause: BaseException | None) -> bool:
    """Whether a constructor refused what it was given: in words of ours, or because it does not take such arguments."""
    call = cause.__traceback__ if isinstance(cause, TypeError) else None
    return isinstance(cause, InvalidInput) or (call is not None and call.tb_next is None)


def _fail(error: BaseException | str) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
