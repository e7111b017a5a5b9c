"""A small fast network of ours for small pictures."""

from __future__ import annotations

from torch import nn

from linnaeus.models.registry import Classifier, Entry, register


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())


def build_fastnet(classes: int, channels: int, size: int, width: int = 32) -> Classifier:
    """Placeholder shape."""
    body = nn.Sequential(
        _conv(channels, width),
        _conv(width, 2 * width, 2),
        _conv(2 * width, 4 * width, 2),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
    )
    return Classifier(body, 4 * width, classes)


register(Entry(name="fastnet", build=build_fastnet, about="a small fast network of ours", smallest=8))
