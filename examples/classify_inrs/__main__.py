"""python -m examples.classify_inrs data=mnist

Trains each method with each seed, prints the table of test accuracies, and writes table.md, accuracy.png and a file for
each run into `out`. What was stopped goes on after the last run that ended.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from examples.classify_inrs.report import draw, table
from examples.classify_inrs.task import METHODS, Classification, augmentation, batches
from examples.common import Architecture, Recipe, Runs, prepare, run_all, starter, write_table
from examples.common.movements import Movements
from examples.make_inrs import InrSet, load_inrs
from meta_train.cli import run


def main(config: DictConfig) -> int:
    settings: Any = OmegaConf.to_container(config)
    counts = prepare(settings, settings["models"], METHODS)
    found = load_inrs(settings["folder"], settings["data"], counts)
    kept = ("data", "signs", "model", "recipe", "augmentation", "train", "validation", "test")
    about = {key: settings[key] for key in kept}
    out = Path(settings["out"])
    runs = Runs(out, {**about, "inrs": found.config, "damaged": len(found.damaged)})
    results = _run_all(settings, found, runs)
    write_table(out, table(settings["data"], results, found, settings["recipe"]["epochs"]))
    draw(out / "accuracy.png", settings["data"], results)
    print(f"{out}: table.md, accuracy.png")
    return 0


def _run_all(settings: dict[str, Any], found: InrSet, runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """For each method what its seeds found."""
    size, recipe = Architecture(**settings["model"], frequency=found.config["frequency"]), Recipe(**settings["recipe"])
    splits, classes = batches(found, settings["signs"]), 1 + int(found.splits["train"].label.max())
    augment = augmentation(Movements(**settings["augmentation"]), found, settings["signs"])
    start = starter(partial(Classification, classes=classes), found.space, splits, size, recipe, augment)
    return run_all(runs, settings["models"], settings["seeds"], recipe.epochs, start)


if __name__ == "__main__":
    sys.exit(run("examples/classify_inrs", main))
