"""Networks of timm, under our contract. timm is imported only when one of them is asked for."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import nn

from linnaeus.errors import MissingExtraError, ModelError, suggest
from linnaeus.models.registry import Blueprint, Classifier, Entry
from linnaeus.models.stages import Stages


class TimmClassifier(Classifier):
    """A timm network: its pooled features before the classifier, and its classifier as the head."""

    def __init__(self, net: Any) -> None:
        nn.Module.__init__(self)
        self.net = net
        self.width = int(net.head_hidden_size if hasattr(net, "head_hidden_size") else net.num_features)

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        """The last layer, wherever timm keeps it."""
        classifier: nn.Module = self.net.get_classifier()
        return classifier

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return float (N, D): what the head sees of images float (N, C, H, W)."""
        features: torch.Tensor = self.net.forward_head(self.net.forward_features(images), pre_logits=True)
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits float (N, K) of images float (N, C, H, W)."""
        logits: torch.Tensor = self.net(images)
        return logits

    def reset_head(self, classes: int) -> None:
        """Replace the head by a fresh one for this number of classes."""
        self.net.reset_classifier(classes)

    def stages(self) -> Stages:
        """Return timm's own groups of weights, for networks without them the parts at the top that have weights."""
        heads = {id(parameter) for parameter in self.head.parameters()}
        groups = [
            tuple(f"net.{name}" for name in names)
            for _, names in sorted(_group(self.net).items())
            if not any(id(self.net.get_parameter(name)) in heads for name in names)
        ]
        return [group for group in groups if group]

    def published(self) -> nn.Module:
        """Return timm's own module."""
        net: nn.Module = self.net
        return net


def _group(net: Any) -> dict[int, list[str]]:
    """Return the names of a timm network's weights in the order of its layers."""
    if hasattr(net, "group_matcher"):
        groups: dict[int, list[str]] = _import_timm().models.group_parameters(net, net.group_matcher(coarse=True))
        return groups
    parts = (list(dict(part.named_parameters(prefix=name))) for name, part in net.named_children())
    return dict(enumerate(parts))


def describe(name: str) -> Entry:
    """Return what timm knows of "timm:NAME". Raises ModelError with the nearest names."""
    timm, short = _import_timm(), name.removeprefix("timm:")
    if not timm.is_model(short):
        near = suggest(short, timm.list_models())
        raise ModelError("a network of timm", got=repr(short), fix=near.replace("Did you mean ", "Did you mean timm:"))
    config = timm.get_pretrained_cfg(short)
    size = config.input_size[-1] if config else 224
    return Entry(
        name=name,
        build=lambda classes, channels, size, **options: build_timm(short, classes, channels, size, **options),
        about="from timm",
        smallest=16,
        size=size,
        mean=tuple(config.mean) if config else None,
        std=tuple(config.std) if config else None,
        interpolation="bicubic" if config and config.interpolation == "bicubic" else "bilinear",
        weights=f"timm/{short}" if config and config.has_weights else "",
        licence=(config.license or "unknown") if config else "",
        timm=short,
    )


def list_names(pattern: str) -> list[str]:
    """Return the names, as "timm:NAME", of timm's networks that match "timm:PATTERN"."""
    names: list[str] = _import_timm().list_models(pattern.removeprefix("timm:"))
    return [f"timm:{name}" for name in names]


def build_timm(name: str, classes: int, channels: int, size: int, **options: Any) -> Classifier:
    """Build a timm network with fresh weights, for pictures of this size where the network's shape depends on it."""
    timm = _import_timm()
    try:
        net = timm.create_model(name, num_classes=classes, in_chans=channels, img_size=size, **options)
    except TypeError:  # convolutional networks take any size and refuse the argument
        net = timm.create_model(name, num_classes=classes, in_chans=channels, **options)
    return TimmClassifier(net)


def load_timm_weights(model: Classifier, name: str, blueprint: Blueprint) -> None:
    """Fill a timm network with its published weights, from timm's cache or the hub. Raises ModelError offline."""
    classes, channels, size = blueprint.classes, blueprint.channels, blueprint.size
    try:
        donor = build_timm(name, classes, channels, size, pretrained=True).published()
    except Exception as error:  # the hub's client raises many unrelated types when it is offline
        raise ModelError(
            f"the published weights of {name}",
            got=f"{type(error).__name__}: {str(error).splitlines()[0][:160]}",
            fix="Go online once to fetch them, or set pretrained=false.",
        ) from None
    model.published().load_state_dict(donor.state_dict())


def _import_timm() -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise MissingExtraError("timm", extra="train") from None
