"""Scores with 95 % intervals, from probabilities and labels. NumPy only.

Every interval answers one question: on other images drawn in the same way, where would this number lie?
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from linnaeus.errors import DataError
from linnaeus.results import ClassScores, Interval, Scores

Z95 = 1.959963984540054
DRAWS = 1000
SMALLEST_PROBABILITY = 1e-12
# Rows come from a float32 softmax over up to thousands of classes, or from float16: far from exactly 1.
ROW_SUM_TOLERANCE = 1e-3


def score(probabilities: NDArray[np.floating], labels: NDArray[np.int64], classes: Sequence[str]) -> Scores:
    """Judge probabilities against the truth.

    Args:
        probabilities: floating (N, K), each in [0, 1], rows sum to 1.
        labels: integer (N,), each in [0, K).
        classes: K different class names.

    Returns:
        Scores: accuracy with its Wilson interval, macro F1 with a bootstrap interval, mean cross-entropy in nats
        (probabilities below 1e-12 count as 1e-12) with a normal interval, scores per class and the confusion matrix.

    Of two classes that are equally probable the first is the prediction. Macro F1 is the mean over the classes that
    occur in the truth or among the predictions. The same input gives the same intervals.

    Raises DataError for no images, wrong shapes or types, values out of range and NaN.
    """
    _check(probabilities, labels, classes)
    confusion = confuse(labels, probabilities.argmax(axis=1), len(classes))
    return Scores(
        n=len(labels),
        accuracy=wilson_interval(int(np.trace(confusion)), len(labels)),
        macro_f1=macro_f1_interval(confusion),
        loss=_loss_interval(probabilities[np.arange(len(labels)), labels]),
        per_class=score_classes(confusion, classes),
        confusion=confusion,
    )


def confuse(truth: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Count pairs of labels (N,) and (N,) into int64 (K, K): rows are the truth, columns the prediction."""
    pairs = truth.astype(np.int64) * n_classes + predicted
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.int64, copy=False)


def wilson_interval(right: int, n: int) -> Interval:
    """Return the share `right / n` with its 95 % Wilson interval, which stays in [0, 1] and is honest at both ends."""
    share, z2 = right / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return Interval(value=share, low=max(0.0, min(share, centre - half)), high=min(1.0, max(share, centre + half)))


def score_classes(confusion: NDArray[np.int64], classes: Sequence[str]) -> dict[str, ClassScores]:
    """Return the scores of each class from the confusion matrix int64 (K, K); what is undefined is 0."""
    right, support, chosen = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall, f1 = _ratio(right, chosen), _ratio(right, support), _ratio(2 * right, support + chosen)
    return {
        name: ClassScores(precision=float(p), recall=float(r), f1=float(f), support=int(n))
        for name, p, r, f, n in zip(classes, precision, recall, f1, support, strict=True)
    }


def macro_f1_interval(confusion: NDArray[np.int64], *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Return the macro F1 of a confusion matrix int64 (K, K) with its 95 % bootstrap percentile interval.

    The bootstrap is stratified: each draw keeps the number of images of every true class, as the split of a data set
    does. It stays in [0, 1] and contains the score.
    """
    n_right, n = int(np.trace(confusion)), int(confusion.sum())
    if n_right in (0, n):  # F1 and accuracy are equal then, and a bootstrap of equal outcomes would have no width.
        return wilson_interval(n_right, n)
    support, chosen = confusion.sum(axis=1), confusion.sum(axis=0)
    present = support + chosen > 0
    value = float(_ratio(2 * np.diagonal(confusion), support + chosen)[present].mean())
    right, drawn = _redraw(confusion, draws, seed)
    f1 = _ratio(2 * right[:, present], (support + drawn)[:, present]).mean(axis=1)
    low, high = np.quantile(f1, [0.025, 0.975])
    return Interval(value=value, low=min(value, float(low)), high=max(value, float(high)))


def _redraw(confusion: NDArray[np.int64], draws: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return int64 (draws, K) twice: correct images, and predictions, per class in each bootstrap draw.

    Only the cells that hold images are drawn, one row at a time, so memory is draws x K and not draws x K x K.
    """
    rng = np.random.default_rng(seed)
    right = np.zeros((draws, len(confusion)), np.int64)
    chosen = np.zeros_like(right)
    for k, row in enumerate(confusion):
        columns = np.flatnonzero(row)
        if len(columns):
            drawn = rng.multinomial(row.sum(), row[columns] / row.sum(), size=draws)
            chosen[:, columns] += drawn
            right[:, k] = drawn[:, columns == k].sum(axis=1)
    return right, chosen


def _loss_interval(probability_of_truth: NDArray[np.floating]) -> Interval:
    losses = -np.log(np.clip(probability_of_truth.astype(np.float64), SMALLEST_PROBABILITY, 1.0))
    return mean_interval(losses, highest=-math.log(SMALLEST_PROBABILITY))


def mean_interval(values: NDArray[np.float64], *, highest: float) -> Interval:
    """Return the mean of values (N,) from 0 to `highest` with its 95 % normal interval."""
    value = float(values.mean())
    if len(values) == 1:  # One image says nothing of the spread: the interval is all that the mean can be.
        return Interval(value=value, low=0.0, high=highest)
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(value=value, low=max(0.0, value - half), high=min(highest, value + half))


def _ratio(numerator: NDArray[np.int64], denominator: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide, with 0 where the denominator is 0."""
    return numerator / np.maximum(denominator, 1)


def _check(probabilities: NDArray[np.floating], labels: NDArray[np.int64], classes: Sequence[str]) -> None:
    _check_shapes(probabilities, labels, classes)
    if not np.isfinite(probabilities).all():
        raise DataError("probabilities that are numbers", got="NaN or infinity", fix="Check the model's outputs.")
    if probabilities.min() < -ROW_SUM_TOLERANCE or (abs(probabilities.sum(axis=1) - 1) > ROW_SUM_TOLERANCE).any():
        raise DataError(
            "probabilities in [0, 1] whose rows sum to 1",
            got="other numbers",
            fix="Apply softmax to the model's outputs.",
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(
            f"labels from 0 to {len(classes) - 1}",
            got=f"labels from {labels.min()} to {labels.max()}",
            fix="Give labels as positions in the list of classes.",
        )


def _check_shapes(probabilities: NDArray[np.floating], labels: NDArray[np.int64], classes: Sequence[str]) -> None:
    check_names(classes)
    if not np.issubdtype(labels.dtype, np.integer) or not np.issubdtype(probabilities.dtype, np.floating):
        raise DataError(
            "floating probabilities and integer labels",
            got=f"{probabilities.dtype} and {labels.dtype}",
            fix="Convert the arrays.",
        )
    if labels.ndim != 1 or probabilities.shape != (len(labels), len(classes)) or probabilities.size == 0:
        raise DataError(
            f"probabilities (N, {len(classes)}) and labels (N,) of at least one image",
            got=f"shapes {probabilities.shape} and {labels.shape}",
            fix="Give one row of probabilities and one label per image.",
        )


def check_names(classes: Sequence[str]) -> None:
    """Raise DataError for a class name that stands twice."""
    if len(set(classes)) != len(classes):
        raise DataError("different class names", got="the same name twice", fix="Rename one of the classes.")
