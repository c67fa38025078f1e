"""Calibration: fits the law and the power of the Neuron rule's scale to sizes of its steps, tried side by side.

probing.py    one task trained with its steps made smaller and larger, and falling sooner and later: what each costs
law.py        from many probes to the power, and the linear law of a tensor's place, that would have chosen best
__main__.py   the command

Which step suits a network differs tenfold between architectures, and evolution strategies learn one noisy number of it
in a meta-step. Here a task tells a whole curve for each power, five points of it, and the 17 numbers of the law are
fitted to all curves at once, so some hundred tasks are enough.
"""

from meta_train.calibration.law import Law, cross_validate, fit_law, regrets_of
from meta_train.calibration.probing import ANNEALS, FACTORS, Probe, probe

__all__ = ["ANNEALS", "FACTORS", "Law", "Probe", "cross_validate", "fit_law", "probe", "regrets_of"]
