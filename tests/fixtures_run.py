"""Fixtures of the run side: one small run that many tests read, its bundle to damage, and the command line."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import linnaeus
from commands import QUICK, Answer, save_colours
from linnaeus.cli.main import main
from linnaeus.predictor import Predictor
from linnaeus.results import RunResult


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 20 pictures of each of three colours, to read only."""
    return save_colours(tmp_path_factory.mktemp("data") / "colours", 20)


@pytest.fixture(scope="session")
def result(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Return what `linnaeus.train` returned for the photos; its folder is to read only."""
    return linnaeus.train(photos, out=tmp_path_factory.mktemp("runs") / "run", **QUICK)


@pytest.fixture(scope="session")
def run_folder(result: RunResult) -> Path:
    """Return the run's folder, to read only."""
    return Path(result.folder)


@pytest.fixture(scope="session")
def predictor(run_folder: Path) -> Predictor:
    """Return the run's predictor, on one thread."""
    return Predictor(run_folder, threads=1)


@pytest.fixture
def bundle(run_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the run's bundle, to damage."""
    return Path(shutil.copytree(run_folder / "bundle", tmp_path / "bundle-copy"))


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Answer]]:
    """Give a function that runs the command line within this process, given its arguments."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str | Path) -> Answer:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = int(leave.code or 0)
        out, err = capsys.readouterr()
        return Answer(code=code, out=out, err=err)

    yield run
    signal.signal(signal.SIGTERM, before)
