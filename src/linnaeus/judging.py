"""Judging a bundle: the same Predictor that answers users answers for labelled images, and is scored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from linnaeus.answers import Answer
from linnaeus.bundle import Bundle
from linnaeus.config import Settings
from linnaeus.data.labelled import rarest_labels
from linnaeus.data.preparation import Dataset, build_dataset
from linnaeus.data.sources import Columns, Source, open_source
from linnaeus.display import Display, Silent
from linnaeus.errors import DataError, SettingError
from linnaeus.evaluation.metrics import score
from linnaeus.evaluation.multilabel import score_labels
from linnaeus.labelling import SINGLE
from linnaeus.predictor import Predictor, decide
from linnaeus.results import SPLITS, Predictions, Scores, say_label

_BLOCK = 256
PARTS = ("auto", "all", *SPLITS)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A bundle's answers for some labelled images.

    Attributes:
        part: which part of the data they are. indices: int64 (n,), their numbers in the source.
        truth: int64 (n,), or uint8 (n, K) where an image may have several labels. predictions: of the n images.
    """

    part: str
    scores: Scores
    indices: NDArray[np.int64]
    truth: NDArray[Any]
    predictions: Predictions

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Probabilities float32 (n, K)."""
        return self.predictions.probabilities

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which images were answered wholly right, bool (n,)."""
        if self.truth.ndim == 1:
            return np.asarray(self.probabilities.argmax(axis=1) == self.truth)
        return np.asarray((self.predictions.given == (self.truth > 0)).all(axis=1))


def judge_images(
    predictor: Predictor, dataset: Dataset, indices: NDArray[np.int64], *, part: str, display: Display
) -> Judgement:
    """Classify some images of a data set and score the answers. Raises DataError if there are none."""
    if not len(indices):
        raise DataError(f"images in the part {part!r}", got="none", fix="Choose another with --split, or all.")
    probabilities = answer_images(predictor, dataset, indices, part=part, display=display)
    return judge_answers(predictor.bundle, dataset, indices, probabilities, part=part)


def answer_images(
    predictor: Predictor, dataset: Dataset, indices: NDArray[np.int64], *, part: str, display: Display
) -> NDArray[np.float32]:
    """Return a predictor's probabilities float32 (n, K) for some images of a data set, at least one."""
    blocks = []
    with display.progress(f"judging {part}") as advance:
        for start in range(0, len(indices), _BLOCK):
            blocks.append(predictor.predict_pixels(dataset.prepared.pixels.take(indices[start : start + _BLOCK])))
            advance(start + len(blocks[-1]), len(indices))
    return np.concatenate(blocks)


def judge_answers(
    bundle: Bundle, dataset: Dataset, indices: NDArray[np.int64], probabilities: NDArray[np.float32], *, part: str
) -> Judgement:
    """Decide by a bundle's probabilities float32 (n, K) for some images of a data set, and score the answers."""
    truth, names = dataset.source.truth[indices], [dataset.source.where(int(i)) for i in indices]
    scores = (
        score(probabilities, truth, bundle.classes)
        if bundle.labelling is SINGLE
        else score_labels(probabilities, truth, bundle.classes, bundle.thresholds)
    )
    predictions = decide(bundle, probabilities, names)
    return Judgement(part=part, scores=scores, indices=indices, truth=truth, predictions=predictions)


def list_answers(dataset: Dataset, judgement: Judgement) -> list[Answer]:
    """Return the answers for some images of a data set one by one."""
    source, predictions = dataset.source, judgement.predictions
    return [
        Answer(
            image=source.where(i), digest=source.digest(i), label=say_label(source.label_of(i)), part=judgement.part,
            predicted=say_label(label), probabilities=tuple(row.tolist()),
        )
        for i, label, row in zip(judgement.indices.tolist(), predictions.labels, predictions.probabilities)
    ]  # fmt: skip


def evaluate(
    bundle: str | Path | Bundle, data: Any, *, split: str = "auto", display: Display | None = None
) -> Judgement:
    """Score a bundle on labelled images.

    Args:
        bundle: a bundle or a run folder. data: whatever `train` takes.
        split: "train", "val", "test", "all", or "auto": the test part of data that are split or that the bundle
            comes from, and all images of any others. Images of the bundle's own data are known by their content,
            wherever they lie now.

    Raises:
        DataError: the data have a class that the bundle does not know, no image in the part, or several labels an image
            where the bundle knows one, or the other way round.
    """
    if split not in PARTS:
        raise SettingError(f"split to be one of {', '.join(PARTS)}", got=repr(split), fix="Choose one of them.")
    predictor = Predictor(bundle)
    told = display or Silent()
    source = open_known(data, predictor.bundle)
    dataset = read_known(source, predictor.bundle, told)
    dataset, recalled = dataset.recall_parts(predictor.bundle.read_parts())
    part = split if split != "auto" else "test" if len(dataset.indices("test")) else "all"
    indices = dataset.indices(part)
    _tell_seen(recalled[indices], predictor.bundle, told)
    if part != "all" and (new := int((dataset.split[dataset.prepared.good] == -1).sum())):
        told.say(f"  note: {new:,} images that the bundle has not seen are in no part; --split all judges them too")
    return judge_images(predictor, dataset, indices, part=part, display=told)


_NEEDED = ("val_fraction", "test_fraction", "seed", "cache_limit", "path_column", "label_column", "split_column",
           "label_separator", "label_columns", "group_column")  # fmt: skip


def open_known(data: Any, bundle: Bundle) -> Source:
    """Open labelled images as a bundle's run did, with its classes. Raises DataError for one that it does not know."""
    source = match_classes(open_source(data, columns=columns_of(_settings_of(bundle))), bundle.classes)
    _check_labelling(source, bundle)
    return source


def read_known(source: Source, bundle: Bundle, display: Display) -> Dataset:
    """Read images as a bundle wants them; what cannot be read is named, and the rest kept."""
    settings = _settings_of(bundle).replace({"max_bad": 1.0})
    with display.progress("reading images") as advance:
        dataset = build_dataset(source, bundle.preprocess, settings, divide=False, progress=advance)
    for image in dataset.prepared.bad:
        display.say(f"  unreadable, left out: {image.path}: {image.reason}")
    return dataset


def _settings_of(bundle: Bundle) -> Settings:
    """Return the settings of a bundle's run that reading its data takes."""
    return Settings.of({name: value for name, value in bundle.recipe.items() if name in _NEEDED})


def _tell_seen(recalled: NDArray[np.int8], bundle: Bundle, display: Display) -> None:
    """Say it when images that the bundle's run had in another part than test are judged."""
    if seen := int(((recalled >= 0) & (recalled != SPLITS.index("test"))).sum()):
        display.say(f"  warning: {seen:,} of these images were learned from or chosen by; the score flatters")
        if "out_of_fold" in bundle.facts:
            display.say("  note: crossval.json has the score of each image by a member that had not seen it")


def _check_labelling(source: Source, bundle: Bundle) -> None:
    if source.labelling is not bundle.labelling:
        fix = "Train on these data, or judge on others; label_separator and label_columns tell how a table is read."
        expected = f"{bundle.labelling.name} data, as the bundle has learned from"
        raise DataError(expected, got=f"{source.labelling.name} data", fix=fix)


def columns_of(settings: Settings) -> Columns:
    """Return the names of a table's columns that the settings give."""
    return Columns(
        path=settings.path_column,
        label=settings.label_column,
        split=settings.split_column,
        group=settings.group_column,
        separator=settings.label_separator,
        classes=tuple(name.strip() for name in settings.label_columns.split(",") if name.strip()),
    )


def match_classes(source: Source, classes: tuple[str, ...]) -> Source:
    """Renumber a source's labels after a bundle's classes, by name. Raises DataError for one that it does not know."""
    unknown = [name for name in source.classes if name not in classes]
    if unknown:
        raise DataError(
            f"only classes that the bundle knows ({', '.join(classes[:20])})",
            got=f"the data's {', '.join(map(repr, unknown[:20]))}",
            fix="Rename or remove these, or train on these data.",
        )
    numbers = np.array([classes.index(name) for name in source.classes], dtype=np.int64)
    if source.targets is None:
        return replace(source, classes=classes, labels=numbers[source.labels])
    targets = np.zeros((len(source), len(classes)), np.uint8)
    targets[:, numbers] = source.targets
    return replace(source, classes=classes, labels=rarest_labels(targets), targets=targets)
