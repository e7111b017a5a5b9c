"""Data sets known by name: where they lie on this machine, or how they are fetched whole."""

from __future__ import annotations

import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.data.labelled import Reading
from linnaeus.errors import DataError, DownloadError, MissingExtraError, suggest
from linnaeus.fetching import Progress, check_file, download
from linnaeus.storage import cache_folder, new_folder


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
    check_file(destination, remote.digest)


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Write the files of an archive below a folder. Raises TarError for anything else in it.

    The library's own filter for that came only with Python 3.11.4.
    """
    root = folder.resolve()
    for member in tar:
        place = (root / member.name).resolve()
        if not place.is_relative_to(root) or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is no plain file in the archive's folder")
        (place if member.isdir() else place.parent).mkdir(parents=True, exist_ok=True)
        if (content := tar.extractfile(member)) is not None:
            with content, place.open("wb") as file:
                shutil.copyfileobj(content, file)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the one folder of an archive so that it appears whole."""
    try:
        with new_folder(folder, replace=False) as temporary, tarfile.open(archive) as tar:
            _extract(tar, temporary)
            for path in list((temporary / folder.name).iterdir()):
                path.rename(temporary / path.name)
            (temporary / folder.name).rmdir()
    except (tarfile.TarError, EOFError) as error:
        raise DownloadError(
            f"the archive {archive} whole", got=f"{type(error).__name__}: {error}", fix="Delete it and try again."
        ) from error
