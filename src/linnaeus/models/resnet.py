"""ResNet (He et al. 2016, "Deep Residual Learning for Image Recognition"): layers that learn what to add.

Layers bear torchvision's names, so that its published weights fit. In the bottleneck the 3x3 convolution has the
stride, as there ("ResNet 1.5"), not the first 1x1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from linnaeus.models.registry import IMAGENET, SMALL, Classifier, Entry, register
from linnaeus.models.stages import Stages


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to their input, which a 1x1 convolution fits where shapes differ."""

    expansion = 1

    def __init__(self, inside: int, width: int, stride: int, *, skip: float = 0.0) -> None:
        super().__init__()
        self.skip = skip
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _fit(inside, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inside, H, W) to (N, width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(_sometimes(y, self.skip if self.training else 0.0) + self.downsample(x))


class Bottleneck(nn.Module):
    """A 1x1 convolution to fewer channels, a 3x3 one among them, and a 1x1 one to four times as many."""

    expansion = 4

    def __init__(self, inside: int, width: int, stride: int, *, skip: float = 0.0) -> None:
        super().__init__()
        self.skip = skip
        outside = self.expansion * width
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.downsample = _fit(inside, outside, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inside, H, W) to (N, 4 width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(_sometimes(y, self.skip if self.training else 0.0) + self.downsample(x))


def _sometimes(y: torch.Tensor, skip: float) -> torch.Tensor:
    """Set what a block adds to zero for a random share of the images (stochastic depth, Huang et al. 2016)."""
    if not skip:
        return y
    kept = torch.rand(len(y), 1, 1, 1, device=y.device) >= skip
    return y * kept / (1 - skip)


def _fit(inside: int, outside: int, stride: int) -> nn.Module:
    """Return what gives a block's input the shape of its output."""
    if stride == 1 and inside == outside:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(Classifier):
    """A stem, four stages of blocks with 64, 128, 256 and 512 channels, and the mean over what is left of the picture.

    Small pictures keep their resolution in the stem: a 3x3 convolution with stride 1, and no pooling. With
    `stochastic_depth`, blocks are skipped by ever more images, up to this share of them at the last block.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, ...],
        classes: int,
        channels: int,
        size: int,
        *,
        stochastic_depth: float = 0.0,
    ) -> None:
        nn.Module.__init__(self)
        small = size <= SMALL
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(channels, 64, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool: nn.Module = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        inside, number = 64, 0
        for i, depth in enumerate(depths):
            width, blocks = 64 * 2**i, []
            for j in range(depth):
                number += 1
                skip = stochastic_depth * number / sum(depths)
                blocks.append(block(inside, width, 2 if i > 0 and j == 0 else 1, skip=skip))
                inside = block.expansion * width
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.width = inside
        self.fc = nn.Linear(inside, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """The last layer, under its published name."""
        return self.fc

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float (N, D): the mean over the last feature map of images float (N, C, H, W)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images))))
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
        features: torch.Tensor = x.mean(dim=(2, 3))
        return features

    def reset_head(self, classes: int) -> None:
        """Replace the head by a fresh one for this number of classes."""
        self.fc = nn.Linear(self.width, classes)

    def foldable(self) -> list[tuple[str, str]]:
        """Return the names of each convolution and of the batch norm right after it."""
        pairs = [("conv1", "bn1")]
        for name, module in self.named_modules():
            if isinstance(module, BasicBlock | Bottleneck):
                convolutions = 2 if isinstance(module, BasicBlock) else 3
                pairs += [(f"{name}.conv{i}", f"{name}.bn{i}") for i in range(1, convolutions + 1)]
                if isinstance(module.downsample, nn.Sequential):
                    pairs.append((f"{name}.downsample.0", f"{name}.downsample.1"))
        return pairs

    def stages(self) -> Stages:
        """Return the stem and the four stages."""
        return [("conv1", "bn1"), *((f"layer{i}",) for i in range(1, 5))]


def _register(name: str, file: str, block: Block, depths: tuple[int, ...], about: str) -> None:
    def build(classes: int, channels: int, size: int, *, stochastic_depth: float = 0.0) -> Classifier:
        return ResNet(block, depths, classes, channels, size, stochastic_depth=stochastic_depth)

    options = ("stochastic_depth",)
    entry = Entry(name=name, build=build, about=about, smallest=8, any_size=True, options=options, weights=file,
                  **IMAGENET)  # fmt: skip
    register(entry)


_register("resnet18", "resnet18-f37072fd.pth", BasicBlock, (2, 2, 2, 2), "ResNet-18, He et al. 2016")
_register("resnet34", "resnet34-b627a593.pth", BasicBlock, (3, 4, 6, 3), "ResNet-34")
_register("resnet50", "resnet50-0676ba61.pth", Bottleneck, (3, 4, 6, 3), "ResNet-50, with bottleneck blocks")
_register("resnet101", "resnet101-63fe2227.pth", Bottleneck, (3, 4, 23, 3), "ResNet-101, with bottleneck blocks")
_register("resnet152", "resnet152-394f9c45.pth", Bottleneck, (3, 8, 36, 3), "ResNet-152, with bottleneck blocks")
