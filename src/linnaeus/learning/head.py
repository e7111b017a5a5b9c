"""The head, fitted on features of the frozen network: the fast start of a run from published weights."""

from __future__ import annotations

import dataclasses
import math
import time

import torch

from linnaeus.compression.export import to_onnx
from linnaeus.data.loaders import Batch
from linnaeus.labelling import SINGLE
from linnaeus.learning.learner import JUDGING_SHARE, Learner, make_loss
from linnaeus.models.registry import Classifier, count_parameters
from linnaeus.results import EpochResult, Validation
from linnaeus.runtime import autocast
from linnaeus.training.checkpoint import Best, copy_weights
from linnaeus.training.probe import Extract, Features, Head, extract_features, fit_head, fit_logistic, open_extractor
from linnaeus.training.tasks import Normalizer

PENALTIES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
_FEATURE_BATCH = 16
_TUNING_SPEED = 0.3  # of a training step to a frozen forward pass
_TUNING_EPOCHS = 1.5  # fewer were seen to do worse than the fitted head
_FIT_PASSES, _FIT_RATE = 80, 4e10  # over the features in one fit; operations a second
_MIRRORED_SECONDS = 2.0  # at least this much must be left to begin with mirrored pictures


class _Body(torch.nn.Module):
    """A network up to its features."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features float (N, D)."""
        return self.model.features(images)


def fit_probe(learner: Learner) -> bool:
    """Fit the head on features of the frozen network. Returns whether to go on and fine-tune from it.

    With finetune=head, or too little time for more, what is fitted here is the result.
    """
    start = time.perf_counter()
    extract = _open_extractor(learner)
    val = _extract(learner, "val", extract, until=JUDGING_SHARE)
    train = _extract(learner, "train", extract, until=1.0)
    classes = learner.blueprint.classes
    loss = make_loss(learner, torch.device("cpu"))
    head = fit_head(train, val, loss=loss, classes=classes, penalties=PENALTIES)
    interrupted = learner.world.any(bool(learner.interrupts.caught))
    wanted = learner.settings.finetune != "head"
    tune = wanted and not interrupted and not learner.world.any(not _can_tune(learner))
    weight, bias = head.weight, head.bias
    if not tune:
        learner.ended = "interrupted" if interrupted else "head"
        learner.trained = count_parameters(learner.model.head)
        if wanted and not interrupted:
            learner.note("The budget leaves no time for fine-tuning that would do better: the head alone is fitted.")
        if not interrupted:
            features = _add_features(learner, extract, train, val)
            if features is not train:
                weight, bias = fit_logistic(features, loss=loss, classes=classes, penalty=head.penalty)
    # Where time ran out, each process has seen other images: all go on with the first one's head.
    _set_head(learner, learner.world.share(weight), learner.world.share(bias))
    _remember_probe(learner, head, time.perf_counter() - start)
    return tune


def _add_features(learner: Learner, extract: Extract, train: Features, val: Features) -> Features:
    """Return the features that a head which will not be fine-tuned is fitted on.

    Where others judge it and no thresholds are to be chosen, validation has served its purpose, and its images teach
    the head too. What time is left shows it mirrored pictures.
    """
    features, parts = train, ["train"]
    judged = "test" in learner.held_out and len(learner.dataset.indices("test"))
    if judged and learner.dataset.source.labelling is SINGLE:
        features, parts = train.join(val), ["train", "val"]
        learner.held_out = ("test",)
        learner.note("The head was chosen on the validation images, then fitted on them as well.")
    for part in parts if learner.settings.flip else ():
        needed = _MIRRORED_SECONDS + _fit_seconds(learner, 2 * len(features.labels))
        if not learner.world.any(learner.seconds_left() < needed):
            features = features.join(_extract(learner, part, lambda x: extract(x.flip(3)), until=1.0, kind="mirrored "))
    return features


def _open_extractor(learner: Learner) -> Extract:
    body = _Body(learner.model).eval()
    if learner.device.type == "cpu":
        channels, size = learner.blueprint.channels, learner.blueprint.size
        return open_extractor(to_onnx(body, channels=channels, size=size), threads=learner.settings.threads)

    def extract(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), autocast(learner.device, learner.settings.precision):
            features: torch.Tensor = body(images.to(learner.device))
        return features.float().cpu()

    return extract


def _extract(learner: Learner, part: str, extract: Extract, *, until: float, kind: str = "") -> Features:
    """Compute features of a part, of as many images as the share `until` of the time left allows."""
    # In random order, so that those that the time allows are a fair sample.
    loader = learner.loader(part, batch_size=_FEATURE_BATCH, shuffle=True)
    # Every process computes all features: the head must be the same in all.
    loader = dataclasses.replace(loader, rank=0, world=1)
    normalize = Normalizer(learner.dataset.preprocess, torch.device("cpu"))
    start, done = time.perf_counter(), 0
    left = learner.seconds_left() * until

    with learner.display.progress(f"features of {kind}{part}") as advance:

        def watch(batch: Batch) -> bool:
            nonlocal done
            done += len(batch.labels)
            advance(done, len(loader.indices))
            spent = time.perf_counter() - start
            learner.speed = done / spent
            in_time = spent < left and learner.seconds_left() > _fit_seconds(learner, done)
            return in_time and not learner.interrupts.caught

        features = extract_features(loader, normalize, extract, watch=watch)
    if done < len(loader.indices):
        learner.warn(f"Time allowed features of {done:,} of {len(loader.indices):,} {kind}{part} images.")
    learner.speed = learner.world.agree(learner.speed)
    return features


def _fit_seconds(learner: Learner, images: int) -> float:
    """Estimate how long all fits of the head on so many images take, from their arithmetic."""
    operations = 6.0 * images * learner.model.width * learner.blueprint.classes
    return (len(PENALTIES) + 1) * _FIT_PASSES * operations / _FIT_RATE


def _set_head(learner: Learner, weight: torch.Tensor, bias: torch.Tensor) -> None:
    head = learner.model.head
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)


def _remember_probe(learner: Learner, head: Head, seconds: float) -> None:
    values = dataclasses.asdict(head.found)
    found = Validation(**{name: learner.world.agree(value) for name, value in values.items()})
    learner.best = Best(weights=copy_weights(learner.model), score=found.score, loss=found.loss)
    result = EpochResult(
        stage="head",
        epoch=0,
        step=0,
        seconds=seconds,
        learning_rate=0.0,
        train_loss=math.nan,
        train_accuracy=math.nan,
        val_loss=found.loss,
        val_accuracy=found.accuracy,
        images_per_second=learner.speed,
        best=True,
        val_mean_ap=found.mean_ap,
    )
    learner.history.append(result)
    learner.display.epoch(result)
    if learner.world.leads and learner.folder is not None:
        learner.folder.append_epoch(result)


def _can_tune(learner: Learner) -> bool:
    """Whether the budget allows enough epochs of fine-tuning to do better than the head alone."""
    if not learner.settings.budget:
        return True
    images = learner.seconds_left() * learner.speed * _TUNING_SPEED
    return images > _TUNING_EPOCHS * len(learner.dataset.indices("train"))
