"""NF-layers: equivariant networks over weight-space features `{parameter name: [*batch, *shape, channels]}`."""

from lopt.functionals import presets
from lopt.functionals.attention import WeightSpaceAttention, nft_block
from lopt.functionals.basis import Reading, Term, Writing
from lopt.functionals.dropout import FeatureDropout
from lopt.functionals.encodings import LayerEncoding, PositionEncoding
from lopt.functionals.features import apply_updates, call, features_of, gradients_of, stack_networks, tensors_of
from lopt.functionals.folder import CheckpointFolder, load_checkpoints
from lopt.functionals.fourier import FourierFeatures
from lopt.functionals.gradient_sets import GradientSetLinear, SetAttention, SetPool
from lopt.functionals.linear import EquivariantLinear
from lopt.functionals.neuron_products import GradientProduct, PairwiseMLP
from lopt.functionals.neurons import NeuronEncoding, NeuronLinear, NeuronReadout, neuron_space
from lopt.functionals.norm import ChannelNorm
from lopt.functionals.pointwise import Pointwise, mlp
from lopt.functionals.pool import InvariantPool
from lopt.functionals.rank_one import factor_slots, factors_to_gradients, rank_one_factors
from lopt.functionals.reductions import Reduction
from lopt.functionals.residual import Residual
from lopt.functionals.set_layers import EquivariantSetLayer

__all__ = [
    "ChannelNorm",
    "CheckpointFolder",
    "EquivariantLinear",
    "EquivariantSetLayer",
    "FeatureDropout",
    "FourierFeatures",
    "GradientProduct",
    "GradientSetLinear",
    "InvariantPool",
    "LayerEncoding",
    "NeuronEncoding",
    "NeuronLinear",
    "NeuronReadout",
    "PairwiseMLP",
    "Pointwise",
    "PositionEncoding",
    "Reading",
    "Reduction",
    "Residual",
    "SetAttention",
    "SetPool",
    "Term",
    "WeightSpaceAttention",
    "Writing",
    "apply_updates",
    "call",
    "factor_slots",
    "factors_to_gradients",
    "features_of",
    "gradients_of",
    "load_checkpoints",
    "mlp",
    "neuron_space",
    "nft_block",
    "presets",
    "rank_one_factors",
    "stack_networks",
    "tensors_of",
]
