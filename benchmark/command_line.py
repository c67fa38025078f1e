"""The argument that Hydra does not know: `task=` names a task of your own, or a family of a configuration folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lopt.errors import InvalidInput, unknown
from meta_train.cli import CONFIGS, config_dirs

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
    places = [place for place, each in enumerate(arguments) if each.startswith("task=")]
    if not places:
        return list(arguments)
    name = arguments[places[-1]].partition("=")[2]
    # What it becomes stays in its place: Hydra takes overrides on one side alone of a flag such as --config-dir.
    before = [each for each in arguments[: places[-1]] if not each.startswith("task=")]
    after = list(arguments[places[-1] + 1 :])
    suite = [] if any(each.startswith("suite=") for each in arguments) else [f"suite={SUITE}"]
    folders = [folder / "family" for folder in (configs, *map(Path, config_dirs(arguments)))]
    families = [path.relative_to(folder).with_suffix("").as_posix()
                for folder in folders for path in folder.rglob("*.yaml")]  # fmt: skip
    if name in families:
        if not suite:
            raise InvalidInput(f"task: {name} is a family, which is raced on in the suite {SUITE}; leave suite= out.")
        return [*before, *suite, f"family@suite.family={name}", *after]
    if "." not in name:
        raise unknown("task", name, families)
    return [*before, *suite, f"task={name}", *after]
