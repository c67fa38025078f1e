"""Networks as people write them, with their symmetry written by hand: what `lopt.trace` handles, and what it finds.

Sizes are small and mostly different, so that two axes of one size are not taken for the same by luck; in some networks
they are equal on purpose. Inputs and outputs are fixed. Axes read as in lopt/axes.py.

Written is what follows from how the axes meet. Here and there more is true, and the safe answer is less: where a row
says "the truth is", and for tensors whose own order does not matter, which nothing but arithmetic tells: a key's bias
in a softmax, softmax(q (k + b)) = softmax(q k); a bias that the next norm subtracts (MLP-Mixer's along the places); one
that is averaged over heads or members; weights of a branch that nobody reads (WaveNet's last).

    perceptrons.py        stacks of Linear layers
    reparametrised.py     weight norm, spectral norm
    recurrent.py          RNN, GRU, LSTM, cells
    convolutional.py      pooling, groups, shuffle, squeeze and excite, U-Net, auto-encoder
    residual_networks.py  ResNet, DenseNet
    attention.py          PyTorch's attention and transformers
    language.py           GPT, Llama, mixtures of experts
    vision.py             ViT, Swin, MLP-Mixer
    others.py             graphs, Fourier operators, Mamba; what cannot be followed
"""

from tests.lopt.tracing.networks import (
    attention,
    convolutional,
    language,
    others,
    perceptrons,
    recurrent,
    reparametrised,
    residual_networks,
    vision,
)

_FILES = (
    perceptrons, reparametrised, recurrent, convolutional, residual_networks, attention, language, vision, others,
)  # fmt: skip
NETWORKS = {make.__name__: make for file in _FILES for make in file.NETWORKS}
