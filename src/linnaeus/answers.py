"""Answers for single images: the lines of a predictions.csv, by which two classifiers can be compared."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from linnaeus.errors import RunError

FILE = "predictions.csv"
_COLUMNS = 5  # before the probabilities


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a classifier said of a labelled image.

    Attributes:
        image: where it lies. digest: of its content, so that it is known wherever it lies; "" if there is none.
        part: of the data ("val" or "test"), or the fold that judged it. probabilities: of each class.
    """

    image: str
    digest: str
    label: str
    part: str
    predicted: str
    probabilities: tuple[float, ...]


def format_answers(answers: Iterable[Answer], classes: Sequence[str], *, part: str = "part") -> str:
    """Return the answers as CSV, one line for each; `part` is the title of that column."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("image", "digest", "label", part, "predicted", *classes))
    for a in answers:
        chances = (f"{p:.6f}" for p in a.probabilities)
        writer.writerow((a.image, a.digest, a.label, a.part, a.predicted, *chances))
    return stream.getvalue()


def read_answers(folder: Path) -> list[Answer]:
    """Return the answers that a run left in its folder. Raises RunError if there are none."""
    file = folder / FILE
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            _, *rows = csv.reader(stream)
        return [_parse(row) for row in rows]
    except (OSError, ValueError, csv.Error):
        fix = "Name the folder of a run that came to its report; train an older one again."
        raise RunError(f"a readable {FILE}", got=f"{str(folder)!r}, without one", fix=fix) from None


def _parse(row: Sequence[str]) -> Answer:
    image, digest, label, part, predicted = row[:_COLUMNS]
    chances = tuple(float(p) for p in row[_COLUMNS:])
    return Answer(image=image, digest=digest, label=label, part=part, predicted=predicted, probabilities=chances)
