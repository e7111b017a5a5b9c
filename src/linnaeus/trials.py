"""Trials before a run: whether the settings make sense together, whether the network bears them, how fast it is."""

from __future__ import annotations

import copy
import math

import torch

from linnaeus.config import AUTO, Settings
from linnaeus.durations import Moment, Span
from linnaeus.errors import SettingError
from linnaeus.labelling import MULTI, SINGLE, Labelling
from linnaeus.models.registry import Blueprint, Classifier, Entry
from linnaeus.recipes import Chooser
from linnaeus.runtime import autocast, available_cores, choose_precision, choose_threads
from linnaeus.training.plan import side_at

_LARGE = 64  # pixels a side, above which a trial takes two pictures


def check_sense(settings: Settings, entry: Entry, *, images: int, labelling: Labelling = SINGLE) -> None:
    """Refuse settings that contradict each other, the network, the labels or a run on so many images.

    Raises SettingError.
    """
    _check_labelling(settings, labelling)
    _check_batches(settings, images)
    _check_warmup(settings, images)
    soft = [name for name in ("label_smoothing", "mixup", "cutmix") if getattr(settings, name)]
    if settings.loss == "focal" and soft:
        got = ", ".join(f"{name}={getattr(settings, name)}" for name in soft)
        raise SettingError("hard labels for loss=focal", got=got, fix=f"Set {soft[0]}=0, or choose another loss.")
    if not entry.any_size and (settings.train_size != settings.image_size or settings.grow != 1.0):
        got = f"train_size={settings.train_size}, grow={settings.grow}"
        expected = f"one picture size, {settings.image_size}, for {entry.name}"
        raise SettingError(expected, got=got, fix="Leave train_size and grow out, or choose another model.")
    _check_averages(settings)


def _check_averages(settings: Settings) -> None:
    """Refuse averages of weights and of answers that contradict each other or the schedule. Raises SettingError."""
    several = settings.snapshots > 1
    contradictions = (
        (settings.swa and settings.ema, "one average of the weights", ("swa", "ema")),
        (settings.swa and settings.schedule == "plateau", "a schedule that time alone moves", ("swa", "schedule")),
        (settings.swa and several, "an average or snapshots", ("swa", "snapshots")),
        (several and settings.schedule != "cosine", "schedule=cosine for snapshots", ("snapshots", "schedule")),
        (several and settings.patience, "no patience where the rate rises again", ("snapshots", "patience")),
        ("flip" in settings.tta and not settings.flip, "views like the pictures learned from", ("tta", "flip")),
    )
    for wrong, expected, names in contradictions:
        if wrong:
            got = ", ".join(f"{name}={getattr(settings, name)}" for name in names)
            raise SettingError(expected, got=got, fix=f"Leave {names[0]} or {names[1]} out.")


def _check_labelling(settings: Settings, labelling: Labelling) -> None:
    if settings.loss not in labelling.losses:
        expected = f"loss={' or '.join(labelling.losses)}, as {labelling.about}"
        raise SettingError(expected, got=f"loss={settings.loss}", fix="Leave loss out, or give each image one label.")
    if labelling is MULTI and (settings.snapshots > 1 or settings.tta != "none"):
        got = f"snapshots={settings.snapshots}, tta={settings.tta}"
        raise SettingError(f"snapshots=0 and tta=none, as {labelling.about}", got=got, fix="Leave both out.")
    if labelling is MULTI and settings.logit_adjustment:
        got = f"logit_adjustment={settings.logit_adjustment:g}"
        raise SettingError("labels that exclude each other", got=got, fix="Set class_weights=balanced instead.")


def _check_batches(settings: Settings, images: int) -> None:
    """Refuse more parts of a batch than it has images, and gradient descent on fewer than all."""
    most = min(settings.batch_size, images)
    if settings.accumulate > most:
        fix = f"Set accumulate={most} or less, or a larger batch_size."
        raise SettingError(
            f"at most {most} parts of a batch of {most}", got=f"accumulate={settings.accumulate}", fix=fix
        )
    if settings.optimizer == "gd" and most < images:
        fix = "Leave batch_size out, or set optimizer=sgd momentum=0."
        got = f"batch_size={settings.batch_size}"
        raise SettingError(f"all {images:,} images in a step of gradient descent", got=got, fix=fix)


def _check_warmup(settings: Settings, images: int) -> None:
    """Refuse a warm-up that would last longer than the run."""
    warmup, end = Span.of(settings.warmup), _end_of_run(settings, images)
    if warmup.amount >= warmup.passed(end):
        length = Span(amount=warmup.passed(end), unit=warmup.unit).plain()
        fix = "Set a shorter warmup, such as 5%, or a longer run."
        raise SettingError(f"a warmup shorter than the run, {length}", got=f"warmup={settings.warmup}", fix=fix)


def _end_of_run(settings: Settings, images: int) -> Moment:
    """Return the moment at which a run on so many images ends at the latest."""
    each = -(-images // settings.batch_size)
    steps = min(settings.epochs * each, settings.steps or math.inf)
    return Moment(progress=1.0, steps=int(steps), epochs=steps / each, seconds=settings.budget or math.inf)


def find_doubts(settings: Settings, *, images: int) -> list[str]:
    """Return a sentence for each setting that will have no effect in a run on so many images."""
    steps = settings.epochs * -(-images // settings.batch_size)
    doubts = {
        f"patience={settings.patience} cannot stop a run of {settings.epochs} epochs.": (
            settings.patience >= settings.epochs
        ),
        f"steps={settings.steps} will not be reached: epochs={settings.epochs} are {steps:,} steps.": (
            settings.steps > steps
        ),
    }
    return [sentence for sentence, holds in doubts.items() if holds]


def try_out(model: Classifier, settings: Settings, blueprint: Blueprint, *, images: int) -> None:
    """Train a copy on the smallest batch of the smallest pictures that a run on so many images will have.

    Raises SettingError.
    """
    side = side_at(0.0, settings.train_size, settings.grow)
    few = max(1, min(2, min(settings.batch_size, images) // settings.accumulate))
    blank = torch.zeros(few, blueprint.channels, side, side, device=next(model.parameters()).device)
    try:
        copy.deepcopy(model).train()(blank)
    except (RuntimeError, ValueError) as error:
        raise SettingError(
            f"pictures and batches that are large enough for {blueprint.name}",
            got=f"{few} of {side} pixels at a time ({str(error).splitlines()[0][:120]})",
            fix="Set a larger train_size or batch_size, grow=1, accumulate=1, or choose another model.",
        ) from None


def choose_arithmetic(
    chooser: Chooser, model: Classifier, blueprint: Blueprint, *, device: torch.device, processes: int
) -> None:
    """Choose the precision and the number of threads of a run of so many processes."""
    if chooser.settings.precision == AUTO:
        chooser.choose("precision", *_precision(chooser.settings, model, device))
    if chooser.settings.threads != AUTO:
        return
    if device.type != "cpu" or processes > 1:
        chooser.choose("threads", available_cores(), "the cores of this process")
    else:
        chooser.choose("threads", _fastest_threads(chooser.settings, model, blueprint), "faster in a short trial")


def _precision(settings: Settings, model: Classifier, device: torch.device) -> tuple[str, str]:
    """Return the fastest precision that does the network no harm.

    No clock decides, so that the same run gives the same bytes.
    """
    precision = choose_precision(device)
    if device.type == "cpu" and precision != "fp32":
        if settings.pretrained and settings.finetune != "norm" and list(model.foldable()):
            return "fp32", "the filters that norms are folded into need all digits"
        if any(isinstance(module, torch.nn.Conv2d) and module.groups > 1 for module in model.modules()):
            return "fp32", "CPUs have no fast bf16 gradient of depthwise convolutions"
    return precision, "what this device computes fastest"


def _fastest_threads(settings: Settings, model: Classifier, blueprint: Blueprint) -> int:
    """Try a copy of the network on a few blank pictures, in the arithmetic of the run."""
    side = settings.train_size
    few = 2 if side > _LARGE else min(128, settings.batch_size)
    images = torch.zeros(few, blueprint.channels, side, side).contiguous(memory_format=torch.channels_last)
    with autocast(torch.device("cpu"), settings.precision):
        return choose_threads(copy.deepcopy(model).train(), images)
