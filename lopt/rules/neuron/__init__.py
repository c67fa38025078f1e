"""The Neuron rule. In reading order:

form.py           how one parameter is seen: a batch of matrices, with a neuron behind each row and column
ends.py           which axes look like inputs and outputs of a network that nobody traced
layout.py         what is precomputed for a weight space: which entries meet which neurons
tokens.py         from sums over rows, columns and tensors to features without a unit
network.py        the equivariant functional over neurons, tensors and the network
combine.py        from its heads to the coefficients of the update
pure.py           the two passes as pure functions, form by form
chunks.py         how weights are cut and put together so that a pass stays in a cache
passes.py         the two passes in place, chunk by chunk
kernels/          the same as compiled kernels, where these can be had
deflate.py        the largest singular values of an update brought down, an option
orthogonalise.py  Muon's direction, an option
hidden.py         the second pass of hidden matrices that move along it
rule.py           Neuron
"""

from lopt.rules.neuron.rule import Neuron

__all__ = ["Neuron"]
