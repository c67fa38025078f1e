"""python -m examples.edit_inrs data=mnist edit=dilation

Trains each model with each seed, prints the table of test errors, and writes table.md, pictures.png and a file for each
run into `out`. What was stopped goes on after the last run that ended.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from examples.common import (
    Architecture,
    Recipe,
    Runs,
    mean_text,
    prepare,
    run_all,
    sizes_text,
    starter,
    write_table,
)
from examples.common.methods import TITLES
from examples.common.models import EDITORS
from examples.common.training import Batch
from examples.edit_inrs.task import PUBLISHED, SHOWN, Editing, batches, edit, errors
from examples.make_inrs import InrSet, load_inrs, render
from examples.make_inrs.pictures import save_rows
from meta_train.cli import run
from tasks import load_images


def main(config: DictConfig) -> int:
    settings: Any = OmegaConf.to_container(config)
    counts = prepare(settings, settings["models"], EDITORS)
    change = edit(settings["edit"])
    found = load_inrs(settings["folder"], settings["data"], counts)
    images = load_images(settings["data"], found.config["size"], standardise=False).images
    splits = batches(found, images, change, settings["signs"])
    size, recipe = Architecture(**settings["model"], frequency=found.config["frequency"]), Recipe(**settings["recipe"])
    start = starter(partial(Editing, frequency=found.config["frequency"]), found.space, splits, size, recipe)
    out = Path(settings["out"])
    kept = ("data", "edit", "signs", "model", "recipe", "train", "validation", "test")
    about = {key: settings[key] for key in kept}
    runs = Runs(out, {**about, "inrs": found.config, "damaged": len(found.damaged)})
    results = run_all(runs, settings["models"], settings["seeds"], recipe.epochs, start)
    before = render(found.splits["test"].tensors, found.config["size"], found.config["frequency"])
    write_table(out, table(settings, results, before, splits["test"], found))
    rows = {"INR": before[:SHOWN], "wanted": splits["test"].target[:SHOWN]}
    rows |= {TITLES[name]: torch.tensor(found_by[0]["shown"]) / 255 for name, found_by in results.items()}
    save_rows(out / "pictures.png", rows)
    print(f"{out}: table.md, pictures.png")
    return 0


def table(
    settings: Mapping[str, Any],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    before: torch.Tensor,
    test: Batch,
    found: InrSet,
) -> str:
    """The test error of every model over its seeds, of no edit at all, and the published one, in Markdown."""
    lines = ["| model | test MSE | parameters | seeds |", "| --- | ---: | ---: | ---: |"]
    lines.append(f"| no edit | {errors(before, test.target).mean():.4f} | 0 | |")
    for name, runs in results.items():
        figure = mean_text([one["test"] for one in runs], 4)
        lines.append(f"| {TITLES[name]} | {figure} | {runs[0]['parameters']:,} | {len(runs)} |")
    if (published := PUBLISHED.get((settings["edit"], settings["data"]))) is not None:
        lines.append(f"| NFN, published | {published:.3f} | | |")
    sizes, epochs = sizes_text(found.splits), settings["recipe"]["epochs"]
    lines += ["", f"{settings['edit']} of {settings['data']}: {sizes} INRs, {epochs} epochs; values in [-1, 1]; mean"]
    lines[-1] += " and standard error over the seeds."
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run("examples/edit_inrs", main))
