"""Language models: a nanoGPT-style and a Llama-style decoder, and mixtures of experts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.lopt.tracing.networks.network import Make, Network, dense, network, norm


class CausalSelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.tril(torch.ones(length, length)).view(1, 1, length, length))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in self.c_attn(x).split(c, dim=2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.shape[-1])
        scores = scores.masked_fill(self.get_buffer("mask")[:, :, :t, :t] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ v
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


class GPTBlock(nn.Module):
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), CausalSelfAttention(width, heads, length)
        self.ln_2, self.c_fc, self.c_proj = nn.LayerNorm(width), nn.Linear(width, 7), nn.Linear(7, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """Two blocks of two heads; the embedding of the tokens is also the matrix of the logits."""

    def __init__(self, vocabulary: int = 11, width: int = 6, length: int = 5) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.h = nn.ModuleList([GPTBlock(width, 2, length) for _ in range(2)])
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def nano_gpt() -> Network:
    """The tied matrix has tokens on one axis and the stream on the other. The fused c_attn is queries, keys, values."""
    axes = {"wte.weight": "11, r:6", "wpe.weight": "5, r:6"} | norm("ln_f", "r:6")
    for i in (0, 1):
        query, value = f"H{i}:2*q{i}[H{i}]:3", f"H{i}:2*v{i}[H{i}]:3"
        axes |= norm(f"h.{i}.ln_1", "r:6") | norm(f"h.{i}.ln_2", "r:6")
        axes |= dense(f"h.{i}.attn.c_attn", f"{query}+{query}+{value}", "r:6") | dense(
            f"h.{i}.attn.c_proj", "r:6", value
        )
        axes |= dense(f"h.{i}.c_fc", f"f{i}:7", "r:6") | dense(f"h.{i}.c_proj", "r:6", f"f{i}:7")
    return network(GPT(), (torch.tensor([[1, 2, 3, 4], [10, 0, 5, 5]]),), axes)


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Every pair (i, i + d/2) of channels turned by an angle that grows with the position."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class LlamaLayer(nn.Module):
    """Two heads of keys and values, each read by three heads of queries; four channels a head."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q_proj, self.o_proj = nn.Linear(width, 24, bias=False), nn.Linear(24, width, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, 8, bias=False), nn.Linear(width, 8, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = rotated(self.q_proj(x).view(b, t, 6, 4).transpose(1, 2), cos, sin)
        k = rotated(self.k_proj(x).view(b, t, 2, 4).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, t, 2, 4).transpose(1, 2)
        k, v = (y[:, :, None].expand(b, 2, 3, t, 4).reshape(b, 6, t, 4) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, 24))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x), cos, sin)
        y = self.norm2(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(11, 5), nn.ModuleList([LlamaLayer(5, 7), LlamaLayer(5, 7)])
        self.norm, self.lm_head = RMSNorm(5), nn.Linear(5, 11, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, frequencies = self.embed(tokens), 1.0 / 10000 ** (torch.arange(0, 4, 2) / 4)
        angles = torch.outer(torch.arange(tokens.shape[1]), frequencies).repeat(1, 2)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.lm_head(self.norm(x))


def llama() -> Network:
    """Heads of keys and values K; for each, its heads of queries Q may change places. The rotation fixes the channels
    of queries and keys; those of the values v are free, for each head of values on its own."""
    axes = {"embed.weight": "11, r:5", "norm.weight": "r:5", "lm_head.weight": "11, r:5"}
    for i in (0, 1):
        name, kv, rep, v = f"layers.{i}", f"K{i}:2", f"Q{i}[K{i}]:3", f"v{i}[K{i}]:4"
        axes |= {
            f"{name}.norm1.weight": "r:5",
            f"{name}.norm2.weight": "r:5",
            f"{name}.q_proj.weight": f"{kv}*{rep}*4, r:5",
            f"{name}.k_proj.weight": f"{kv}*4, r:5",
            f"{name}.v_proj.weight": f"{kv}*{v}, r:5",
            f"{name}.o_proj.weight": f"r:5, {kv}*{rep}*{v}",
            f"{name}.gate_proj.weight": f"f{i}:7, r:5",
            f"{name}.up_proj.weight": f"f{i}:7, r:5",
            f"{name}.down_proj.weight": f"r:5, f{i}:7",
        }
    return network(Llama(), (torch.tensor([[1, 2, 3, 4], [10, 0, 5, 5]]),), axes)


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class TopK(nn.Module):
    """Every token goes to the two experts of four whose gates are largest, modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.leave = nn.Linear(3, 6), nn.Linear(6, 4, bias=False), nn.Linear(6, 2)
        self.experts = nn.ModuleList([Expert(6, hidden) for hidden in (5, 5, 7, 5)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        share, chosen = F.softmax(self.gate(x), -1).topk(2, -1)
        share = share / share.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == i)
            y.index_add_(0, token, expert(x[token]) * share[token, rank, None])
        return self.leave(x + y)


def mixture_of_experts() -> Network:
    """The truth is a little more: experts 0, 1 and 3 are alike, and may change places with their gates. Whole modules
    that change places are no axis of anything, so the gates are fixed."""
    axes = dense("enter", "r:6", "3") | {"gate.weight": "4, r:6"} | dense("leave", "2", "r:6")
    for i, hidden in enumerate((5, 5, 7, 5)):
        axes |= dense(f"experts.{i}.up", f"f{i}:{hidden}", "r:6") | dense(f"experts.{i}.down", "r:6", f"f{i}:{hidden}")
    return network(TopK(), (torch.randn(32, 3),), axes)


class StackedExperts(nn.Module):
    """The same with three experts whose weights are stacked: (experts, out, in)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.leave = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.up, self.down = nn.Parameter(torch.randn(3, 5, 6)), nn.Parameter(torch.randn(3, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        share, chosen = F.softmax(self.gate(x), -1).topk(2, -1)
        y = torch.zeros_like(x)
        for i in range(3):
            token, rank = torch.where(chosen == i)
            hidden = F.silu(F.linear(x[token], self.up[i]))
            y = y.index_add(0, token, F.linear(hidden, self.down[i]) * share[token, rank, None])
        return self.leave(x + y)


def stacked_experts() -> Network:
    """Each expert has hidden neurons of its own. The truth is a little more: the experts may change places, which
    neither the order of the gates' values nor the loop over experts lets one see."""
    axes = dense("enter", "r:6", "4") | dense("gate", "3", "r:6") | dense("leave", "2", "r:6")
    axes |= {"up": "E=3, h[E]:5, r:6", "down": "E=3, r:6, h[E]:5"}
    return network(StackedExperts(), (torch.randn(32, 4),), axes)


class SoftExperts(nn.Module):
    """Every token goes to all experts, and takes a mean of what they say by the softmax of its gates."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate, self.leave = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.up, self.down = nn.Parameter(torch.randn(3, 6, 5)), nn.Parameter(torch.randn(3, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        hidden = F.gelu(torch.einsum("nd,edh->neh", x, self.up))
        said = torch.einsum("neh,ehd->ned", hidden, self.down)
        return self.leave(x + (F.softmax(self.gate(x), -1)[..., None] * said).sum(1))


def soft_experts() -> Network:
    """The experts E may change places, with their gates, and each has hidden neurons of its own."""
    axes = dense("enter", "r:6", "4") | dense("gate", "E:3", "r:6") | dense("leave", "2", "r:6")
    axes |= {"up": "E:3, r:6, h[E]:5", "down": "E:3, h[E]:5, r:6"}
    return network(SoftExperts(), (torch.randn(8, 4),), axes)


NETWORKS: list[Make] = [nano_gpt, llama, mixture_of_experts, stacked_experts, soft_experts]
