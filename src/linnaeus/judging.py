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
from linnaeus.data.preparation import Dataset, build_dataset
from linnaeus.data.sources import Columns, Source, open_source
from linnaeus.display import Display, Silent
from linnaeus.errors import DataError, SettingError
from linnaeus.evaluation.metrics import score
from linnaeus.predictor import Predictor
from linnaeus.results import SPLITS, Scores

_BLOCK = 256
PARTS = ("auto", "all", *SPLITS)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A bundle's answers for some labelled images.

    Attributes:
        part: which part of the data they are. indices: int64 (n,), their numbers in the source.
        labels: int64 (n,). probabilities: float32 (n, K).
    """

    part: str
    scores: Scores
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]


def judge_images(
    predictor: Predictor, dataset: Dataset, indices: NDArray[np.int64], *, part: str, display: Display
) -> Judgement:
    """Classify some images of a data set and score the answers. Raises DataError if there are none."""
    if not len(indices):
        raise DataError(f"images in the part {part!r}", got="none", fix="Choose another with --split, or all.")
    blocks = []
    with display.progress(f"judging {part}") as advance:
        for start in range(0, len(indices), _BLOCK):
            blocks.append(predictor.predict_pixels(dataset.prepared.pixels.take(indices[start : start + _BLOCK])))
            advance(start + len(blocks[-1]), len(indices))
    probabilities, labels = np.concatenate(blocks), dataset.source.labels[indices]
    scores = score(probabilities, labels, predictor.classes)
    return Judgement(part=part, scores=scores, indices=indices, labels=labels, probabilities=probabilities)


def list_answers(
    dataset: Dataset, indices: NDArray[np.int64], probabilities: NDArray[np.float32], *, part: str
) -> list[Answer]:
    """Return the answers float32 (n, K) for some images of a data set one by one."""
    source, answers = dataset.source, []
    for i, row in zip(indices.tolist(), probabilities):
        label, predicted = source.classes[source.labels[i]], source.classes[int(row.argmax())]
        answers.append(
            Answer(
                image=source.where(i), digest=source.digest(i), label=label, part=part, predicted=predicted,
                probabilities=tuple(row.tolist()),
            )
        )  # fmt: skip
    return answers


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
        DataError: the data have a class that the bundle does not know, or no image in the part.
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
           "group_column")  # fmt: skip


def open_known(data: Any, bundle: Bundle) -> Source:
    """Open labelled images as a bundle's run did, with its classes. Raises DataError for one that it does not know."""
    return match_classes(open_source(data, columns=columns_of(_settings_of(bundle))), bundle.classes)


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


def columns_of(settings: Settings) -> Columns:
    """Return the names of a table's columns that the settings give."""
    return Columns(
        path=settings.path_column,
        label=settings.label_column,
        split=settings.split_column,
        group=settings.group_column,
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
    return replace(source, classes=classes, labels=numbers[source.labels])
