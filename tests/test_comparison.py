"""Comparing runs: the tests are those of the papers, images are known by content, and no common image says nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, chi2

import linnaeus
from commands import QUICK, save_colours
from linnaeus.answers import read_answers
from linnaeus.comparison import apply_mcnemar, compare, correct_holm
from linnaeus.errors import RunError

pytest_plugins = ("fixtures_run",)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (3, 3), (2, 9), (24, 0), (0, 24)])
def test_few_differences_are_judged_exactly(first: int, second: int) -> None:
    """Below 25 differences the p-value is that of SciPy's binomial test."""
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert apply_mcnemar(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(("first", "second"), [(12, 13), (5, 40), (300, 350)])
def test_many_differences_are_judged_by_chi_squared(first: int, second: int) -> None:
    """From 25 differences on the p-value is that of the chi-squared distribution with continuity correction."""
    statistic = (abs(first - second) - 1) ** 2 / (first + second)
    assert apply_mcnemar(first, second) == pytest.approx(chi2.sf(statistic, 1))


def test_holm() -> None:
    """The corrected values are those of the example worked by hand, in the order given and never above 1."""
    assert correct_holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert correct_holm([0.9, 0.8]) == [1.0, 1.0]


def change_answers(run: Path, rows: int) -> None:
    """Make the first test answers of a run wrong."""
    head, *lines = (run / "predictions.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    for row in [row for row in cells if row[3] == "test"][:rows]:
        row[4] = "red" if row[2] != "red" else "blue"
    (run / "predictions.csv").write_text("\n".join([head, *map(",".join, cells)]) + "\n")


def test_runs_on_the_same_images(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    """Answers are matched by content, so that the same pictures elsewhere count; worse answers are found by class."""
    shutil.copytree(photos, tmp_path / "elsewhere")
    linnaeus.train(tmp_path / "elsewhere", out=tmp_path / "other", **QUICK)
    change_answers(tmp_path / "other", 7)
    found = compare(run_folder, tmp_path / "other")
    (duel,) = found.duels
    answers = [a for a in read_answers(run_folder) if a.part == "test"]
    assert duel.images == len(answers) == sum(c["images"] for c in duel.classes.values())
    assert duel.p == duel.holm == apply_mcnemar(duel.only_best, duel.only_other)
    assert sum(c["best"] - c["other"] for c in duel.classes.values()) == duel.only_best - duel.only_other
    report = json.loads((run_folder / "report.json").read_text())
    assert found.entrants[0].scores == report["scores"]["test"]
    assert found.entrants[0].parameters == report["model"]["parameters"]
    assert np.isfinite(found.entrants[0].milliseconds)
    json.dumps(found.to_dict(), allow_nan=False)


def test_runs_on_other_images(run_folder: Path, tmp_path: Path) -> None:
    """Runs that judged no common picture cannot be told apart, and the verdict says why."""
    linnaeus.train(save_colours(tmp_path / "data", 12, seed=5), out=tmp_path / "other", **QUICK)
    (duel,) = compare(run_folder, tmp_path / "other").duels
    assert (duel.images, duel.p, duel.differs) == (0, None, None)
    assert "cannot be said, because" in duel.verdict


def test_bad_runs_are_refused(run_folder: Path, tmp_path: Path) -> None:
    """One run alone, and a folder that is none, are refused."""
    with pytest.raises(RunError, match="two runs or more"):
        compare(run_folder, run_folder)
    with pytest.raises(RunError, match=r"report\.json"):
        compare(run_folder, tmp_path)
