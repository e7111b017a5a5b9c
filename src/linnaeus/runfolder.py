"""The folder of one run: what lies where in it, and that only one process writes it.

bundle/          the trained classifier
config.toml      every setting, resolved
run.json         what was trained on what, to resume by
metrics.jsonl    one line per epoch
predictions.csv  the answer for each image that was judged
report.html      for people; report.json: the same facts for programs
checkpoints/     last.safetensors, the whole state of training; snapshot-1.safetensors, ... where they are asked for
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from linnaeus.config import Settings
from linnaeus.errors import RunError
from linnaeus.results import Choice, EpochResult
from linnaeus.storage import append_line, clear_leftovers, is_leftover, storage_errors, write_file


@dataclass(kw_only=True)
class RunFolder:
    """One run on disk, locked for this process until `close` or the process's end, however it ends."""

    path: Path
    lock: IO[str] | None = None

    @property
    def bundle(self) -> Path:
        """The trained classifier's folder."""
        return self.path / "bundle"

    @property
    def checkpoint(self) -> Path:
        """The whole state of training."""
        return self.path / "checkpoints" / "last.safetensors"

    def snapshot(self, number: int) -> Path:
        """Return the place of the weights at the end of a cycle of the learning rate, counted from 1."""
        return self.path / "checkpoints" / f"snapshot-{number}.safetensors"

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    def settings(self) -> Settings:
        """Return the settings that the run uses. Raises RunError."""
        try:
            return Settings.from_toml((self.path / "config.toml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            raise _not_a_run(self.path) from None

    def facts(self) -> dict[str, Any]:
        """Return what run.json says. Raises RunError."""
        try:
            facts: dict[str, Any] = dict(json.loads((self.path / "run.json").read_text(encoding="utf-8")))
            for choice in facts.get("choices", ()):
                Choice(**choice)
        except (OSError, ValueError, TypeError):
            raise _not_a_run(self.path) from None
        if missing := {"choices", "data", "signature"} - facts.keys():
            got = f"{self.path / 'run.json'} without {', '.join(sorted(missing))}"
            raise RunError("a run.json as linnaeus writes it", got=got, fix="Start a new run.")
        return facts

    def write_settings(self, settings: Settings) -> None:
        """Write config.toml."""
        write_file(self.path / "config.toml", settings.to_toml())

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write run.json."""
        write_file(self.path / "run.json", json.dumps(facts, indent=2) + "\n")

    def write_epochs(self, epochs: Sequence[EpochResult]) -> None:
        """Write metrics.jsonl anew, as a resumed run does."""
        write_file(self.path / "metrics.jsonl", "".join(json.dumps(to_json(epoch)) + "\n" for epoch in epochs))

    def append_epoch(self, epoch: EpochResult) -> None:
        """Add one line to metrics.jsonl."""
        append_line(self.path / "metrics.jsonl", json.dumps(to_json(epoch)))

    def close(self) -> None:
        """Let other processes write the folder."""
        if self.lock is not None:
            self.lock.close()


def check_free(out: str | Path | None) -> None:
    """Raise RunError if a new run must not be written to this folder."""
    path = Path(out) if out is not None else None
    with storage_errors(path or Path()):
        used = path is not None and path.exists() and not (path.is_dir() and _is_bare(path))
    if used:
        fix = f"Choose another folder, or go on with it: linnaeus train --resume {shlex.quote(str(path))}"
        raise RunError("an output folder that does not exist or is empty", got=f"{str(path)!r}, in use", fix=fix)


def create_run(out: str | Path | None, name: str) -> RunFolder:
    """Make a new run's folder: `out`, or the next free runs/NAME-1, ... Raises RunError if it is in use."""
    check_free(out)
    path = Path(out) if out is not None else _make_next(name)
    with storage_errors(path):
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    return _lock(path)


def open_run(path: str | Path) -> RunFolder:
    """Open a run's folder to go on with it. Raises RunError if it is none or another process writes it."""
    folder = Path(path)
    with storage_errors(folder):
        is_run = (folder / "config.toml").is_file()
    if not is_run:
        raise _not_a_run(folder)
    return _lock(folder)


@contextlib.contextmanager
def claim_folder(path: Path, plan: Mapping[str, Any], *, what: str) -> Iterator[RunFolder]:
    """Hold the folder of several runs for this process; what was begun there must have had the same plan.

    `what` names what the runs make up. Raises RunError.
    """
    file = path / "plan.json"
    with storage_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        used = known is None and any(child.name != ".lock" for child in path.iterdir())
    if used or known not in (None, plan):
        got = f"{str(path)!r}, which is in use"
        if known is not None:
            got = f"{str(path)!r}, with other {', '.join(name for name in plan if known.get(name) != plan[name])}"
        expected = f"an empty folder, or the same {what} to go on with"
        raise RunError(expected, got=got, fix="Choose another folder with --out.")
    folder = _lock(path)
    try:
        write_file(file, json.dumps(plan, indent=1) + "\n")
        yield folder
    finally:
        folder.close()


def read_report(path: str | Path) -> dict[str, Any]:
    """Return the facts that a run's report.json holds. Raises RunError if it has none."""
    file = Path(path) / "report.json"
    try:
        report: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        report = {}
    if report.get("format") != 1:
        got = f"{str(path)!r}, without a readable report.json"
        raise RunError("the folder of a run that came to its report", got=got, fix="Name a run's folder.")
    return report


def to_json(epoch: EpochResult) -> dict[str, Any]:
    """Return an epoch's result as JSON values: what was not measured is null."""
    values = asdict(epoch).items()
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values}


def _is_bare(folder: Path) -> bool:
    """Whether a folder holds nothing, or only what a run that was killed before it began has left."""
    names = {path.name for path in folder.iterdir()}
    whole = {name for name in names if not is_leftover(name)}
    begun = any((folder / "checkpoints").glob("*"))
    return not names or (".lock" in names and whole <= {".lock", "checkpoints", "config.toml"} and not begun)


def _make_next(name: str) -> Path:
    """Make the first folder of runs/NAME-1, runs/NAME-2, ... that nobody has made before us."""
    with storage_errors(Path("runs")):
        Path("runs").mkdir(exist_ok=True)
    for number in itertools.count(1):
        path = Path("runs") / f"{name}-{number}"
        with storage_errors(path), contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def _lock(path: Path) -> RunFolder:
    with storage_errors(path):
        stream = (path / ".lock").open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        got = f"{str(path)!r}, which another process writes"
        raise RunError("a run folder that is free", got=got, fix="Wait for it to end, or choose another.") from None
    for place in (path, path / "checkpoints"):
        clear_leftovers(place)
    return RunFolder(path=path, lock=stream)


def _not_a_run(path: Path) -> RunError:
    return RunError(
        "a run folder with config.toml and run.json",
        got=f"{str(path)!r}",
        fix="Name the folder that `linnaeus train` wrote.",
    )
