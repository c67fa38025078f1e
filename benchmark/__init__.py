"""The benchmark: honest races of learned optimizers against tuned baselines."""

from benchmark.contenders import Contender
from benchmark.own import Outcome, race
from benchmark.race import Entry, Failure, Result

__all__ = ["Contender", "Entry", "Failure", "Outcome", "Result", "race"]
