"""Fastnet: small networks of ours that learn small pictures from scratch in seconds to minutes on a CPU.

Where the time goes decides the shape. The filters of the stem are not learned but set to whiten the patches of the
training pictures (Page 2019; Jordan 2024), which spares their gradient and lets high learning rates work at once; the
smaller networks' stem has a stride of 2, which leaves a quarter of the positions to all that follows. Pooling comes
before the norm and the ReLU, which then see a quarter of the values. The head looks at the largest response to each
filter anywhere in the picture.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from linnaeus.models.registry import Classifier, Entry, register

_PATCHES = 400_000  # that are looked at


class Stage(nn.Module):
    """Convolve, halve the sides, normalize; then add what further convolutions find (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, convolutions: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outside)
        self.further = nn.ModuleList(
            nn.Sequential(nn.Conv2d(outside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU())
            for _ in range(convolutions - 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inside, H, W) to (N, outside, H / 2, W / 2)."""
        x = F.relu(self.norm(F.max_pool2d(self.first(x), 2)))
        for convolution in self.further:
            x = x + convolution(x)
        return x


class Fastnet(Classifier):
    """A whitening stem, some stages and a head on the largest response to each filter.

    Args:
        stem: maps pictures to the first stage's input. pooled: whether its result is halved once more, which is four
            times as fast and less sharp.
        widths: filters of each stage. convolutions: in each stage.
    """

    def __init__(
        self, classes: int, stem: nn.Conv2d, *, widths: tuple[int, ...], convolutions: int, pooled: bool = False
    ) -> None:
        stem.weight.requires_grad_(False)
        stages = [Stage(a, b, convolutions) for a, b in itertools.pairwise((stem.out_channels, *widths))]
        squeeze = [nn.MaxPool2d(2)] if pooled else []
        super().__init__(
            nn.Sequential(stem, *squeeze, nn.ReLU(), *stages, nn.AdaptiveMaxPool2d(1), nn.Flatten()),
            widths[-1],
            classes,
        )
        _start_as_identity(self)

    def look_at(self, images: torch.Tensor) -> None:
        """Set the stem's filters from normalized training images float (N, C, H, W), N of a few hundred."""
        stem = self.body.get_submodule("0")
        assert isinstance(stem, nn.Conv2d)
        whiten(stem, images)


@torch.no_grad()
def whiten(stem: nn.Conv2d, images: torch.Tensor, *, epsilon: float = 5e-4) -> None:
    """Make a convolution map patches to uncorrelated components of unit variance, each with either sign."""
    in_each = (images.shape[2] // stem.stride[0]) * (images.shape[3] // stem.stride[1])
    few = images[: max(1, _PATCHES // in_each)]  # large pictures have patches enough in fewer
    patches = F.unfold(few, stem.kernel_size, stride=stem.stride).transpose(1, 2).flatten(0, 1)
    patches = patches[:: max(1, len(patches) // 100_000)].double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    values, vectors = values.flip(0), vectors.flip(1)
    filters = (vectors / torch.sqrt(values + epsilon)).T.reshape(-1, *stem.weight.shape[1:]).float()
    half = stem.out_channels // 2
    kept = min(half, len(filters))
    stem.weight.zero_()
    stem.weight[:kept] = filters[:kept]
    stem.weight[half : half + kept] = -filters[:kept]
    assert stem.bias is not None
    stem.bias.zero_()


def _start_as_identity(model: nn.Module) -> None:
    """Let each 3x3 filter begin by passing its channel on, as far as there are channels."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
            nn.init.dirac_(module.weight[: module.in_channels].data)


def build_small(classes: int, channels: int, size: int) -> Classifier:
    """54 thousand weights for 10 classes: for tens of seconds."""
    stem = nn.Conv2d(channels, 24, 4, stride=2, padding=1)
    return Fastnet(classes, stem, widths=(48, 96), convolutions=1, pooled=True)


def build_medium(classes: int, channels: int, size: int) -> Classifier:
    """661 thousand weights for 10 classes: for minutes."""
    stem = nn.Conv2d(channels, 32, 4, stride=2, padding=1)
    return Fastnet(classes, stem, widths=(48, 96, 192), convolutions=2)


def build_large(classes: int, channels: int, size: int) -> Classifier:
    """2 million weights for 10 classes, as many as airbench94 has (Jordan 2024): for tens of minutes, or a GPU."""
    stem = nn.Conv2d(channels, 8 * channels, 2)
    return Fastnet(classes, stem, widths=(64, 256, 256), convolutions=2)


for name, build, smallest, time in (
    ("fastnet_small", build_small, 32, "seconds"),
    ("fastnet", build_medium, 32, "minutes"),
    ("fastnet_large", build_large, 24, "tens of minutes"),
):
    about = f"ours, for small pictures within {time}"
    register(Entry(name=name, build=build, about=about, smallest=smallest, any_size=True, looks=True))
