"""Runs over models and seeds: each is kept on disk when it ends, so that a stopped command goes on where it was.

`prepare` is what a command begins with; `run_all` starts an `Experiment` for every name and seed that `Runs` does not
hold yet, and shows how far it is; `mean_text`, `sizes_text` and `write_table` serve the table at the end.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from examples.common.training import Epoch
from lopt.errors import unknown
from meta_train.memory import keep_freed_memory
from tasks.arguments import check_positive
from tasks.data import SPLITS

Found = dict[str, Any]  # what a run found


def prepare(
    settings: Mapping[str, Any], methods: Sequence[str], known: Collection[str], what: str = "model"
) -> dict[str, int]:
    """Checks what all commands are given, and sets the threads; returns how many networks of a split to use.

    Args:
        settings: with the keys seeds and threads, and perhaps a count for a split; None is all of it.
        methods: those that were asked for; `known`: those that there are; `what`: what errors call one.

    Raises:
        InvalidInput: an unknown method, with the near matches; or a number below 1.
    """
    for method in methods:
        check_method(method, known, what)
    check_positive("seeds", settings["seeds"])
    use_threads(settings["threads"])
    return {split: settings[split] for split in SPLITS if settings.get(split) is not None}


def check_method(method: str, known: Collection[str], what: str = "model") -> None:
    """Raises InvalidInput, with the near matches, unless there is such a method."""
    if method not in known:
        raise unknown(what, method, known)


def use_threads(threads: int) -> None:
    """Sets how many threads a command computes with; InvalidInput for less than one.

    Freed memory stays in the process from here on: one thread trains on INRs 1.4 times faster so, and more where other
    programs run.
    """
    check_positive("threads", threads)
    torch.set_num_threads(threads)
    keep_freed_memory()


class Experiment(Protocol):
    """One run: trains as `epochs` is read, and then knows what it found."""

    def epochs(self) -> Iterator[Epoch]: ...

    def found(self) -> Found: ...


class Runs:
    """A folder with a file for each run, and in each the configuration that made it.

    Args:
        folder: where the files go.
        config: all that a run depends on besides its name and its seed. What another one made is computed again.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     runs = Runs(Path(folder), {"epochs": 3})
    ...     runs.save("hnp", 0, {"accuracy": 0.5})
    ...     runs.load("hnp", 0), runs.load("hnp", 1), Runs(Path(folder), {"epochs": 4}).load("hnp", 0)
    ({'accuracy': 0.5}, None, None)
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, json.loads(json.dumps(dict(config)))

    def load(self, name: str, seed: int) -> Found | None:
        """What a run found; None where it has not ended, its file is damaged, or another configuration made it."""
        try:
            content = json.loads(self._path(name, seed).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content.get("found") if content.get("config") == self.config else None

    def save(self, name: str, seed: int, found: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{name}-{seed}.{os.getpid()}.tmp"
        partial.write_text(json.dumps({"config": self.config, "found": dict(found)}, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self._path(name, seed))

    def _path(self, name: str, seed: int) -> Path:
        return self.folder / f"{name}-{seed}.json"


def run_all(
    runs: Runs, names: Sequence[str], seeds: int, epochs: int, start: Callable[[str, int], Experiment]
) -> dict[str, list[Found]]:
    """What every name found with every seed; computes what is not there yet.

    Args:
        start: makes the experiment of a name and a seed.
        epochs: of each experiment, for the bar.

    To what an experiment found come the seconds it took and `curve`, its epochs.
    """
    console = Console(stderr=True, highlight=False)
    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("left:"), TimeRemainingColumn()]
    results: dict[str, list[Found]] = {name: [] for name in names}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=seeds * len(names) * epochs)
        for seed in range(seeds):  # seed by seed, so that a stopped command has all names to compare
            for name in names:
                found = runs.load(name, seed)
                if found is None:
                    experiment, begun, curve = start(name, seed), time.perf_counter(), []
                    for epoch in experiment.epochs():
                        curve.append(epoch._asdict())
                        progress.update(bar, advance=1, description=f"{name}, seed {seed}, {epoch.score:.4f}")
                    found = {**experiment.found(), "seconds": time.perf_counter() - begun, "curve": curve}
                    runs.save(name, seed, found)
                else:
                    progress.advance(bar, epochs)
                console.print(f"{name}, seed {seed}: test {found['test']:.4f}")
                results[name].append(found)
    return results


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error where there are at least two values.

    >>> mean_and_error([1.0, 3.0]), mean_and_error([2.0])
    ((2.0, 1.0), (2.0, None))
    """
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return statistics.mean(values), error


def mean_text(values: Sequence[float], digits: int) -> str:
    """The same as a text.

    >>> mean_text([50.0, 70.0], 1), mean_text([0.5], 3)
    ('60.0 ± 10.0', '0.500')
    """
    mean, error = mean_and_error(values)
    return f"{mean:.{digits}f}" if error is None else f"{mean:.{digits}f} ± {error:.{digits}f}"


def sizes_text(splits: Mapping[Any, Sized]) -> str:
    """How many networks each split has.

    >>> sizes_text({"train": range(1200), "test": range(100)})
    '1,200 train, 100 test'
    """
    return ", ".join(f"{len(networks):,} {split}" for split, networks in splits.items())


def write_table(out: Path, text: str) -> None:
    """Prints a table and writes it to table.md."""
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
