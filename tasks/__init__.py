"""Inner problems and their data.

task.py           the contract: Task, TaskFamily
supervised.py     the task that nearly every family makes: a module on a table of inputs and targets
image_family.py   what families on images share; image_*.py, autoencoder.py, variational.py: one family each
language.py       language models; text.py reads their texts
tabular.py, logistic_regression.py, tables.py     tables of numbers
image_fit.py, quadratic.py, own_data.py           single images, quadratic bowls, a user's module and table
mixture.py        families made of families; augmentations/ changes a family's tasks
modules/          the networks
data.py, image_sources.py, arguments.py           reading images; checking arguments
"""

from tasks.augmentations import (
    FewExamples,
    GradientNoise,
    InputPermutation,
    LabelNoise,
    LossScaling,
    ParameterScaling,
    Wrapper,
)
from tasks.autoencoder import Autoencoder, ConvAutoencoder
from tasks.data import ImageData, load_images
from tasks.image_cnn import ImageCNN
from tasks.image_family import ImageClassifier, ImageFamily
from tasks.image_fit import ImageFit
from tasks.image_mixer import ImageMixer
from tasks.image_mlp import ImageMLP
from tasks.image_resnet import ImageResNet
from tasks.image_sources import DATA_SETS
from tasks.image_vit import ImageViT
from tasks.language import LanguageFamily, RecurrentLanguageModel, TransformerLanguageModel
from tasks.logistic_regression import LogisticRegression
from tasks.mixture import Mixture, Varied, log_range
from tasks.own_data import OwnData
from tasks.quadratic import Quadratic
from tasks.supervised import Supervised
from tasks.tables import TABLES
from tasks.tabular import Tabular
from tasks.task import Batch, Split, Task, TaskFamily, init_module, weight_space_of
from tasks.text import TEXTS, load_texts
from tasks.variational import VariationalAutoencoder

__all__ = [
    "DATA_SETS",
    "TABLES",
    "TEXTS",
    "Autoencoder",
    "Batch",
    "ConvAutoencoder",
    "FewExamples",
    "GradientNoise",
    "ImageCNN",
    "ImageClassifier",
    "ImageData",
    "ImageFamily",
    "ImageFit",
    "ImageMLP",
    "ImageMixer",
    "ImageResNet",
    "ImageViT",
    "InputPermutation",
    "LabelNoise",
    "LanguageFamily",
    "LogisticRegression",
    "LossScaling",
    "Mixture",
    "OwnData",
    "ParameterScaling",
    "Quadratic",
    "RecurrentLanguageModel",
    "Split",
    "Supervised",
    "Tabular",
    "Task",
    "TaskFamily",
    "TransformerLanguageModel",
    "VariationalAutoencoder",
    "Varied",
    "Wrapper",
    "init_module",
    "load_images",
    "load_texts",
    "log_range",
    "weight_space_of",
]
