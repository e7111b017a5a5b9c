"""What "auto" means: the settings that were measured to do well, for each kind of data and network.

Everything that linnaeus chooses by itself is chosen here, once, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from linnaeus.config import AUTO, FEW, Settings
from linnaeus.data.preparation import Dataset
from linnaeus.data.survey import Survey
from linnaeus.images import Preprocess
from linnaeus.labelling import MULTI, SINGLE, Labelling
from linnaeus.models.registry import Entry
from linnaeus.results import Choice
from linnaeus.training.imbalance import count_seen

_ENDLESS = 100_000
_FEW_EPOCHS, _LONG_EPOCHS = 4, 6
_FEW_IMAGES, _MANY_IMAGES = 5_000, 20_000
_HASTY_SECONDS = 1.2e-3  # of budget for each training image, below which the smallest network does better
_AMPLE_SECONDS = 1e-2  # above which the largest does
_VAL_SHARE, _VAL_IMAGES = 0.15, 5_000  # the latter tell differences of half a point: more would be lost to learning
_FEW_TO_TUNE = 200  # with 102, fine-tuning for three minutes cost three points
_STRETCHED = 2.0
_IMBALANCED = 10.0
_PART = 256  # images computed at once where a step sees all of them
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


def choose_parts(chooser: Chooser, images: int) -> None:
    """Choose how much of so many images is held back to choose by."""
    share, why = _VAL_SHARE, "enough to choose by, and most is left to learn from"
    if images * share > _VAL_IMAGES:
        share, why = max(0.01, round(_VAL_IMAGES / images, 3)), f"{_VAL_IMAGES:,} images are enough to choose by"
    chooser.choose("val_fraction", share, why)


def choose_model(chooser: Chooser, look: Survey, images: int) -> str:
    """Choose the network by the kind of pictures, and for small ones by the time for each."""
    name, why = "efficientnet_lite0", f"photographs of {look.side} pixels: a network pretrained on ImageNet needs few"
    if look.small:
        size, time = _fastnet_size(chooser.settings, images)
        name, why = f"fastnet{size}", f"pictures of {look.side} pixels: a small network learns them from scratch{time}"
    return str(chooser.choose("model", name, why))


def _fastnet_size(settings: Settings, images: int) -> tuple[str, str]:
    """Return the ending of the network's name that suits so many images and the time for each, and why."""
    budget = 0.0 if settings.budget == AUTO else settings.budget
    few = settings.epochs != AUTO and settings.epochs <= _FEW_EPOCHS
    if images < _FEW_IMAGES or few or (settings.epochs == AUTO and 0 < budget < _HASTY_SECONDS * images):
        return "_small", ", this one in seconds"
    if settings.device == "cuda" or budget >= _AMPLE_SECONDS * images:
        return "_large", ", and there is time for this one"
    return "", ""


def choose_preprocess(chooser: Chooser, look: Survey, entry: Entry, *, at_hand: bool) -> Preprocess:
    """Choose the size and shape in which the network sees a picture; `at_hand`: whether it has weights here."""
    ready = at_hand and not (look.small and entry.pretrained_size and not chooser.settings.weights)
    pretrained = chooser.choose("pretrained", ready, _about_weights(entry, ready=ready))
    channels = chooser.choose("channels", *_channels(look, pretrained))
    size = chooser.choose("image_size", *_size(look, entry, pretrained))
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


def _about_weights(entry: Entry, *, ready: bool) -> str:
    if ready:
        return "published weights at hand"
    return "they would have to be fetched; pretrained=true does" if entry.weights else "there are no published weights"


def _channels(look: Survey, pretrained: bool) -> tuple[int, str]:
    if not look.grey:
        return 3, "pictures have colour"
    return (3, "what the pretrained network expects") if pretrained else (1, "no picture has colour")


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _size(look: Survey, entry: Entry, pretrained: bool) -> tuple[int, str]:
    if pretrained and entry.pretrained_size:
        return entry.pretrained_size, "the size of the pictures that the published weights learned from"
    if entry.size:
        return entry.size, f"{entry.name} does well with it"
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
    """What the training recipe depends on: the network, images of an epoch, kind of pictures and start.

    `imbalance` is the largest class's number of images over the smallest's.
    """

    model: str
    images: int
    size: int
    small: bool
    grey: bool
    pretrained: bool
    packed: bool
    any_size: bool
    device: str
    imbalance: float
    labelling: Labelling = SINGLE

    @classmethod
    def of(cls, dataset: Dataset, entry: Entry, look: Survey, settings: Settings, *, device: str) -> Situation:
        """Return the situation of a run on these data."""
        indices = dataset.indices("train")
        counts = dataset.source.counts(indices)
        return cls(
            model=entry.name,
            size=dataset.preprocess.height,
            images=count_seen(np.bincount(dataset.source.labels[indices]), settings.sampling),
            small=look.small,
            grey=look.grey,
            pretrained=bool(settings.pretrained),
            packed=dataset.prepared.packed,
            any_size=entry.any_size,
            device=device,
            imbalance=float(counts.max() / max(1, counts[counts > 0].min())),
            labelling=dataset.source.labelling,
        )


Advice = dict[str, tuple[Any, str]]


def choose_training(chooser: Chooser, now: Situation) -> None:
    """Choose how to train: everything that is still open."""
    chooser.choose("loss", now.labelling.losses[0], now.labelling.about)
    chooser.choose("finetune", *_finetune(now, chooser.settings))
    _choose_length(chooser, now)
    chooser.choose("workers", *_workers(now))
    for name, (value, why) in (_augmentation(now) | _optimization(now, chooser.settings)).items():
        chooser.choose(name, value, why)
    chooser.choose("accumulate", *_parts(chooser.settings))
    chooser.choose("logit_adjustment", *_adjustment(chooser.settings, now))


def _finetune(now: Situation, settings: Settings) -> tuple[str, str]:
    """Let the head alone learn from very few images: validation is then too small to tell what fine-tuning spoils."""
    if not now.pretrained:
        return "full", "nothing is pretrained, so all must learn"
    if now.images < _FEW_TO_TUNE and settings.epochs == AUTO and not settings.steps:
        return "head", f"{now.images} images teach a head; more weights than that learn them by heart"
    return "full", "every weight learns, from a fitted head"


def _parts(settings: Settings) -> tuple[int, str]:
    if settings.optimizer == "gd":
        return -(-settings.batch_size // _PART), "all images make one step, a few hundred at a time"
    return 1, "the batch fits into memory"


def _adjustment(settings: Settings, now: Situation) -> tuple[float, str]:
    """Answers for small classes cost answers for large ones: worth it where classes differ much."""
    if now.labelling is MULTI:
        return 0.0, "labels do not compete for an image"
    treated = settings.class_weights != "none" or settings.sampling != "none" or settings.loss == "focal"
    if treated:
        return 0.0, "unequal classes are treated otherwise"
    if now.imbalance >= _IMBALANCED:
        return 1.0, f"the largest class has {now.imbalance:.0f} times the images of the smallest"
    return 0.0, "classes of similar size"


def _choose_length(chooser: Chooser, now: Situation) -> None:
    """Choose epochs or budget; whichever of them and steps the user gave decides."""
    settings = chooser.settings
    if settings.epochs != AUTO:
        chooser.choose("budget", 0.0, "the number of epochs was given")
    elif settings.budget != AUTO and settings.budget > 0:
        chooser.choose("epochs", _ENDLESS, "as many as the budget allows")
    elif settings.steps:
        chooser.choose("budget", 0.0, "the number of steps was given")
        chooser.choose("epochs", _ENDLESS, "as many as the steps need")
    elif now.pretrained and now.device == "cpu" and settings.budget == AUTO:
        chooser.choose("budget", 600.0, "ten minutes fine-tune a few thousand photographs on a CPU")
        chooser.choose("epochs", _ENDLESS, "as many as the budget allows")
    else:
        chooser.choose("budget", 0.0, "the number of epochs decides")
        chooser.choose("epochs", *_epochs(now))


def _workers(now: Situation) -> tuple[int, str]:
    if now.packed and now.device == "cpu":
        return 0, "batches from the pack cost less than threads that take a core from the network"
    return 2, "batches are prepared while the network computes"


def _epochs(now: Situation) -> tuple[int, str]:
    if now.pretrained:
        return 10, "enough from pretrained weights"
    return max(10, min(30, 1_000_000 // now.images)), f"{now.images:,} images to learn from"


def _augmentation(now: Situation) -> Advice:
    signs = now.small and now.grey
    crops = not now.small
    shrinks = now.pretrained and now.any_size and now.size >= _SCRATCH_SIZE
    smaller = 32 * round(now.size * 5 / 6 / 32) if shrinks else now.size
    return {
        "flip": (not signs, "signs have a left and a right" if signs else "a mirrored picture keeps its class"),
        "shift": (0.0625 if now.small else 0.0, "small shifts keep the class" if now.small else "crops shift already"),
        "rotate": (0.0, "did not help on the sets measured"),
        "crop": (0.35 if crops else 1.0, "nearer and farther views" if crops else "small pictures are framed already"),
        "colour": (0.2 if crops else 0.0, "light differs between photographs" if crops else "did not help"),
        "erase": (0.0, "did not help in runs of minutes"),
        "train_size": (smaller, "crops magnify: less suffices in training" if smaller < now.size else "image_size"),
    }


def _recipe(now: Situation, settings: Settings) -> tuple[dict[str, Any], str]:
    if now.pretrained and settings.finetune in FEW:
        return _FINE_TUNING | {"lr": _FEW_RATE}, "from a fitted head, few weights of a network"
    if now.pretrained:
        return _FINE_TUNING, "from a fitted head, on photographs"
    if now.model.startswith("fastnet"):
        return _fastnet(now, settings), "short runs of this network"
    return _FROM_SCRATCH, "a usual start for networks from scratch"


def _optimization(now: Situation, settings: Settings) -> Advice:
    """Return the recipe's values, but for those that what the user gave speaks against."""
    recipe, why = _recipe(now, settings)
    advice = {name: (value, why) for name, value in recipe.items()}
    if settings.optimizer != AUTO and settings.optimizer != recipe["optimizer"]:
        advice["lr"] = _RATES[settings.optimizer], f"a usual start for {settings.optimizer}"
    if settings.optimizer == "gd":
        advice["batch_size"] = now.images, "gradient descent sees all images in a step"
    if settings.swa or settings.snapshots > 1:
        advice["ema"] = 0.0, "swa averages the weights" if settings.swa else "snapshots are the weights themselves"
    if settings.snapshots > 1:
        advice["schedule"] = "cosine", "snapshots are taken where the rate has fallen to nothing"
    if now.labelling is MULTI:
        advice["label_smoothing"] = 0.0, "so that a probability can be told from a threshold"
    if settings.loss == "focal":
        advice["label_smoothing"] = 0.0, "focal takes hard labels"
    return advice


def _fastnet(now: Situation, settings: Settings) -> dict[str, Any]:
    """Nesterov momentum with a high rate that falls in a straight line: 68.9 % of CIFAR-10 in 2.2 epochs."""
    many = now.images >= _MANY_IMAGES
    long = now.model != "fastnet_small" and settings.epochs >= _LONG_EPOCHS
    return {
        "batch_size": 250 if many else 64,
        "optimizer": "sgd",
        "lr": 0.2 if many else 0.1,
        "momentum": 0.85,
        "weight_decay": 5e-4,
        "schedule": "linear",
        "warmup": 0.1,
        "label_smoothing": 0.2 if not now.grey else 0.1,
        "ema": 0.0,
        "grow": 0.5 if long and many else 1.0,
    }


_RATES = {"gd": 0.1, "sgd": 0.05, "rmsprop": 1e-3, "adam": 1e-3, "adamw": 1e-3, "lars": 1.0, "lamb": 5e-3, "muon": 0.02}
_FINE_TUNING = {
    "batch_size": 16,
    "optimizer": "adamw",
    "lr": 3e-4,
    "momentum": 0.9,
    "weight_decay": 0.02,
    "schedule": "cosine",
    "warmup": 0.05,
    "label_smoothing": 0.1,
    "ema": 0.99,
    "grow": 1.0,
}

_FEW_RATE = 3e-3  # ten times that of whole networks, as their papers have it

_FROM_SCRATCH = {
    "batch_size": 128,
    "optimizer": "adamw",
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "warmup": 0.1,
    "label_smoothing": 0.1,
    "ema": 0.99,
    "grow": 1.0,
}
