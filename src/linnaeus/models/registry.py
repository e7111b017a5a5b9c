"""One contract for every network, and the list of those there are.

A network is a `Classifier`: `features` turns normalized images into one vector each, `head` turns the vector into
logits, and `reset_head` gives it new classes. A family calls `register` for each of its networks.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from linnaeus.errors import ModelError, suggest
from linnaeus.models.stages import Stages, split_layers

SMALL = 64  # pictures up to this side get stems that keep their resolution
FOREIGN = ("timm:", "torchvision:")  # how names of other libraries' networks begin
IMAGENET: dict[str, Any] = {  # what torchvision's published weights expect
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "pretrained_size": 224,
    "licence": "BSD-3-Clause",
}


class Classifier(nn.Module):
    """A network in two parts.

    Args:
        body: maps float (N, C, H, W) to features float (N, D).
        width: D.
        classes: K, the number of logits.

    Attributes:
        memory_format: the layout in which weights and images are handed to it.
    """

    memory_format = torch.channels_last

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body
        self.width = width
        self.head: nn.Module = nn.Linear(width, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float (N, D): what the head sees of images float (N, C, H, W)."""
        features: torch.Tensor = self.body(images)
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float (N, K) of images float (N, C, H, W).

        In training, a network with auxiliary heads returns a tuple: these, and the logits of each auxiliary head.
        """
        logits: torch.Tensor = self.head(self.features(images))
        return logits

    def reset_head(self, classes: int) -> None:
        """Replace the head by a fresh one for this number of classes."""
        self.head = nn.Linear(self.width, classes)

    def look_at(self, images: torch.Tensor) -> None:
        """Set what a network takes from the data before it learns, from normalized images float (N, C, H, W)."""

    def foldable(self) -> list[tuple[str, str]]:
        """Return the names of each convolution and the batch norm right after it that may be folded into it."""
        return []

    def stages(self) -> Stages:
        """Return the names of the modules of each stage from the input to the last before the head.

        What no stage names learns with the head: itself, and what else depends on the classes.
        """
        return split_layers("body", self.body) if isinstance(self.body, nn.Sequential) else [("body",)]

    def published(self) -> nn.Module:
        """Return the module whose state dict has the names that the architecture was published with."""
        return self


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a network before it is built.

    Attributes:
        build: makes it from (classes, channels, size, **options).
        about: one sentence. smallest: the smallest side of a picture in pixels that it can see.
        size: the side it was made for, 0 where it adapts to the data. pretrained_size: the side that its published
            weights were made with, which is taken with them where `size` is 0.
        options: names of the settings of the network itself that `build` takes.
        mean, std: what its pretrained weights expect; None where the data's own are taken.
        weights: name of the published weights that can be loaded, "" for none.
        licence: of those weights.
        any_size: whether a built network takes pictures of any size. looks: whether it has a use for `look_at`.
        timm: the name under which timm builds the same network, "" if it has none.
        own: whether it is one that the user registered.
    """

    name: str
    build: Callable[..., Classifier]
    about: str
    smallest: int = 8
    size: int = 0
    pretrained_size: int = 0
    options: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"
    weights: str = ""
    licence: str = ""
    any_size: bool = False
    looks: bool = False
    timm: str = ""
    own: bool = False


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A network's name with all that rebuilds it."""

    name: str
    classes: int
    channels: int
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)


_ENTRIES: dict[str, Entry] = {}


def register(entry: Entry) -> None:
    """Make a network known by its name."""
    _ENTRIES[entry.name] = entry


def list_models(pattern: str = "*") -> list[Entry]:
    """Return the networks whose names match a pattern such as "resnet*", "timm:vit_tiny*" or "torchvision:*", sorted.

    Without a prefix those of linnaeus itself and those that were registered.
    """
    _load_families()
    if pattern.startswith(FOREIGN):
        from linnaeus.models import external

        return [external.describe(name) for name in external.list_names(pattern)]
    return [entry for name, entry in sorted(_ENTRIES.items()) if fnmatch.fnmatch(name, pattern)]


def find_model(name: str) -> Entry:
    """Return what is known of a network, also of "timm:NAME" and "torchvision:NAME".

    Raises ModelError with the nearest names.
    """
    _load_families()
    if name in _ENTRIES:
        return _ENTRIES[name]
    if name.startswith(FOREIGN):
        from linnaeus.models import external

        return external.describe(name)
    raise ModelError(
        "a model that `linnaeus models` lists, timm:NAME or torchvision:NAME",
        got=repr(name),
        fix=suggest(name, _ENTRIES) + " Register a network of your own before: linnaeus.register_model(NAME, build).",
    )


def create_model(blueprint: Blueprint) -> Classifier:
    """Build a network with fresh weights. Raises ModelError for a picture too small for it."""
    entry = find_model(blueprint.name)
    if blueprint.size < entry.smallest:
        raise ModelError(
            f"pictures of at least {entry.smallest} pixels for {entry.name}",
            got=f"image_size={blueprint.size}",
            fix=f"Set image_size={entry.smallest} or larger, or choose another model.",
        )
    if unknown := [name for name in blueprint.options if name not in entry.options and not entry.timm]:
        takes = f"{entry.name} takes {', '.join(entry.options) or 'none of its own'}"
        got = ", ".join(f"{name}={blueprint.options[name]}" for name in unknown)
        raise ModelError(f"settings of the network {entry.name}", got=got, fix=f"Leave it out: {takes}.")
    return entry.build(blueprint.classes, blueprint.channels, blueprint.size, **blueprint.options)


def count_parameters(model: nn.Module, *, learning: bool = False) -> int:
    """Return the number of weights, or of those alone that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not learning)


def _load_families() -> None:
    """Import the families, each of which registers its networks."""
    from linnaeus.models import efficientnet, fast, googlenet, plain, resnet  # noqa: F401  (imported for what they register)
