"""Cross-validation: every image is judged once a repeat by a run that has not seen it, and nothing is done twice."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import linnaeus
from commands import QUICK, save_colours
from linnaeus.crossval import corrected_interval, cross_validate
from linnaeus.errors import DataError, RunError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of three classes of twelve pictures, one of which lies there twice."""
    folder = save_colours(tmp_path / "data", 12)
    first = sorted(folder.rglob("*.png"))[0]
    shutil.copy(first, first.with_name("copy.png"))
    return folder


def read_table(folder: Path) -> list[dict[str, str]]:
    """Return the lines of predictions.csv."""
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_image_is_judged_once_a_repeat(data: Path, tmp_path: Path) -> None:
    """Each image has an answer in each repeat, copies lie in the same fold, and the folds' scores add up."""
    found = cross_validate(data, folds=3, repeats=2, out=tmp_path / "cv", **QUICK)
    table = read_table(tmp_path / "cv")
    assert len(table) == 2 * 37
    for repeat in (table[:37], table[37:]):
        assert len({row["image"] for row in repeat}) == 37
        folds = {row["image"]: row["fold"] for row in repeat}
        (copy,) = (image for image in folds if image.endswith("copy.png"))
        first = str(sorted(Path(copy).parent.glob("[0-9]*.png"))[0])
        assert folds[copy] == folds[first]
    assert [fold.scores.n for fold in found.folds] == [sum(row["fold"] == str(k) for row in table) for k in range(1, 7)]
    right = np.mean([row["label"] == row["predicted"] for row in table])
    assert (
        np.average([f.scores.accuracy.value for f in found.folds], weights=[f.scores.n for f in found.folds]) == right
    )
    assert found.whole.n == 37
    written = json.loads((tmp_path / "cv" / "crossval.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict()))
    for k in range(1, 7):
        report = json.loads((tmp_path / "cv" / f"fold-{k}" / "report.json").read_text())
        assert report["scores"]["test"]["n"] == found.folds[k - 1].scores.n


def test_it_goes_on_where_it_stopped(data: Path, tmp_path: Path) -> None:
    """A fold that is finished is not trained anew; another plan in the same folder is refused."""
    out = tmp_path / "cv"
    first = cross_validate(data, folds=2, out=out, **QUICK)
    kept = (out / "fold-1" / "report.json").stat().st_mtime_ns
    shutil.rmtree(out / "fold-2")
    again = cross_validate(data, folds=2, out=out, **QUICK)
    assert (out / "fold-1" / "report.json").stat().st_mtime_ns == kept
    assert again.to_dict() == first.to_dict()
    for change in ({"folds": 3}, {"folds": 2, "lr": 0.5}):
        with pytest.raises(RunError, match="with other"):
            cross_validate(data, out=out, **(QUICK | change))
    with pytest.raises(RunError, match="in use"):
        cross_validate(data, folds=2, out=data, **QUICK)


def test_more_folds_than_images(data: Path, tmp_path: Path) -> None:
    """A class with fewer images than folds is named."""
    with pytest.raises(DataError, match=r"at least 20 images of each class.*\(12\)"):
        linnaeus.cross_validate(data, folds=20, out=tmp_path / "cv", **QUICK)


def test_the_corrected_interval() -> None:
    """The mean and spread are NumPy's, the interval that of Nadeau and Bengio: wider than of independent values."""
    values = [0.8, 0.9, 0.85, 0.95, 0.9]
    interval, spread = corrected_interval(values, 5)
    assert interval.value == pytest.approx(np.mean(values))
    assert spread == pytest.approx(np.std(values, ddof=1))
    assert interval.high - interval.value == pytest.approx(min(1 - 0.88, 2.7764451 * spread * np.sqrt(1 / 5 + 1 / 4)))
