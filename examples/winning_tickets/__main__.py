"""python -m examples.winning_tickets data=cifar10

Trains networks that predict masks, trains the masked test networks, prints the table, and writes table.md,
accuracy.png and a file for each run into `out`. What was stopped goes on after the last run that ended.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from examples.common import Architecture, Recipe, Runs, run_all
from examples.make_classifiers import load_classifiers, load_problem, training_of
from examples.winning_tickets.report import draw, table
from examples.winning_tickets.task import Ticket, batches, check_method
from lopt.errors import InvalidInput
from meta_train.cli import run
from tasks.arguments import check_positive


def main(config: DictConfig) -> int:
    settings: Any = OmegaConf.to_container(config)
    for method in settings["methods"]:
        check_method(method)
    for key in ("seeds", "threads"):
        check_positive(key, settings[key])
    sparsity = settings["sparsity"]
    if not 0 < sparsity < 1:
        raise InvalidInput(f"sparsity={sparsity!r}: give the share of the weights that go, between 0 and 1")
    torch.set_num_threads(settings["threads"])
    counts = {split: settings[split] for split in ("train", "validation", "test") if settings[split] is not None}
    found = load_classifiers(settings["folder"], settings["data"], settings["network"], counts)
    made = found.config
    problem = load_problem(made["data"], made["size"], made["network"], made["hidden"])
    splits = batches(found, problem.space, sparsity)
    size, recipe, training = Architecture(**settings["model"]), Recipe(**settings["recipe"]), training_of(made)

    def start(method: str, seed: int) -> Ticket:
        return Ticket(method, problem, splits, size, recipe, training, sparsity, made["tested"], seed)

    out = Path(settings["out"])
    about = {key: settings[key] for key in ("sparsity", "model", "recipe", "train", "validation", "test")}
    runs = Runs(out, {**about, "networks": made, "damaged": len(found.damaged)})
    results = run_all(runs, settings["methods"], settings["seeds"], recipe.epochs, start)
    text = table(results, found, sparsity, recipe.epochs)
    print(text)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    draw(out / "accuracy.png", results, sparsity)
    print(f"{out}: table.md, accuracy.png")
    return 0


if __name__ == "__main__":
    sys.exit(run("examples/winning_tickets", main))
