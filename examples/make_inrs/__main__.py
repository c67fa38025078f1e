"""python -m examples.make_inrs data=mnist

Fits a SIREN to each image of a data set. A command that was stopped, in whatever way, goes on where it was when it is
given again. Exit codes: 0; 2 bad input; 3 a process was killed; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.common.shards import Shard, begin, shards, sound, sweep
from examples.make_inrs.crew import Job, make_all
from examples.make_inrs.folder import load_inrs
from examples.make_inrs.pictures import save_rows
from examples.make_inrs.sirens import render
from lopt.errors import InvalidInput
from meta_train.cli import run
from tasks import ImageData, load_images
from tasks.arguments import check_at_least, check_positive, check_widths
from tasks.data import SPLITS

KILLED, INTERRUPTED = 3, 130
PREVIEW = 10  # images in preview.png


def main(config: DictConfig) -> int:
    """Makes what is missing of the set that `config` describes."""
    folder, workers = Path(config.folder), config.workers or len(os.sched_getaffinity(0))
    made = settings(config)
    check_positive("workers", workers)
    images = load_images(made["data"], made["size"], standardise=False)
    for split in SPLITS:
        if made[split] > len(images.labels[split]):
            raise InvalidInput(f"{split}: {made[split]}; {made['data']!r} has {len(images.labels[split])} such images")
    begin(folder, made)
    sweep(folder)
    console = Console(stderr=True, highlight=False)
    todo = [shard for shard in shards(folder, made) if not sound(shard, made, console)]
    todo.sort(key=lambda shard: made[shard.split])  # small splits first: a part of the set can then be used early
    try:
        _make(todo, made, images, workers, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return INTERRUPTED
    except BrokenProcessPool:
        console.print("error: a process was killed, perhaps for want of memory; the same command goes on from here")
        return KILLED
    return _finish(folder, made, images)


def settings(config: DictConfig) -> dict[str, Any]:
    """All that the numbers of a set depend on: what its manifest says."""
    found: Any = OmegaConf.to_container(config)
    made = {key: value for key, value in found.items() if key not in ("folder", "workers")}
    for key in ("size", "steps", "pixels", "shard", *SPLITS):
        check_positive(key, made[key])
    check_widths("hidden", made["hidden"], least=1)
    check_at_least("frequency", made["frequency"], 1e-3)
    check_at_least("lr", made["lr"], 0.0)
    check_at_least("initial", made["initial"], 0.0)
    check_at_least("seed", made["seed"], 0)
    return made


def _make(todo: list[Shard], config: dict[str, Any], images: ImageData, workers: int, console: Console) -> None:
    jobs = []
    for shard in todo:
        rows = slice(shard.start, shard.stop)
        pixels, labels = images.images[shard.split][rows], images.labels[shard.split][rows]
        jobs.append(Job(shard, config, pixels.numpy(), labels.numpy()))
    total = sum(len(job.labels) for job in jobs)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "INRs, left:", TimeRemainingColumn())
    texts = [TextColumn(column) if isinstance(column, str) else column for column in columns]
    done, tenth = 0, 0
    with Progress(*texts, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(config["data"], total=total)
        for made in make_all(jobs, min(workers, max(1, len(jobs)))):
            done += made.shard.stop - made.shard.start
            progress.update(bar, completed=done, description=f"{config['data']}, PSNR {made.psnr:.1f} dB")
            if not console.is_terminal and (10 * done) // total > tenth:
                tenth = (10 * done) // total
                console.print(f"{done:,} of {total:,} INRs, PSNR {made.psnr:.1f} dB")


def _finish(folder: Path, config: dict[str, Any], images: ImageData) -> int:
    """Says what was made, and draws the first test images."""
    found = load_inrs(folder, config["data"])
    for split, inrs in found.splits.items():
        low, high = inrs.psnr.min(), inrs.psnr.max()
        print(f"{split}: {len(inrs):,} INRs, PSNR {inrs.psnr.mean():.2f} dB (from {low:.1f} to {high:.1f})")
    first = {name: t[:PREVIEW] for name, t in found.splits["test"].tensors.items()}
    rows = {
        "image": images.images["test"][:PREVIEW],
        "INR": render(first, config["size"], config["frequency"]),
    }
    save_rows(folder / "preview.png", rows)
    print(f"{folder}: manifest.json, preview.png, {len(list(shards(folder, config)))} shards")
    return 0


if __name__ == "__main__":
    sys.exit(run("examples/make_inrs", main))
