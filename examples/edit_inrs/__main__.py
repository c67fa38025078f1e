"""python -m examples.edit_inrs data=mnist edit=dilation

Trains each model with each seed, prints the table of test errors, and writes table.md, pictures.png and a file for each
run into `out`. What was stopped goes on after the last run that ended.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from examples.common import Architecture, Recipe, Runs, make_editor, mean_and_error, run_all
from examples.common.training import Batch
from examples.edit_inrs.task import PUBLISHED, SHOWN, Editing, batches, edit, errors
from examples.make_inrs import InrSet, load_inrs, render
from examples.make_inrs.pictures import save_rows
from lopt.errors import unknown
from meta_train.cli import run
from tasks import load_images
from tasks.arguments import check_positive

TITLES = {"np": "NP", "hnp": "HNP", "mlp": "MLP"}


def main(config: DictConfig) -> int:
    settings: Any = OmegaConf.to_container(config)
    for name in settings["models"]:
        if name not in TITLES:
            raise unknown("model", name, TITLES)
    for key in ("seeds", "threads"):
        check_positive(key, settings[key])
    change = edit(settings["edit"])
    torch.set_num_threads(settings["threads"])
    counts = {split: settings[split] for split in ("train", "validation", "test") if settings[split] is not None}
    found = load_inrs(settings["folder"], settings["data"], counts)
    images = load_images(settings["data"], found.config["size"], standardise=False).images
    splits = batches(found, images, change, settings["signs"])
    size, recipe = Architecture(**settings["model"]), Recipe(**settings["recipe"])

    def start(name: str, seed: int) -> Editing:
        torch.manual_seed(seed)
        model = make_editor(name, found.space, splits["train"].tensors, size)
        return Editing(model, splits, found.config["frequency"], recipe, seed)

    out = Path(settings["out"])
    kept = ("data", "edit", "signs", "model", "recipe", "train", "validation", "test")
    about = {key: settings[key] for key in kept}
    runs = Runs(out, {**about, "inrs": found.config, "damaged": len(found.damaged)})
    results = run_all(runs, settings["models"], settings["seeds"], recipe.epochs, start)
    before = render(found.splits["test"].tensors, found.config["size"], found.config["frequency"])
    text = table(settings, results, before, splits["test"], found)
    print(text)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
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
        mean, error = mean_and_error([one["test"] for one in runs])
        figure = f"{mean:.4f}" if error is None else f"{mean:.4f} ± {error:.4f}"
        lines.append(f"| {TITLES[name]} | {figure} | {runs[0]['parameters']:,} | {len(runs)} |")
    if (published := PUBLISHED.get((settings["edit"], settings["data"]))) is not None:
        lines.append(f"| NFN, published | {published:.3f} | | |")
    sizes = ", ".join(f"{len(inrs):,} {split}" for split, inrs in found.splits.items())
    epochs = settings["recipe"]["epochs"]
    lines += ["", f"{settings['edit']} of {settings['data']}: {sizes} INRs, {epochs} epochs; values in [-1, 1]; mean"]
    lines[-1] += " and standard error over the seeds."
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run("examples/edit_inrs", main))
