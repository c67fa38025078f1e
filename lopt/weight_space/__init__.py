"""The symmetry of a network as a value, `WeightSpace`.

space.py             the value: names, axes, groups; what can be done with it
action.py            how a permutation moves the entries of a tensor
canonical.py         when two spaces say the same
linear_stack.py      the space of Linear layers one after the other
permutation_spec.py  git-re-basin's form
table.py             what `print` shows, and the space in numbers
drawing.py           the picture
"""

from lopt.weight_space.space import Shape, WeightSpace

__all__ = ["Shape", "WeightSpace"]
