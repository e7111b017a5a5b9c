"""Comparing finished runs: their scores side by side, and whether a difference is more than luck. No torch needed."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.answers import Answer, read_answers
from linnaeus.bundle import find_bundle
from linnaeus.errors import RunError
from linnaeus.predictor import Predictor
from linnaeus.runfolder import read_report

_EXACT = 25  # images on which two classifiers differ, below which the chi-squared distribution is too coarse
_LIMIT = 0.05
_CALLS, _WARM_UP, _SECONDS = 30, 3, 1.0  # of measuring the time for a picture

Key = tuple[str, int]  # a digest, and which of the images with that digest


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One run.

    Attributes:
        scores: of the test part as its report has them, {} where it was not judged on one.
        parameters, trained_parameters: None where the report does not tell. bundle_bytes: all files of the bundle.
        milliseconds: the median time for one picture on this machine, from pixels to an answer.
        training_seconds: of the whole run on the machine that it ran on.
    """

    run: str
    model: str
    scores: Mapping[str, Any]
    parameters: int | None
    trained_parameters: int | None
    bundle_bytes: int
    milliseconds: float
    training_seconds: float


@dataclass(frozen=True, kw_only=True)
class Duel:
    """A run beside the best one, on the test images that both have judged.

    Attributes:
        images: how many. only_best, only_other: those that the one alone, the other alone, named rightly.
        p: of McNemar's test, the chance of a difference at least as large if both were equally good; None without
            images. holm: the same corrected for the number of runs. differs: whether holm lies below 0.05.
        classes: by name, images of the class and how many of them each named rightly.
        verdict: all that in a sentence.
    """

    run: str
    images: int
    only_best: int
    only_other: int
    p: float | None
    holm: float | None
    differs: bool | None
    classes: Mapping[str, Mapping[str, int]]
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` returns: the runs as they were named, the best of them, and it beside each of the others."""

    entrants: Sequence[Entrant]
    best: str
    duels: Sequence[Duel]

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        return {
            "best": self.best,
            "runs": [asdict(entrant) for entrant in self.entrants],
            "against_best": [asdict(duel) for duel in self.duels],
        }


def compare(*runs: str | Path) -> Comparison:
    """Compare the folders of two or more finished runs, wherever they were trained.

    The run of the highest test accuracy is tested against each of the others by McNemar's test (McNemar 1947; for
    classifiers, Dietterich 1998) on the test images that both have judged, which are known by their content; several
    tests are corrected by Holm's method (1979).

    Raises RunError for fewer than two runs or one without a report, and BundleError for one without a bundle.
    """
    if len(set(map(str, runs))) < 2:
        raise RunError("two runs or more", got=", ".join(map(repr, map(str, runs))) or "none", fix="Name another.")
    entrants = [_enter(Path(run)) for run in runs]
    best = max(entrants, key=lambda entrant: float(entrant.scores.get("accuracy", -1.0)))
    answers = {entrant.run: _key_answers(read_answers(Path(entrant.run))) for entrant in entrants}
    others = [entrant.run for entrant in entrants if entrant.run != best.run]
    pairs = [_pair(answers[best.run], answers[run]) for run in others]
    tests = [apply_mcnemar(*_differ(pair)) if pair else None for pair in pairs]
    corrected = iter(correct_holm([p for p in tests if p is not None]))
    duels = [_duel(run, pair, p, None if p is None else next(corrected)) for run, pair, p in zip(others, pairs, tests)]
    return Comparison(entrants=entrants, best=best.run, duels=duels)


def _enter(path: Path) -> Entrant:
    report = read_report(path)
    model = report.get("model") or {}
    return Entrant(
        run=str(path),
        model=str(model.get("name", "")),
        scores=(report.get("scores") or {}).get("test") or {},
        parameters=model.get("parameters"),
        trained_parameters=model.get("trained_parameters"),
        bundle_bytes=sum(file.stat().st_size for file in find_bundle(path).iterdir()),
        milliseconds=_time_picture(Predictor(path)),
        training_seconds=float((report.get("timing") or {}).get("total_seconds", math.nan)),
    )


def _time_picture(predictor: Predictor) -> float:
    """Return the median milliseconds that a predictor takes for one picture of the size that its network sees."""
    prepared = predictor.bundle.preprocess
    picture = np.full((prepared.height, prepared.width, 3), 127, np.uint8)
    seconds: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(seconds) < _WARM_UP + _CALLS and (len(seconds) <= _WARM_UP or time.perf_counter() < end):
        start = time.perf_counter()
        predictor.predict(picture)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[_WARM_UP:])


# -- which images both have judged


def _key_answers(answers: Sequence[Answer]) -> dict[Key, Answer]:
    """Return the answers for test images by content; of images that are equal, each has its own key."""
    seen: Counter[str] = Counter()
    keyed = {}
    for answer in answers:
        if answer.part == "test" and answer.digest:
            keyed[answer.digest, seen[answer.digest]] = answer
            seen[answer.digest] += 1
    return keyed


def _pair(best: Mapping[Key, Answer], other: Mapping[Key, Answer]) -> list[tuple[Answer, Answer]]:
    """Return both answers for each image that both have judged and call by the same class."""
    return [(best[key], other[key]) for key in best if key in other and best[key].label == other[key].label]


def _is_right(answer: Answer) -> bool:
    return answer.predicted == answer.label


def _differ(pairs: Sequence[tuple[Answer, Answer]]) -> tuple[int, int]:
    """Return how many images the first alone, and the second alone, named rightly."""
    right = Counter((_is_right(a), _is_right(b)) for a, b in pairs)
    return right[True, False], right[False, True]


# -- statistics


def apply_mcnemar(first: int, second: int) -> float:
    """Return the two-sided p-value of McNemar's test for the images that only one of two classifiers named rightly.

    Of at least 25 such images by the chi-squared distribution with Edwards's continuity correction, of fewer by the
    exact binomial one.
    """
    n = first + second
    if n == 0:
        return 1.0
    if n < _EXACT:
        tail = sum(math.comb(n, k) for k in range(min(first, second) + 1)) / 2**n
        return min(1.0, 2.0 * float(tail))
    statistic = max(0.0, abs(first - second) - 1) ** 2 / n
    return math.erfc(math.sqrt(statistic / 2))  # the chi-squared distribution of one degree of freedom


def correct_holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method, in the same order."""
    corrected, largest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


def _duel(run: str, pairs: Sequence[tuple[Answer, Answer]], p: float | None, holm: float | None) -> Duel:
    first, second = _differ(pairs)
    return Duel(
        run=run, images=len(pairs), only_best=first, only_other=second, p=p, holm=holm,
        differs=None if holm is None else holm < _LIMIT, classes=_by_class(pairs),
        verdict=_explain(len(pairs), first, second, holm),
    )  # fmt: skip


def _by_class(pairs: Sequence[tuple[Answer, Answer]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for best, other in sorted(pairs, key=lambda pair: pair[0].label):
        counts = found.setdefault(best.label, {"images": 0, "best": 0, "other": 0})
        counts["images"] += 1
        counts["best"] += _is_right(best)
        counts["other"] += _is_right(other)
    return found


def _explain(images: int, first: int, second: int, holm: float | None) -> str:
    if holm is None:
        return "cannot be said, because they have judged no test image in common"
    seen = f"of {images:,} test images that both judged, the best alone is right on {first:,}, this one on {second:,}"
    if holm < _LIMIT:
        return f"{'worse' if first > second else 'better'}: {seen} (p = {holm:.2g})"
    return f"no difference that could not be luck: {seen} (p = {holm:.2g})"
