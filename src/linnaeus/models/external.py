"""Networks of timm and torchvision, under our contract. Each is imported only when one of its networks is asked for."""

from __future__ import annotations

import fnmatch
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import nn

from linnaeus.errors import MissingExtraError, ModelError, suggest
from linnaeus.models.adopted import adapt, construct, look_once
from linnaeus.models.registry import Blueprint, Classifier, Entry
from linnaeus.models.stages import Stages

_FROM_TENSORFLOW = ("googlenet", "inception_v3")


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
        groups: dict[int, list[str]] = _import("timm").models.group_parameters(net, net.group_matcher(coarse=True))
        return groups
    parts = (list(dict(part.named_parameters(prefix=name))) for name, part in net.named_children())
    return dict(enumerate(parts))


def describe(name: str) -> Entry:
    """Return what is known of "timm:NAME" or "torchvision:NAME". Raises ModelError with the nearest names."""
    library, _, short = name.partition(":")
    known = _list_library(library)
    if short not in known:
        near = suggest(short, known).replace("Did you mean ", f"Did you mean {library}:")
        raise ModelError(f"a network of {library}", got=repr(short), fix=near)
    return _describe_timm(short) if library == "timm" else _describe_torchvision(short)


def list_names(pattern: str) -> list[str]:
    """Return the names, as "timm:NAME" or "torchvision:NAME", of the networks that match such a pattern."""
    library, _, short = pattern.partition(":")
    return [f"{library}:{name}" for name in fnmatch.filter(_list_library(library), short or "*")]


def _list_library(library: str) -> list[str]:
    if library == "timm":
        names: list[str] = _import("timm").list_models()
    else:
        models = _import("torchvision.models")
        names = models.list_models(module=models)  # of this module: classification alone
    return names


def _describe_timm(short: str) -> Entry:
    config = _import("timm").get_pretrained_cfg(short)
    size = config.input_size[-1] if config else 224
    return Entry(
        name=f"timm:{short}",
        build=lambda classes, channels, size, **options: build_timm(short, classes, channels, size, **options),
        about="from timm",
        smallest=1,
        size=size,
        mean=tuple(config.mean) if config else None,
        std=tuple(config.std) if config else None,
        interpolation="bicubic" if config and config.interpolation == "bicubic" else "bilinear",
        weights=f"timm/{short}" if config and config.has_weights else "",
        licence=(config.license or "unknown") if config else "",
        timm=short,
    )


def build_timm(name: str, classes: int, channels: int, size: int, **options: Any) -> Classifier:
    """Build a timm network with fresh weights, for pictures of this size where the network's shape depends on it.

    Raises ModelError if it cannot see them.
    """

    def build(classes: int, channels: int, size: int) -> nn.Module:
        return _make_timm(name, classes, channels, size, **options)

    blueprint = Blueprint(name=f"timm:{name}", classes=classes, channels=channels, size=size)
    net = construct(blueprint, build)
    look_once(net.eval(), blueprint, build)
    return TimmClassifier(net.train())


def _make_timm(name: str, classes: int, channels: int, size: int, **options: Any) -> nn.Module:
    timm = _import("timm")
    options |= {"num_classes": classes, "in_chans": channels}
    try:
        net: nn.Module = timm.create_model(name, img_size=size, **options)
    except TypeError:  # convolutional networks take any size and refuse the argument
        net = timm.create_model(name, **options)
    return net


def _describe_torchvision(short: str) -> Entry:
    weights = _import("torchvision.models").get_model_weights(short).DEFAULT
    views = weights.transforms()
    # These two come from TensorFlow, and so do their weights: torchvision's own module converts from ImageNet's values.
    middle = (0.5,) * 3 if short in _FROM_TENSORFLOW else None
    return Entry(
        name=f"torchvision:{short}",
        build=lambda classes, channels, size: build_torchvision(short, classes, channels, size),
        about="from torchvision" + (", its mean before a linear head" if short.startswith("squeezenet") else ""),
        smallest=1,
        size=views.crop_size[0],
        mean=middle or tuple(views.mean),
        std=middle or tuple(views.std),
        interpolation=views.interpolation.value,
        weights=weights.url.rpartition("/")[2],
        licence=weights.meta.get("license", "BSD-3-Clause"),
    )


def build_torchvision(name: str, classes: int, channels: int, size: int) -> Classifier:
    """Build a torchvision network with fresh weights, for pictures of this size. Raises ModelError."""

    def build(classes: int, channels: int, size: int) -> nn.Module:
        return _make_torchvision(name, classes, channels, size)

    return adapt(Blueprint(name=f"torchvision:{name}", classes=classes, channels=channels, size=size), build)


def _make_torchvision(name: str, classes: int, channels: int, size: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": classes}
    if name.startswith("vit_"):
        options["image_size"] = size
    elif name.startswith("maxvit"):
        options["input_size"] = (size, size)
    elif name in _FROM_TENSORFLOW:
        options["init_weights"] = True
    net: nn.Module = _import("torchvision.models").get_model(name, **options)
    if name.startswith("squeezenet"):
        _end_in_linear(net, classes)
    if channels != 3:
        _take_channels(net, channels)
    return net


def _take_channels(net: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for pictures of other than three channels."""
    name, first = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    stem = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride, first.padding, bias=first.bias is not None  # type: ignore[arg-type]
    )  # fmt: skip
    net.set_submodule(name, stem)


def _end_in_linear(net: nn.Module, classes: int) -> None:
    """Let SqueezeNet take the mean before its last filters, which are of 1x1, not after, and without a ReLU on logits.

    Its body and its published weights stay what they are, and its head is linear in the features.
    """
    drop, last, *_ = net.get_submodule("classifier").children()
    assert isinstance(last, nn.Conv2d)
    body = net.get_submodule("features").children()
    net.set_submodule("features", nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    net.set_submodule("classifier", nn.Sequential(drop, nn.Linear(last.in_channels, classes)))


def load_timm_weights(model: Classifier, name: str, blueprint: Blueprint) -> None:
    """Fill a timm network with its published weights, from timm's cache or the hub. Raises ModelError offline."""
    classes, channels, size = blueprint.classes, blueprint.channels, blueprint.size
    try:
        donor = _make_timm(name, classes, channels, size, pretrained=True)
    except Exception as error:  # the hub's client raises many unrelated types when it is offline
        raise ModelError(
            f"the published weights of {name}",
            got=f"{type(error).__name__}: {str(error).splitlines()[0][:160]}",
            fix="Go online once to fetch them, or set pretrained=false.",
        ) from None
    model.published().load_state_dict(donor.state_dict())


def _import(library: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise MissingExtraError(library.partition(".")[0], extra="train") from None
