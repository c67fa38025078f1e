"""What several examples share.

permutations.py  a permutation of its own for every network of a batch; alignment of networks
models.py        neural functionals and the MLPs that they are compared with, by name
sine_symmetry.py the signs and phases of SIRENs
training.py      the loop that trains any of them
sets.py          sets of networks on disk: shards, a manifest, what a damaged one costs
runs.py          runs over models and seeds, kept on disk as they end
"""

from examples.common.models import Architecture, make_editor, make_model
from examples.common.permutations import align, permute_each, random_permutations
from examples.common.runs import Runs, mean_and_error, run_all
from examples.common.sine_symmetry import canonical
from examples.common.training import Recipe, evaluate, train

__all__ = [
    "Architecture",
    "Recipe",
    "Runs",
    "align",
    "canonical",
    "evaluate",
    "make_editor",
    "make_model",
    "mean_and_error",
    "permute_each",
    "random_permutations",
    "run_all",
    "train",
]
