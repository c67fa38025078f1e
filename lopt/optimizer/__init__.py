"""The `torch.optim.Optimizer`.

optimizer.py    LearnedOptimizer
options.py      what may be given, and what is refused
parameters.py   names of parameters, and their weight space
gathering.py    what a step gives to the rule
writing.py      the only place that writes parameters
nonfinite.py    gradients with NaN or Inf
saved_state.py  loading what another run saved
"""

from lopt.optimizer.optimizer import LearnedOptimizer

__all__ = ["LearnedOptimizer"]
