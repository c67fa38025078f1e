"""Networks against other implementations of the same equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tasks import init_module, weight_space_of
from tasks.modules import (
    ACTIVATIONS,
    CELLS,
    GRU,
    INITIALISATIONS,
    LSTM,
    RNN,
    VAE,
    Attention,
    Block,
    MixerBlock,
    RecurrentLM,
    ResidualBlock,
    TransformerLM,
    VisionTransformer,
    cnn,
    conv_autoencoder,
    mixer,
    mlp,
    mlp_autoencoder,
    resnet,
    siren,
)
from tasks.modules.attention import Patches, SwiGLU
from tasks.modules.parts import Embedding


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("ours", "theirs"), [(RNN, nn.RNN), (GRU, nn.GRU), (LSTM, nn.LSTM)])
def test_recurrent_layers_are_pytorchs(ours, theirs) -> None:
    mine, reference = ours(5, 7), theirs(5, 7, batch_first=True)
    reference.load_state_dict({f"{name}_l0": p for name, p in mine.named_parameters()})
    x = torch.randn(3, 6, 5)
    torch.testing.assert_close(mine(x), reference(x)[0])
    torch.testing.assert_close(mine(x[0]), mine(x)[0])  # any leading axes
    for p in mine.parameters():
        assert p.abs().max() <= 7**-0.5


def test_a_block_is_pytorchs_encoder_layer() -> None:
    block = Block(8, 2, 12, causal=True, norm="layer", mlp="gelu")
    reference = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
    with torch.no_grad():
        for mine, theirs in (
            (block.attention.qkv.weight, reference.self_attn.in_proj_weight),
            (block.attention.qkv.bias, reference.self_attn.in_proj_bias),
        ):
            theirs.copy_(mine)
    pairs: list[tuple[Any, nn.Module]] = [
        (block.attention.out, reference.self_attn.out_proj),
        (block.norm1, reference.norm1),
        (block.norm2, reference.norm2),
        (block.mlp.up, reference.linear1),
        (block.mlp.down, reference.linear2),
    ]
    for mine, theirs in pairs:
        theirs.load_state_dict(mine.state_dict())
    x = torch.randn(3, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(block(x), reference(x, src_mask=mask, is_causal=True))


def test_attention_without_a_mask_does_not_know_the_order() -> None:
    layer, x, order = Attention(8, 4, causal=False), torch.randn(2, 6, 8), torch.randperm(6)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
    causal = Attention(8, 4, causal=True)
    assert not torch.allclose(causal(x[:, order]), causal(x)[:, order])


@pytest.mark.parametrize(
    "model",
    [
        lambda: TransformerLM(11, 6, 2, 8, 2, 16, norm="rms", mlp="swiglu", tied=True),
        lambda: TransformerLM(11, 6, 1, 8, 2, 16),
        *[lambda cell=cell: RecurrentLM(11, cell, 4, 5, layers=2) for cell in CELLS],
    ],
)
def test_a_language_model_sees_the_past_alone(model) -> None:
    network = model()
    tokens = torch.randint(11, (3, 6))
    changed = tokens.clone()
    changed[:, 4] = (tokens[:, 4] + 1) % 11
    before, after = network(tokens), network(changed)
    assert before.shape == (3, 6, 11)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(-1).all()


def test_a_tied_head_is_the_embedding() -> None:
    network = TransformerLM(11, 6, 1, 8, 2, 16, tied=True)
    assert not any("head" in name for name, _ in network.named_parameters())
    assert Embedding(1000, 20).weight.std().item() == pytest.approx(0.02, rel=0.05)
    tokens = torch.randint(11, (2, 6))
    hidden = []
    network.norm.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    logits = network(tokens)
    torch.testing.assert_close(logits, hidden[0] @ network.embedding.weight.T)


def test_swiglu() -> None:
    layer, x = SwiGLU(3, 5), torch.randn(2, 3)
    gate = x @ layer.gate.weight.T
    torch.testing.assert_close(layer(x), (gate * torch.sigmoid(gate) * (x @ layer.up.weight.T)) @ layer.down.weight.T)
    assert all(part.bias is None for part in (layer.gate, layer.up, layer.down))


def test_patches_are_those_of_unfold() -> None:
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(Patches(4)(images), F.unfold(images, 4, stride=4).transpose(1, 2))


def test_a_vision_transformer_needs_its_positions() -> None:
    network = VisionTransformer(1, 8, 10, 4, 1, 8, 2, 16)
    images = torch.randn(2, 1, 8, 8)
    swapped = images.roll(4, -1)  # the same patches in another order
    assert not torch.allclose(network(images), network(swapped))
    nn.init.zeros_(network.position.weight)
    torch.testing.assert_close(network(images), network(swapped))


def test_a_mixer_block_against_its_equations() -> None:
    block, x = MixerBlock(4, 6, 5, 7), torch.randn(2, 4, 6)

    def two(layer, x):
        return F.gelu(x @ layer.up.weight.T + layer.up.bias) @ layer.down.weight.T + layer.down.bias

    u = x + two(block.tokens, F.layer_norm(x, (6,)).mT).mT
    torch.testing.assert_close(block(x), u + two(block.channels, F.layer_norm(u, (6,))))
    assert mixer(3, 8, 10, 4, 2, 6, 5, 7)(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(("after", "stride"), [(4, 1), (6, 2)])
def test_a_residual_block_against_its_equations(after: int, stride: int) -> None:
    block, x = ResidualBlock(4, after, stride), torch.randn(5, 4, 8, 8)

    def norm(x):  # by the statistics of this batch
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt()

    inner = norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1)).relu()
    shortcut = x if after == 4 else norm(F.conv2d(x, block.shortcut[0].weight, stride=stride))  # pyright: ignore
    expected = (shortcut + norm(F.conv2d(inner, block.conv2.weight, padding=1))).relu()
    for training in (True, False):  # nothing is remembered
        torch.testing.assert_close(block.train(training)(x), expected)
    assert not list(block.buffers())


def test_a_resnet_halves_the_image_between_stages() -> None:
    network, shapes = resnet(3, [4, 6, 8], 2, 10, "batch", stem_stride=2), []
    for part in network:
        part.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    network(torch.randn(2, 3, 32, 32))
    assert shapes[2:] == [*[(4, 16, 16)] * 3, *[(6, 8, 8)] * 2, *[(8, 4, 4)] * 2, (8,), (10,)]


def test_a_cnn_against_its_equations() -> None:
    network, x = cnn([3, 4, 5], 10, 3, [2, 1], norm="group"), torch.randn(2, 3, 8, 8)
    one = F.group_norm(F.conv2d(x, network[0].weight, network[0].bias, 2, 1), 4).relu()  # pyright: ignore
    two = F.group_norm(F.conv2d(one, network[3].weight, network[3].bias, 1, 1), 1).relu()  # pyright: ignore
    expected = two.mean((2, 3)) @ network[7].weight.T + network[7].bias  # pyright: ignore
    torch.testing.assert_close(network(x), expected)
    assert two.shape[-1] == 4


def test_autoencoders_come_back_to_the_image() -> None:
    assert conv_autoencoder([3, 4, 5], "relu")(torch.randn(2, 3, 16, 16)).shape == (2, 3, 16, 16)
    widths = [p.shape[0] for name, p in mlp_autoencoder(20, [8, 3], "tanh").named_parameters() if "weight" in name]
    assert widths == [8, 3, 8, 20]
    logits, mean, log_variance = VAE(20, [8], 3, "relu")(torch.rand(4, 20), torch.randn(4, 3))
    assert logits.shape == (4, 20) and mean.shape == log_variance.shape == (4, 3)


def test_a_siren_begins_as_in_the_paper() -> None:
    # Section 3.2 of the paper: pre-activations, times the frequency, of standard deviation about 1 at every depth.
    network = siren([2, 256, 256, 256, 1], frequency=30.0)
    init = init_module(network, torch.Generator().manual_seed(0))
    assert init["0.weight"].abs().max() <= 0.5 < 1.01 * init["0.weight"].abs().max()
    for name in ("2.weight", "4.weight"):
        bound = math.sqrt(6 / 256) / 30
        assert init[name].abs().max() <= bound < 1.01 * init[name].abs().max()
    x = torch.rand(500, 2) * 2 - 1
    for name in ("0", "2", "4"):
        x = 30 * (x @ init[f"{name}.weight"].T + init[f"{name}.bias"])
        if name != "0":
            assert 0.8 < x.std() < 2.0  # the biases, as PyTorch draws them, add their own
        x = x.sin()


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "variance"),
    [
        ("default", 1 / 3 / 200),
        ("xavier_uniform", 2 / 500),
        ("xavier_normal", 2 / 500),
        ("kaiming_uniform", 2 / 200),
        ("kaiming_normal", 2 / 200),
        ("lecun_normal", 1 / 200),
        ("orthogonal", 1 / 300),
    ],
)
def test_initialisations_have_their_variance(scheme: str, variance: float) -> None:
    init = init_module(mlp([200, 300, 10], initialisation=scheme), torch.Generator().manual_seed(0))
    assert init["0.weight"].square().mean().item() == pytest.approx(variance, rel=0.05)
    assert init["0.bias"].any() == (scheme == "default")
    if scheme == "orthogonal":
        torch.testing.assert_close(init["0.weight"].T @ init["0.weight"], torch.eye(200))
    assert set(INITIALISATIONS) >= {scheme}


def test_init_module_calls_what_has_no_parameters_of_its_own() -> None:
    # nn.Transformer draws its matrices again after its layers have.
    network = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    torch.manual_seed(0)
    init = init_module(network, torch.Generator().manual_seed(0))
    bound = math.sqrt(6 / (8 + 16))
    weight = init["encoder.layers.0.linear1.weight"]
    assert 8**-0.5 < weight.abs().max() <= bound  # Xavier's bound, above that of nn.Linear


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_leaves_a_stack_of_linear_layers_its_symmetry(activation: str) -> None:
    space = weight_space_of(mlp([3, 4, 2], activation), torch.randn(5, 3))
    assert str(space["0.weight"][0]) == "g0:4" and str(space["2.weight"][1]) == "g0:4"
