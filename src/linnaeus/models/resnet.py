"""ResNet (He et al. 2016, "Deep Residual Learning for Image Recognition"): layers that learn what to add."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from linnaeus.models.registry import Classifier, Entry, register

_SMALL = 64  # pictures up to this side get a stem that keeps their resolution


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to their input, which a 1x1 convolution fits where shapes differ."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def _stem(channels: int, size: int) -> nn.Sequential:
    if size <= _SMALL:
        return nn.Sequential(nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )


def _stage(inside: int, outside: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inside, outside, stride)
    return nn.Sequential(first, *(BasicBlock(outside, outside, 1) for _ in range(blocks - 1)))


def build_resnet18(classes: int, channels: int, size: int) -> Classifier:
    """ResNet-18: four stages of two basic blocks, 64 to 512 channels; a 3x3 stem for small pictures."""
    body = nn.Sequential(
        _stem(channels, size),
        _stage(64, 64, 2, 1),
        _stage(64, 128, 2, 2),
        _stage(128, 256, 2, 2),
        _stage(256, 512, 2, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Classifier(body, 512, classes)


register(Entry(name="resnet18", build=build_resnet18, about="ResNet-18, He et al. 2016", smallest=8, any_size=True))
