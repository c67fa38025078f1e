"""Kernels for a step of the Neuron rule, chosen by where the weights are; passes.py and think.py are their references.

passes.cpp   the two passes for a CPU, in C++
deflate.h    the deflation of a matrix
mind.h, tokens.h, network.h, think.h   what lies between the passes
elementary.h logarithms and the like, in vectors
native.py    compiles and loads it
cpu.py       the passes with it
think.py     what lies between them with it
triton_kernels.py   for a GPU, in Triton
gpu.py       the passes with them
choose.py    which code takes a step
"""

from lopt.rules.neuron.kernels.choose import kernels_here, memory_of, plan_of

__all__ = ["kernels_here", "memory_of", "plan_of"]
