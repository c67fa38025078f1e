"""What several examples share.

permutations.py  a permutation of its own for every network of a batch; alignment of networks
models.py        neural functionals and the MLPs that they are compared with, by name
probes.py        what the neurons of INRs say at learned points, as features
mlps.py          the parameters of many MLPs or SIRENs at once
sine_symmetry.py the signs and phases of SIRENs
movements.py     turned, shifted and scaled images of INRs, through their weights
training.py      the loop that trains any of them
methods.py       models and what is done to the networks first, by name; one of them with one seed
shards.py        sets of networks on disk: the files; sets.py: making and reading a set
runs.py          commands: runs over models and seeds, kept on disk as they end, and their tables
"""

from examples.common.methods import Trial, starter
from examples.common.models import Architecture, make_editor, make_model
from examples.common.permutations import align, permute_each, random_permutations
from examples.common.runs import Runs, mean_and_error, mean_text, prepare, run_all, sizes_text, use_threads, write_table
from examples.common.sine_symmetry import canonical
from examples.common.training import Recipe, evaluate, parameter_count, train

__all__ = [
    "Architecture",
    "Recipe",
    "Runs",
    "Trial",
    "align",
    "canonical",
    "evaluate",
    "make_editor",
    "make_model",
    "mean_and_error",
    "mean_text",
    "parameter_count",
    "permute_each",
    "prepare",
    "random_permutations",
    "run_all",
    "sizes_text",
    "starter",
    "train",
    "use_threads",
    "write_table",
]
