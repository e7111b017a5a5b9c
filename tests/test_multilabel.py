"""Several labels an image, through the whole way: real digits strewn over a canvas, learned, judged and named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn import metrics as reference
from sklearn.datasets import load_digits

import linnaeus
from commands import QUICK, Answer, describe_anew
from linnaeus.bundle import read_bundle
from linnaeus.errors import BundleError, DataError, SettingError
from linnaeus.evaluation.multilabel import average_precision, choose_thresholds, score_labels
from linnaeus.labelling import sigmoid
from linnaeus.results import MultilabelScores, RunResult

KINDS = (0, 1, 4)
NAMES = ("zero", "one", "four")


def collages(count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return canvases uint8 (N, 18, 18) with none to three scanned digits of the kinds, and targets uint8 (N, 3)."""
    digits = load_digits()
    chance = np.random.default_rng(0)
    pixels, targets = chance.integers(0, 9, (count, 18, 18), dtype=np.uint8), np.zeros((count, 3), np.uint8)
    for canvas, has in zip(pixels, targets):
        for quarter in chance.permutation(4)[: chance.integers(0, 4)]:
            k = int(chance.integers(3))
            digit = digits.images[chance.choice(np.flatnonzero(digits.target == KINDS[k]))]
            top, left = 9 * (quarter // 2) + chance.integers(2), 9 * (quarter % 2) + chance.integers(2)
            canvas[top : top + 8, left : left + 8] = np.maximum(canvas[top : top + 8, left : left + 8], digit * 15)
            has[k] = 1
    return pixels, targets


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table of 160 canvases whose labels stand in one cell, "zero;four", or none at all."""
    folder = tmp_path_factory.mktemp("collages")
    pixels, targets = collages(160)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        for i, (canvas, has) in enumerate(zip(pixels, targets)):
            Image.fromarray(canvas).save(folder / f"{i}.png")
            writer.writerow((f"{i}.png", ";".join(NAMES[k] for k in np.flatnonzero(has))))
    return folder / "table.csv"


@pytest.fixture(scope="module")
def several(table: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Return a short run on the table, to read only."""
    settings = {**QUICK, "epochs": 14, "mixup": 0.2, "class_weights": "balanced", "lr": 3e-3, "flip": False}
    return linnaeus.train(table, out=tmp_path_factory.mktemp("runs") / "run", label_separator=";", **settings)


def test_it_learns_what_is_in_a_picture(several: RunResult) -> None:
    """From 112 canvases the order of the test images becomes far better than chance, which is a label's share."""
    scores = several.scores["test"]
    assert isinstance(scores, MultilabelScores)
    chance = np.mean([each.support for each in scores.per_class.values()]) / scores.n
    assert scores.mean_ap.value > chance + 0.15
    assert scores.mean_ap.low <= scores.mean_ap.value <= scores.mean_ap.high
    best = max(several.epochs, key=lambda epoch: (epoch.val_mean_ap, -epoch.val_loss))
    assert [epoch for epoch in several.epochs if epoch.best][-1] == best
    chosen = {choice.name: choice.value for choice in several.choices}
    assert (chosen["loss"], chosen["label_smoothing"]) == ("bce", "0.0")


def test_the_bundle_decides_by_its_thresholds(several: RunResult, table: Path) -> None:
    """Probabilities are sigmoids of the logits, and labels are those that reach the thresholds of the bundle."""
    predictor = linnaeus.load(several.bundle)
    pictures = [str(table.parent / f"{i}.png") for i in range(40)]
    found = predictor.predict(pictures)
    pixels = np.stack([predictor.bundle.preprocess.load(picture) for picture in pictures])
    logits = predictor.logits(predictor.bundle.preprocess.normalize(pixels))
    assert np.allclose(found.probabilities, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-6)
    thresholds = np.array(read_bundle(several.bundle).thresholds, np.float32)
    assert found.labels == [tuple(np.array(found.classes)[row >= thresholds].tolist()) for row in found.probabilities]
    assert {len(labels) for labels in found.labels} > {1}
    assert [best[0][1] for best in found.top(2)] == found.probabilities.max(axis=1).tolist()
    report = json.loads(Path(several.report).with_suffix(".json").read_text())
    assert report["agreement"]["largest_difference"] <= report["agreement"]["tolerance"]


def test_evaluate_finds_the_scores_of_the_run(several: RunResult, table: Path, call: Callable[..., Answer]) -> None:
    """`evaluate` reads the table as the run did, judges its test part, and prints what the run reported."""
    answer = call("evaluate", several.folder, table, "--json")
    assert answer.code == 0
    assert answer.json() == {"split": "test"} | several.scores["test"].to_dict()
    told = call("evaluate", several.folder, table).out
    assert all(word in told for word in ("mAP", "exact match", "Hamming loss", "threshold"))


def test_predict_names_sets(several: RunResult, table: Path, call: Callable[..., Answer]) -> None:
    """Text, CSV and JSON name every label that an image is given, and say which of the most probable it is not."""
    pictures = [table.parent / f"{i}.png" for i in range(30)]
    labels = linnaeus.load(several.bundle).predict(pictures).labels
    found = json.loads(call("predict", several.folder, *pictures, "--top", "1", "--json").out)
    assert [tuple(entry["labels"]) for entry in found] == labels
    assert all(len(entry["top"]) >= max(1, len(entry["labels"])) for entry in found)
    rows = list(csv.DictReader(call("predict", several.folder, *pictures, "--csv").out.splitlines()))
    assert len(rows) == 3 * len(pictures)
    given = [{row["label"] for row in rows if row["image"] == str(p) and row["given"] == "1"} for p in pictures]
    assert given == [set(each) for each in labels]
    lines = call("predict", several.folder, *pictures).out.splitlines()
    for line, each in zip(lines, labels):
        assert (": none (not" in line) == (not each)
        assert all(name in line.partition("(not")[0] for name in each)


def test_the_report_speaks_of_sets(several: RunResult, call: Callable[..., Answer]) -> None:
    """The page shows mAP and thresholds, counts each picture once, and the next commands read the table alike."""
    page = Path(several.report).read_text()
    assert "Test mAP" in page
    assert "Exact matches" in page
    assert "Threshold" in page
    assert 'id="confusions"' not in page
    report = json.loads(Path(several.report).with_suffix(".json").read_text())
    assert sum(report["data"]["images"].values()) == 160
    assert sum(sum(part.values()) for part in report["data"]["counts"].values()) != 160
    assert any("no label" in note for note in report["data"]["notes"])
    assert "wholly right" in call("report", several.folder).out


def test_one_label_and_several_do_not_mix(several: RunResult, result: RunResult, photos: Path, table: Path) -> None:
    """A bundle of the one kind refuses data of the other, and cross-validation refuses several labels."""
    with pytest.raises(DataError, match="multi-label data"):
        linnaeus.evaluate(several.bundle, (np.zeros((6, 18, 18), np.uint8), ["zero", "one", "four"] * 2))
    pixels = np.zeros((4, 18, 18, 3), np.uint8)
    with pytest.raises(DataError, match="single-label data"):
        linnaeus.evaluate(result.bundle, (pixels, [["red", "blue"], ["green"], [], ["red"]]))
    with pytest.raises(DataError, match="one label for each image"):
        linnaeus.cross_validate(table, label_separator=";", **QUICK)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"loss": "focal"}, "loss=bce"), ({"loss": "cross_entropy"}, "loss=bce"), ({"logit_adjustment": 1}, "exclude"),
     ({"class_weights": (1, 2)}, "3 classes")],
)  # fmt: skip
def test_settings_that_make_no_sense(table: Path, tmp_path: Path, settings: dict[str, object], words: str) -> None:
    """What is for labels that exclude each other is refused with the reason, before training."""
    with pytest.raises(SettingError, match=words):
        linnaeus.train(table, out=tmp_path / "run", label_separator=";", **{**QUICK, **settings})


def test_bundles_say_what_they_are(several: RunResult, bundle: Path) -> None:
    """One label an image is still of format 1; several are of format 2, and damaged thresholds are refused."""
    old = json.loads((bundle / "bundle.json").read_text())
    new = json.loads((Path(several.bundle) / "bundle.json").read_text())
    assert (old["format"], new["format"], new["labelling"]) == (1, 2, "multi-label")
    assert "labelling" not in old
    for wrong in ({"thresholds": [0.5]}, {"thresholds": [0.5, 2, 0.5]}, {"labelling": "several"}, {"thresholds": None}):
        describe_anew(bundle, **{"labelling": "multi-label", "thresholds": [0.5] * 3, **wrong})
        with pytest.raises(BundleError):
            read_bundle(bundle)


def noisy(count: int = 300) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return rounded probabilities float32 (N, 5), so that some are equal, and targets of common and rare labels."""
    chance = np.random.default_rng(1)
    targets = (chance.random((count, 5)) < [0.5, 0.3, 0.2, 0.05, 0.02]).astype(np.uint8)
    return sigmoid((2.0 * targets - 1 + chance.normal(size=targets.shape)).astype(np.float32)).round(2), targets


def test_scores_are_those_of_scikit_learn() -> None:
    """Average precision, F1, exact match, Hamming loss, loss and confusions equal scikit-learn's, ties included."""
    p, targets = noisy()
    thresholds = (0.5, 0.4, 0.6, 0.55, 0.45)
    found, given = score_labels(p, targets, list("abcde"), thresholds), p >= np.float32(thresholds)
    assert average_precision(p, targets) == pytest.approx(reference.average_precision_score(targets, p, average=None))
    assert found.mean_ap.value == pytest.approx(reference.average_precision_score(targets, p))
    assert found.micro_f1.value == pytest.approx(reference.f1_score(targets, given, average="micro"))
    assert found.macro_f1.value == pytest.approx(reference.f1_score(targets, given, average="macro"))
    assert found.accuracy.value == pytest.approx(reference.accuracy_score(targets, given))
    assert found.hamming_loss.value == pytest.approx(reference.hamming_loss(targets, given))
    assert found.loss.value == pytest.approx(reference.log_loss(targets.ravel(), p.ravel().astype(np.float64)))
    assert np.array_equal(found.confusion, reference.multilabel_confusion_matrix(targets, given))
    precision, recall, f1, support = reference.precision_recall_fscore_support(targets, given)
    rows = [(r.precision, r.recall, r.f1, r.support) for r in found.per_class.values()]
    assert np.allclose(rows, np.stack([precision, recall, f1, support], axis=1))
    json.dumps(found.to_dict(), allow_nan=False)


def test_intervals_cover_the_score_and_shrink() -> None:
    """Every interval holds its score, four times the images make it about half as wide, and the same input the same."""
    few, many = (score_labels(*noisy(n), list("abcde"), (0.5,) * 5) for n in (200, 800))
    for name, interval in few.headlines.items():
        assert interval.low <= interval.value <= interval.high
        other = many.headlines[name]
        assert 0.3 < (other.high - other.low) / (interval.high - interval.low) < 0.8
    assert few.to_dict() == score_labels(*noisy(200), list("abcde"), (0.5,) * 5).to_dict()


def test_a_label_that_no_image_has() -> None:
    """It is left out of the mean average precision, and its own is null in JSON."""
    p, targets = noisy(50)
    targets[:, 2] = 0
    found = score_labels(p, targets, list("abcde"), (0.5,) * 5)
    kept = [0, 1, 3, 4]
    assert found.mean_ap.value == pytest.approx(np.nanmean(average_precision(p[:, kept], targets[:, kept])))
    assert found.to_dict()["per_class"]["c"]["average_precision"] is None


@pytest.mark.parametrize(
    ("p", "targets"),
    [(np.full((2, 2), 1.5), np.ones((2, 2), int)), (np.full((2, 2), np.nan), np.ones((2, 2), int)),
     (np.ones((2, 2)), np.full((2, 2), 2)), (np.ones((2, 3)), np.ones((2, 2), int)),
     (np.ones((0, 2)), np.ones((0, 2), int))],
)  # fmt: skip
def test_what_cannot_be_scored(p: NDArray[np.float64], targets: NDArray[np.int64]) -> None:
    """Values out of range, NaN, other shapes and no images are a DataError."""
    with pytest.raises(DataError):
        score_labels(p, targets, ("a", "b"), (0.5, 0.5))


def test_thresholds_are_where_f1_is_highest() -> None:
    """No other threshold gives a common label a higher F1 on these images; rare ones share a common threshold."""
    p, targets = noisy()
    found = choose_thresholds(p, targets)
    for k in range(4):
        every = [reference.f1_score(targets[:, k], p[:, k] >= t, zero_division=0) for t in np.unique(p[:, k])]
        assert reference.f1_score(targets[:, k], p[:, k] >= np.float32(found[k])) == pytest.approx(max(every))
    assert targets[:, 4].sum() < 10
    micro = [reference.f1_score(targets.ravel(), p.ravel() >= t) for t in np.unique(p)]
    assert reference.f1_score(targets.ravel(), p.ravel() >= np.float32(found[4])) == pytest.approx(max(micro))
    assert choose_thresholds(p, np.zeros_like(targets)) == (0.5,) * 5


def test_sigmoids_of_any_size() -> None:
    """Logits from -1000 to 1000 give probabilities from 0 to 1, without a warning."""
    values = sigmoid(np.array([[-1000, -2, 0, 2, 1000]], np.float32))
    assert values.dtype == np.float32
    assert values[0].tolist() == pytest.approx([0, 1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-2)), 1])
