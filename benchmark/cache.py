"""Results on disk, by the content of the configuration that gave them.

A file's name is the hash of all that a job depends on; inside it also stands the version of the code and of torch that
made it. What another version made is refused: it is said, computed again, and overwritten.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.contenders import Contender
from benchmark.job import Job
from benchmark.measures import Array
from lopt.rules.rule import UpdateRule

ROOT = Path(__file__).resolve().parent.parent
# The code that the numbers depend on: of every run, and of the runs of an update rule. Plots and tables do not count.
EVERY_RUN = ("tasks", "benchmark/runs.py", "benchmark/population.py", "benchmark/elementwise.py", "benchmark/alone.py")
EVERY_RUN += ("benchmark/schedules.py", "benchmark/muon.py")
RULES = ("lopt", "meta_train/unroll.py")
SHIPPED = ("lopt/pretrained",)  # what `lopt.LearnedOptimizer` loads unless it is given a rule


class Cache:
    """Losses of jobs.

    Args:
        folder: where the files lie; None: nothing is kept.
        notify: is told of every file that was refused.
    """

    def __init__(self, folder: Path | None, notify: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.notify = folder, notify

    def load(self, job: Job) -> dict[str, Array] | None:
        """The losses of a job; None: not there, of another version, or damaged."""
        path = self._path(job)
        if path is None or not path.is_file():
            return None
        what = f"cache of {job.source.label}, {job.contender.label}"
        try:
            with np.load(path) as file:
                stamp = json.loads(str(file["stamp"]))
                content = {name: file[name] for name in file.files if name != "stamp"}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            self.notify(f"{what}: damaged ({type(error).__name__}); computed again")
            return None
        if stamp != (ours := stamp_of(job.contender)):
            changed = ", ".join(name for name in {**stamp, **ours} if stamp.get(name) != ours.get(name))
            self.notify(f"{what}: made by another version ({changed}); computed again")
            return None
        return content

    def save(self, job: Job, content: Mapping[str, Array]) -> None:
        """Keeps the losses of a job. The file appears whole or not at all."""
        path = self._path(job)
        if path is None or self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.stem}.{os.getpid()}.npz")
        np.savez(partial, allow_pickle=False, stamp=np.array(json.dumps(stamp_of(job.contender))), **content)
        os.replace(partial, path)

    def _path(self, job: Job) -> Path | None:
        if self.folder is None:
            return None
        key = key_of(job)
        return None if key is None else self.folder / f"{key}.npz"


def key_of(job: Job) -> str | None:
    """The hash of all that a job's losses depend on, other than versions; None where the task does not say it."""
    task = job.source.key
    if task is None:
        return None
    content = {
        "task": task,
        "optimizer": _optimizer(job.contender),
        "schedule": job.contender.schedule,
        "settings": job.settings,
        "seeds": job.seeds,
        "points": job.points,
        "splits": job.splits,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _optimizer(contender: Contender) -> dict[str, Any]:
    optimizer = contender.optimizer
    if isinstance(optimizer, UpdateRule):
        digest = hashlib.sha256()
        for name, tensor in sorted(optimizer.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return {"rule": contender.kind, "arguments": dict(optimizer.arguments), "theta": digest.hexdigest()}
    return {"class": f"{optimizer.__module__}.{contender.kind}", "arguments": dict(contender.arguments)}


def stamp_of(contender: Contender) -> dict[str, str]:
    """The versions that a contender's losses depend on."""
    stamp = {"torch": torch.__version__, "tasks and runs": _code(EVERY_RUN)}
    if isinstance(contender.optimizer, UpdateRule):
        stamp["lopt"] = _code(RULES)
    elif (package := contender.optimizer.__module__.partition(".")[0]) == "lopt":
        stamp |= {"lopt": _code(RULES), "rules that ship": _code(SHIPPED, "*.safetensors")}
    elif package not in ("torch", "benchmark"):
        stamp[package] = _version(package)
    return stamp


@functools.cache
def _code(parts: tuple[str, ...], kind: str = "*.py") -> str:
    """A hash of all files of a kind in some folders of this repository, and of some files."""
    digest = hashlib.sha256()
    for part in parts:
        path = ROOT / part
        for file in sorted(path.rglob(kind)) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
