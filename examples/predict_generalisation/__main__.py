"""python -m examples.predict_generalisation

Trains each method with each seed, prints the table of Kendall's tau, and writes table.md, predictions.png and a file
for each run into `out`. What was stopped goes on after the last run that ended.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from examples.common import Architecture, Recipe, Runs, prepare, run_all, starter, write_table
from examples.make_cnn_zoo import load_zoo
from examples.predict_generalisation.report import draw, table
from examples.predict_generalisation.task import METHODS, Prediction, batches
from meta_train.cli import run


def main(config: DictConfig) -> int:
    settings: Any = OmegaConf.to_container(config)
    counts = prepare(settings, settings["models"], METHODS)
    zoo = load_zoo(settings["folder"], settings["data"], counts)
    size, recipe = Architecture(**settings["model"]), Recipe(**settings["recipe"])
    about = {key: settings[key] for key in ("data", "model", "recipe", "train", "validation", "test")}
    out = Path(settings["out"])
    runs = Runs(out, {**about, "zoo": zoo.config, "damaged": len(zoo.damaged)})
    start = starter(Prediction, zoo.space, batches(zoo), size, recipe)
    results = run_all(runs, settings["models"], settings["seeds"], recipe.epochs, start)
    write_table(out, table(settings["data"], results, zoo, recipe.epochs))
    draw(out / "predictions.png", settings["data"], results, zoo)
    print(f"{out}: table.md, predictions.png")
    return 0


if __name__ == "__main__":
    sys.exit(run("examples/predict_generalisation", main))
