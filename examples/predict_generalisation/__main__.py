"""python -m examples.predict_generalisation

Trains each method with each seed, prints the table of Kendall's tau, and writes table.md, predictions.png and a file
for each run into `out`. What was stopped goes on after the last run that ended.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from examples.common import Architecture, Recipe, Runs, run_all
from examples.make_cnn_zoo import load_zoo
from examples.predict_generalisation.report import draw, table
from examples.predict_generalisation.task import Prediction, batches, check_method
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
    zoo = load_zoo(settings["folder"], settings["data"], counts)
    size, recipe = Architecture(**settings["model"]), Recipe(**settings["recipe"])
    about = {key: settings[key] for key in ("data", "model", "recipe", "train", "validation", "test")}
    out, splits = Path(settings["out"]), batches(zoo)
    runs = Runs(out, {**about, "zoo": zoo.config, "damaged": len(zoo.damaged)})

    def start(method: str, seed: int) -> Prediction:
        return Prediction(method, zoo.space, splits, size, recipe, seed)

    results = run_all(runs, settings["models"], settings["seeds"], recipe.epochs, start)
    text = table(settings["data"], results, zoo, recipe.epochs)
    print(text)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    draw(out / "predictions.png", settings["data"], results, zoo)
    print(f"{out}: table.md, predictions.png")
    return 0


if __name__ == "__main__":
    sys.exit(run("examples/predict_generalisation", main))
