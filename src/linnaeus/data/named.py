"""Data sets known by name: where they lie on this machine, or how they are fetched whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.data.labelled import Reading
from linnaeus.errors import DataError, DownloadError, MissingExtraError, suggest
from linnaeus.storage import cache_folder, new_folder, storage_errors, sync_folder

MAX_DOWNLOAD = 1 << 30
TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 18

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file as it was published: its name, its md5 and the folders it can be fetched from, best first."""

    name: str
    digest: str
    mirrors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A published data set: its usual folder, its files, and its class names where no file tells them."""

    folder: str
    files: tuple[Remote, ...]
    classes: tuple[str, ...] = ()


def _idx_files(mirrors: tuple[str, ...], digests: tuple[str, str, str, str]) -> tuple[Remote, ...]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple(
        Remote(name=f"{part}-ubyte.gz", digest=f"md5:{digest}", mirrors=mirrors)
        for part, digest in zip(parts, digests, strict=True)
    )


_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
_FASHION = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
_CIFAR = ("https://www.cs.toronto.edu/~kriz/",)

NAMED = {
    "mnist": NamedSet(
        folder="mnist",
        files=_idx_files(
            _MNIST,
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
    ),
    "fashion_mnist": NamedSet(
        folder="fashion_mnist",
        files=_idx_files(
            _FASHION,
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    "cifar10": NamedSet(
        folder="cifar-10-batches-bin",
        files=(Remote(name="cifar-10-binary.tar.gz", digest="md5:c32a1d4ab5d03f1284b67883e8d87530", mirrors=_CIFAR),),
    ),
    "cifar100": NamedSet(
        folder="cifar-100-binary",
        files=(Remote(name="cifar-100-binary.tar.gz", digest="md5:03b5dce01913d631647c71ecec9e9cb8", mirrors=_CIFAR),),
    ),
}
NAMES = ("digits", *NAMED)


def locate(name: str, *, progress: Progress | None = None) -> Path:
    """Return the folder of a named set: below $LINNAEUS_DATA, below the cache folder, or fetched into the cache.

    Raises:
        DataError: no set has this name.
        DownloadError: it could not be fetched whole; the message tells how to fetch it by hand.
    """
    if name not in NAMED:
        raise DataError("the name of a data set", got=repr(name), fix=suggest(name, NAMED))
    known = NAMED[name]
    given = os.environ.get("LINNAEUS_DATA")
    if given and (Path(given).expanduser() / known.folder).is_dir():
        return Path(given).expanduser() / known.folder
    return _fetch_set(known, cache_folder() / "data", progress)


def read_digits() -> Reading:
    """Return scikit-learn's 1,797 digits, 8 x 8, their 17 grey levels scaled to 0 to 255.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", extra="train") from error
    digits = load_digits()
    pixels = np.rint(np.asarray(digits.images) * (255 / 16)).astype(np.uint8)
    return Reading(images=pixels, labels=np.asarray(digits.target, np.int64))


def download(url: str, destination: Path, *, digest: str, progress: Progress | None = None) -> None:
    """Fetch a file whole or not at all.

    Args:
        url: http or https.
        destination: where the file shall lie; its folder is made.
        digest: "md5:" or "sha256:" and the hexadecimal digits.
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
        if found != digest:
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


def _fetch_set(known: NamedSet, cache: Path, progress: Progress | None) -> Path:
    """Return the set's folder in the cache, after fetching what of it is not there."""
    folder = cache / known.folder
    archives = [remote for remote in known.files if remote.name.endswith(".tar.gz")]
    if not archives:
        for remote in known.files:
            _fetch(remote, folder / remote.name, progress)
    elif not folder.is_dir():
        for remote in archives:
            _fetch(remote, cache / remote.name, progress)
            _unpack(cache / remote.name, folder)
    return folder


def _fetch(remote: Remote, destination: Path, progress: Progress | None) -> None:
    """Fetch from the first mirror that gives the file whole; a file put there by hand is checked instead."""
    for place, mirror in enumerate(remote.mirrors, 1):
        if destination.exists():
            break
        try:
            download(mirror + remote.name, destination, digest=remote.digest, progress=progress)
        except DownloadError:
            if place == len(remote.mirrors):
                raise
    if (found := _digest_of(destination, remote.digest)) != remote.digest:
        got = f"{destination} with the checksum {found}"
        raise DownloadError(f"a file with the checksum {remote.digest}", got=got, fix="Delete it and try again.")


def _digest_of(path: Path, like: str) -> str:
    with path.open("rb") as file:
        hasher = hashlib.file_digest(file, lambda: hashlib.new(like.partition(":")[0], usedforsecurity=False))
    return f"{hasher.name}:{hasher.hexdigest()}"


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the one folder of an archive so that it appears whole."""
    try:
        with new_folder(folder, replace=False) as temporary, tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
            for path in list((temporary / folder.name).iterdir()):
                path.rename(temporary / path.name)
            (temporary / folder.name).rmdir()
    except (tarfile.TarError, EOFError) as error:
        raise DownloadError(
            f"the archive {archive} whole", got=_reason(error), fix="Delete it and try again."
        ) from error
