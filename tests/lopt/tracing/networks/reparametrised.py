"""Weights made of other tensors: weight norm and spectral norm, in PyTorch's old and new form."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.lopt.tracing.networks.network import Make, Network, dense, network


def _three_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))


def weight_norm() -> Network:
    """w = g v / |v| row by row, g of shape (out, 1)."""
    module = _three_layers()
    for layer in (module[0], module[2]):
        parametrizations.weight_norm(layer)
    axes = {"0.bias": "a:5", "2.bias": "b:7"} | dense("4", "2", "b:7")
    axes |= {"0.parametrizations.weight.original0": "a:5, 1", "0.parametrizations.weight.original1": "a:5, 3"}
    axes |= {"2.parametrizations.weight.original0": "b:7, 1", "2.parametrizations.weight.original1": "b:7, a:5"}
    return network(module, (torch.randn(4, 3),), axes)


def weight_norm_old() -> Network:
    """The same; the weight itself is a plain attribute of the layer, made anew in every forward."""
    module = _three_layers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for layer in (module[0], module[2]):
            nn.utils.weight_norm(layer)
    axes = {"0.bias": "a:5", "0.weight_g": "a:5, 1", "0.weight_v": "a:5, 3"}
    axes |= {"2.bias": "b:7", "2.weight_g": "b:7, 1", "2.weight_v": "b:7, a:5"} | dense("4", "2", "b:7")
    return network(module, (torch.randn(4, 3),), axes)


def spectral_norm() -> Network:
    """w / (u^T w v), where the buffers u and v move with the rows and the columns of w, taken as a matrix."""
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 2), nn.Flatten(), nn.Linear(7 * 4, 2))
    for layer in (module[0], module[2]):
        parametrizations.spectral_norm(layer)
    first, second = "0.parametrizations.weight", "2.parametrizations.weight"
    axes = {"0.bias": "a:5", f"{first}.original": "a:5, 3, 3, 3"}
    axes |= {"2.bias": "b:7", f"{second}.original": "b:7, a:5, 2, 2"} | dense("4", "2", "b:7*4")
    buffers = {f"{first}.0._u": "a:5", f"{second}.0._u": "b:7", f"{second}.0._v": "a:5*4"}
    return network(module, (torch.randn(2, 3, 5, 5),), axes, buffers)


def spectral_norm_old() -> Network:
    module = _three_layers()
    for layer in (module[0], module[2]):
        nn.utils.spectral_norm(layer)
    axes = {"0.bias": "a:5", "0.weight_orig": "a:5, 3", "2.bias": "b:7", "2.weight_orig": "b:7, a:5"}
    axes |= dense("4", "2", "b:7")
    buffers = {"0.weight_u": "a:5", "2.weight_u": "b:7", "2.weight_v": "a:5"}
    return network(module, (torch.randn(4, 3),), axes, buffers)


NETWORKS: list[Make] = [weight_norm, weight_norm_old, spectral_norm, spectral_norm_old]
