"""Activations by name: what comes after a convolution or a dense layer. All act on each value alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

_MONOTONE: dict[str, Callable[[], nn.Module]] = {  # they never fall where their input rises
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "relu6": nn.ReLU6,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
}
_OTHERS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
}


def make_activation(name: str, *, slope: float = 0.01) -> nn.Module:
    """Return an activation; `slope` is that of leaky_relu below zero (Maas et al. 2013)."""
    return nn.LeakyReLU(slope) if name == "leaky_relu" else (_MONOTONE | _OTHERS)[name]()


def is_monotone(name: str, *, slope: float = 0.01) -> bool:
    """Whether an activation never falls where its input rises."""
    return name in _MONOTONE and slope >= 0
