"""The numeric proof that a module has the symmetry that a weight space claims.

verify.py       which groups hold, fail, or could not be tested
trial.py        runs with permuted weights, and what they differ in
randomise.py    weights under which a network depends on all of them
noise.py        random numbers that permutations leave alone
isolation.py    running somebody's module and leaving no trace
tensor_tree.py  nests of tensors
"""

from lopt.verification.verify import Verification, VerificationError, verify

__all__ = ["Verification", "VerificationError", "verify"]
