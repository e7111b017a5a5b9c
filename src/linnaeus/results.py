"""The small values that the parts of linnaeus hand to each other. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
    per_class: dict[str, ClassScores]
    confusion: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values: each headline as a number, its interval beside it."""
        headlines: dict[str, Any] = {"n": self.n}
        for name in ("accuracy", "macro_f1", "loss"):
            interval: Interval = getattr(self, name)
            headlines[name] = interval.value
            headlines[f"{name}_interval"] = [interval.low, interval.high]
        return headlines | {
            "per_class": {name: asdict(scores) for name, scores in self.per_class.items()},
            "classes": list(self.per_class),
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a classifier says of a sequence of images.

    Attributes:
        classes: K class names, in the order of the columns.
        probabilities: float32 (N, K), rows sum to 1.
        names: N names of the images: paths as given, or "image 0", "image 1", ...
    """

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each image, by name."""
        return [self.classes[k] for k in self.probabilities.argmax(axis=1)]

    @property
    def confidences(self) -> NDArray[np.float32]:
        """float32 (N,): the probability of the most probable class."""
        highest: NDArray[np.float32] = self.probabilities.max(axis=1)
        return highest

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """Return for each image its k most probable classes with their probabilities, best first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return [[(self.classes[c], float(row[c])) for c in best] for row, best in zip(self.probabilities, order)]


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What one epoch of training did. Losses in nats, accuracies in [0, 1], NaN where nothing was measured."""

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
