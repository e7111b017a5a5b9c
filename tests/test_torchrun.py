"""Several processes train as one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from linnaeus.predictor import Predictor
from pictures import save_folder
from processes import environment, read_state, run, start, wait_until
from torchrun_cases import CASES

SETTINGS = ("model=simple_cnn", "image_size=32", "threads=1", "precision=fp32", "epochs=2", "batch_size=15",
            "optimizer=sgd", "lr=0.01",
            "ema=0.5", "flip=true", "shift=0.1", "erase=0.2", "label_smoothing=0", "accumulate=2")  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of 2 classes with 40 pictures each."""
    return save_folder(tmp_path_factory.mktemp("data"), {"a": 40, "b": 40}, size=32)


def places(rank: int, port: int) -> dict[str, str]:
    """Return the environment of one of two processes, as torchrun sets it."""
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port)}  # fmt: skip


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], str]:
    """Run all cases in two processes; return those that came to their end in both, and what was said."""
    folder, port = tmp_path_factory.mktemp("cases"), free_port()
    children = [
        start(folder, log=folder / f"log{rank}", module="torchrun_cases", **places(rank, port)) for rank in (0, 1)
    ]
    for child in children:
        child.wait()
    names = {path.name for path in folder.iterdir()}
    both = {name[:-2] for name in names if name.endswith("-0") and name[:-1] + "1" in names}
    return both, "\n".join(child.said() for child in children)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_two_processes(reached: tuple[set[str], str], case: object) -> None:
    """What the case's own sentence says holds in two processes."""
    assert case.__name__ in reached[0], reached[1]  # type: ignore[attr-defined]


def test_torchrun_trains_as_one_process_does(tmp_path: Path, shapes: Path) -> None:
    """`torchrun -m linnaeus train` gives the weights and losses of one process, and writes everything once."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    run("train", shapes, *SETTINGS, "--out", alone, log=tmp_path / "log")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
               str(free_port()), "-m", "linnaeus", "train", str(shapes), *SETTINGS, "--out", str(both)]  # fmt: skip
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Data:") == 1
    assert done.stderr.count("Bundle:") == 1
    a, b = read_state(alone), read_state(both)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5, msg=name)
    lines = [[json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()] for f in (alone, both)]
    assert len(lines[0]) == len(lines[1]) == 2
    for one, two in zip(*lines):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-4)
        assert one["val_loss"] == pytest.approx(two["val_loss"], rel=1e-4)
        assert one["step"] == two["step"]
    assert sorted(p.name for p in alone.iterdir()) == sorted(p.name for p in both.iterdir())
    assert len(list(both.glob("tensorboard/*"))) == len(list(alone.glob("tensorboard/*")))
    assert Predictor(both).classes == ("a", "b")


def test_a_signal_to_one_of_two(tmp_path: Path, shapes: Path) -> None:
    """SIGTERM to the second process alone stops both, the run is kept, and one process can go on with it."""
    folder, port = tmp_path / "run", free_port()
    command = ("train", shapes, *SETTINGS, "epochs=300", "--out", folder)
    children = [start(*command, log=tmp_path / f"log{rank}", **places(rank, port)) for rank in (0, 1)]
    wait_until((folder / "metrics.jsonl").exists)
    os.kill(children[1].pid, signal.SIGTERM)
    codes = [child.wait() for child in children]
    assert codes[0] in (0, 143), children[0].said()
    assert json.loads((folder / "report.json").read_text())["stopped_early"] == "interrupted"
    assert Predictor(folder).classes == ("a", "b")
    before = len((folder / "metrics.jsonl").read_text().splitlines())
    child = start("train", "--resume", folder, log=tmp_path / "log")
    wait_until(lambda: len((folder / "metrics.jsonl").read_text().splitlines()) > before)
    child.kill(signal.SIGINT)
    assert child.wait() == 130
