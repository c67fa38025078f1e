"""Update rules, and the registry by which checkpoints and configurations name them."""

from lopt.rules.adam import Adam
from lopt.rules.functional import Functional
from lopt.rules.neuron import Neuron
from lopt.rules.per_parameter import PerParameter
from lopt.rules.rule import Clock, State, UpdateRule, Updates
from lopt.rules.sgdm import SGDM

RULES: dict[str, type[UpdateRule]] = {
    "sgdm": SGDM,
    "adam": Adam,
    "per_parameter": PerParameter,
    "functional": Functional,
    "neuron": Neuron,
}

__all__ = [
    "RULES",
    "SGDM",
    "Adam",
    "Clock",
    "Functional",
    "Neuron",
    "PerParameter",
    "State",
    "UpdateRule",
    "Updates",
]
