"""Kernels for the two passes of the Neuron rule, chosen by where the weights are; passes.py is their reference.

passes.cpp   for a CPU, in C++
native.py    compiles and loads it
cpu.py       the passes with it
triton_kernels.py   for a GPU, in Triton
gpu.py       the passes with them
choose.py    which code takes a step
"""

from lopt.rules.neuron.kernels.choose import kernels_here, memory_of

__all__ = ["kernels_here", "memory_of"]
