"""Writing: whatever moment the power fails or the disk fills, the last good version is there."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linnaeus.errors import StorageError
from linnaeus.storage import append_line, cache_folder, clear_leftovers, find_folder, new_folder, write_file


class PowerCut(BaseException):
    """The machine stopped: nothing that comes after reaches the disk."""


class Disk:
    """Counts the calls that change the disk, and fails at the k-th: once by an error, for good by a power cut."""

    def __init__(self, patch: pytest.MonkeyPatch, *, fail_at: int, error: BaseException) -> None:
        self.calls = 0
        self._fail_at, self._error = fail_at, error
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "rename"), (Path, "mkdir"), (Path, "unlink")):
            patch.setattr(owner, name, self._guarded(getattr(owner, name)))
        patch.setattr(shutil, "rmtree", self._guarded(shutil.rmtree))
        patch.setattr(Path, "open", self._opener(Path.open))

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._fail_at or (self.calls > self._fail_at and isinstance(self._error, PowerCut)):
            raise self._error

    def _guarded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._count()
            return original(*args, **kwargs)

        return guarded

    def _opener(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def opener(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "w" not in mode and "a" not in mode:
                return original(path, mode, *args, **kwargs)
            self._count()
            return _Stream(original(path, mode, *args, **kwargs), self._count)

        return opener


class _Stream:
    """A file whose write may fail after half of the data."""

    def __init__(self, stream: Any, count: Callable[[], None]) -> None:
        self._stream, self._count = stream, count

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._stream.write(data[:half])
        self._stream.flush()
        self._count()
        return half + int(self._stream.write(data[half:]))

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


FAULTS = [OSError(errno.EIO, "Input/output error"), OSError(errno.ENOSPC, "No space left"), PowerCut()]


def fail_everywhere(work: Callable[[], None], error: BaseException, check: Callable[[], None]) -> int:
    """Do the work with a fault at its first, second, ... call that changes the disk, and check after each."""
    for k in range(1, 200):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, fail_at=k, error=error)
            with contextlib.suppress(StorageError, PowerCut):
                work()
            done = disk.calls < k
        check()
        if done:
            return k - 1
    raise AssertionError("the work never ended")


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: str(error) or "power cut")
def test_a_file_is_whole_after_any_fault(tmp_path: Path, error: BaseException) -> None:
    """With a fault at every step of writing, the file holds the old or the new text, and the new one at the end."""
    path = tmp_path / "file"
    write_file(path, "old")
    steps = fail_everywhere(lambda: write_file(path, "new!"), error, lambda: expect(path, "old", "new!"))
    assert steps >= 4
    assert path.read_text() == "new!"


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: str(error) or "power cut")
@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_is_whole_after_any_fault(tmp_path: Path, error: BaseException, replace: bool) -> None:
    """With a fault at every step of writing, `find_folder` finds the old or the new folder, with all its files."""
    target = tmp_path / "folder"
    fill(target, "old")

    def check() -> None:
        found = find_folder(target)
        texts = {(found / name).read_text() for name in ("a", "b")}
        assert texts in (({"old"}, {"new"}) if replace else ({"old"},))

    steps = fail_everywhere(lambda: fill(target, "new", replace=replace), error, check)
    assert steps >= 8
    assert (target / "a").read_text() == ("new" if replace else "old")


def fill(target: Path, text: str, *, replace: bool = True, then: Callable[[], object] = bool) -> None:
    """Write a folder of two files, and do something before it takes its place."""
    with new_folder(target, replace=replace) as folder:
        for name in ("a", "b"):
            (folder / name).write_bytes(text.encode())
        then()


def expect(path: Path, *texts: str) -> None:
    """Check that a file holds one of the texts."""
    assert path.read_text() in texts


def test_an_error_leaves_no_litter(tmp_path: Path) -> None:
    """After an error that the process survives, nothing temporary remains."""
    write_file(tmp_path / "file", "old")
    fill(tmp_path / "folder", "old")
    names = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path / "folder", "half", then=lambda: 1 // 0)
    with limited(100), pytest.raises(StorageError):
        write_file(tmp_path / "file", "x" * 1000)
    assert sorted(p.name for p in tmp_path.iterdir()) == names


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk(tmp_path: Path) -> None:
    """A file or folder that does not fit is a StorageError that says what to do, and the old one stays."""
    path, folder = tmp_path / "file", tmp_path / "folder"
    write_file(path, "old")
    fill(folder, "old")
    with limited(100):
        for work in (lambda: write_file(path, b"x" * 1000), lambda: fill(folder, "x" * 1000)):
            with pytest.raises(StorageError, match="Free some space"):
                work()
        append_line(tmp_path / "lines", "x" * 98)
        with pytest.raises(StorageError, match="lines"):
            append_line(tmp_path / "lines", "x" * 98)
    assert path.read_text() == "old"
    assert (folder / "b").read_text() == "old"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A target below a file is a StorageError that names the place."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/inner"):
        write_file(tmp_path / "file" / "inner", "x")
    with pytest.raises(StorageError, match="file/inner"):
        fill(tmp_path / "file" / "inner", "x")


def test_two_that_build_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second to finish keeps the first one's folder, also if that appears between its look and its move."""
    target = tmp_path / "pack"
    with new_folder(target, replace=False) as folder:
        (folder / "a").write_text("second")
        fill(target, "first", replace=False)
    assert (target / "a").read_text() == "first"
    shutil.rmtree(target)
    rename = Path.rename

    def late(path: Path, new: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        fill(target, "first", replace=False)
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", late)
    fill(target, "second", replace=False)
    assert (target / "a").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["pack"]


def test_leftovers_are_cleared(tmp_path: Path) -> None:
    """What a power cut left is removed, and nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, fail_at=2, error=PowerCut())
        with pytest.raises(PowerCut):
            write_file(tmp_path / "file", "new")
    (tmp_path / "folder.part-12345678").mkdir()
    (tmp_path / "mine").write_text("kept")
    assert len(list(tmp_path.iterdir())) == 3
    clear_leftovers(tmp_path, older_than=3600)  # somebody may still be writing these
    assert len(list(tmp_path.iterdir())) == 3
    clear_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    clear_leftovers(tmp_path / "absent")


def test_the_cache_has_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """LINNAEUS_CACHE names the cache; without it, it lies below the home."""
    monkeypatch.setenv("LINNAEUS_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("LINNAEUS_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "linnaeus"
