"""Writing that survives a crash: a file or folder is there whole, or its last good version is.

The pattern: write under a temporary name in the same folder, flush, fsync, rename over the target, fsync the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from linnaeus.errors import StorageError

_TEMPORARY = ".part-"
_PREVIOUS = ".previous"


def cache_folder() -> Path:
    """Return the folder for what can be made anew: $LINNAEUS_CACHE, or ~/.cache/linnaeus."""
    chosen = os.environ.get("LINNAEUS_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "linnaeus"


def write_file(path: Path, data: bytes | str) -> None:
    """Write a file whole or not at all. Raises StorageError when the disk is full or refuses."""
    payload = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    temporary = path.with_name(f"{path.name}{_TEMPORARY}{uuid.uuid4().hex[:8]}")
    with storage_errors(path):
        try:
            with temporary.open("wb") as stream:
                stream.write(payload)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append one line to a text file. Raises StorageError."""
    with storage_errors(path), path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


@contextlib.contextmanager
def new_folder(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """Give a temporary folder to fill that takes the target's place, whole, when the block ends without an error.

    A folder that was there is moved aside first and deleted last, so that a crash between leaves it
    under the name that `find_folder` knows. With `replace` off, the one that was there stays, also one that another
    process put there a moment ago.
    """
    target = Path(os.path.abspath(target))  # "." has no name to put something beside
    temporary = target.with_name(f"{target.name}{_TEMPORARY}{uuid.uuid4().hex[:8]}")
    previous = target.with_name(target.name + _PREVIOUS)
    with storage_errors(target):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            sync_tree(temporary)
            if target.exists() and not replace:
                return
            if target.exists():
                shutil.rmtree(previous, ignore_errors=True)
                target.rename(previous)
            try:
                temporary.rename(target)
            except OSError:
                if replace or not target.exists():
                    raise
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def is_leftover(name: str) -> bool:
    """Whether a name is one under which `write_file` and `new_folder` prepare what they write."""
    return _TEMPORARY in name


def clear_leftovers(folder: Path, *, older_than: float = 0.0) -> None:
    """Remove what processes that were killed while they wrote left in a folder.

    Nobody may be writing what was last changed more than `older_than` seconds ago.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if not is_leftover(path.name) or time.time() - _last_change(path) < older_than:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _last_change(path: Path) -> float:
    """Return when a file, or the latest of those below a folder, was changed; 0 if it has gone."""
    times = [0.0]
    for file in (path, *path.glob("**/*")):
        with contextlib.suppress(FileNotFoundError):
            times.append(file.stat().st_mtime)
    return max(times)


def find_folder(target: Path) -> Path:
    """Return the folder that `new_folder` wrote, or its last good version if a crash fell between two renames."""
    previous = target.parent / (target.name + _PREVIOUS)
    return previous if not target.exists() and previous.exists() else target


def sync_tree(folder: Path) -> None:
    """Flush every file below a folder, and the folders themselves, to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            with (Path(place) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(place))


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a StorageError that names the place."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        fix = "Free some space, then resume the run." if full else "Choose a folder that can be written."
        raise StorageError(f"to write {path}", got=error.strerror or str(error), fix=fix) from error
