"""Calibration: fits the law of the Neuron rule's scale to sizes of its steps that were tried side by side.

probing.py    one task trained with its steps made smaller and larger: what each size costs
law.py        from many probes to the linear law of a tensor's place that would have chosen best
__main__.py   the command

Which step suits a network differs tenfold between architectures, and evolution strategies learn one noisy number of it
in a meta-step. Here a task tells a whole curve, five points of it, and the 17 numbers of the law are fitted to all
curves at once, so some hundred tasks are enough.
"""

from meta_train.calibration.law import Law, cross_validate, fit_law, regrets_of
from meta_train.calibration.probing import FACTORS, Probe, probe

__all__ = ["FACTORS", "Law", "Probe", "cross_validate", "fit_law", "probe", "regrets_of"]
