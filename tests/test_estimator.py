"""The scikit-learn face: clone, parameters, validation, search and pipelines, with all kinds of pictures and labels."""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from commands import CLASSES, QUICK, colours
from linnaeus import ImageClassifier
from linnaeus.errors import DataError, ImageError, ModelError, RunError, SettingError
from linnaeus.predictor import Predictor
from linnaeus.results import Scores

EASY = {"epochs": 2, "threads": 1, "model": "simple_cnn", "batch_size": 8, "lr": 0.01}


def classifier(**changes: Any) -> ImageClassifier:
    """Return a classifier that learns in a moment."""
    return ImageClassifier(**(EASY | {"settings": {"workers": 0}} | changes))


def test_parameters_are_kept_as_they_are() -> None:
    """The constructor stores what it is given, set_params changes it, clone copies it, and nothing is checked yet."""
    made = classifier(lr=0.5, random_state=7)
    assert made.get_params() == {
        "batch_size": 8,
        "budget": "auto",
        "epochs": 2,
        "image_size": "auto",
        "lr": 0.5,
        "model": "simple_cnn",
        "random_state": 7,
        "settings": {"workers": 0},
        "threads": 1,
    }
    assert made.set_params(epochs=1, model="nonsense") is made
    copied = clone(made)
    assert copied is not made
    assert copied.get_params() == made.get_params()
    assert is_classifier(made)
    assert "epochs=1" in repr(made)
    with pytest.raises(ValueError, match="colour"):
        made.set_params(colour=1)


def test_fit_and_predict() -> None:
    """Fitting returns the classifier with its classes, scores of what was held back, and a predictor."""
    pixels, labels = colours(8)
    made = classifier()
    assert made.fit(pixels, labels) is made
    assert made.classes_.tolist() == list(CLASSES)
    assert isinstance(made.predictor_, Predictor)
    assert isinstance(made.scores_, Scores)
    assert made.scores_.n == 3
    answers = made.predict(pixels)
    assert answers.shape == (24,)
    assert set(answers) <= set(CLASSES)
    assert made.score(pixels, labels) == (answers == np.array(labels)).mean()


def test_probabilities_follow_the_classes() -> None:
    """Column k of predict_proba is the probability of classes_[k], and predict takes the largest."""
    pixels, labels = colours(12)
    made = classifier(epochs=6).fit(pixels, labels)
    probabilities = made.predict_proba(pixels)
    assert probabilities.shape == (36, 3)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert (made.predict(pixels) == made.classes_[probabilities.argmax(axis=1)]).all()
    assert made.score(pixels, labels) > 0.9


@pytest.mark.parametrize(
    "names",
    [
        np.array([10, 2, 33]),
        np.array([-1, 0, 1], np.int8),
        np.array(["b", "a", "10"]),
        np.array(["x", "y ", "Y"], object),
        np.array([True, False]),
        np.array([0.0, 1.0, -2.0]),
    ],
)
def test_labels_of_any_kind(names: np.ndarray) -> None:
    """Labels come back as they were given, of their own type, with classes_ sorted as NumPy sorts."""
    pixels, texts = colours(6)
    labels = np.array([names[CLASSES.index(text) % len(names)] for text in texts], names.dtype)
    made = classifier(epochs=6).fit(pixels, labels)
    assert made.classes_.tolist() == np.unique(labels).tolist()
    assert made.predict(pixels).dtype == names.dtype
    assert made.score(pixels, labels) > 0.6


def test_more_than_ten_classes_keep_their_order() -> None:
    """Class 10 does not come before class 2."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 3)
    pixels = rng.integers(0, 255, (36, 18, 18), dtype=np.uint8)
    made = classifier(epochs=1).fit(pixels, labels)
    assert made.classes_.tolist() == list(range(12))
    assert made.predict_proba(pixels[:2]).shape == (2, 12)
    assert [int(name.split()[1]) for name in made.predictor_.classes] == list(range(12))


@pytest.mark.parametrize("kind", ["array", "floats", "grey", "list of arrays", "images", "paths", "path objects"])
def test_pictures_of_any_kind(kind: str, tmp_path: Path) -> None:
    """Arrays, lists of arrays of different sizes, Pillow images and paths are learned from and answered."""
    pixels, labels = colours(4)
    images = [Image.fromarray(picture) for picture in pixels]
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths):
        image.save(path)
    given = {
        "array": pixels,
        "floats": pixels / np.float32(255),
        "grey": pixels[..., 0],
        "list of arrays": [picture[i % 3 :] for i, picture in enumerate(pixels)],
        "images": images,
        "paths": [str(path) for path in paths],
        "path objects": paths,
    }[kind]
    made = classifier(epochs=1).fit(given, labels)
    assert made.predict(given).shape == (12,)
    assert made.predict_proba(given[:1]).shape == (1, 3)


def test_not_fitted() -> None:
    """Asking before fitting is scikit-learn's own error."""
    for ask in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError):
            getattr(classifier(), ask)(np.zeros((1, 9, 9), np.uint8))


def test_cross_validation() -> None:
    """cross_val_score trains a clone for each fold; lists of images are divided like arrays."""
    pixels, labels = colours(8)
    scores = cross_val_score(classifier(), pixels, labels, cv=2, error_score="raise")
    assert scores.shape == (2,)
    images = [Image.fromarray(picture) for picture in pixels]
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    losses = cross_val_score(classifier(), images, labels, cv=folds, scoring="neg_log_loss", error_score="raise")
    assert (losses < 0).all()


def test_search_over_parameters() -> None:
    """GridSearchCV tries values, NumPy's numbers among them, and refits with the best."""
    pixels, labels = colours(8)
    grid = {"epochs": np.array([1, 2]), "lr": np.logspace(-2, -2, 1), "random_state": np.arange(1)}
    search = GridSearchCV(classifier(), grid, cv=2, error_score="raise").fit(pixels, labels)
    assert search.best_params_["epochs"] in (1, 2)
    assert search.predict(pixels).shape == (24,)
    assert search.classes_.tolist() == list(CLASSES)


def test_a_pipeline() -> None:
    """A transformer may prepare the arrays, and its parameters and ours are set together."""
    pixels, labels = colours(6)
    pipeline = make_pipeline(FunctionTransformer(lambda x: x[:, ::-1]), classifier())
    pipeline.set_params(imageclassifier__epochs=1)
    assert pipeline.fit(pixels, labels).predict(pixels).shape == (18,)
    assert pipeline.classes_.tolist() == list(CLASSES)


def test_the_same_seed_gives_the_same_classifier() -> None:
    """random_state decides all chance."""
    pixels, labels = colours(6)
    first, second, other = (
        classifier(random_state=seed).fit(pixels, labels).predict_proba(pixels) for seed in (3, 3, 4)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_fit_again_forgets() -> None:
    """A second fit starts anew, with other classes too; one that fails changes nothing."""
    pixels, labels = colours(6)
    made = classifier().fit(pixels, labels)
    made.fit(pixels[:12], labels[:12])
    assert made.classes_.tolist() == ["blue", "green"]
    assert made.predict_proba(pixels).shape == (18, 2)
    with pytest.raises(DataError):
        made.fit(pixels[:6], labels[:6])
    assert set(made.predict(pixels)) <= {"blue", "green"}


@pytest.mark.parametrize("name", [name for name in QUICK if name != "workers"])
def test_wrong_parameters_are_refused_by_fit(name: str) -> None:
    """A parameter that is out of range is our typed error when fit is called, not before."""
    pixels, labels = colours(4)
    made = classifier(**{name: "simple" if name == "model" else -1})
    with pytest.raises(ModelError if name == "model" else SettingError, match="simple" if name == "model" else name):
        made.fit(pixels, labels)
    with pytest.raises(SettingError, match="Did you mean"):
        classifier(settings={"optimiser": "sgd"}).fit(pixels, labels)


def test_wrong_data_are_refused() -> None:
    """One class, too few of a class, labels that do not fit and pictures that are none are typed errors."""
    pixels, labels = colours(4)
    missing, mixed, numbers = [*labels[1:], None], [*labels[1:], 3.5], [*range(11), float("nan")]
    for wrong in (labels[:-1], "a", None, [labels], missing, np.array(mixed, object), numbers):
        with pytest.raises(DataError):
            classifier().fit(pixels, wrong)
    for count in (4, 5):
        with pytest.raises(DataError):
            classifier().fit(pixels[:count], labels[:count])
    with pytest.raises(DataError):
        classifier().fit(pixels[0, 0], labels)
    made = classifier(epochs=1).fit(pixels, labels)
    with pytest.raises(ImageError):
        made.predict(["nowhere.png"])


def test_a_small_class_is_called_by_its_name() -> None:
    """The message of a class with too few pictures holds the label that the user gave."""
    pixels, labels = colours(4)
    with pytest.raises(DataError, match=r"Got '0 blue' has 1\."):
        classifier().fit(pixels[3:], labels[3:])


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's folder is temporary: nothing stays on the disk after fit, whether it worked or not."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path)
    pixels, labels = colours(4)
    classifier(epochs=1).fit(pixels, labels)
    with pytest.raises(DataError):
        classifier().fit(pixels[:4], labels[:4])
    assert os.listdir(tmp_path / "temporary") == []
    assert os.listdir(tmp_path) == ["temporary"]


def test_a_fitted_classifier_is_kept(tmp_path: Path) -> None:
    """Pickled and copied, it answers as before; saved, it is a bundle; nothing in use is overwritten."""
    pixels, labels = colours(8)
    made = classifier().fit(pixels, labels)
    expected = made.predict_proba(pixels)
    for again in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        np.testing.assert_array_equal(again.predict_proba(pixels), expected)
        assert again.classes_.tolist() == made.classes_.tolist()
    assert not hasattr(pickle.loads(pickle.dumps(classifier())), "predictor_")
    made.save(tmp_path / "kept")
    np.testing.assert_array_equal(Predictor(tmp_path / "kept").predict(pixels).probabilities, expected)
    with pytest.raises(RunError, match="in use"):
        made.save(tmp_path / "kept")
    with pytest.raises(NotFittedError):
        classifier().save(tmp_path / "other")
