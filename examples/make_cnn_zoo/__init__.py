"""A zoo of small CNN classifiers: `python -m examples.make_cnn_zoo` (see README.md).

hyper_parameters.py  what differs between the networks
training.py          trains many of them at once
folder.py            a zoo on disk: `load_zoo`
"""

from examples.make_cnn_zoo.folder import SPACE, Networks, Zoo, load_zoo
from examples.make_cnn_zoo.hyper_parameters import HyperParameters, Ranges, draw
from examples.make_cnn_zoo.training import logits, train_networks

__all__ = ["SPACE", "HyperParameters", "Networks", "Ranges", "Zoo", "draw", "load_zoo", "logits", "train_networks"]
