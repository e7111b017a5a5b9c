"""GoogLeNet (Szegedy et al. 2015, "Going deeper with convolutions"): filters of several sizes side by side.

As torchvision has it, whose published weights fit: with batch norms, and 3x3 filters where the paper has 5x5.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from linnaeus.models.registry import IMAGENET, SMALL, Classifier, Entry, register
from linnaeus.models.stages import Stages

# Of each Inception block: channels of its input; of the 1x1 branch; before and in the 3x3 branch; before and in the
# second 3x3 branch; of the pooled branch.
_BLOCKS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
_WIDTH = 1024


class Convolution(nn.Module):
    """A convolution, its batch norm and a ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inside, H, W) to (N, outside, H / stride, W / stride)."""
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches over the same input, whose channels are laid one after the other."""

    def __init__(self, inside: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        one, to_two, two, to_three, three, pooled = widths
        self.branch1 = Convolution(inside, one, 1)
        self.branch2 = nn.Sequential(Convolution(inside, to_two, 1), Convolution(to_two, two, 3))
        self.branch3 = nn.Sequential(Convolution(inside, to_three, 1), Convolution(to_three, three, 3))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), Convolution(inside, pooled, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inside, H, W) to (N, the sum of all branches, H, W)."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class SideHead(nn.Module):
    """An auxiliary classifier: it gives the layers below a gradient of their own while they learn."""

    def __init__(self, inside: int, classes: int) -> None:
        super().__init__()
        self.conv = Convolution(inside, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, _WIDTH)
        self.fc2 = nn.Linear(_WIDTH, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inside, H, W) to logits (N, classes)."""
        x = self.conv(F.adaptive_avg_pool2d(x, 4)).flatten(1)
        logits: torch.Tensor = self.fc2(F.dropout(F.relu(self.fc1(x)), 0.7, self.training))
        return logits


class GoogLeNet(Classifier):
    """Nine Inception blocks; two auxiliary heads in training. Small pictures keep their resolution in the stem."""

    def __init__(self, classes: int, channels: int, size: int, *, dropout: float = 0.2) -> None:
        nn.Module.__init__(self)
        self.width = _WIDTH
        small = size <= SMALL
        self.conv1 = Convolution(channels, 64, 3) if small else Convolution(channels, 64, 7, 2)
        self.maxpool1: nn.Module = nn.Identity() if small else nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = Convolution(64, 64, 1)
        self.conv3 = Convolution(64, 192, 3)
        self.maxpool2: nn.Module = nn.Identity() if small else nn.MaxPool2d(3, 2, ceil_mode=True)
        for name, widths in _BLOCKS.items():
            self.add_module(f"inception{name}", Inception(widths[0], widths[1:]))
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.aux1, self.aux2 = SideHead(512, classes), SideHead(528, classes)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(_WIDTH, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-2, b=2)

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """The last layer, under its published name."""
        return self.fc

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:  # type: ignore[override]
        """Return logits float (N, K); in training, those of the two auxiliary heads after them."""
        features, early, late = self._run(images)
        logits: torch.Tensor = self.fc(features)
        return (logits, self.aux1(early), self.aux2(late)) if self.training else logits

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float (N, 1024): the mean over the last feature map of images float (N, C, H, W)."""
        return self._run(images)[0]

    def _run(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the features, and the feature maps that the auxiliary heads look at."""
        x = self.conv3(self.conv2(self.maxpool1(self.conv1(images))))
        x = self.maxpool3(self._blocks("3a", "3b", x=self.maxpool2(x)))
        early = self._blocks("4a", x=x)
        late = self._blocks("4b", "4c", "4d", x=early)
        x = self.maxpool4(self._blocks("4e", x=late))
        x = self._blocks("5a", "5b", x=x)
        return self.dropout(x.mean(dim=(2, 3))), early, late

    def _blocks(self, *names: str, x: torch.Tensor) -> torch.Tensor:
        for name in names:
            x = self.get_submodule(f"inception{name}")(x)
        return x

    def reset_head(self, classes: int) -> None:
        """Replace the head, and the last layers of the auxiliary ones, by fresh ones for this number of classes."""
        self.fc = nn.Linear(_WIDTH, classes)
        self.aux1.fc2, self.aux2.fc2 = nn.Linear(_WIDTH, classes), nn.Linear(_WIDTH, classes)

    def foldable(self) -> list[tuple[str, str]]:
        """Return the names of each convolution and of the batch norm right after it."""
        return [(f"{n}.conv", f"{n}.bn") for n, module in self.named_modules() if isinstance(module, Convolution)]

    def stages(self) -> Stages:
        """Return the layers between the pools; the auxiliary heads belong to the head."""
        blocks = [tuple(f"inception{name}" for name in _BLOCKS if name.startswith(number)) for number in "345"]
        return [("conv1",), ("conv2", "conv3"), *blocks]


register(
    Entry(
        name="googlenet",
        build=GoogLeNet,
        about="GoogLeNet (Inception v1) with auxiliary heads, Szegedy et al. 2015",
        smallest=16,
        any_size=True,
        options=("dropout",),
        weights="googlenet-1378be20.pth",
        **(IMAGENET | {"mean": (0.5,) * 3, "std": (0.5,) * 3}),  # as in TensorFlow, where these weights come from
    )
)
