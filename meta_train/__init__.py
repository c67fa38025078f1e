"""Meta-training: fits the parameters of an update rule on a family of tasks.

unroll.py        the inner loop: a population of particles; programs.py compiles its step
estimators/      meta-gradients: PES, ES-Single, truncated and full ES, truncated backpropagation
objectives.py    what is minimised; horizons.py how long an episode lasts; reference.py the scale that Adam sets
validation.py    θ on held-out tasks
calibration/     another way to fit the law of the Neuron rule's scale: sizes of its steps tried side by side
averaging.py     the mean of rules that were fitted one from the other
module.py        the outer loop under Lightning; ranks.py what its processes tell each other
keep.py          checkpoints and signals; record.py, plots.py, progress.py: what a person sees
cli.py           how a command starts; __main__.py this one
settings.py      what it may be told; resuming.py how a run begins, anew or from a checkpoint; arguments.py their checks
matching.py      which meta-parameters are fitted
keys.py, memory.py, saving.py    random numbers by name; the allocator; files that appear whole

Importing this package loads neither Lightning nor Hydra, which takes seconds: `MetaTraining` is looked up when it is
asked for, and the command's own modules are imported by it alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from meta_train.estimators import (
    PES,
    Cohort,
    ESSingle,
    Estimate,
    Estimator,
    Evolution,
    FullES,
    Particles,
    TruncatedBackprop,
    TruncatedES,
)
from meta_train.horizons import Fixed, Growing, Horizon, LogUniform
from meta_train.objectives import FinalLoss, MeanLoss, Objective, ValidationLoss
from meta_train.reference import AdamReference
from meta_train.validation import MetaValidation

if TYPE_CHECKING:
    from meta_train.module import MetaTraining

__all__ = [
    "PES",
    "AdamReference",
    "Cohort",
    "ESSingle",
    "Estimate",
    "Estimator",
    "Evolution",
    "FinalLoss",
    "Fixed",
    "FullES",
    "Growing",
    "Horizon",
    "LogUniform",
    "MeanLoss",
    "MetaTraining",
    "MetaValidation",
    "Objective",
    "Particles",
    "TruncatedBackprop",
    "TruncatedES",
    "ValidationLoss",
]


def __getattr__(name: str) -> Any:
    if name == "MetaTraining":
        return import_module("meta_train.module").MetaTraining
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
