"""Killed at any moment and resumed, a run ends with the same bytes as one that was left in peace."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from linnaeus.predictor import Predictor
from pictures import save_folder
from processes import Child, differing, read_state, run, start, warm_up

KILLS = {"sgd": 6, "adamw": 6, "patience": 6, "pretrained": 2}
CHANGES = ("flip=true", "shift=0.1", "rotate=15", "crop=0.7", "colour=0.3", "erase=0.3")
COMMON = ("epochs=4", "batch_size=16", "threads=1", "image_size=32", "checkpoint_every=0", *CHANGES)
RUNS = {
    "sgd": ("model=lenet5", "workers=0", "optimizer=sgd", "lr=0.02", "ema=0", "clip_norm=1"),
    "adamw": ("model=fastnet", "workers=2", "optimizer=adamw", "ema=0.9", "accumulate=2", "grow=0.5"),
    "pretrained": ("model=efficientnet_lite0", "workers=0", "ema=0.9", "epochs=2", "checkpoint_every=60"),
    "patience": ("model=timm:test_vit", "workers=2", "optimizer=adam", "ema=0.9", "patience=1", "lr=0.01"),
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of 3 classes with 30 pictures each."""
    return save_folder(tmp_path_factory.mktemp("data"), {"a": 30, "b": 30, "c": 30}, size=32)


@pytest.mark.parametrize("kind", RUNS)
def test_kill_and_resume(tmp_path: Path, shapes: Path, kind: str) -> None:
    """After kill -9 at some moments, weights, optimizer, average, bundle and metrics are those of a quiet run."""
    quiet, killed, log = tmp_path / "quiet", tmp_path / "killed", tmp_path / "log"
    command = ("train", shapes, *COMMON, *RUNS[kind])
    warm_up()
    begin = time.monotonic()
    run(*command, "--out", quiet, log=log)
    seconds, chance, kills = time.monotonic() - begin, random.Random(kind), 0
    while kills < KILLS[kind]:
        started = (killed / "run.json").is_file()
        if not started or finished(killed):
            shutil.rmtree(killed, ignore_errors=True)
            started = False
        child = start(*(("train", "--resume", killed) if started else (*command, "--out", killed)), log=log)
        let_it_run(killed, chance, seconds)
        kills += kill(child)
    if not (killed / "run.json").is_file():
        run(*command, "--out", killed, log=log)
    elif not finished(killed):
        run("train", "--resume", killed, log=log)
    expect_the_same(quiet, killed)


def let_it_run(folder: Path, chance: random.Random, seconds: float) -> None:
    """Wait for a share of the time that a whole run takes, or for a few checkpoints to be written."""
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0, 0.8 * seconds))
        return
    checkpoint, seen = folder / "checkpoints" / "last.safetensors", set()
    wanted, end = chance.randint(2, 7), time.monotonic() + 0.5 * seconds
    while len(seen) < wanted and time.monotonic() < end:
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
    time.sleep(chance.uniform(0, 0.01))


def kill(child: Child) -> bool:
    """Kill a process and return whether it was alive until then."""
    child.kill()
    code = child.wait()
    assert code in (0, -signal.SIGKILL), child.said()
    return code != 0


def finished(folder: Path) -> bool:
    """Return whether a run came to its end."""
    return bool(json.loads((folder / "run.json").read_text())["finished"])


def expect_the_same(quiet: Path, killed: Path) -> None:
    """Compare two runs byte by byte, but for what the clock says."""
    assert differing(read_state(quiet), read_state(killed)) == []
    bundles = [folder / "bundle" / "model.safetensors" for folder in (quiet, killed)]
    assert bundles[0].read_bytes() == bundles[1].read_bytes()
    assert epochs(quiet) == epochs(killed)
    assert [p.name for p in killed.rglob("*.part-*")] == []
    assert Predictor(killed).classes == ("a", "b", "c")


def epochs(folder: Path) -> list[dict[str, object]]:
    """Return the lines of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]
