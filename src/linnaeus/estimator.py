"""The scikit-learn face: an estimator that works in clone, cross_val_score, GridSearchCV and Pipeline."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from linnaeus.errors import DataError
from linnaeus.predictor import Predictor
from linnaeus.runfolder import check_free
from linnaeus.runs import train
from linnaeus.storage import new_folder


class ImageClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """An image classifier with scikit-learn's manners.

    Args:
        model, epochs, budget, batch_size, lr, image_size, threads: as in `linnaeus settings`; "auto" is chosen by
            the data.
        random_state: the seed.
        settings: any other settings, by name.

    A fitted one can be pickled, as joblib does; `save` writes its bundle.

    `fit` takes as X an array uint8 (N, H, W[, C]), PIL images, arrays of different sizes or paths, and as y labels
    of any kind. All of X is learned from, less 15 % that are held back to choose by.

    Attributes after `fit`:
        classes_: the distinct labels, sorted. predictor_: the Predictor that answers. scores_: on what was held back.
    """

    def __init__(
        self,
        model: str = "auto",
        *,
        epochs: int | str = "auto",
        budget: float | str = "auto",
        batch_size: int | str = "auto",
        lr: float | str = "auto",
        image_size: int | str = "auto",
        threads: int | str = "auto",
        random_state: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.epochs = epochs
        self.budget = budget
        self.batch_size = batch_size
        self.lr = lr
        self.image_size = image_size
        self.threads = threads
        self.random_state = random_state
        self.settings = settings

    def fit(self, X: Any, y: Sequence[Any] | NDArray[Any]) -> Self:  # noqa: N803  (scikit-learn's name)
        """Train on images and labels. Raises DataError for fewer than two classes or classes too small to split."""
        classes, numbers = _number(y)
        # The number before the label keeps the classes in the order of classes_, whatever their type.
        width = len(str(len(classes)))
        names = [f"{number:0{width}d} {classes[number]}" for number in numbers]
        folder = Path(tempfile.mkdtemp(prefix="linnaeus-"))
        try:
            result = train((X, names), out=folder / "run", **self._run_settings())
            if result.signal:
                raise KeyboardInterrupt
            self._open(result.bundle)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.classes_ = classes
        self.scores_ = result.scores.get("val")
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Return probabilities float32 (N, K), columns in the order of `classes_`."""
        check_is_fitted(self, "predictor_")
        return self.predictor_.predict(X).probabilities

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the most probable label of each image, of the kind that `fit` was given."""
        best = self.predict_proba(X).argmax(axis=1)
        chosen: NDArray[Any] = self.classes_[best]
        return chosen

    def save(self, folder: str | Path) -> None:
        """Write the bundle of the fitted classifier. Raises RunError if the folder is in use."""
        check_is_fitted(self, "predictor_")
        check_free(folder)
        with new_folder(Path(folder)) as place:
            self._unpack(place)

    def _open(self, bundle: str | Path) -> None:
        """Answer by a bundle, and keep its files, so that the estimator does not depend on the folder."""
        self.predictor_ = Predictor(bundle)
        self._files = {file.name: file.read_bytes() for file in self.predictor_.bundle.folder.iterdir()}

    def _unpack(self, folder: Path) -> None:
        for name, data in self._files.items():
            (folder / name).write_bytes(data)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and copy take along: the bundle's files in place of the open network."""
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "predictor_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back from a pickle."""
        super().__setstate__(state)
        if "_files" in state:
            with tempfile.TemporaryDirectory(prefix="linnaeus-") as folder:
                self._unpack(Path(folder))
                self._open(folder)

    def _run_settings(self) -> dict[str, Any]:
        names = ("model", "epochs", "budget", "batch_size", "lr", "image_size", "threads")
        given = {name: getattr(self, name) for name in names}
        return {**given, "seed": self.random_state, "test_fraction": 0.0, **(self.settings or {})}


def _number(y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the distinct labels, sorted, and the number of each label. Raises DataError for what are no labels."""
    labels = np.asarray(y)
    try:
        classes, numbers = np.unique(labels, return_inverse=True)
    except TypeError as error:  # labels of several kinds, or missing ones
        raise DataError("labels of one kind", got=str(error), fix="Make all of them texts or numbers.") from error
    missing = labels.dtype.kind == "f" and bool(np.isnan(labels).any())
    if labels.ndim != 1 or missing:
        got = "missing labels" if missing else f"shape {labels.shape}"
        fix = "Pass labels of shape (N,), none of them missing; linnaeus.train takes several labels an image."
        raise DataError("a label for each image", got=got, fix=fix)
    return classes, numbers
