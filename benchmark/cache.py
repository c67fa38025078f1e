"""Results on disk, by the content of the configuration that gave them.

A file's name is the hash of what a job was asked for; inside it also stands what made it: the version of torch, hashes
of the code of the runs, of the task and of the optimizer. What other versions made is refused: it is said, computed
again, and overwritten. No file is worth a race: one that is damaged counts as missing, and where none can be written a
warning says so.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import os
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from benchmark.contenders import Contender, MakeOptimizer
from benchmark.job import Job
from benchmark.measures import Array
from lopt.rules.rule import UpdateRule

ROOT = Path(__file__).resolve().parent.parent
# The code that the numbers depend on: of every run, and of the runs of an update rule. Plots and tables do not count.
EVERY_RUN = ("tasks", "benchmark/runs.py", "benchmark/population.py", "benchmark/elementwise.py", "benchmark/alone.py")
EVERY_RUN += ("benchmark/schedules.py", "benchmark/muon.py")
RULES = ("lopt", "meta_train/unroll.py")
SHIPPED = ("lopt/pretrained",)  # what `lopt.LearnedOptimizer` loads unless it is given a rule

T = TypeVar("T")


class Cache:
    """Losses of jobs, and other small files.

    Args:
        folder: where the files lie; None: nothing is kept.
        notify: is told of every file that was refused, and of the first that could not be written.
    """

    def __init__(self, folder: Path | None, notify: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.notify = folder, notify
        self.writable = True  # until a file could not be written

    def load(self, job: Job) -> dict[str, Array] | None:
        """The losses of a job; None: not there, made by other versions, or damaged."""
        if self.folder is None or (name := _name(job)) is None:
            return None
        what = f"cache of {job.source.label}, {job.contender.label}"
        found = self.read(name, what, _parse)
        if found is None:
            return None
        stamp, losses = found
        if stamp != (ours := _stamp(job)):
            changed = ", ".join(name for name in {**stamp, **ours} if stamp.get(name) != ours.get(name))
            self.notify(f"{what}: made by another version ({changed}); computed again")
            return None
        return losses

    def save(self, job: Job, content: Mapping[str, Array]) -> None:
        """Keeps the losses of a job."""
        if self.folder is None or (name := _name(job)) is None:
            return
        file = BytesIO()
        np.savez(file, allow_pickle=False, stamp=np.array(json.dumps(_stamp(job))), **content)
        self.write(name, file.getvalue())

    def read(self, name: str, what: str, parse: Callable[[bytes], T]) -> T | None:
        """What `parse` makes of a file; None: not there, or damaged, and then `notify` is told what was."""
        if self.folder is None:
            return None
        try:
            return parse((self.folder / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # damage shows in many exceptions, few of them public
            self.notify(f"{what}: damaged ({type(error).__name__}); computed again")
            return None

    def write(self, name: str, content: bytes) -> None:
        """Keeps a file, which appears whole or not at all. Where that cannot be, `notify` is told once."""
        if self.folder is None:
            return
        partial = self.folder / f".{name}.{os.getpid()}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(content)
                os.replace(partial, self.folder / name)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            if self.writable:
                self.notify(
                    f"cache={self.folder}: a file cannot be written ({error}); results are not kept. Name a folder "
                    "that can be written, or null to keep none."
                )
            self.writable = False


def _name(job: Job) -> str | None:
    key = key_of(job)
    return None if key is None else f"{key}.npz"


def _parse(content: bytes) -> tuple[dict[str, str], dict[str, Array]]:
    """The stamp and the losses of a file."""
    with np.load(BytesIO(content)) as file:
        stamp = dict(json.loads(str(file["stamp"])))
        return stamp, {name: file[name] for name in file.files if name != "stamp"}


def key_of(job: Job) -> str | None:
    """The hash of what a job was asked for; None where the task does not say it, or the optimizer has no name."""
    task, optimizer = job.source.key, _optimizer(job.contender)
    if task is None or optimizer is None:
        return None
    content = {
        "task": task,
        "optimizer": optimizer,
        "schedule": job.contender.schedule,
        "settings": job.settings,
        "seeds": job.seeds,
        "points": job.points,
        "splits": job.splits,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _optimizer(contender: Contender) -> dict[str, Any] | None:
    optimizer = contender.optimizer
    if isinstance(optimizer, UpdateRule):
        digest = hashlib.sha256()
        for name, tensor in sorted(optimizer.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return {"rule": contender.kind, "arguments": dict(optimizer.arguments), "theta": digest.hexdigest()}
    if not _stands_for_itself(optimizer):
        return None
    return {"class": f"{optimizer.__module__}.{contender.kind}", "arguments": dict(contender.arguments)}


def _stands_for_itself(optimizer: MakeOptimizer) -> bool:
    """Whether its module holds it by its name. A lambda or a `functools.partial` shares its name with others."""
    try:
        return operator.attrgetter(optimizer.__qualname__)(sys.modules[optimizer.__module__]) is optimizer
    except (AttributeError, KeyError):
        return False


def _stamp(job: Job) -> dict[str, str]:
    return stamp_of(job.contender) | {"task": str(job.source.content)}


def stamp_of(contender: Contender) -> dict[str, str]:
    """The versions that a contender's losses depend on, other than the task's."""
    optimizer = contender.optimizer
    is_rule = isinstance(optimizer, UpdateRule)
    package = (type(optimizer) if is_rule else optimizer).__module__.partition(".")[0]
    stamp = {"torch": torch.__version__, "tasks and runs": _code(EVERY_RUN)}
    if is_rule or package == "lopt":
        stamp["lopt"] = _code(RULES)
    if package == "lopt" and not is_rule:
        stamp["rules that ship"] = _code(SHIPPED, "*.safetensors")
    if package not in ("torch", "lopt", "benchmark"):
        stamp[package] = _code(_home(package))
    return stamp


def _home(package: str) -> tuple[str, ...]:
    """The folders of a package, or the file of a module: all of it, since an optimizer may be made of several files."""
    module = sys.modules.get(package)
    return tuple(getattr(module, "__path__", None) or filter(None, [getattr(module, "__file__", None)]))


@functools.cache
def _code(parts: tuple[str, ...], kind: str = "*.py") -> str:
    """A hash of all files of a kind in some folders, and of some files; relative paths start in this repository."""
    digest = hashlib.sha256()
    for part in parts:
        path = ROOT / part
        for file in sorted(path.rglob(kind)) if path.is_dir() else [path]:
            digest.update(os.path.relpath(file, ROOT).encode() + file.read_bytes())
    return digest.hexdigest()[:16]
