"""Real processes for the tests: trainings that can be killed, started by a fork so that torch is imported once."""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src"
_PATIENCE = 120.0  # seconds after which a test that waits has failed


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process that was started by the nursery, and the file that holds all it said."""

    pid: int
    log: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Return the exit code, or minus the signal that ended it."""
        return int(_nursery().ask({"wait": self.pid})["code"])

    def said(self) -> str:
        """Return what it said so far."""
        return self.log.read_text() if self.log.exists() else ""


class _Nursery:
    """A process that has imported all that training needs, and forks into one training after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "nursery.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        self.ask({"ready": True})
        atexit.register(self._close)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def _close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@functools.cache
def _nursery() -> _Nursery:
    return _Nursery()


def warm_up() -> None:
    """Start the nursery, which takes some seconds the first time."""
    _nursery()


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment, with the sources to be found and some changes."""
    paths = [str(SOURCE), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **changes}


def start(*arguments: object, log: Path, module: str = "linnaeus", **changes: str) -> Child:
    """Start what `python -m MODULE ARGUMENTS` does, with changes to the environment."""
    request = {"module": module, "arguments": [str(a) for a in arguments], "log": str(log), "environment": changes}
    return Child(pid=_nursery().ask(request)["pid"], log=log)


def run(*arguments: object, log: Path, module: str = "linnaeus", **changes: str) -> str:
    """Do what `python -m MODULE ARGUMENTS` does, to the end. Returns what it said."""
    child = start(*arguments, log=log, module=module, **changes)
    code = child.wait()
    assert code == 0, child.said()
    return child.said()


def wait_until(met: Callable[[], bool]) -> None:
    """Wait until a condition is met."""
    end = time.monotonic() + _PATIENCE
    while not met():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def read_state(run_folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a run's checkpoint: weights, optimizer, average and best."""
    return safetensors.torch.load_file(run_folder / "checkpoints" / "last.safetensors")


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> Sequence[str]:
    """Return the names of the tensors that are not the same bytes in both."""
    assert a.keys() == b.keys()
    return [
        name for name in a if not torch.equal(a[name].view(-1).view(torch.uint8), b[name].view(-1).view(torch.uint8))
    ]
