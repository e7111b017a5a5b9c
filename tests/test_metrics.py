"""Scores and their intervals."""

from __future__ import annotations

import json
import math
import time
import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as reference

from linnaeus.errors import DataError
from linnaeus.evaluation.metrics import confuse, macro_f1_interval, score, score_classes, wilson_interval

CLASSES = ("cat", "dog", "emu")


def make_case(n, k, *, seed=0, skill=1.0):
    """Return probabilities (n, k) that lean towards the labels (n,)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), labels] += skill
    weights = np.exp(logits)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32), labels


def one_hot(predicted, k):
    """Return float64 (N, k) that is sure of each prediction."""
    return np.eye(k)[predicted]


def test_headlines_agree_with_scikit_learn():
    """Accuracy, macro F1 and loss are those of scikit-learn."""
    probabilities, labels = make_case(300, 7)
    predicted = probabilities.argmax(axis=1)
    scores = score(probabilities, labels, list("abcdefg"))
    assert scores.n == 300
    assert scores.accuracy.value == pytest.approx(reference.accuracy_score(labels, predicted))
    assert scores.macro_f1.value == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    exact = probabilities.astype(np.float64)
    assert scores.loss.value == pytest.approx(reference.log_loss(labels, exact / exact.sum(1, keepdims=True)), rel=1e-5)


def test_class_scores_and_confusion_agree_with_scikit_learn():
    """Precision, recall, F1, support and the confusion matrix are those of scikit-learn."""
    probabilities, labels = make_case(200, 4)
    predicted = probabilities.argmax(axis=1)
    scores = score(probabilities, labels, list("wxyz"))
    expected = np.stack(reference.precision_recall_fscore_support(labels, predicted))
    found = np.array([[c.precision, c.recall, c.f1, c.support] for c in scores.per_class.values()]).T
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(scores.confusion, reference.confusion_matrix(labels, predicted))
    assert scores.confusion.dtype == np.int64


def test_confusion_has_truth_in_rows():
    """A cat that is taken for an emu counts in the row of cats and the column of emus."""
    assert confuse(np.array([0]), np.array([2]), 3).tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_absent_class_is_left_out_of_macro_f1():
    """A class in neither truth nor predictions scores 0 and does not weigh on macro F1, as in scikit-learn."""
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    scores = score(one_hot(predicted, 3), labels, CLASSES)
    assert scores.macro_f1.value == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    assert (scores.per_class["emu"].f1, scores.per_class["emu"].support) == (0.0, 0)


def test_class_that_is_only_predicted_counts_in_macro_f1():
    """A class that occurs among the predictions alone has F1 of 0 and weighs on macro F1, as in scikit-learn."""
    labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    scores = score(one_hot(predicted, 3), labels, CLASSES)
    assert scores.macro_f1.value == pytest.approx(reference.f1_score(labels, predicted, average="macro"))


def test_undefined_ratios_are_zero():
    """A class that is never predicted has precision 0, one without images recall 0, and nothing warns."""
    scores = score_classes(np.array([[0, 2], [0, 0]]), ["a", "b"])
    assert (scores["a"].precision, scores["b"].recall, scores["b"].precision) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson_interval_has_known_values(right, n, low, high):
    """The interval equals published values of Wilson's formula."""
    interval = wilson_interval(right, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_holds_the_share_whatever_the_counts():
    """0 <= low <= share <= high <= 1 for all counts up to 60."""
    for n in range(1, 61):
        for right in range(n + 1):
            i = wilson_interval(right, n)
            assert 0 <= i.low <= i.value <= i.high <= 1


def test_wilson_interval_covers_the_truth():
    """About 95 of 100 intervals contain the true accuracy."""
    draws = np.random.default_rng(1).binomial(200, 0.93, size=2000)
    intervals = [wilson_interval(int(r), 200) for r in draws]
    assert 0.93 <= np.mean([i.low <= 0.93 <= i.high for i in intervals]) <= 0.98


def test_macro_f1_interval_covers_the_truth():
    """About 95 of 100 intervals contain the macro F1 of the whole population."""
    rows = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.05, 0.05, 0.9]])
    truth = (2 * np.diag(rows) / (1 + rows.sum(axis=0))).mean()
    rng = np.random.default_rng(2)
    samples = [np.stack([rng.multinomial(100, row) for row in rows]) for _ in range(400)]
    intervals = [macro_f1_interval(sample, draws=400) for sample in samples]
    assert 0.91 <= np.mean([i.low <= truth <= i.high for i in intervals]) <= 0.98


def test_loss_interval_covers_the_truth():
    """About 95 of 100 intervals contain the true mean cross-entropy."""
    rng = np.random.default_rng(3)
    truth = -(math.log(0.9) + math.log(0.6)) / 2
    hits = []
    for _ in range(500):
        p = rng.choice([0.9, 0.6], size=100)
        loss = score(np.stack([p, 1 - p], axis=1), np.zeros(100, np.int64), ["a", "b"]).loss
        hits.append(loss.low <= truth <= loss.high)
    assert 0.92 <= np.mean(hits) <= 0.98


def test_intervals_narrow_with_more_images():
    """Four times the images make each interval about half as wide."""
    few, many = (score(*make_case(n, 5, skill=2.0), list("abcde")) for n in (500, 2000))
    for name in ("accuracy", "macro_f1", "loss"):
        wide, narrow = getattr(few, name), getattr(many, name)
        assert 1.5 < (wide.high - wide.low) / (narrow.high - narrow.low) < 2.7


def test_scores_repeat_exactly():
    """The same input gives the same scores, intervals included."""
    case = make_case(100, 3)
    assert score(*case, CLASSES).to_dict() == score(*case, CLASSES).to_dict()


@pytest.mark.parametrize("predicted", [[0, 1, 2], [1, 2, 0]])
def test_all_right_and_all_wrong_keep_an_honest_interval(predicted):
    """Three images, all right or all wrong, leave macro F1 as uncertain as accuracy."""
    scores = score(one_hot(np.array(predicted), 3), np.arange(3), CLASSES)
    assert scores.macro_f1 == scores.accuracy
    assert scores.macro_f1.high - scores.macro_f1.low > 0.5


def test_one_image_is_judged():
    """A single image gives finite scores and JSON."""
    scores = score(np.array([[0.2, 0.5, 0.3]]), np.array([1]), CLASSES)
    assert (scores.loss.value, scores.loss.low) == (pytest.approx(math.log(2)), 0.0)
    json.dumps(scores.to_dict(), allow_nan=False)


def test_impossible_truth_has_finite_loss():
    """A probability of 0 for the truth counts as 1e-12."""
    scores = score(one_hot(np.array([1, 1]), 3), np.array([0, 0]), CLASSES)
    assert scores.loss.value == pytest.approx(-math.log(1e-12))


def test_equal_probabilities_choose_the_first_class():
    """Of equally probable classes the first is the prediction."""
    assert score(np.full((4, 3), 1 / 3), np.zeros(4, np.int64), CLASSES).accuracy.value == 1.0


def test_ten_thousand_images_are_fast():
    """10,000 images of 10 classes are judged well under a second, even on a busy machine."""
    case = make_case(10_000, 10)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        score(*case, list("abcdefghij"))
        times.append(time.perf_counter() - start)
    assert min(times) < 0.6


def test_a_thousand_classes_stay_small_in_memory():
    """1,000 classes are judged within 120 MB."""
    case = make_case(2000, 1000, skill=6.0)
    tracemalloc.start()
    score(*case, [str(i) for i in range(1000)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6


GOOD = np.full((2, 3), 1 / 3)
LABELS = np.array([0, 1])


@pytest.mark.parametrize(
    ("probabilities", "labels", "classes"),
    [
        (GOOD, LABELS[:1], CLASSES),
        (GOOD[:, :2], LABELS, CLASSES),
        (GOOD[:0], LABELS[:0], CLASSES),
        (GOOD, LABELS[:, None], CLASSES),
        (GOOD, LABELS, ("cat", "cat", "emu")),
        (GOOD, np.array([0, 3]), CLASSES),
        (GOOD, np.array([-1, 0]), CLASSES),
        (GOOD, np.array([0.0, 1.0]), CLASSES),
        (GOOD * np.nan, LABELS, CLASSES),
        (GOOD * 2, LABELS, CLASSES),
        (np.array([[1.5, -0.5, 0.0], [1.0, 0.0, 0.0]]), LABELS, CLASSES),
        (np.eye(3, dtype=np.int64)[:2], LABELS, CLASSES),
    ],
)
def test_faulty_input_is_refused(probabilities, labels, classes):
    """Wrong shapes, types and ranges, NaN, no images and doubled names raise DataError."""
    with pytest.raises(DataError, match="Expected"):
        score(probabilities, labels, classes)
