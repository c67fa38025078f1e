"""python -m examples.classify_inrs data=mnist

Trains each method with each seed, prints the table of test accuracies, and writes table.md, accuracy.png and a file for
each run into `out`. What was stopped goes on after the last run that ended.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from examples.classify_inrs.report import draw, table
from examples.classify_inrs.task import ALIGNED, Classification, aligned, batches, check_method
from examples.common import Architecture, Recipe, Runs, run_all
from examples.make_inrs import InrSet, load_inrs
from meta_train.cli import run
from tasks.arguments import check_positive


def main(config: DictConfig) -> int:
    settings: Any = OmegaConf.to_container(config)
    for method in settings["models"]:
        check_method(method)
    for key in ("seeds", "threads"):
        check_positive(key, settings[key])
    torch.set_num_threads(settings["threads"])
    counts = {split: settings[split] for split in ("train", "validation", "test") if settings[split] is not None}
    found = load_inrs(settings["folder"], settings["data"], counts)
    about = {key: settings[key] for key in ("data", "signs", "model", "recipe", "train", "validation", "test")}
    out = Path(settings["out"])
    runs = Runs(out, {**about, "inrs": found.config, "damaged": len(found.damaged)})
    results = _run_all(settings, found, runs)
    text = table(settings["data"], results, found, settings["recipe"]["epochs"])
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    draw(out / "accuracy.png", settings["data"], results)
    print(f"{out}: table.md, accuracy.png")
    return 0


def _run_all(settings: dict[str, Any], found: InrSet, runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """For each method what its seeds found."""
    size, recipe = Architecture(**settings["model"]), Recipe(**settings["recipe"])
    plain, classes = batches(found, settings["signs"]), 1 + int(found.splits["train"].label.max())
    near = aligned(found.space, plain) if ALIGNED in settings["models"] else plain

    def start(method: str, seed: int) -> Classification:
        splits = near if method == ALIGNED else plain
        return Classification(method, found.space, splits, classes, size, recipe, seed)

    return run_all(runs, settings["models"], settings["seeds"], recipe.epochs, start)


if __name__ == "__main__":
    sys.exit(run("examples/classify_inrs", main))
