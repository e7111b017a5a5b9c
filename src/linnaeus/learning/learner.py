"""A learner: a network with its data, and all that training it needs to know of time and classes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from linnaeus.compression.views import list_views
from linnaeus.config import Settings
from linnaeus.data.augment import Augment
from linnaeus.data.loaders import Loader
from linnaeus.data.preparation import Dataset
from linnaeus.display import Display
from linnaeus.errors import SettingError
from linnaeus.labelling import MULTI
from linnaeus.models.folding import Folded
from linnaeus.models.registry import Blueprint, Classifier, Entry
from linnaeus.results import EpochResult
from linnaeus.runfolder import RunFolder
from linnaeus.runtime import Interrupts, World
from linnaeus.training.checkpoint import Best
from linnaeus.training.imbalance import log_prior, normalize_weights, weigh_classes, weigh_positives
from linnaeus.training.losses import Loss
from linnaeus.training.tasks import Normalizer

JUDGING_SHARE = 0.25  # of a budget that judging may take, before it is done on a sample
FEWEST_JUDGED = 100
_FINISH_SECONDS = 2.5  # to export, prove and write a bundle and a report, judging aside
_LEAST_SHARE, _LEAST_SECONDS = 0.03, 2.0  # of a budget that go into judging even when it has run out


@dataclass(frozen=True, kw_only=True)
class Oversight:
    """How whoever started a run watches over it.

    Attributes:
        parts: the parts of the data that may be judged. What is left out was neither learned from nor looked at.
        stop: told of all epochs of the run so far, after each and when the run is resumed; returns whether to stop.
    """

    parts: tuple[str, ...] = ("val", "test")
    stop: Callable[[Sequence[EpochResult]], bool] = lambda epochs: False


@dataclass(kw_only=True)
class Learner:
    """A network with its data and all that training it needs. `learn` fills in the rest.

    Attributes:
        best: the weights to keep, None if none are known to be good. history: what each epoch did.
        ended: why training ended, as `fit` says, "head" if only the head was fitted, "diverged" or "memory".
        held_out: the parts to judge, which the kept weights did not learn from. stop: as in Oversight.
        norms: the batch norms that were folded into the convolutions for the time of training.
        trained: how many weights learned. snapshots: how many ends of cycles the run has kept.
        speed: images a second that the network judges, 0 while that is not known. notes: sentences for the report.
    """

    settings: Settings
    dataset: Dataset
    entry: Entry
    blueprint: Blueprint
    model: Classifier
    device: torch.device
    world: World
    display: Display
    interrupts: Interrupts
    started: float
    folder: RunFolder | None
    best: Best | None = None
    history: list[EpochResult] = field(default_factory=list)
    norms: Folded = field(default_factory=dict)
    trained: int = 0
    ended: str = "done"
    held_out: tuple[str, ...] = ("val", "test")
    snapshots: int = 0
    stop: Callable[[Sequence[EpochResult]], bool] = lambda epochs: False
    speed: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def normalize(self) -> Normalizer:
        """What turns pixels into the network's input."""
        return Normalizer(self.dataset.preprocess, self.device)

    @property
    def passes(self) -> int:
        """How many answers of the network, of its views and snapshots, make one of the bundle."""
        return len(list_views(self.settings.tta, self.dataset.preprocess)) * max(1, self.settings.snapshots)

    def seconds_left(self) -> float:
        """Return how much of the budget is left for learning, the time to judge and finish put aside."""
        if not self.settings.budget:
            return math.inf
        # What is held out is judged once at the end; validation once more when training ends.
        to_judge = self.passes * sum(len(self.dataset.indices(part)) for part in self.held_out)
        to_judge += len(self.dataset.indices("val"))
        judging = min(to_judge / self.speed if self.speed else 0.0, JUDGING_SHARE * self.settings.budget)
        return float(self._unspent() - judging - _FINISH_SECONDS)

    def sample_size(self) -> int:
        """Return how many images of each part there is time to judge, 0 for all of them."""
        if not self.settings.budget or not self.speed:
            return 0
        seconds = max(self._unspent() - _FINISH_SECONDS, _LEAST_SECONDS, _LEAST_SHARE * self.settings.budget)
        most = max(FEWEST_JUDGED, int(seconds * self.speed / self.passes / max(1, len(self.held_out))))
        largest = max((len(self.dataset.indices(part)) for part in self.held_out), default=0)
        if largest <= most:
            return 0
        self.warn(f"The budget left time to judge {most:,} images of each part, not all.")
        return most

    def warn(self, sentence: str) -> None:
        """Say something alarming now, and in the report."""
        self.note(sentence, kind="warning")

    def note(self, sentence: str, *, kind: str = "note") -> None:
        """Say something now, and in the report."""
        self.display.say(f"  {kind}: {sentence}")
        self.notes.append(sentence)

    def _unspent(self) -> float:
        return float(self.settings.budget) - (time.perf_counter() - self.started)

    def loader(
        self, part: str, *, batch_size: int, shuffle: bool = False, augment: Augment | None = None, at_most: int = 0
    ) -> Loader:
        """Return a loader of a part of the data, for this process; `at_most` as in `Dataset.indices`."""
        return Loader(
            pixels=self.dataset.prepared.pixels,
            labels=self.dataset.source.truth,
            indices=self.dataset.indices(part, at_most=at_most),
            batch_size=batch_size,
            augment=augment or Augment(),
            seed=self.settings.seed,
            shuffle=shuffle,
            workers=self.settings.workers,
            rank=self.world.rank,
            world=self.world.size,
        )


def augmentation(settings: Settings) -> Augment:
    """Return what the settings of the same names ask for."""
    return Augment(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Augment)})


def make_loss(learner: Learner, device: torch.device) -> Loss:
    """Return the loss that the settings ask for, with what it needs to know of the classes."""
    settings, source, indices = learner.settings, learner.dataset.source, learner.dataset.indices("train")
    counts = source.counts(indices)
    loss = Loss(name=settings.loss, smoothing=settings.label_smoothing, gamma=settings.focal_gamma)
    if source.labelling is MULTI:
        positive = _positive_weights(settings, counts, len(indices))
        return dataclasses.replace(loss, several=True, positive=_to_tensor(positive, device))
    weights, adjustment = _class_weights(settings, counts), settings.logit_adjustment * log_prior(counts)
    return dataclasses.replace(
        loss,
        weights=None if np.ptp(weights) == 0 else _to_tensor(weights, device),
        adjustment=None if np.ptp(adjustment) == 0 else _to_tensor(adjustment, device),
    )


def _positive_weights(settings: Settings, counts: NDArray[np.int64], images: int) -> NDArray[np.float64]:
    """Return v_k of several labels, float64 (K,). Raises SettingError for a wrong number of them."""
    given = settings.class_weights
    return weigh_positives(counts, images, given) if isinstance(given, str) else _check_number(given, len(counts))


def _class_weights(settings: Settings, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the weight of each class, float64 (K,). Raises SettingError for a wrong number of them."""
    given = settings.class_weights
    if isinstance(given, str):
        return weigh_classes(counts, given)
    return normalize_weights(_check_number(given, len(counts)), counts)


def _check_number(given: tuple[float, ...], classes: int) -> NDArray[np.float64]:
    if len(given) != classes or not any(given):
        expected = f"class_weights with a number for each of the {classes} classes"
        raise SettingError(expected, got=str(given), fix="Give them in the order of the classes.")
    return np.array(given)


def _to_tensor(values: NDArray[np.float64], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
