"""python -m examples.sine_waves task=regression

Makes the networks that are missing in `folder`, trains each method with each seed, prints the table, and writes it with
a picture into `out`. What was stopped goes on where it was. Exit codes: 0; 2 bad input; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from examples.common import Architecture, Recipe, Runs, prepare, run_all, starter, write_table
from examples.common.methods import ALIGNED, AUGMENTED, TITLES
from examples.sine_waves import adaptation, regression, report, representation
from examples.sine_waves.adaptation import ADAPTERS, Adaptation
from examples.sine_waves.classifiers import Corruption, make_binary_classifiers
from examples.sine_waves.regression import Regression
from examples.sine_waves.representation import Contrast, Representation
from examples.sine_waves.waves import make_waves
from lopt.errors import InvalidInput, unknown
from meta_train.cli import run
from tasks.arguments import check_positive

INTERRUPTED = 130
METHODS = ("dws", "hnp", "np", "mlp", AUGMENTED, ALIGNED)  # of regression and representation
Settings = Mapping[str, Any]


def main(config: DictConfig) -> int:
    settings: Any = OmegaConf.to_container(config)
    if settings["task"] not in TASKS:
        raise unknown("task", settings["task"], TASKS)
    own = settings[settings["task"]]
    prepare(settings, own["models"], ADAPTERS if settings["task"] == "adaptation" else METHODS)
    out = Path(settings["out"])
    console = Console(stderr=True, highlight=False)
    try:
        text = TASKS[settings["task"]](settings, own, out, console)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        return INTERRUPTED
    write_table(out, text)
    print(f"{out}: table.md and a picture")
    return 0


def _about(settings: Settings, own: Settings, **more: Any) -> dict[str, Any]:
    """All that a run depends on besides its method and its seed."""
    rest = {key: value for key, value in own.items() if key not in ("models", "sizes")}
    return {**rest, "model": settings["model"], **more}


def _regression(settings: Settings, own: Settings, out: Path, console: Console) -> str:
    sizes, size, recipe = sorted(own["sizes"]), Architecture(**settings["model"]), Recipe(**own["recipe"])
    most = own["waves"]["train"]
    if not sizes or not all(1 <= count <= most for count in sizes):
        raise InvalidInput(f"regression.sizes={sizes}: give numbers of train networks, at most {most}")
    waves = make_waves(Path(settings["folder"]) / "regression", own["waves"], console)
    results = {}
    for count in sizes:
        console.print(f"{count} train networks")
        start = starter(Regression, waves.space, regression.batches(waves, count), size, recipe)
        runs = Runs(out / str(count), _about(settings, own, train=count))
        results[count] = run_all(runs, own["models"], settings["seeds"], recipe.epochs, start)
    report.draw_by_size(out / "regression.png", results, TITLES)
    return report.table_by_size(results, TITLES)


def _representation(settings: Settings, own: Settings, out: Path, console: Console) -> str:
    size, recipe = Architecture(**settings["model"]), Recipe(**own["recipe"])
    experiment = partial(Representation, contrast=Contrast(**own["contrast"]))
    waves = make_waves(Path(settings["folder"]) / "representation", own["waves"], console)
    start = starter(experiment, waves.space, representation.batches(waves), size, recipe)
    results = run_all(Runs(out, _about(settings, own)), own["models"], settings["seeds"], recipe.epochs, start)
    report.draw_embeddings(out / "representation.png", results, TITLES, waves.splits["test"].wave)
    return report.table(results, TITLES, "test error of the probe", report.PROBED, 1.0, 2)


def _adaptation(settings: Settings, own: Settings, out: Path, console: Console) -> str:
    size, recipe = Architecture(**settings["model"]), Recipe(**own["recipe"])
    corruption = Corruption(**own["corruption"])
    check_positive("adaptation.shown", own["shown"])
    found = make_binary_classifiers(Path(settings["folder"]) / "classifiers", own["classifiers"], console)
    experiment = partial(Adaptation, images=found.images, corruption=corruption, shown=own["shown"])
    splits = {str(split): batch for split, batch in found.splits.items()}
    start = starter(experiment, found.space, splits, size, recipe)
    results = run_all(Runs(out, _about(settings, own)), own["models"], settings["seeds"], recipe.epochs, start)
    report.draw_accuracies(out / "adaptation.png", results, adaptation.TITLES)
    return report.table(results, adaptation.TITLES, "accuracy on the target domain, %", report.ADAPTED, 100.0, 2)


TASKS: Mapping[str, Callable[[Settings, Settings, Path, Console], str]] = {
    "regression": _regression,
    "representation": _representation,
    "adaptation": _adaptation,
}

if __name__ == "__main__":
    sys.exit(run("examples/sine_waves", main))
