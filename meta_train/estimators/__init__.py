"""Estimators of the meta-gradient: (rule, θ, particles) -> (meta-gradient, particles, metrics).

estimator.py    the contract, and what is carried from one meta-gradient to the next
episodes.py     the life of particles: tasks, horizons, objectives; what all estimators share
evolution.py    what the evolution strategies share; strategies.py: PES, ES-Single, truncated and full ES
backprop.py     truncated backpropagation
"""

from meta_train.estimators.backprop import TruncatedBackprop
from meta_train.estimators.estimator import Cohort, Estimate, Estimator, Particles, Share
from meta_train.estimators.evolution import Evolution
from meta_train.estimators.strategies import PES, ESSingle, FullES, TruncatedES

__all__ = [
    "PES",
    "Cohort",
    "ESSingle",
    "Estimate",
    "Estimator",
    "Evolution",
    "FullES",
    "Particles",
    "Share",
    "TruncatedBackprop",
    "TruncatedES",
]
