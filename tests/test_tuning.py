"""The search for settings: trials are runs, validation chooses, test waits for the winner, a killed search goes on."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest

import linnaeus
from commands import save_colours
from linnaeus.errors import RunError, SettingError
from linnaeus.predictor import Predictor
from linnaeus.tuning.results import Tuning
from linnaeus.tuning.study import STEPS, falls_behind
from linnaeus.tuning.tuner import show_space
from processes import run, start, wait_until

FIXED = {"model": "simple_cnn", "epochs": 2, "threads": 1, "workers": 0, "batch_size": 16}
PAIRS = tuple(f"{name}={value}" for name, value in FIXED.items())
NAMES = ("lr", "optimizer", "dense")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three classes of twelve pictures."""
    return save_colours(tmp_path_factory.mktemp("data") / "colours", 12)


@pytest.fixture(scope="module")
def found(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    """Return a search of four trials, to read only."""
    return linnaeus.tune(data, trials=4, search=NAMES, out=tmp_path_factory.mktemp("runs") / "tune", **FIXED)


def parts_of(file: Path) -> set[str]:
    """Return the parts that a predictions.csv has answers for."""
    with file.open() as stream:
        return {row["part"] for row in csv.DictReader(stream)}


def test_trials_are_kept_from_the_test_part(found: Tuning, data: Path) -> None:
    """No trial's report, bundle or answers know the test part; the search itself has judged its winner on it."""
    folder = Path(found.folder)
    for number in range(4):
        place = folder / f"trial-{number}"
        assert set(json.loads((place / "report.json").read_text())["scores"]) == {"val"}
        assert set(json.loads((place / "bundle" / "bundle.json").read_text())["facts"]["scores"]) == {"val"}
        assert parts_of(place / "predictions.csv") == {"val"}
    assert parts_of(folder / "predictions.csv") == {"val", "test"}
    assert set(found.scores) == {"val", "test"}
    assert list(found.tested) == [found.winner.number]
    assert Predictor(folder).bundle.facts["scores"]["test"]["accuracy"] == found.scores["test"].accuracy.value


def test_the_winner_is_the_best_on_validation(found: Tuning) -> None:
    """The winner has the highest validation accuracy of the whole trials, and its page and JSON say so."""
    whole = [trial for trial in found.trials if not trial.pruned]
    assert found.winner.accuracy == max(trial.accuracy for trial in whole)
    assert found.winner.accuracy == found.scores["val"].accuracy.value
    told = json.loads((Path(found.folder) / "tune.json").read_text())
    assert told["winner"] == found.winner.number
    assert [trial["number"] for trial in told["trials"]] == [0, 1, 2, 3]
    page = Path(found.report).read_text()
    assert "chosen on validation alone" in page
    assert "http:" not in page
    assert "https:" not in page


def test_the_first_trial_is_the_default_recipe(found: Tuning, data: Path, tmp_path: Path) -> None:
    """Trial 0 has the weights of a run of `train` with the same settings."""
    linnaeus.train(data, out=tmp_path / "run", **FIXED)
    weights = [folder / "bundle" / "model.safetensors" for folder in (tmp_path / "run", Path(found.folder) / "trial-0")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_begun_again_nothing_is_done_twice(found: Tuning, data: Path) -> None:
    """A finished search is read, a longer one goes on from it, and one of another plan is refused."""
    folder = Path(found.folder)
    before = {place: place.stat().st_mtime_ns for place in folder.glob("trial-*/report.json")}
    again = linnaeus.tune(data, trials=4, search=NAMES, out=folder, **FIXED)
    assert {place: place.stat().st_mtime_ns for place in folder.glob("trial-*/report.json")} == before
    assert again.to_dict() == found.to_dict()
    with pytest.raises(RunError, match="with other settings"):
        linnaeus.tune(data, trials=4, search=NAMES, out=folder, **(FIXED | {"epochs": 3}))
    with pytest.raises(RunError, match="with other search"):
        linnaeus.tune(data, trials=4, search=("lr",), out=folder, **FIXED)


def test_kill_and_go_on(found: Tuning, data: Path, tmp_path: Path) -> None:
    """Killed within a trial and begun again, a search ends with the trials of one that was left in peace."""
    command = ("tune", data, "--trials", 4, "--search", ",".join(NAMES), "--out", tmp_path / "tune", *PAIRS)
    child = start(*command, log=tmp_path / "log")
    wait_until((tmp_path / "tune" / "trial-2" / "run.json").exists)
    child.kill(signal.SIGKILL)
    child.wait()
    run(*command, log=tmp_path / "log")
    told = json.loads((tmp_path / "tune" / "tune.json").read_text())
    for mine, theirs in zip(told["trials"], found.trials, strict=True):
        assert mine["settings"] == dict(theirs.settings)
        assert (mine["accuracy"], mine["pruned"]) == (theirs.accuracy, theirs.pruned)
    assert told["winner"] == found.winner.number


def test_the_space_is_what_concerns(data: Path) -> None:
    """What is given or means nothing to the network and the pictures is not searched, and asking for it says why."""
    names = {dimension.name: dimension for dimension in show_space(data, **FIXED)}
    assert {"filters", "activation", "lr", "optimizer", "shift"} <= set(names)
    assert not {"batch_size", "epochs", "crop", "stochastic_depth"} & set(names)
    assert "label_smoothing" not in {d.name for d in show_space(data, loss="focal", **FIXED)}
    for name, why in (
        ("batch_size", "it is given"),
        ("crop", "framed already"),
        ("seed", "no range"),
        ("x", "no such"),
    ):
        with pytest.raises(SettingError, match=why):
            show_space(data, search=(name,), **FIXED)


def test_who_falls_behind() -> None:
    """A trial is stopped below the median of what three others had reached by then, not early, late or at it."""
    others = [{200: 0.5, 600: 0.9}, {300: 0.7}, {400: 0.6}]
    assert falls_behind({400: 0.59}, others)
    assert not falls_behind({400: 0.6}, others)
    assert not falls_behind({400: 0.59}, others[:2])
    assert not falls_behind({100: 0.0}, others)
    assert not falls_behind({STEPS: 0.0}, others)
    assert not falls_behind({350: 0.59}, others)  # the third had reached nothing by then
