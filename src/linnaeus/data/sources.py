"""Whatever a user points at -> one Source: folders, tables, arrays, archives and named sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from linnaeus.data.arrays import read_pair
from linnaeus.data.binary import holds_cifar, holds_idx, read_cifar, read_idx, read_npz
from linnaeus.data.folders import has_class_folders, read_folder
from linnaeus.data.labelled import Reading, Source, build_source, file_name
from linnaeus.data.named import NAMED, NAMES, locate, read_digits
from linnaeus.data.tables import Columns, read_table
from linnaeus.errors import DataError, suggest
from linnaeus.fetching import Progress

__all__ = ["Columns", "Data", "Source", "open_source"]

Data = str | os.PathLike[str] | Source | tuple[Sequence[Any] | NDArray[Any], Sequence[Any] | NDArray[Any]]

_EXPECTED = "a folder, a table, an archive, a pair of arrays or the name of a data set"
_TABLES = (".csv", ".tsv", ".parquet", ".pq")
_USUAL_COLUMNS = Columns()


def open_source(data: Data, *, columns: Columns = _USUAL_COLUMNS, progress: Progress | None = None) -> Source:
    """Open labelled pictures of any kind.

    Args:
        data: one of
            a folder with a folder of pictures for each class, or with train, val and test that hold such folders;
            a CSV or Parquet table, or a folder with a metadata.csv and no class folders;
            an .npz; a folder or file of IDX (MNIST); a folder of CIFAR's binary version;
            a pair (images, labels) of arrays or lists;
            the name of a set: digits, mnist, fashion_mnist, cifar10, cifar100;
            a Source, which comes back as it is.
            A path that exists goes before a name.
        columns: what the columns of a table are called.
        progress: is told bytes done and in all while a named set is fetched.

    Raises:
        DataError: it is none of these, holds fewer than two classes, or contradicts itself.
        DownloadError: a named set that is not on this machine could not be fetched.
        MissingExtraError: what it needs is not installed.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, tuple) and len(data) == 2:
        return build_source("arrays", read_pair(*data))
    if not isinstance(data, str | os.PathLike):
        raise DataError(_EXPECTED, got=f"a {type(data).__name__}", fix="Pass a path, a name or (images, labels).")
    path = Path(data).expanduser()
    if _exists(path):
        return build_source(file_name(path), _read_path(path, columns))
    if str(data) in NAMES:
        return build_source(str(data), _read_named(str(data), progress))
    raise DataError(_EXPECTED, got=f"{str(data)!r}, where nothing is", fix=_hint(str(data)))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def _hint(text: str) -> str:
    return "Check the path." if os.sep in text or "." in text else suggest(text, NAMES)


def _read_named(name: str, progress: Progress | None) -> Reading:
    if name == "digits":
        return read_digits()
    folder = locate(name, progress=progress)
    return read_cifar(folder) if holds_cifar(folder) else read_idx(folder, classes=NAMED[name].classes)


def _read_path(path: Path, columns: Columns) -> Reading:
    try:
        return _read_folder(path, columns) if path.is_dir() else _read_file(path, columns)
    except OSError as error:
        got = f"{path}: {error.strerror or error}"
        raise DataError("data that can be read", got=got, fix="Check its permissions.") from error


def _read_folder(path: Path, columns: Columns) -> Reading:
    if holds_idx(path):
        return read_idx(path)
    if holds_cifar(path):
        return read_cifar(path)
    table = path / "metadata.csv"
    return read_table(table, columns) if table.is_file() and not has_class_folders(path) else read_folder(path)


def _read_file(path: Path, columns: Columns) -> Reading:
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        return read_table(path, columns)
    if suffix == ".npz":
        return read_npz(path)
    if holds_idx(path):
        return read_idx(path)
    unpack = suffix in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
    fix = "Unpack it and pass the folder." if unpack else "Pass the folder that holds the class folders."
    raise DataError("a table, an .npz or an IDX file", got=str(path), fix=fix)
