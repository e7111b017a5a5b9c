"""Whole runs that meet trouble: bad images, losses that explode, disks that fill, data that changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import linnaeus
from linnaeus.errors import DataError, RunError, StorageError, TrainingError
from linnaeus.predictor import Predictor
from linnaeus.training import checkpoint
from pictures import save_folder, scene
from processes import differing, read_state
from test_storage import limited

QUICK = {"model": "lenet5", "image_size": 28, "epochs": 2, "threads": 1, "batch_size": 16, "workers": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a folder of 2 classes with 40 pictures each."""
    return save_folder(tmp_path / "data", {"a": 40, "b": 40}, size=28)


def report(run: Path) -> dict[str, object]:
    """Return a run's facts."""
    return json.loads((run / "report.json").read_text())


def test_unreadable_images_are_counted_and_listed(folder: Path, tmp_path: Path) -> None:
    """One image in a hundred may be unreadable: it is left out, and the result and both reports name it."""
    save_folder(tmp_path / "data", {"c": 40}, size=28)
    bad = folder / "a" / "7.png"
    bad.write_bytes(bad.read_bytes()[:90])
    result = linnaeus.train(folder, out=tmp_path / "run", **QUICK)
    assert [image.path for image in result.bad_images] == [str(bad)]
    data = report(tmp_path / "run")["data"]
    assert [image["path"] for image in data["bad_images"]] == [str(bad)]
    assert data["bad_images"][0]["reason"]
    assert sum(sum(counts.values()) for counts in data["counts"].values()) == 119
    assert "7.png" in (tmp_path / "run" / "report.html").read_text()


def test_too_many_unreadable_images_are_an_error_first(folder: Path, tmp_path: Path) -> None:
    """Above the share that is allowed, nothing is trained and no folder is made."""
    for i in range(3):
        (folder / "a" / f"{i}.png").write_text("nothing")
    with pytest.raises(DataError, match=r"3 of 80.*0\.png"):
        linnaeus.train(folder, out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_without_a_pack_a_run_is_the_same(folder: Path, tmp_path: Path) -> None:
    """A cache limit of 0 decodes each epoch anew and ends with the same bytes."""
    for name, limit in (("packed", "8GB"), ("decoded", 0)):
        linnaeus.train(folder, out=tmp_path / name, cache_limit=limit, **QUICK)
    assert differing(read_state(tmp_path / "packed"), read_state(tmp_path / "decoded")) == []


def test_the_same_settings_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Two runs of one seed are equal to the byte, with any number of workers; another seed is another run."""
    settings = {**QUICK, "flip": True, "shift": 0.2, "rotate": 10}
    for name, changes in (("a", {"workers": 0}), ("b", {"workers": 2}), ("c", {"seed": 1})):
        linnaeus.train(folder, out=tmp_path / name, **{**settings, **changes})
    assert differing(read_state(tmp_path / "a"), read_state(tmp_path / "b")) == []
    assert differing(read_state(tmp_path / "a"), read_state(tmp_path / "c")) != []


EXPLODES = {**QUICK, "optimizer": "sgd", "momentum": 0.0, "lr": 100.0, "schedule": "constant", "warmup": 0.0,
            "model": "simple_cnn", "ema": 0.0, "clip_norm": 0.0, "epochs": 4}  # fmt: skip


def test_an_exploding_loss_leaves_good_weights(folder: Path, tmp_path: Path) -> None:
    """A rate that blows up after some good epochs ends with an error that names the batch and a bundle that answers."""
    with pytest.raises(TrainingError, match=r"3 batches in a row.*epoch \d+, batch \d+ \(images \d+"):
        linnaeus.train(folder, out=tmp_path / "run", **{**EXPLODES, "warmup": 0.9, "epochs": 40})
    assert np.isfinite(Predictor(tmp_path / "run").predict(scene(28, 28)).probabilities).all()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(line["best"] for line in lines)


def test_an_explosion_in_the_first_epoch_says_so(folder: Path, tmp_path: Path) -> None:
    """Where no epoch came to its end before the loss exploded, the error is still about the loss."""
    with pytest.raises(TrainingError, match="3 batches in a row"):
        linnaeus.train(folder, out=tmp_path / "run", **{**EXPLODES, "batch_size": 4})


def test_a_failed_run_is_told_in_the_report(folder: Path, tmp_path: Path) -> None:
    """The report of a run that ended by an exploding loss says that it did."""
    with pytest.raises(TrainingError):
        linnaeus.train(folder, out=tmp_path / "run", **{**EXPLODES, "warmup": 0.9, "epochs": 40})
    assert report(tmp_path / "run")["stopped_early"]


def test_a_disk_that_fills_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a checkpoint does not fit, the run ends with StorageError, keeps the last one, and can be resumed."""
    linnaeus.train(folder, out=tmp_path / "quiet", **QUICK)
    whole, saves = checkpoint.write_file, []

    def small_disk(path: Path, data: bytes) -> None:
        saves.append(path)
        if len(saves) == 2:
            with limited(1000):
                whole(path, data)
        whole(path, data)

    monkeypatch.setattr(checkpoint, "write_file", small_disk)
    with pytest.raises(StorageError, match="Free some space, then resume"):
        linnaeus.train(folder, out=tmp_path / "run", **QUICK)
    linnaeus.train(resume=tmp_path / "run")
    assert differing(read_state(tmp_path / "quiet"), read_state(tmp_path / "run")) == []


def interrupted(folder: Path, run: Path) -> None:
    """Leave a run that is not finished."""
    linnaeus.train(folder, out=run, **QUICK)
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "finished": False}))


def test_resuming_needs_the_same_images(folder: Path, tmp_path: Path) -> None:
    """A run whose images changed meanwhile is not resumed, and neither is one with new settings."""
    run = tmp_path / "run"
    interrupted(folder, run)
    with pytest.raises(RunError, match="lr"):
        linnaeus.train(resume=run, lr=0.1)
    (folder / "a" / "0.png").write_bytes((folder / "a" / "1.png").read_bytes())
    with pytest.raises(RunError, match="images that the run began with"):
        linnaeus.train(resume=run)


def test_resuming_a_damaged_checkpoint(folder: Path, tmp_path: Path) -> None:
    """A checkpoint that is cut short is named, and the bundle of the run still answers."""
    run = tmp_path / "run"
    interrupted(folder, run)
    state = run / "checkpoints" / "last.safetensors"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(RunError, match=r"last\.safetensors"):
        linnaeus.train(resume=run)
    assert Predictor(run).classes == ("a", "b")


def test_resuming_before_the_first_checkpoint(folder: Path, tmp_path: Path) -> None:
    """A run that was killed before its first checkpoint begins anew, and each epoch is told once."""
    run = tmp_path / "run"
    interrupted(folder, run)
    (run / "checkpoints" / "last.safetensors").unlink()
    linnaeus.train(resume=run)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == QUICK["epochs"]


def test_resuming_data_that_lay_in_memory(folder: Path, tmp_path: Path) -> None:
    """Arrays are passed again; without them the error says so."""
    pictures = np.stack([scene(28, 28, seed=i) for i in range(60)])
    data = (pictures, [i % 2 for i in range(60)])
    interrupted(data, tmp_path / "run")
    with pytest.raises(DataError, match="Pass them again"):
        linnaeus.train(resume=tmp_path / "run")
    linnaeus.train(data, resume=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_no_folder_is_overwritten(folder: Path, tmp_path: Path) -> None:
    """A folder with anything in it is refused before work begins; what a killed start left is not in the way."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.toml").write_text("precious")
    with pytest.raises(RunError, match="in use"):
        linnaeus.train(folder, out=tmp_path / "mine", **QUICK)
    assert (tmp_path / "mine" / "config.toml").read_text() == "precious"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / "run.json.part-0123").touch()
    linnaeus.train(folder, out=tmp_path / "run", **QUICK)
    with pytest.raises(RunError, match="in use"):
        linnaeus.train(folder, out=tmp_path / "run", **QUICK)
    assert not list((tmp_path / "run").glob("*.part-*"))
