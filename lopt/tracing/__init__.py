"""From an nn.Module to its symmetry: `trace`.

algebra.py      what is known of the permutations along one axis; unification
labels.py       of a tensor; what moving entries about does to it
registry.py     one rule an operator; `register` adds one
call.py         what a rule is given
operators/      the rules of PyTorch's operators
tracer.py       one pass over a forward
dependence.py   groups that depend on others: channels on their head
space.py        the result as a WeightSpace
trace.py        the passes, the verification, the report
"""

from lopt.tracing.registry import register
from lopt.tracing.trace import Analysis, TraceWarning, analyse, trace

__all__ = ["Analysis", "TraceWarning", "analyse", "register", "trace"]
