"""python -m examples.winning_tickets data=cifar10

Trains networks that predict masks, trains the masked test networks, prints the table, and writes table.md,
accuracy.png and a file for each run into `out`. What was stopped goes on after the last run that ended.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from examples.common import Architecture, Recipe, Runs, prepare, run_all, starter, write_table
from examples.make_classifiers import load_classifiers, load_problem, training_of
from examples.winning_tickets.report import draw, table
from examples.winning_tickets.task import METHODS, Ticket, batches
from lopt.errors import InvalidInput
from meta_train.cli import run


def main(config: DictConfig) -> int:
    settings: Any = OmegaConf.to_container(config)
    counts = prepare(settings, settings["methods"], METHODS, "method")
    sparsity = settings["sparsity"]
    if not 0 < sparsity < 1:
        raise InvalidInput(f"sparsity={sparsity!r}: give the share of the weights that go, between 0 and 1")
    found = load_classifiers(settings["folder"], settings["data"], settings["network"], counts)
    made = found.config
    problem = load_problem(made["data"], made["size"], made["network"], made["hidden"])
    size, recipe = Architecture(**settings["model"]), Recipe(**settings["recipe"])
    ticket = partial(Ticket, problem=problem, training=training_of(made), sparsity=sparsity, tested=made["tested"])
    start = starter(ticket, problem.space, batches(found, problem.space, sparsity), size, recipe)
    out = Path(settings["out"])
    about = {key: settings[key] for key in ("sparsity", "model", "recipe", "train", "validation", "test")}
    runs = Runs(out, {**about, "networks": made, "damaged": len(found.damaged)})
    results = run_all(runs, settings["methods"], settings["seeds"], recipe.epochs, start)
    write_table(out, table(results, found, sparsity, recipe.epochs))
    draw(out / "accuracy.png", results, sparsity)
    print(f"{out}: table.md, accuracy.png")
    return 0


if __name__ == "__main__":
    sys.exit(run("examples/winning_tickets", main))
