"""Families made of another family by a change that differs from task to task. They are families, so they compose."""

from tasks.augmentations.few_examples import FewExamples
from tasks.augmentations.gradient_noise import GradientNoise
from tasks.augmentations.input_permutation import InputPermutation
from tasks.augmentations.label_noise import LabelNoise
from tasks.augmentations.loss_scaling import LossScaling
from tasks.augmentations.parameter_scaling import ParameterScaling
from tasks.augmentations.wrapper import Wrapper

__all__ = [
    "FewExamples",
    "GradientNoise",
    "InputPermutation",
    "LabelNoise",
    "LossScaling",
    "ParameterScaling",
    "Wrapper",
]
