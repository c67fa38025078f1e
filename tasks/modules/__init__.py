"""The networks that tasks train. All run under `torch.func.vmap`: no running statistics, no fused recurrent kernels."""

from tasks.modules.attention import Attention, Block, TransformerLM, VisionTransformer
from tasks.modules.autoencoder import VAE, conv_autoencoder, mlp_autoencoder
from tasks.modules.convolutional import ResidualBlock, cnn, resnet
from tasks.modules.mixer import MixerBlock, mixer
from tasks.modules.mlp import mlp
from tasks.modules.parts import ACTIVATIONS, IMAGE_NORMS, INITIALISATIONS, NORMS, Network
from tasks.modules.recurrent import CELLS, GRU, LSTM, RNN, RecurrentLM
from tasks.modules.siren import Sine, siren

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "GRU",
    "IMAGE_NORMS",
    "INITIALISATIONS",
    "LSTM",
    "NORMS",
    "RNN",
    "VAE",
    "Attention",
    "Block",
    "MixerBlock",
    "Network",
    "RecurrentLM",
    "ResidualBlock",
    "Sine",
    "TransformerLM",
    "VisionTransformer",
    "cnn",
    "conv_autoencoder",
    "mixer",
    "mlp",
    "mlp_autoencoder",
    "resnet",
    "siren",
]
