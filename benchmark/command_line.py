"""The argument that Hydra does not know: `task=` names a task of your own, or a family of a configuration folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lopt.errors import InvalidInput, unknown
from meta_train.cli import CONFIGS, _config_dirs

SUITE = "own"  # what a single task is raced in unless another suite is named


def prepare(arguments: Sequence[str], configs: Path = CONFIGS) -> list[str]:
    """The arguments as Hydra takes them.

    `task=my_package.MyTask` becomes the suite `own` on that task; `task=papers/cifar10_mlp` the suite `own` on the
    family of that name, in our configs/ or in the folder that --config-dir names. A suite that is named beside it
    keeps its contenders and lengths, and loses its tasks.

    Raises:
        InvalidInput: no such family, and no import path; with the near matches.

    >>> prepare(["task=my_package.MyTask", "suite.steps=100"])
    ['suite=own', 'task=my_package.MyTask', 'suite.steps=100']
    """
    found = [each for each in arguments if each.startswith("task=")]
    if not found:
        return list(arguments)
    name = found[-1].partition("=")[2]
    out = [each for each in arguments if each not in found]
    suite = [] if any(each.startswith("suite=") for each in arguments) else [f"suite={SUITE}"]
    folders = [folder / "family" for folder in (configs, *map(Path, _config_dirs(arguments)))]
    families = [path.relative_to(folder).with_suffix("").as_posix()
                for folder in folders for path in folder.rglob("*.yaml")]  # fmt: skip
    if name in families:
        if not suite:
            raise InvalidInput(f"task: {name} is a family, which is raced on in the suite {SUITE}; leave suite= out.")
        return [*suite, f"family@suite.family={name}", *out]
    if "." not in name:
        raise unknown("task", name, families)
    return [*suite, f"task={name}", *out]
