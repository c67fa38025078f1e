"""lopt: a learned optimizer for PyTorch that knows the structure of the network it trains.

optimizer = lopt.LearnedOptimizer(model.named_parameters())
"""

from lopt import functionals, rules, testing, tracing
from lopt.checkpoint import load_rule, packaged_rules, read_card, save_rule
from lopt.errors import InvalidInput
from lopt.optimizer import LearnedOptimizer
from lopt.tracing import trace
from lopt.version import __version__
from lopt.weight_space import WeightSpace

__all__ = [
    "InvalidInput",
    "LearnedOptimizer",
    "WeightSpace",
    "__version__",
    "functionals",
    "load_rule",
    "packaged_rules",
    "read_card",
    "rules",
    "save_rule",
    "testing",
    "trace",
    "tracing",
]
