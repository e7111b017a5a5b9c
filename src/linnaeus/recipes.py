"""What "auto" means: the settings that were measured to do well, for each kind of data and network.

Everything that linnaeus chooses by itself is chosen here, once, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from linnaeus.config import AUTO, Settings
from linnaeus.data.survey import Survey
from linnaeus.images import Preprocess
from linnaeus.models.registry import Entry
from linnaeus.results import Choice

_ENDLESS = 100_000
_STRETCHED = 2.0
_SCRATCH_SIZE = 128  # side of photographs for a network that adapts to any size and starts from nothing


@dataclass(kw_only=True)
class Chooser:
    """Fills in what the user left to linnaeus, and remembers why."""

    settings: Settings
    choices: list[Choice] = field(default_factory=list)
    tell: Callable[[Choice], None] = lambda choice: None

    def choose(self, name: str, value: Any, why: str) -> Any:
        """Return the user's value of a setting, or take this one if they left it open."""
        if getattr(self.settings, name) == AUTO:
            self.settings = self.settings.replace({name: value})
            self.choices.append(Choice(name=name, value=str(value), why=why))
            self.tell(self.choices[-1])
        return getattr(self.settings, name)


def choose_model(chooser: Chooser, look: Survey) -> str:
    """Choose the network by the kind of pictures."""
    name, why = "efficientnet_lite0", f"photographs of {look.side} pixels: a network pretrained on ImageNet needs few"
    if look.small:
        name, why = "fastnet", f"pictures of {look.side} pixels: a small network learns them from scratch"
    return str(chooser.choose("model", name, why))


def choose_preprocess(chooser: Chooser, look: Survey, entry: Entry) -> Preprocess:
    """Choose the size and shape in which the network sees a picture."""
    pretrained = chooser.choose(
        "pretrained",
        bool(entry.weights) and not entry.name.startswith("timm:"),
        "published weights at hand" if entry.weights else "no published weights at hand",
    )
    channels = chooser.choose("channels", *_channels(look, pretrained))
    size = chooser.choose("image_size", *_size(look, entry))
    fit = chooser.choose("fit", *_fit(look))
    mean = entry.mean if pretrained and entry.mean else (0.5,) * channels
    std = entry.std if pretrained and entry.std else (0.5,) * channels
    return Preprocess(
        height=size,
        width=size,
        channels=channels,
        fit=fit,
        mean=_per_channel(mean, channels),
        std=_per_channel(std, channels),
        interpolation="bicubic" if entry.interpolation == "bicubic" else "bilinear",
    )


def _channels(look: Survey, pretrained: bool) -> tuple[int, str]:
    if not look.grey:
        return 3, "pictures have colour"
    return (3, "what the pretrained network expects") if pretrained else (1, "no picture has colour")


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _size(look: Survey, entry: Entry) -> tuple[int, str]:
    if entry.size:
        return entry.size, f"the size that {entry.name} was trained with"
    if look.small:
        side = max(entry.smallest, look.side)
        return side, "the pictures' own size" if side == look.side else f"the smallest that {entry.name} can see"
    return min(_SCRATCH_SIZE, look.side), "enough for a network that starts from nothing"


def _fit(look: Survey) -> tuple[str, str]:
    """Keep the whole picture: a centre crop may cut the object off. Stretching did better than bars up to 2 to 1."""
    if look.aspect <= _STRETCHED:
        return "stretch", f"sides of up to {look.aspect:.2f} to 1: nothing is cut off, and no room is lost to bars"
    return "pad", f"sides of up to {look.aspect:.2f} to 1: whole pictures keep their proportions"


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the training recipe depends on: images to train on, pixels a side, kind of start."""

    images: int
    small: bool
    grey: bool
    pretrained: bool
    device: str


def choose_training(chooser: Chooser, now: Situation) -> None:
    """Choose how to train: everything that is still open."""
    _choose_length(chooser, now)
    for name, (value, why) in (_augmentation(now) | _optimization(now)).items():
        chooser.choose(name, value, why)


def _choose_length(chooser: Chooser, now: Situation) -> None:
    """Choose epochs or budget; whichever the user gave decides."""
    settings = chooser.settings
    if settings.epochs != AUTO:
        chooser.choose("budget", 0.0, "the number of epochs was given")
    elif settings.budget != AUTO and settings.budget > 0:
        chooser.choose("epochs", _ENDLESS, "as many as the budget allows")
    elif now.pretrained and now.device == "cpu" and settings.budget == AUTO:
        chooser.choose("budget", 600.0, "ten minutes fine-tune a few thousand photographs on a CPU")
        chooser.choose("epochs", _ENDLESS, "as many as the budget allows")
    else:
        chooser.choose("budget", 0.0, "the number of epochs decides")
        chooser.choose("epochs", *_epochs(now))


def _epochs(now: Situation) -> tuple[int, str]:
    if now.pretrained:
        return 10, "enough from pretrained weights"
    return max(10, min(100, 600_000 // now.images)), f"{now.images:,} images to learn from"


def _augmentation(now: Situation) -> dict[str, tuple[Any, str]]:
    digits = now.small and now.grey
    return {
        "flip": (not digits, "digits and letters have a left and a right" if digits else "a mirrored picture keeps its class"),
        "shift": (0.08 if digits else 0.0625 if now.small else 0.0, "small shifts keep the class"),
        "rotate": (10.0 if digits and now.images < 10_000 else 0.0, "few, grey and small pictures"),
        "crop": (0.5 if not now.small else 1.0, "photographs are seen from nearer and farther"),
        "colour": (0.0, "not needed on the sets it was measured on"),
        "erase": (0.0, "not needed for short runs"),
    }  # fmt: skip


def _optimization(now: Situation) -> dict[str, tuple[Any, str]]:
    recipe = _finetune() if now.pretrained else _scratch(now)
    return {name: (value, "measured to do well on such data") for name, value in recipe.items()}


def _scratch(now: Situation) -> dict[str, Any]:
    return {
        "batch_size": max(16, min(256, now.images // 16)),
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup": 0.1,
        "label_smoothing": 0.1,
        "ema": 0.99,
    }


def _finetune() -> dict[str, Any]:
    return {
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 3e-4,
        "weight_decay": 0.02,
        "schedule": "cosine",
        "warmup": 0.1,
        "label_smoothing": 0.1,
        "ema": 0.99,
    }
