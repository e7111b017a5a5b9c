"""Scores of images with several labels each, with 95 % intervals, and the thresholds to decide by. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from linnaeus.errors import DataError
from linnaeus.evaluation.metrics import DRAWS, SMALLEST_PROBABILITY, check_names, mean_interval, wilson_interval
from linnaeus.results import Interval, LabelScores, MultilabelScores

FEWEST_POSITIVES = 10  # images that a threshold of its own takes
USUAL_THRESHOLD = 0.5
_WORK = 10**8  # images times classes times draws: a second or two
_FEWEST_DRAWS = 100
_AT_ONCE = 2 * 10**6  # images times draws, to keep memory flat


def score_labels(
    probabilities: NDArray[np.floating],
    targets: NDArray[np.integer[Any]],
    classes: Sequence[str],
    thresholds: Sequence[float],
) -> MultilabelScores:
    """Judge probabilities of labels that images may have several of against the truth.

    Args:
        probabilities: floating (N, K), each in [0, 1].
        targets: integer (N, K), 1 where an image has a label.
        classes: K different names. thresholds: K probabilities from which on a label is given.

    Returns:
        MultilabelScores. Exact match has its Wilson interval, the loss and the Hamming loss normal ones of a mean, the
        others bootstrap percentile intervals over the images: 1,000 draws, fewer where these would take long. Mean
        average precision is the mean over the labels that an image has, macro F1 over those that an image has or is
        given. The same input gives the same intervals.

    Raises DataError for no images, wrong shapes, values out of range and NaN.
    """
    _check(probabilities, targets, classes, thresholds)
    truth, given = targets.astype(bool), probabilities >= np.asarray(thresholds, probabilities.dtype)
    whole, draws = _count(probabilities, truth, given, np.ones((1, len(truth)), np.int64)), _draw(truth.shape)
    drawn = _join([_count(probabilities, truth, given, weights) for weights in draws])
    wrong = (truth != given).mean(axis=1)
    return MultilabelScores(
        n=len(targets),
        accuracy=wilson_interval(int((wrong == 0).sum()), len(targets)),
        macro_f1=_interval(whole.macro_f1, drawn.macro_f1, len(truth)),
        micro_f1=_interval(whole.micro_f1, drawn.micro_f1, len(truth)),
        mean_ap=_interval(whole.mean_ap, drawn.mean_ap, len(truth)),
        hamming_loss=mean_interval(wrong, highest=1.0),
        loss=mean_interval(_losses(probabilities, truth), highest=-math.log(SMALLEST_PROBABILITY)),
        per_class=_score_each(whole, classes, thresholds),
        confusion=_confuse(truth, given),
    )


def average_precision(scores: NDArray[np.floating], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Return for each label the mean precision at each image that has it, float64 (K,), NaN where none has.

    Args:
        scores: floating (N, K), which rank the images: logits or probabilities. targets: (N, K), 1 where an image has a
            label.

    Images of equal score are taken together, as scikit-learn does.
    """
    weights = np.ones((1, len(targets)), np.int64)
    found = [_precisions(column, truth > 0, weights)[0] for column, truth in zip(scores.T, targets.T)]
    return np.array(found, np.float64)


def mean_defined(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are numbers, NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def choose_thresholds(probabilities: NDArray[np.float32], targets: NDArray[Any]) -> tuple[float, ...]:
    """Return for each label the probability from which on it should be given, so that its F1 is highest.

    Args:
        probabilities: float32 (N, K) for images that were not learned from.
        targets: (N, K), 1 where an image has a label.

    A label that fewer than ten of the images have, or have not, takes the threshold at which micro F1 over all labels
    is highest: of few images the best threshold would be chance. Where no image has any label, it is 0.5.
    """
    truth = targets > 0
    common = _best_threshold(probabilities.ravel(), truth.ravel())
    fewer = np.minimum(truth.sum(axis=0), (~truth).sum(axis=0))
    return tuple(
        common if few < FEWEST_POSITIVES else _best_threshold(probabilities[:, k], truth[:, k])
        for k, few in enumerate(fewer.tolist())
    )


def _best_threshold(probabilities: NDArray[np.float32], truth: NDArray[np.bool_]) -> float:
    """Return the middle between the last probability to accept and the first to refuse, for the highest F1."""
    if not truth.any():
        return USUAL_THRESHOLD
    order = np.argsort(-probabilities, kind="stable")
    ranked, right = probabilities[order], np.cumsum(truth[order])
    f1 = 2 * right / (np.arange(1, len(order) + 1) + truth.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = 0  # equal ones are accepted or refused together
    best = int(f1.argmax())
    last, first = ranked[best], ranked[best + 1] if best + 1 < len(ranked) else np.float32(0)
    middle = (last + first) / 2
    return float(middle if middle > first else last)


@dataclass(frozen=True, kw_only=True)
class _Tally:
    """What D weightings of the images come to, for each of K labels.

    Attributes:
        right, chosen, support: int64 (D, K), images that truly are given a label, that are given it, that have it.
        precision: float64 (D, K), average precision.
    """

    right: NDArray[np.int64]
    chosen: NDArray[np.int64]
    support: NDArray[np.int64]
    precision: NDArray[np.float64]

    @property
    def f1(self) -> NDArray[np.float64]:
        """F1 of each label, float64 (D, K)."""
        return np.asarray(2 * self.right / np.maximum(self.support + self.chosen, 1))

    @property
    def macro_f1(self) -> NDArray[np.float64]:
        """Mean F1 of the labels that occur, float64 (D,)."""
        present = (self.support + self.chosen > 0).sum(axis=1)
        return np.asarray(self.f1.sum(axis=1) / np.maximum(present, 1))

    @property
    def micro_f1(self) -> NDArray[np.float64]:
        """F1 of all answers together, float64 (D,)."""
        return np.asarray(2 * self.right.sum(axis=1) / np.maximum((self.support + self.chosen).sum(axis=1), 1))

    @property
    def mean_ap(self) -> NDArray[np.float64]:
        """Mean average precision of the labels that occur, float64 (D,)."""
        known = ~np.isnan(self.precision)
        return np.asarray(np.where(known, self.precision, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1))


def _count(
    probabilities: NDArray[np.floating],
    truth: NDArray[np.bool_],
    given: NDArray[np.bool_],
    weights: NDArray[np.int64],
) -> _Tally:
    """Tally the images, counted as often as each row of weights int64 (D, N) says."""
    columns = [_precisions(scores, has, weights) for scores, has in zip(probabilities.T, truth.T)]
    return _Tally(
        right=_sum(weights, truth & given),
        chosen=_sum(weights, given),
        support=_sum(weights, truth),
        precision=np.stack(columns, axis=1),
    )


def _sum(weights: NDArray[np.int64], flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return weights @ flags, computed in floats, which is exact and much faster."""
    return np.rint(weights.astype(np.float64) @ flags.astype(np.float64)).astype(np.int64)


def _precisions(
    scores: NDArray[np.floating], truth: NDArray[np.bool_], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the average precision of one label float64 (D,) under each weighting int64 (D, N) of the images."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.searchsorted(-ranked, -ranked, side="right") - 1  # the last of those of the same score
    hits = np.flatnonzero(truth[order])
    if not len(hits):
        return np.full(len(weights), np.nan)
    taken = np.take(weights, order, axis=1)  # whose rows, unlike those of weights[:, order], are contiguous
    right = np.cumsum(np.take(taken, hits, axis=1), axis=1)
    right_at = right[:, np.searchsorted(hits, ends[hits], side="right") - 1]
    precision = right_at / np.maximum(np.cumsum(taken, axis=1)[:, ends[hits]], 1)
    total = right[:, -1]
    found: NDArray[np.float64] = (taken[:, hits] * precision).sum(axis=1) / np.maximum(total, 1)
    return np.asarray(np.where(total > 0, found, np.nan))


def _draw(shape: tuple[int, ...]) -> Iterator[NDArray[np.int64]]:
    """Yield how often each image is drawn in bootstrap draws, int64 (some, N)."""
    n, labels = shape
    draws = max(_FEWEST_DRAWS, min(DRAWS, _WORK // (n * labels)))
    rng, step = np.random.default_rng(0), max(1, _AT_ONCE // n)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        yield np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(rows)])


def _join(tallies: Sequence[_Tally]) -> _Tally:
    return _Tally(
        right=np.concatenate([tally.right for tally in tallies]),
        chosen=np.concatenate([tally.chosen for tally in tallies]),
        support=np.concatenate([tally.support for tally in tallies]),
        precision=np.concatenate([tally.precision for tally in tallies]),
    )


def _interval(whole: NDArray[np.float64], drawn: NDArray[np.float64], n: int) -> Interval:
    """Return a score with its percentile interval; where every draw is alike, that of a share of n images."""
    value = float(whole[0])
    if value in (0.0, 1.0):
        return wilson_interval(round(value) * n, n)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _losses(probabilities: NDArray[np.floating], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the binary cross-entropy of each image, float64 (N,): the mean over the labels."""
    of_truth = np.where(truth, probabilities, 1 - probabilities.astype(np.float64))
    return np.asarray(-np.log(np.clip(of_truth, SMALLEST_PROBABILITY, 1.0)).mean(axis=1))


def _score_each(whole: _Tally, classes: Sequence[str], thresholds: Sequence[float]) -> dict[str, LabelScores]:
    right, chosen, support = (values[0] for values in (whole.right, whole.chosen, whole.support))
    return {
        name: LabelScores(
            precision=float(right[k] / max(1, chosen[k])),
            recall=float(right[k] / max(1, support[k])),
            f1=float(whole.f1[0, k]),
            support=int(support[k]),
            average_precision=float(whole.precision[0, k]),
            threshold=float(thresholds[k]),
        )
        for k, name in enumerate(classes)
    }


def _confuse(truth: NDArray[np.bool_], given: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return int64 (K, 2, 2): rows are the truth, no and yes, columns the answer."""
    cells = [[(~truth & ~given), (~truth & given)], [(truth & ~given), (truth & given)]]
    return np.array([[cell.sum(axis=0) for cell in row] for row in cells], np.int64).transpose(2, 0, 1)


def _check(
    probabilities: NDArray[np.floating],
    targets: NDArray[np.integer[Any]],
    classes: Sequence[str],
    thresholds: Sequence[float],
) -> None:
    check_names(classes)
    shape = (len(targets), len(classes))
    if targets.shape != shape or probabilities.shape != shape or not len(targets) or len(thresholds) != len(classes):
        raise DataError(
            f"probabilities and targets (N, {len(classes)}) of at least one image, and a threshold for each class",
            got=f"shapes {probabilities.shape} and {targets.shape}, and {len(thresholds)} thresholds",
            fix="Give one row of probabilities and one of targets per image.",
        )
    if not np.isin(targets, (0, 1)).all() or not ((probabilities >= 0) & (probabilities <= 1)).all():
        got, fix = "other numbers", "Apply the sigmoid to the model's outputs."
        raise DataError("probabilities in [0, 1], and targets of 0 and 1", got=got, fix=fix)
