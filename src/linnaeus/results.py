"""The small values that the parts of linnaeus hand to each other. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from linnaeus.errors import ImageError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score with its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def percent(self) -> str:
        """Return the score in percent with its interval, as people read it: "93.2 % (91.0 to 95.1)"."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Precision, recall and F1 of one class, each in [0, 1], and how many images truly belong to it."""

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class LabelScores(ClassScores):
    """Scores of a label that images may have beside others, at its threshold, and its average precision, NaN if unseen.

    Average precision is the mean of the precision at each image that has the label, images in the order of their
    probabilities: it needs no threshold.
    """

    average_precision: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How well predictions agree with the truth on one set of images.

    Attributes:
        n: number of images.
        accuracy, macro_f1: in [0, 1]. loss: mean cross-entropy in nats.
        per_class: by class name, in the bundle's order.
        confusion: int64 (K, K), rows are the truth, columns the prediction.
    """

    n: int
    accuracy: Interval
    macro_f1: Interval
    loss: Interval
    per_class: Mapping[str, ClassScores]
    confusion: NDArray[np.int64]

    @property
    def headlines(self) -> dict[str, Interval]:
        """The scores of all images by what people call them, the most telling first, all but the loss in [0, 1]."""
        return {"accuracy": self.accuracy, "macro F1": self.macro_f1, "loss": self.loss}

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values: each headline as a number, its interval beside it."""
        headlines: dict[str, Any] = {"n": self.n}
        for name, interval in ((f.name, getattr(self, f.name)) for f in fields(self)):
            if isinstance(interval, Interval):
                headlines[name] = interval.value
                headlines[f"{name}_interval"] = [interval.low, interval.high]
        return headlines | {
            "per_class": {name: _numbers(scores) for name, scores in self.per_class.items()},
            "classes": list(self.per_class),
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True, kw_only=True)
class MultilabelScores(Scores):
    """How well sets of labels agree with the truth.

    Attributes:
        accuracy: share of the images whose set of labels is wholly right (exact match ratio).
        macro_f1: mean over the labels. loss: mean binary cross-entropy in nats.
        per_class: LabelScores by name.
        confusion: int64 (K, 2, 2), for each label; rows are the truth, no and yes, columns the answer.
        mean_ap: mean average precision over the labels that occur. micro_f1: of all answers together.
        hamming_loss: share of all answers, yes or no to each label of each image, that are wrong.
    """

    mean_ap: Interval
    micro_f1: Interval
    hamming_loss: Interval

    @property
    def headlines(self) -> dict[str, Interval]:
        """The scores of all images by what people call them, the most telling first, all but the loss in [0, 1]."""
        return {
            "mAP": self.mean_ap,
            "micro F1": self.micro_f1,
            "macro F1": self.macro_f1,
            "exact match": self.accuracy,
            "Hamming loss": self.hamming_loss,
            "loss": self.loss,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values; `label_confusions` holds the confusion of each label."""
        values = super().to_dict()
        return values | {"label_confusions": values.pop("confusion")}


def _numbers(scores: ClassScores) -> dict[str, Any]:
    """Return the scores of a class as JSON values: what is undefined is null."""
    values = asdict(scores).items()
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values}


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a classifier says of a sequence of images.

    Attributes:
        classes: K class names, in the order of the columns.
        probabilities: float32 (N, K); rows sum to 1, but where an image may have several labels.
        names: N names of the images: paths as given, or "image 0", "image 1", ...
        thresholds: float32 (K,), the probability from which on a label is given, where an image may have several; None
            where it has the most probable one.
    """

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    names: tuple[str, ...]
    thresholds: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def given(self) -> NDArray[np.bool_]:
        """Which labels each image is given, bool (N, K)."""
        if self.thresholds is not None:
            return np.asarray(self.probabilities >= self.thresholds)
        return np.asarray(np.arange(len(self.classes)) == self.probabilities.argmax(axis=1)[:, None])

    @property
    def labels(self) -> list[Any]:
        """The most probable class of each image, by name; where it may have several, the tuple of those given."""
        if self.thresholds is None:
            return [self.classes[k] for k in self.probabilities.argmax(axis=1)]
        return [tuple(self.classes[k] for k in np.flatnonzero(row)) for row in self.given]

    @property
    def confidences(self) -> NDArray[np.float32]:
        """float32 (N,): the probability of the most probable class; of several labels, that none of them is wrong.

        The latter is the product over all classes of p where a label is given and 1 - p where it is not.
        """
        if self.thresholds is None:
            highest: NDArray[np.float32] = self.probabilities.max(axis=1)
            return highest
        whole: NDArray[np.float32] = np.where(self.given, self.probabilities, 1 - self.probabilities).prod(axis=1)
        return whole

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """Return for each image its k most probable classes with their probabilities, best first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [[(self.classes[c], float(row[c])) for c in best] for row, best in zip(self.probabilities, order)]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How a network did on the validation images.

    Attributes:
        loss: in nats, NaN where there are no images. accuracy: share of the images that were answered wholly right, of
            several labels with those of a probability from 0.5 on.
        mean_ap: mean average precision of several labels, NaN where each image has one.
    """

    loss: float
    accuracy: float
    mean_ap: float = math.nan

    @property
    def score(self) -> float:
        """By what the best epoch is chosen: mean average precision, which needs no threshold, else accuracy."""
        return self.accuracy if math.isnan(self.mean_ap) else self.mean_ap


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What one epoch of training did. Losses in nats, the rest in [0, 1], all as in Validation; NaN if not measured."""

    stage: str
    epoch: int
    step: int
    seconds: float
    learning_rate: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    images_per_second: float
    skipped_steps: int = 0
    best: bool = False
    val_mean_ap: float = math.nan


def say_label(label: str | tuple[str, ...]) -> str:
    """Return a label, or several, as people read them."""
    return label if isinstance(label, str) else ", ".join(label) or "none"


@dataclass(frozen=True, kw_only=True)
class BadImage:
    """An image that could not be read, and why."""

    path: str
    reason: str

    @classmethod
    def of(cls, path: str, error: ImageError) -> BadImage:
        """Return the image with what an error says of it."""
        return cls(path=path, reason=error.got.removeprefix(f"{path}, which "))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A setting that linnaeus chose by itself, with its reason."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What `train` returns: where the run lies and how good its classifier is.

    `scores` maps "val" and "test" to Scores; a part without images is absent. `stopped_early` says why, if it did
    ("interrupted", "patience", "diverged", or "stopped" by the run's oversight);
    `signal` is the number of the signal that stopped it, or 0.
    """

    folder: str
    bundle: str
    report: str
    scores: dict[str, Scores]
    epochs: Sequence[EpochResult]
    choices: Sequence[Choice]
    bad_images: Sequence[BadImage] = field(default_factory=tuple)
    stopped_early: str = ""
    signal: int = 0
