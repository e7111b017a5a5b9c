"""Files from the net: fetched whole, checked, and never half there."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

from linnaeus.errors import DownloadError
from linnaeus.storage import storage_errors, sync_folder

MAX_DOWNLOAD = 4 << 30  # bytes; the largest weights that torchvision publishes have 2.5 GB
TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 18

Progress = Callable[[int, int], None]


def download(url: str, destination: Path, *, digest: str, progress: Progress | None = None) -> None:
    """Fetch a file whole or not at all.

    Args:
        url: http or https.
        destination: where the file shall lie; its folder is made.
        digest: "md5:" or "sha256:" and the hexadecimal digits, or the first of them.
        progress: called with the bytes done and in total, 0 where the total is unknown.

    Raises:
        DownloadError: no connection, an answer other than the file, a cut connection, or a wrong checksum.
        StorageError: the disk is full or refuses.
    """
    with storage_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f"{destination.name}.part-{uuid.uuid4().hex[:8]}")
    try:
        found = _stream(url, part, destination, digest, progress or _ignore)
        if not found.startswith(digest):
            raise _download_error(url, destination, digest, got=f"the checksum {found}")
        with storage_errors(destination):
            part.replace(destination)
            sync_folder(destination.parent)
    finally:
        part.unlink(missing_ok=True)


def _ignore(done: int, total: int) -> None:
    """Report nothing."""


def _stream(url: str, part: Path, destination: Path, digest: str, progress: Progress) -> str:
    """Write the answer to `part` and return its digest in the form of the one expected."""
    if not url.startswith(("http://", "https://")):
        raise _download_error(url, destination, digest, got="another kind of address")
    try:
        answer = urllib.request.urlopen(url, timeout=TIMEOUT)  # noqa: S310  (the scheme is checked above)
    except urllib.error.HTTPError as error:
        error.close()
        raise _download_error(url, destination, digest, got=_reason(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _download_error(url, destination, digest, got=_reason(error)) from error
    with answer:
        length = answer.headers.get("Content-Length") or ""
        total = int(length) if length.isdecimal() else 0
        hasher = hashlib.new(digest.partition(":")[0], usedforsecurity=False)
        with storage_errors(destination), part.open("wb") as file:
            done = 0
            while block := _receive(answer, url, destination, digest):
                done += len(block)
                if done > MAX_DOWNLOAD:
                    raise _download_error(url, destination, digest, got=f"more than {MAX_DOWNLOAD:,} bytes")
                file.write(block)
                hasher.update(block)
                progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    if total and done != total:
        raise _download_error(url, destination, digest, got=f"{done:,} of {total:,} bytes")
    return f"{hasher.name}:{hasher.hexdigest()}"


def _receive(answer: http.client.HTTPResponse, url: str, destination: Path, digest: str) -> bytes:
    try:
        return answer.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _download_error(url, destination, digest, got=f"a cut connection ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _download_error(url: str, destination: Path, digest: str, *, got: str) -> DownloadError:
    fix = f"Try again, or fetch it by hand: {url} with the checksum {digest} belongs at {destination}."
    return DownloadError(f"the whole file {url}", got=got, fix=fix)


def check_file(path: Path, digest: str) -> None:
    """Raise DownloadError unless a file has this digest, given as `download` takes it."""
    with path.open("rb") as file:
        name = digest.partition(":")[0]
        found = hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()
    if not f"{name}:{found}".startswith(digest):
        got = f"{path} with the checksum {name}:{found}"
        raise DownloadError(f"a file with the checksum {digest}", got=got, fix="Delete it and try again.")
