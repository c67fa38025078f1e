"""PerParameter, an update rule that is a small network for each weight.

rule.py      the rule: its pure form, and which code takes a step in place
step.py      the step in place by PyTorch's operators
kernel.cpp   the same in C++, for a CPU
cpu.py       the step with it
"""

from lopt.rules.per_parameter.rule import PerParameter

__all__ = ["PerParameter"]
