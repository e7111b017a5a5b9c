"""Small changes that a frozen layer learns, and that are merged into its weights when training ends.

With W the weights of a layer as a matrix (out, in), rank r much smaller than both, and a scale s = 8 / r,

    lora       W + s B A          A (r, in x kernel), B (out, r)     (Hu et al. 2022; of filters: Yeh et al. 2024)
    adapter    W (I + s U D)      D (r, in), U (in, r)               (Luo et al. 2023, RepAdapter, without its bias)

An adapter is a linear layer of 1x1 before the layer, with a bridge around it. B and U begin at zero, so that training
begins with the network as it was. Convolutions in groups stay as they are: those of depthwise layers are too small to
have a low rank, and an adapter before them would not fit into their groups.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

_SCALE = 8.0


class LowRank(nn.Module):
    """LoRA: a change of low rank beside the weights (out, in) or (out, in, H, W) of a layer."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.scale = _SCALE / rank
        self.down = _start(rank, weight[0].numel(), like=weight)
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the changed weights."""
        return weight + self.scale * (self.up @ self.down).view(weight.shape)


class Adapter(nn.Module):
    """RepAdapter: a linear layer of low rank before a layer with weights (out, in) or (out, in, H, W)."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        self.scale = _SCALE / rank
        self.down = _start(rank, weight.shape[1], like=weight)
        self.up = nn.Parameter(weight.new_zeros(weight.shape[1], rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weights of adapter and layer in one."""
        narrow = torch.einsum("oi...,ir->or...", weight, self.up)
        return weight + self.scale * torch.einsum("or...,ri->oi...", narrow, self.down)


def _start(rank: int, inside: int, *, like: torch.Tensor) -> nn.Parameter:
    """Return random float (rank, inside), with which inputs of variance 1 give outputs of variance 1/3."""
    values = like.new_empty(rank, inside)
    return nn.Parameter(nn.init.kaiming_uniform_(values, a=math.sqrt(5)))


KINDS: dict[str, type[LowRank] | type[Adapter]] = {"lora": LowRank, "adapter": Adapter}


def list_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers that can have a low-rank change by name: dense ones, and convolutions without groups."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def is_smaller(layer: nn.Conv2d | nn.Linear, kind: str, rank: int) -> bool:
    """Whether a change of this rank is of low rank for a layer, and takes fewer weights than the layer has."""
    outside, inside, all_inside = len(layer.weight), layer.weight.shape[1], layer.weight[0].numel()
    if kind == "adapter":
        return rank < inside and 2 * rank * inside < layer.weight.numel()
    return rank * (outside + all_inside) < layer.weight.numel()


def adapt(layer: nn.Conv2d | nn.Linear, kind: str, rank: int) -> None:
    """Give a layer a change that learns; its own weights learn no more."""
    layer.weight.requires_grad_(False)
    parametrize.register_parametrization(layer, "weight", KINDS[kind](layer.weight, rank))


def merge(model: nn.Module) -> None:
    """Make each change part of the weights, in place. The network then has its own names again and no others.

    Copies of the network share its classes, and cannot be used afterwards.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
