"""Whether the memory that training takes grows with the number of pictures."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from measuring import Bench, Figure, Skip, run_linnaeus, run_script

# All that the recipe would choose by the number of pictures is fixed.
SETTINGS = ("model=simple_cnn", "image_size=64", "epochs=1", "batch_size=64", "lr=0.001", "optimizer=adam")


@dataclass
class Peaks:
    """The most bytes of each kind that were seen: all resident pages; those of no file; those of files."""

    resident: int = 0
    anonymous: int = 0
    files: int = 0

    def look(self, process: int) -> None:
        """Take the process's present memory into account."""
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
            found = {name: int(value.split()[0]) * 1024 for name, value in _sizes(lines)}
            self.resident = max(self.resident, found.get("VmHWM", 0))
            self.anonymous = max(self.anonymous, found.get("RssAnon", 0))
            self.files = max(self.files, found.get("RssFile", 0))


def measure(bench: Bench) -> Iterator[Figure]:
    """Peak memory of `linnaeus train FOLDER` with ten times as many pictures over that with one time.

    Anonymous memory (RssAnon, sampled every 10 ms) is what a process needs for itself; target: at most 1.1. The
    resident peak (VmHWM) also counts the pages of the mapped pack that happen to lie in memory and that the system
    takes back when it needs them: it is told without a target. A small first folder is trained on before, unmeasured,
    so that both measured runs find the same files in memory.
    """
    if sys.platform != "linux":
        raise Skip("/proc/PID/status is Linux's")
    few = 100 if bench.quick else 2000
    _train(bench, 40)
    small, large = _train(bench, few), _train(bench, 10 * few)
    details = {f"{few}": asdict(small), f"{10 * few}": asdict(large)}
    of = f"{10 * few:,} pictures / {few:,}"
    yield Figure(
        what=f"peak anonymous memory, {of} ({_mb(large.anonymous)} / {_mb(small.anonymous)})",
        value=large.anonymous / small.anonymous, at_most=1.1, details=details,
    )  # fmt: skip
    yield Figure(
        what=f"peak resident memory with cached file pages, {of} ({_mb(large.resident)} / {_mb(small.resident)})",
        value=large.resident / small.resident, details=details,
    )  # fmt: skip


def _train(bench: Bench, number: int) -> Peaks:
    folder = bench.folder("pictures") / "set"
    run_script("make_pictures.py", folder, "--number", str(number), "--side", "96")
    peaks = Peaks()
    out = bench.folder("run") / "run"
    run_linnaeus("train", folder, *SETTINGS, "--out", out, cache=bench.folder("cache"), watch=peaks.look)
    return peaks


def _sizes(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = line.partition(":")
        if value.endswith("kB"):
            yield name, value


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
