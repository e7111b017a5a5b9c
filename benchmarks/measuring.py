"""What all benchmarks share: figures with their targets, processes that are timed, rounds that alternate.

Nothing heavy is imported here: on Linux the peak memory of a child counts that of its parent at the start.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BENCH = ROOT / ".bench"


class Skip(Exception):  # noqa: N818  (it is not an error)
    """A benchmark cannot be measured here; the message says why."""


class ProcessError(Exception):
    """A measured process failed; the message ends with its last words."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number beside its target.

    Attributes:
        what: which number, in words. value: as measured, in `unit`.
        at_most, at_least: the target; both None where a number is only told.
        details: every number that it was made from.
    """

    what: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.at_most is None and self.at_least is None:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    @property
    def target(self) -> str:
        """The target as people read it."""
        low, high = (None if x is None else f"{x:g}{self.unit}" for x in (self.at_least, self.at_most))
        if low and high:
            return f"{low} to {high}"
        return f"<= {high}" if high else f">= {low}" if low else ""

    @property
    def measured(self) -> str:
        """The number as people read it."""
        digits = 1 if abs(self.value) >= 10 else 2 if abs(self.value) >= 1 else 3
        return f"{self.value:.{digits}f}{self.unit}"

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as JSON values."""
        return {
            "what": self.what,
            "value": self.value,
            "unit": self.unit.strip(),
            "target": self.target,
            "met": self.met,
            "details": dict(self.details),
        }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A process that ended well: wall seconds with its start, largest resident memory in bytes, what it printed."""

    seconds: float
    peak_bytes: int
    output: str

    def json(self) -> dict[str, Any]:
        """Return the JSON object on the last line that it printed."""
        values: dict[str, Any] = json.loads(self.output.strip().splitlines()[-1])
        return values


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a benchmark is given.

    Attributes:
        seeds: how often each training run is repeated, with the seeds 0, 1, ...
        quick: a short look: fewer epochs and images, whose figures say nothing about the targets.
        scratch: a folder that is deleted at the end. remembered: what one benchmark leaves to another.
    """

    seeds: int = 3
    quick: bool = False
    scratch: Path
    remembered: dict[str, Any] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """Return a new empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch))


def data_folder(name: str) -> Path:
    """Return where a data set lies. Raises Skip."""
    root = os.environ.get("LINNAEUS_DATA")
    if not root:
        raise Skip("LINNAEUS_DATA is not set: point it at the folder that holds the data sets")
    folder = Path(root).expanduser() / name
    if not folder.is_dir():
        raise Skip(f"{folder} does not exist")
    return folder


def environment(**changes: str) -> dict[str, str]:
    """Return the environment in which this checkout's linnaeus runs, with some variables changed."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def run_process(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    watch: Callable[[int], None] | None = None,
) -> Outcome:
    """Run a program to its end and time it. `watch` is called with its number every 10 ms. Raises ProcessError."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], env=env or environment(), stdout=out, stderr=err)
        with _stopping(process), _watching(process, watch):
            _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        output = out.read()
        if process.returncode:
            last = " / ".join((output + err.read()).strip().splitlines()[-6:])
            raise ProcessError(f"exit code {process.returncode} of {' '.join(map(str, command))}: {last}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Outcome(seconds=seconds, peak_bytes=usage.ru_maxrss * unit, output=output)


@contextlib.contextmanager
def _stopping(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process if we are interrupted while it runs."""
    try:
        yield
    except BaseException:
        process.kill()
        raise


@contextlib.contextmanager
def _watching(process: subprocess.Popen[bytes], watch: Callable[[int], None] | None) -> Iterator[None]:
    if watch is None:
        yield
        return
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.01):
            watch(process.pid)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_linnaeus(
    *arguments: str | Path, cache: Path | None = None, watch: Callable[[int], None] | None = None
) -> Outcome:
    """Run `linnaeus` from this checkout as a user would; `cache` is where it keeps decoded pictures."""
    env = environment(LINNAEUS_CACHE=str(cache)) if cache is not None else environment()
    return run_process([sys.executable, "-m", "linnaeus", *arguments], env=env, watch=watch)


def run_script(name: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Outcome:
    """Run one of the scripts in this folder with this interpreter."""
    return run_process([sys.executable, HERE / name, *arguments], env=env)


def accuracy_of(run: Path) -> float:
    """Return the share of test pictures, in percent, that a run's bundle named rightly."""
    facts = json.loads((run / "bundle" / "bundle.json").read_text())["facts"]
    return 100.0 * float(facts["scores"]["test"]["accuracy"])


def judge_run(run: Path, data: Path, *, cache: Path | None = None) -> float:
    """Return the same after judging on every test picture: within a short budget a run judges on a sample."""
    outcome = run_linnaeus("evaluate", run, data, "--split", "test", "--json", cache=cache)
    return 100.0 * float(json.loads(outcome.output)["accuracy"])


def in_rounds(sides: Mapping[str, Callable[[int], Any]], times: int) -> dict[str, list[Any]]:
    """Call every side once in each round, with the round's number, in reversed order every other round."""
    results: dict[str, list[Any]] = {name: [] for name in sides}
    for i in range(times):
        for name in list(sides) if i % 2 == 0 else list(sides)[::-1]:
            results[name].append(sides[name](i))
    return results


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return statistics.fmean(values)
