"""Ctrl-C and SIGTERM: what was learned is saved, the bundle and the report are written, and the run can go on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from linnaeus.predictor import Predictor
from pictures import save_folder, scene
from processes import Child, differing, environment, read_state, run, start, wait_until

SETTINGS = ("model=lenet5", "image_size=32", "threads=1", "batch_size=8", "rotate=5", "epochs=16")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of 2 classes with 100 pictures each."""
    return save_folder(tmp_path_factory.mktemp("data"), {"a": 100, "b": 100}, size=32)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """Make the run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("runs")
    run("train", shapes, *SETTINGS, "--out", folder / "quiet", log=folder / "log")
    return folder / "quiet"


def has_trained(folder: Path) -> bool:
    """Return whether a run has finished two epochs."""
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and len(metrics.read_text().splitlines()) >= 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_usable_run(tmp_path: Path, shapes: Path, quiet: Path, number: int, code: int) -> None:
    """The exit code names the signal, bundle and report are there, and resuming ends as if nothing had been."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "linnaeus", "train", str(shapes), *SETTINGS, "--out", str(folder)]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, env=environment(), stderr=said, stdout=said)
        wait_until(lambda: has_trained(folder) or process.poll() is not None)
        process.send_signal(number)
        assert process.wait(60) == code, (tmp_path / "said").read_text()
    assert f"linnaeus train --resume {folder}" in (tmp_path / "said").read_text()
    assert json.loads((folder / "report.json").read_text())["stopped_early"] == "interrupted"
    assert (folder / "report.html").stat().st_size > 1000
    assert np.isclose(Predictor(folder).predict(scene(32, 32)).probabilities.sum(), 1)
    run("train", "--resume", folder, log=tmp_path / "log")
    assert differing(read_state(folder), read_state(quiet)) == []


def test_a_signal_before_training(tmp_path: Path, shapes: Path) -> None:
    """While there is nothing to keep yet, the process leaves at once and says so."""
    child = start("train", shapes, "model=resnet18", "image_size=224", "--out", tmp_path / "run", log=tmp_path / "log")
    wait_until(lambda: "Data:" in child.said())
    child.kill(signal.SIGTERM)
    assert child.wait() == 143
    assert "Stopped before there was anything to keep" in child.said()
    assert not (tmp_path / "run" / "bundle").exists()


def test_a_second_signal_stops_at_once(tmp_path: Path, shapes: Path) -> None:
    """Two signals end the process without a bundle, and its checkpoint is still good."""
    folder = tmp_path / "run"
    child = start("train", shapes, *SETTINGS, "--out", folder, log=tmp_path / "log")
    wait_until(lambda: has_trained(folder))
    child.kill(signal.SIGINT)
    child.kill(signal.SIGTERM)
    assert child.wait() in (130, 143)
    read_state(folder)
    run("train", "--resume", folder, log=tmp_path / "log")


def test_a_folder_in_use(tmp_path: Path, shapes: Path) -> None:
    """While one process writes a run, another one that would go on with it is refused; a killed one holds no lock."""
    folder = tmp_path / "run"
    first = start("train", shapes, *SETTINGS, "--out", folder, log=tmp_path / "first")
    wait_until(lambda: has_trained(folder))
    second = start("train", "--resume", folder, log=tmp_path / "second")
    assert second.wait() == 2
    assert "another process" in second.said()
    end(first)
    run("train", "--resume", folder, log=tmp_path / "log")
    third = start("train", "--resume", folder, log=tmp_path / "third")
    assert third.wait() == 2
    assert "finished" in third.said()


def end(child: Child) -> None:
    """Kill a process and wait for its end."""
    child.kill()
    child.wait()
