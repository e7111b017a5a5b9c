"""Which images were learned from stays known, whatever becomes of the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import linnaeus
from commands import QUICK, save_colours
from linnaeus.cli.main import main
from linnaeus.data.sources import open_source
from linnaeus.display import Terminal
from linnaeus.errors import RunError
from linnaeus.runfolder import RunFolder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder of three classes of twelve pictures."""
    return save_colours(tmp_path / "data", 12)


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    """Return the folder of a run on these data."""
    return Path(linnaeus.train(data, out=tmp_path / "run", **QUICK).folder)


def names_judged(run: Path, data: Path) -> set[bytes]:
    """Return the contents of the files that `evaluate` judges."""
    judgement = linnaeus.evaluate(run, data)
    assert judgement.part == "test"
    source = open_source(data)
    return {Path(source.images[i]).read_bytes() for i in judgement.indices}


def test_the_test_part_survives_moving_files(run: Path, data: Path) -> None:
    """Renamed files, files moved to another class and new ones do not bring training images into the test part."""
    before = names_judged(run, data)
    first, second = sorted(folder for folder in data.iterdir())[:2]
    for i, file in enumerate(sorted(first.iterdir())[:4]):
        file.rename((second if i % 2 else first) / f"zz-{99 - i}.png")
    assert names_judged(run, data) == before


def test_new_images_are_named(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images that the bundle has not seen are in no part, and `evaluate` says how many there are."""
    other = save_colours(data.parent / "other", 1, seed=7)
    for file in other.rglob("*.png"):
        shutil.copy(file, data / file.parent.name / "new.png")
    main(["evaluate", str(run), str(data)])
    assert "3 images that the bundle has not seen" in capsys.readouterr().err


def test_judging_what_was_learned_from_is_said(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Judging all of the run's own images warns that the score flatters."""
    main(["evaluate", str(run), str(data), "--split", "all"])
    assert "the score flatters" in capsys.readouterr().err


def test_a_run_is_not_resumed_on_other_labels(run: Path, data: Path) -> None:
    """A picture moved to another class since the run began refuses the resume: the parts would be dealt anew."""
    folder = RunFolder(path=run)
    folder.write_facts(folder.facts() | {"finished": False})
    first, second = sorted(folder for folder in data.iterdir())[:2]
    next(first.iterdir()).rename(second / "moved.png")
    with pytest.raises(RunError, match="other classes"):
        linnaeus.train(resume=run)
    assert json.loads((run / "run.json").read_text())["finished"] is False


@pytest.mark.parametrize(("split", "seen"), [("train", 24), ("val", 6), ("test", 0)])
def test_judging_a_part_that_was_learned_from_is_said(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str], split: str, seen: int
) -> None:
    """Judging the training or the validation part of the run warns, judging its test part does not."""
    linnaeus.evaluate(run, data, split=split, display=Terminal())
    told = capsys.readouterr().err
    assert ("the score flatters" in told) == (seen > 0)
    assert not seen or f"{seen} of these images" in told


def test_a_test_part_that_was_cut_from_train_is_found_again(data: Path, tmp_path: Path) -> None:
    """Of data with train and val alone, `evaluate` judges the test images that the run cut from train."""
    divided = tmp_path / "divided"
    for folder in data.iterdir():
        for i, file in enumerate(sorted(folder.iterdir())):
            place = divided / ("val" if i < 4 else "train") / folder.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place / file.name)
    run = linnaeus.train(divided, out=tmp_path / "run", **QUICK)
    judgement = linnaeus.evaluate(run.bundle, divided)
    assert judgement.part == "test"
    assert judgement.scores.to_dict() == run.scores["test"].to_dict()


def test_a_test_folder_of_images_that_were_learned_from_is_told(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images that the run learned from do not become test images by lying in a folder of that name, unremarked."""
    for part in ("train", "test"):
        shutil.copytree(data, tmp_path / "mine" / part)
    linnaeus.evaluate(run, tmp_path / "mine", split="test", display=Terminal())
    assert "30 of these images were learned from" in capsys.readouterr().err


def test_unreadable_images_are_named_and_the_rest_judged(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """However many of the images cannot be read, `evaluate` says which and judges the others."""
    broken = sorted(data.rglob("*.png"))[:10]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    judgement = linnaeus.evaluate(run, data, split="all", display=Terminal())
    assert judgement.scores.n == 26
    told = capsys.readouterr().err
    assert all(f"unreadable, left out: {path}" in told for path in broken)
