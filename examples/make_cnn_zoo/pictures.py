"""How accurate the networks of a zoo are, and what that depends on."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from examples.make_cnn_zoo.folder import Zoo

SHOWN = {"lr": "learning rate", "scale": "scale of the initial weights", "steps": "steps"}


def draw_zoo(path: Path, zoo: Zoo) -> None:
    """The test accuracies of the train split: their histogram, and each against three hyper-parameters."""
    networks = zoo.splits["train"]
    accuracy, columns = 100 * networks.accuracy, networks.chosen.columns()
    figure = Figure(figsize=(12, 3), dpi=100, layout="constrained")
    first, *others = figure.subplots(1, 1 + len(SHOWN))
    first.hist(accuracy.numpy(), bins=40)
    first.set(xlabel="test accuracy, %", ylabel="networks")
    for axis, (name, title) in zip(others, SHOWN.items(), strict=True):
        for tanh, label in ((False, "ReLU"), (True, "tanh")):
            rows = networks.chosen.tanh == tanh
            axis.scatter(columns[name][rows].numpy(), accuracy[rows].numpy(), s=2, alpha=0.5, label=label)
        axis.set(xscale="log", xlabel=title)
        axis.xaxis.set_minor_formatter(NullFormatter())
    others[0].set_ylabel("test accuracy, %")
    others[0].legend(markerscale=4)
    figure.savefig(path)
