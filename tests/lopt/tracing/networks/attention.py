"""PyTorch's own attention and transformers, and a Perceiver: heads H, with channels q (queries and keys) and v (values
and outputs) that each head permutes on its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lopt.tracing.networks.network import Axes, Make, Network, dense, network, norm


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 6), nn.Linear(6, 2)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.attention(x, x, x)[0])


def multihead(name: str, heads: int, channels: int, stream: str, mark: str) -> Axes:
    """`nn.MultiheadAttention` that reads and writes one stream; `mark` tells its groups from others."""
    query = f"H{mark}:{heads}*q{mark}[H{mark}]:{channels}"
    value = f"H{mark}:{heads}*v{mark}[H{mark}]:{channels}"
    projections = f"{query}+{query}+{value}"
    return {
        f"{name}.in_proj_weight": f"{projections}, {stream}",
        f"{name}.in_proj_bias": projections,
        f"{name}.out_proj.weight": f"{stream}, {value}",
        f"{name}.out_proj.bias": stream,
    }


def self_attention() -> Network:
    axes = dense("enter", "r:6", "3") | multihead("attention", 2, 3, "r:6", "0") | dense("leave", "2", "r:6")
    return network(SelfAttention(), (torch.randn(2, 4, 3),), axes)


class CrossAttention(nn.Module):
    """Queries of 6, keys of 5 and values of 7 channels; one learned key and value beside those of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(2, 6), nn.Linear(3, 5), nn.Linear(3, 7)
        self.attention = nn.MultiheadAttention(6, 3, kdim=5, vdim=7, add_bias_kv=True, batch_first=True)
        self.leave = nn.Linear(6, 2)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(memory).relu(), self.value(memory).relu()
        return self.leave(self.attention(query, key, value, need_weights=False)[0])


def cross_attention() -> Network:
    query, value = "H:3*q[H]:2", "H:3*v[H]:2"
    axes = dense("query", "x:6", "2") | dense("key", "y:5", "3") | dense("value", "z:7", "3")
    axes |= {
        "attention.q_proj_weight": f"{query}, x:6",
        "attention.k_proj_weight": f"{query}, y:5",
        "attention.v_proj_weight": f"{value}, z:7",
        "attention.in_proj_bias": f"{query}+{query}+{value}",
        "attention.bias_k": f"1, 1, {query}",
        "attention.bias_v": f"1, 1, {value}",
        "attention.out_proj.weight": f"o:6, {value}",
        "attention.out_proj.bias": "o:6",
    }
    axes |= dense("leave", "2", "o:6")
    return network(CrossAttention(), (torch.randn(2, 4, 2), torch.randn(2, 5, 3)), axes)


def _encoder_layer(name: str, stream: str, mark: str, heads: int, channels: int, hidden: int) -> Axes:
    axes = multihead(f"{name}.self_attn", heads, channels, stream, mark)
    axes |= dense(f"{name}.linear1", f"f{mark}:{hidden}", stream) | dense(
        f"{name}.linear2", stream, f"f{mark}:{hidden}"
    )
    return axes | norm(f"{name}.norm1", stream) | norm(f"{name}.norm2", stream)


class Encoder(nn.Module):
    """Tokens in, a label for each out; some tokens are padding."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 7, batch_first=True, norm_first=norm_first)
        self.embed, self.place = nn.Embedding(11, 6, padding_idx=0), nn.Parameter(torch.randn(5, 6))
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(6), enable_nested_tensor=False)
        self.leave = nn.Linear(6, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        return self.leave(self.encoder(x, src_key_padding_mask=tokens == 0))


def _encoder(norm_first: bool) -> Network:
    axes = {"embed.weight": "11, r:6", "place": "5, r:6"} | norm("encoder.norm", "r:6") | dense("leave", "2", "r:6")
    for i in (0, 1):
        axes |= _encoder_layer(f"encoder.layers.{i}", "r:6", str(i), 2, 3, 7)
    return network(Encoder(norm_first), (torch.tensor([[1, 2, 3, 4, 10], [5, 6, 7, 0, 0]]),), axes)


def transformer_encoder() -> Network:
    return _encoder(norm_first=False)


def transformer_encoder_norm_first() -> Network:
    return _encoder(norm_first=True)


class Translator(nn.Module):
    """`nn.Transformer` from a sequence of vectors to a sequence of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Linear(3, 6), nn.Embedding(5, 6)
        self.transformer = nn.Transformer(6, 2, 1, 1, 7, batch_first=True)
        self.transformer.encoder.enable_nested_tensor = False
        self.leave = nn.Linear(6, 5)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.leave(self.transformer(self.source(x), self.target(tokens), tgt_mask=mask, tgt_is_causal=True))


def transformer() -> Network:
    """The truth is a little more: encoder and decoder have streams of their own. But `in_proj_weight` of the cross
    attention reads the decoder's with its first third and the encoder's with the rest, on one axis: one group."""
    stack = "transformer.decoder.layers.0"
    axes = dense("source", "r:6", "3") | {"target.weight": "5, r:6"} | dense("leave", "5", "r:6")
    axes |= _encoder_layer("transformer.encoder.layers.0", "r:6", "e", 2, 3, 7) | norm(
        "transformer.encoder.norm", "r:6"
    )
    axes |= _encoder_layer(stack, "r:6", "d", 2, 3, 7) | norm("transformer.decoder.norm", "r:6")
    axes |= multihead(f"{stack}.multihead_attn", 2, 3, "r:6", "x") | norm(f"{stack}.norm3", "r:6")
    inputs = torch.randn(2, 4, 3), torch.tensor([[0, 1, 2], [3, 4, 1]])
    return network(Translator(), inputs, axes)


class Perceiver(nn.Module):
    """Five learned latents read a sequence, and are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.enter = nn.Parameter(torch.randn(5, 6)), nn.Linear(3, 7)
        self.query, self.key, self.value = nn.Linear(6, 4), nn.Linear(7, 4), nn.Linear(7, 8)
        self.out, self.norm, self.leave = nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        scores = self.query(self.latents) @ self.key(x).transpose(1, 2) / math.sqrt(4)
        latents = self.latents + self.out(F.softmax(scores, -1) @ self.value(x))
        return self.leave(self.norm(latents).mean(1))


def perceiver() -> Network:
    """The latents L are a set: they may change places."""
    axes = {"latents": "L:5, r:6"} | dense("enter", "x:7", "3") | dense("query", "q:4", "r:6")
    axes |= dense("key", "q:4", "x:7") | dense("value", "v:8", "x:7") | dense("out", "r:6", "v:8")
    axes |= norm("norm", "r:6") | dense("leave", "2", "r:6")
    return network(Perceiver(), (torch.randn(2, 3, 3),), axes)


NETWORKS: list[Make] = [
    self_attention, cross_attention, transformer_encoder, transformer_encoder_norm_first, transformer, perceiver,
]  # fmt: skip
