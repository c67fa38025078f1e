"""Calibration: fits the law of the Neuron rule's scale to learning rates that were tried side by side.

probing.py    one task trained at several multiples of the learning rate: what each costs, and what the rule saw
law.py        from many probes to the linear law of features that would have chosen best
__main__.py   the command

Which step suits a network differs tenfold between architectures, and evolution strategies learn one noisy number of it
in a meta-step. Here a task tells a whole curve, five points of it, and the 28 numbers of the law are fitted to all
curves at once, so some hundred tasks are enough.
"""

from meta_train.calibration.law import Law, cross_validate, fit_law, regret_of
from meta_train.calibration.probing import MULTIPLES, Probe, probe

__all__ = ["MULTIPLES", "Law", "Probe", "cross_validate", "fit_law", "probe", "regret_of"]
