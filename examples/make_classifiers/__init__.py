"""Small image classifiers, many at a time: `python -m examples.make_classifiers data=cifar10` (see README.md).

training.py  trains and tests many networks of one kind together
folder.py    a set of them on disk, before and after training
"""

from examples.make_classifiers.folder import Classifiers, ClassifierSet, load_classifiers
from examples.make_classifiers.training import (
    Problem,
    Training,
    initial_networks,
    load_problem,
    measure,
    train_all,
    training_of,
)

__all__ = [
    "ClassifierSet",
    "Classifiers",
    "Problem",
    "Training",
    "initial_networks",
    "load_classifiers",
    "load_problem",
    "measure",
    "train_all",
    "training_of",
]
