"""Networks without branches, one layer after the other: a small CNN as textbooks draw it, LeNet-5, AlexNet and VGG."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from linnaeus.errors import ModelError
from linnaeus.models.activations import is_monotone, make_activation
from linnaeus.models.registry import IMAGENET, SMALL, Classifier, Entry, register
from linnaeus.models.stages import Stages, split_layers


def measure_features(body: nn.Module, channels: int, size: int) -> int:
    """Return how many features a body gives for a picture of this size."""
    with torch.no_grad():
        return int(body(torch.zeros(1, channels, size, size)).shape[1])


@dataclass(frozen=True, kw_only=True)
class CnnShape:
    """What a simple CNN is made of.

    Attributes:
        filters: of each block. The last block has no pool.
        kernel_size: side of every filter. padding: whether a convolution keeps the side of its input.
        activation: after each convolution and dense layer, a name in `activations`. slope: of leaky_relu below zero.
        pooling: "max" or "avg", over windows of `pool_size` that do not overlap.
        batch_norm: whether each convolution is followed by one.
        dense: widths of the dense layers before the head. dropout: share of what each of them gets that is dropped.
    """

    filters: tuple[int, ...] = (32, 64, 64)
    kernel_size: int = 3
    padding: bool = False
    activation: str = "relu"
    slope: float = 0.01
    pooling: str = "max"
    pool_size: int = 2
    batch_norm: bool = False
    dense: tuple[int, ...] = (64,)
    dropout: float = 0.0

    def check(self, size: int) -> None:
        """Raise ModelError where a filter or a pool is larger than what is left of a picture."""
        side = size
        for block in range(1, len(self.filters) + 1):
            if not self.padding and side < self.kernel_size:
                self._refuse(size, f"a filter of {self.kernel_size} pixels on {side} pixels", block)
            side -= 0 if self.padding else self.kernel_size - 1
            if block < len(self.filters):
                if side < self.pool_size:
                    self._refuse(size, f"a pool of {self.pool_size} pixels on {side} pixels", block)
                side //= self.pool_size

    def smallest(self) -> int:
        """Return the smallest side of a picture of which something is left at the end."""
        side, shrink = 1, 0 if self.padding else self.kernel_size - 1
        for _ in self.filters[1:]:
            side = (side + shrink) * self.pool_size
        return side + shrink

    def _refuse(self, size: int, got: str, block: int) -> None:
        fix = "padding=true, a smaller kernel_size or pool_size, or fewer filters."
        raise ModelError(
            f"layers that fit into a picture of {size} pixels",
            got=f"{got} in block {block}",
            fix=f"Set image_size={self.smallest()} or larger, {fix}",
        )

    def activate(self) -> nn.Module:
        """Return the activation."""
        return make_activation(self.activation, slope=self.slope)

    def block(self, inside: int, outside: int, *, pooled: bool) -> list[nn.Module]:
        """Return the layers of one block."""
        padding = "same" if self.padding else 0
        convolution = nn.Conv2d(inside, outside, self.kernel_size, padding=padding, bias=not self.batch_norm)
        norm: list[nn.Module] = [nn.BatchNorm2d(outside)] if self.batch_norm else []
        pool = [{"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[self.pooling](self.pool_size)] if pooled else []
        if self.pooling == "max" and is_monotone(self.activation) and not self.batch_norm:
            # What rises with its input may come after the maximum: the result is the same, from a quarter of the work.
            return [convolution, *pool, self.activate()]
        return [convolution, *norm, self.activate(), *pool]


def build_simple_cnn(classes: int, channels: int, size: int, **options: Any) -> Classifier:
    """Blocks of a convolution, an activation and a pool, then dense layers; `options` are those of CnnShape.

    Raises ModelError if the picture is gone before the last block; the message names the block.
    """
    shape = CnnShape(**options)
    shape.check(size)
    layers: list[nn.Module] = []
    for i, (inside, outside) in enumerate(itertools.pairwise((channels, *shape.filters)), start=1):
        layers += shape.block(inside, outside, pooled=i < len(shape.filters))
    layers.append(nn.Flatten())
    width = measure_features(nn.Sequential(*layers).eval(), channels, size)
    for outside in shape.dense:
        drop = [nn.Dropout(shape.dropout)] if shape.dropout else []
        layers += [*drop, nn.Linear(width, outside), shape.activate()]
        width = outside
    return Classifier(nn.Sequential(*layers), width, classes)


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


class DeepPlain(Classifier):
    """Convolutions, a pool to a fixed side, and two wide dense layers with dropout, as in AlexNet and VGG.

    Args:
        convolutions: end in a feature map of `depth` channels. side: to which it is pooled.
        dense: the layers before the head, which take depth x side x side values.
    """

    def __init__(
        self, convolutions: nn.Sequential, dense: list[nn.Module], width: int, classes: int, *, side: int
    ) -> None:
        nn.Module.__init__(self)
        self.width = width
        # torchvision's names, so that its published weights fit.
        self.net = nn.ModuleDict(
            {"features": convolutions, "classifier": nn.Sequential(*dense, nn.Linear(width, classes))}
        )
        self.pool = nn.AdaptiveAvgPool2d(side)

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """The last layer."""
        return self._classifier[-1]

    @property
    def _classifier(self) -> nn.Sequential:
        layers = self.net["classifier"]
        assert isinstance(layers, nn.Sequential)
        return layers

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float (N, D): what the head sees of images float (N, C, H, W)."""
        x = self.pool(self.net["features"](images)).flatten(1)
        for layer in list(self._classifier)[:-1]:
            x = layer(x)
        features: torch.Tensor = x
        return features

    def reset_head(self, classes: int) -> None:
        """Replace the head by a fresh one for this number of classes."""
        self._classifier[-1] = nn.Linear(self.width, classes)

    def stages(self) -> Stages:
        """Return the convolutions between the pools, and each dense layer before the head."""
        convolutions = self.net["features"]
        assert isinstance(convolutions, nn.Sequential)
        return [*split_layers("net.features", convolutions), *split_layers("net.classifier", self._classifier)[:-1]]

    def published(self) -> nn.Module:
        """Return the module with torchvision's names."""
        return self.net


def build_alexnet(classes: int, channels: int, size: int, *, dropout: float = 0.5) -> Classifier:
    """AlexNet (Krizhevsky 2014, "One weird trick"): five convolutions, 4096 wide dense layers.

    Small pictures keep their resolution in the first convolution, and are pooled to 2x2 instead of 6x6.
    """
    first = nn.Conv2d(channels, 64, 5, padding=2) if size <= SMALL else nn.Conv2d(channels, 64, 11, 4, padding=2)
    convolutions = nn.Sequential(
        first, nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    side = 2 if size <= SMALL else 6
    dense = [
        nn.Dropout(dropout), nn.Linear(256 * side * side, 4096), nn.ReLU(),
        nn.Dropout(dropout), nn.Linear(4096, 4096), nn.ReLU(),
    ]  # fmt: skip
    return DeepPlain(convolutions, dense, 4096, classes, side=side)


VGG_BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_VGG_FILTERS = (64, 128, 256, 512, 512)


def build_vgg(
    depth: int, classes: int, channels: int, size: int, *, batch_norm: bool, dropout: float = 0.5
) -> Classifier:
    """VGG (Simonyan and Zisserman 2015): five blocks of 3x3 convolutions, each ended by a pool, and 4096 wide layers.

    Of small pictures one pixel is left, on which dense layers of 512 suffice.
    """
    layers: list[nn.Module] = []
    inside = channels
    for repeats, outside in zip(VGG_BLOCKS[depth], _VGG_FILTERS, strict=True):
        for _ in range(repeats):
            norm = [nn.BatchNorm2d(outside)] if batch_norm else []
            layers += [nn.Conv2d(inside, outside, 3, padding=1), *norm, nn.ReLU()]
            inside = outside
        layers.append(nn.MaxPool2d(2))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    side, width = (1, 512) if size <= SMALL else (7, 4096)
    dense = [
        nn.Linear(512 * side * side, width), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout),
    ]  # fmt: skip
    return DeepPlain(nn.Sequential(*layers), dense, width, classes, side=side)


def _vgg(depth: int, *, batch_norm: bool) -> Callable[..., Classifier]:
    def build(classes: int, channels: int, size: int, **options: Any) -> Classifier:
        return build_vgg(depth, classes, channels, size, batch_norm=batch_norm, **options)

    return build


register(
    Entry(
        name="simple_cnn",
        build=build_simple_cnn,
        about="a few convolutions and a dense layer, as textbooks begin",
        smallest=18,
        options=tuple(field.name for field in fields(CnnShape)),
    )
)  # fmt: skip
register(Entry(name="lenet5", build=build_lenet5, about="LeNet-5, LeCun et al. 1998", smallest=16))
register(
    Entry(
        name="alexnet",
        build=build_alexnet,
        about="AlexNet, Krizhevsky 2014",
        smallest=16,
        options=("dropout",),
        weights="alexnet-owt-7be5be79.pth",
        **IMAGENET,
    )
)
for _depth, _plain, _norm in (
    (11, "8a719046", "6002323d"), (13, "19584684", "abd245e5"), (16, "397923af", "6c64b313"),
    (19, "dcbb9e9d", "c79401a0"),
):  # fmt: skip
    for _suffix, _digest in (("", _plain), ("_bn", _norm)):
        register(
            Entry(
                name=f"vgg{_depth}{_suffix}",
                build=_vgg(_depth, batch_norm=bool(_suffix)),
                about=f"VGG-{_depth}{' with batch norm' if _suffix else ''}, Simonyan and Zisserman 2015",
                smallest=32,
                options=("dropout",),
                weights=f"vgg{_depth}{_suffix}-{_digest}.pth",
                **IMAGENET,
            )
        )
