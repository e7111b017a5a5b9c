"""Scores: the textbooks' formulas, counted image by image in plain Python, against what linnaeus reports."""

from __future__ import annotations

import math

import numpy as np
import pytest

from linnaeus.crossval import corrected_interval
from linnaeus.evaluation.metrics import score

TRUTH = np.random.default_rng(0).choice(4, 60, p=[0.5, 0.3, 0.15, 0.05])
PROBABILITIES = np.random.default_rng(1).dirichlet(np.ones(4), 60) * 0.6 + 0.4 * np.eye(4)[TRUTH]
PREDICTED = PROBABILITIES.argmax(axis=1)
FOUND = score(PROBABILITIES, TRUTH, list("abcd"))


def count(truth: int, predicted: int) -> int:
    """Return how many images of a class were taken for another."""
    return sum(1 for t, p in zip(TRUTH, PREDICTED) if (t, p) == (truth, predicted))


def test_precision_recall_and_f1() -> None:
    """P = TP / (TP + FP), R = TP / (TP + FN), F1 = 2 P R / (P + R); macro F1 is their mean over the classes."""
    expected = []
    for k, found in enumerate(FOUND.per_class.values()):
        right = count(k, k)
        precision = right / sum(count(other, k) for other in range(4))
        recall = right / sum(count(k, other) for other in range(4))
        expected.append(2 * precision * recall / (precision + recall))
        assert (found.precision, found.recall, found.f1) == pytest.approx((precision, recall, expected[-1]))
        assert found.support == sum(1 for t in TRUTH if t == k)
    assert FOUND.macro_f1.value == pytest.approx(sum(expected) / 4)
    assert FOUND.macro_f1.low < FOUND.macro_f1.value < FOUND.macro_f1.high


def test_accuracy_and_confusion() -> None:
    """Accuracy is the share of images that are right; the confusion matrix has the truth in its rows."""
    right = sum(1 for t, p in zip(TRUTH, PREDICTED) if t == p)
    assert FOUND.accuracy.value == pytest.approx(right / 60)
    assert FOUND.confusion.tolist() == [[count(t, p) for p in range(4)] for t in range(4)]


def test_the_interval_of_accuracy() -> None:
    """The ends are the shares p whose distance to the measured one is 1.96 deviations sqrt(p (1 - p) / n) (Wilson)."""
    for end in (FOUND.accuracy.low, FOUND.accuracy.high):
        assert abs(end - FOUND.accuracy.value) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 60), rel=1e-5)


def test_the_loss() -> None:
    """The loss is the mean of -log p of the truth, give or take 1.96 deviations over the root of n."""
    losses = [-math.log(p[t]) for p, t in zip(PROBABILITIES, TRUTH)]
    mean = sum(losses) / 60
    deviation = math.sqrt(sum((each - mean) ** 2 for each in losses) / 59)
    assert FOUND.loss.value == pytest.approx(mean)
    assert FOUND.loss.high - mean == pytest.approx(1.959964 * deviation / math.sqrt(60), rel=1e-5)


@pytest.mark.parametrize(("folds", "repeats", "quantile"), [(2, 1, 12.7062047), (5, 1, 2.7764451), (5, 2, 2.2621572)])
def test_k_folds(folds: int, repeats: int, quantile: float) -> None:
    """The mean of n fold scores, give or take t s sqrt(1 / n + 1 / (K - 1)), t of n - 1 degrees."""
    values = [0.5 + 0.001 * ((7 * i) % 10) for i in range(folds * repeats)]
    n, mean = len(values), sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    interval, found = corrected_interval(values, folds)
    assert (interval.value, found) == pytest.approx((mean, spread))
    half = quantile * spread * math.sqrt(1 / n + 1 / (folds - 1))
    assert (interval.low, interval.high) == pytest.approx((mean - half, mean + half), rel=1e-6)
