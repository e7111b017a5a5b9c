"""Networks without branches: a small CNN as the textbooks draw it, and LeNet-5."""

from __future__ import annotations

import torch
from torch import nn

from linnaeus.models.registry import Classifier, Entry, register


def measure_features(body: nn.Module, channels: int, size: int) -> int:
    """Return how many features a body gives for a picture of this size."""
    with torch.no_grad():
        return int(body(torch.zeros(1, channels, size, size)).shape[1])


def build_simple_cnn(classes: int, channels: int, size: int) -> Classifier:
    """Three 3x3 convolutions of 32, 64 and 64 filters with two 2x2 max pools, then a dense layer of 64.

    The rectified maximum is the maximum of the rectified, so the ReLU comes after the pool: on a quarter of the values.
    """
    convolutions = nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    flat = measure_features(convolutions, channels, size)
    return Classifier(nn.Sequential(*convolutions, nn.Linear(flat, 64), nn.ReLU()), 64, classes)


def build_lenet5(classes: int, channels: int, size: int) -> Classifier:
    """LeNet-5 (LeCun et al. 1998): 6 and 16 filters of 5x5, average pooling, tanh, dense 120 and 84.

    Made for 32 pixels; pictures of 28 get the two pixels of padding that make them 32.
    """
    convolutions = nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=2 if size == 28 else 0), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(),
    )  # fmt: skip
    flat = measure_features(convolutions, channels, size)
    dense = nn.Sequential(nn.Linear(flat, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh())
    return Classifier(nn.Sequential(*convolutions, *dense), 84, classes)


register(Entry(name="simple_cnn", build=build_simple_cnn, about="three convolutions and a dense layer", smallest=18))
register(Entry(name="lenet5", build=build_lenet5, about="LeNet-5, LeCun et al. 1998", smallest=16))
