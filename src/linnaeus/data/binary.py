"""The binary forms of well-known data sets: .npz archives, IDX files as of MNIST, CIFAR's binary folders."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from linnaeus.data.arrays import as_pixels
from linnaeus.data.labelled import Reading, some
from linnaeus.errors import DataError
from linnaeus.results import SPLITS

MAX_BYTES = 8 << 30  # that a header may promise

_NPZ_PAIRS = (("images", "labels"), ("x", "y"))
_NPZ_PARTS = (("x_train", "y_train"), ("x_val", "y_val"), ("x_test", "y_test"))
# What damage leads NumPy into: a file that is one bare array has no context, a header may promise any size.
_NPZ_FAULTS = (OSError, ValueError, EOFError, KeyError, TypeError, MemoryError, zipfile.BadZipFile, zlib.error)
_IDX_NAME = re.compile(r"(?P<part>.+)-(?P<what>images|labels)[-.]idx(?P<rank>[13])-ubyte(?P<gz>\.gz)?")
_IDX_PARTS = {"train": 0, "val": 1, "test": 2, "t10k": 2, "t3k": 2}
_CIFAR_PIXELS = 3 * 32 * 32


def read_npz(path: Path) -> Reading:
    """Read an .npz with images and labels, x and y, or x_train, y_train, x_test, y_test and perhaps x_val, y_val.

    An array `classes` of texts may name the classes. Pickled objects are refused.

    Raises:
        DataError: on a damaged file, other names, objects, or arrays that are no pictures and labels.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in _npz_names()}
            names = list(archive.files)
    except _NPZ_FAULTS as error:
        fix = "Save it with numpy.savez from uint8 pictures and labels of numbers or texts, not of Python objects."
        raise DataError("an .npz of plain arrays", got=f"{path}: {error}", fix=fix) from error
    return _from_npz(arrays, names, path)


def holds_idx(path: Path) -> bool:
    """Tell whether this is an IDX file by its name, or a folder that holds one of pictures."""
    if path.is_dir():
        return any(_IDX_NAME.fullmatch(entry.name) for entry in path.iterdir())
    return _IDX_NAME.fullmatch(path.name) is not None


def read_idx(path: Path, *, classes: tuple[str, ...] = ()) -> Reading:
    """Read MNIST's format, gzipped or not: a folder of train-, t10k-, t3k-, test- or val- pairs, or one pair by a file.

    Raises:
        DataError: a file lacks its partner, its header is wrong, or it is cut short.
    """
    pairs = _idx_pairs(path)
    images = [_idx_array(pictures, rank=3) for _, pictures, _ in pairs]
    labels = [_idx_array(numbers, rank=1) for _, _, numbers in pairs]
    for (_, pictures, _), x, y in zip(pairs, images, labels, strict=True):
        _check_pair(x, y, str(pictures))
    split = np.repeat([code for code, _, _ in pairs], [len(y) for y in labels]).astype(np.int8)
    return Reading(
        images=_join(images, str(path)),
        labels=np.concatenate(labels),
        classes=classes,
        split=split if path.is_dir() else None,
    )


def holds_cifar(path: Path) -> bool:
    """Tell whether a folder is CIFAR-10 or CIFAR-100 in its binary version."""
    return path.is_dir() and bool(_cifar_files(path))


def read_cifar(folder: Path) -> Reading:
    """Read CIFAR-10 (data_batch_*.bin, test_batch.bin) or CIFAR-100 (train.bin, test.bin, fine labels).

    Raises:
        DataError: a file is not a whole number of records, or a label has no name.
    """
    ten = any(folder.glob("data_batch_*.bin"))
    names = folder / ("batches.meta.txt" if ten else "fine_label_names.txt")
    blocks = [_cifar_records(path, label_bytes=1 if ten else 2) for path in _cifar_files(folder)]
    codes = [2 if path.name.startswith("test") else 0 for path in _cifar_files(folder)]
    records = np.concatenate(blocks)
    # Stored plane by plane; turned once here so that every later read is one contiguous picture.
    planes = records[:, -_CIFAR_PIXELS:].reshape(-1, 3, 32, 32)
    return Reading(
        images=np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        labels=records[:, -_CIFAR_PIXELS - 1].astype(np.int64),
        classes=tuple(line.strip() for line in names.read_text().splitlines() if line.strip())
        if names.exists()
        else (),
        split=np.repeat(codes, [len(block) for block in blocks]).astype(np.int8),
    )


def _npz_names() -> set[str]:
    return {name for pair in (*_NPZ_PAIRS, *_NPZ_PARTS) for name in pair} | {"classes"}


def _from_npz(arrays: Mapping[str, NDArray[Any]], names: list[str], path: Path) -> Reading:
    classes = tuple(str(name) for name in arrays.get("classes", ()))
    for x, y in _NPZ_PAIRS:
        if x in arrays and y in arrays:
            return Reading(images=as_pixels(arrays[x], f"{x} of {path}"), labels=arrays[y], classes=classes)
    parts = [(code, x, y) for code, (x, y) in enumerate(_NPZ_PARTS) if x in arrays and y in arrays]
    if not parts:
        expected = "the arrays images and labels, x and y, or x_train, y_train, x_test and y_test"
        raise DataError(expected, got=f"{some(names) or 'no array'} in {path}", fix="Rename the arrays.")
    images = [as_pixels(arrays[x], f"{x} of {path}") for _, x, _ in parts]
    for part, (_, x, y) in zip(images, parts, strict=True):
        _check_pair(part, arrays[y], f"{x} of {path}")
    split = np.repeat([code for code, _, _ in parts], [len(part) for part in images]).astype(np.int8)
    labels = np.concatenate([arrays[y].reshape(len(arrays[y]), -1) for _, _, y in parts])
    return Reading(images=_join(images, str(path)), labels=labels, classes=classes, split=split)


def _join(parts: list[NDArray[np.uint8]], name: str) -> NDArray[np.uint8]:
    if len({part.shape[1:] for part in parts}) > 1:
        got = " and ".join(str(part.shape[1:]) for part in parts)
        raise DataError(f"pictures of one size in all parts of {name}", got=got, fix="Make them alike.")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_pair(images: NDArray[Any], labels: NDArray[Any], name: str) -> None:
    if labels.ndim == 0 or len(images) != len(labels):
        got = f"{len(images)} pictures and labels of shape {labels.shape} in {name}"
        raise DataError("one label for each picture", got=got, fix="Fetch both files anew.")


def _idx_pairs(path: Path) -> list[tuple[int, Path, Path]]:
    """Return the code of the part, the file of pictures and the file of labels, in the order of the codes."""
    folder = path if path.is_dir() else path.parent
    files = {
        (m["part"], m["what"]): entry for entry in sorted(folder.iterdir()) if (m := _IDX_NAME.fullmatch(entry.name))
    }
    only = None if path.is_dir() else _IDX_NAME.fullmatch(path.name)
    if not files:
        raise DataError("IDX files", got=f"none in {folder}", fix="Fetch them anew.")
    parts = [only["part"]] if only else sorted({part for part, _ in files}, key=_idx_part)
    if lacking := [f"{p}-{w}" for p in parts for w in ("images", "labels") if (p, w) not in files]:
        raise DataError("a file of pictures and one of labels", got=f"no {some(lacking)} in {folder}", fix="Add it.")
    return [(_idx_part(part), files[part, "images"], files[part, "labels"]) for part in parts]


def _idx_part(name: str) -> int:
    """Return the code of a part by the last word of its name: "train", or "emnist-balanced-train"."""
    return _IDX_PARTS.get(name.rpartition("-")[2], SPLITS.index("test"))


def _idx_array(path: Path, *, rank: int) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            return _idx_body(cast("IO[bytes]", file), path, rank)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise DataError("a whole IDX file", got=f"{path}: {error}", fix="Fetch it anew.") from error


def _idx_body(file: IO[bytes], path: Path, rank: int) -> NDArray[np.uint8]:
    magic, *shape = struct.unpack(f">{1 + rank}I", file.read(4 * (1 + rank)))
    if magic != 0x0800 + rank:
        raise DataError(f"the IDX mark {0x0800 + rank}", got=f"{magic} in {path}", fix="Fetch it anew.")
    size = math.prod(shape)
    if not 0 < size <= MAX_BYTES:
        raise DataError(f"1 to {MAX_BYTES:,} bytes", got=f"{size:,} promised by {path}", fix="Fetch it anew.")
    data = file.read(size + 1)  # one more than promised: the surplus shows a wrong header
    if len(data) != size:
        got = f"{'more' if len(data) > size else f'{len(data):,}'} in {path}"
        raise DataError(f"{size:,} bytes after the header", got=got, fix="Fetch it anew.")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _cifar_files(folder: Path) -> list[Path]:
    ten = sorted(folder.glob("data_batch_*.bin"))
    train = ten or [path for path in (folder / "train.bin",) if path.exists()]
    test = folder / ("test_batch.bin" if ten else "test.bin")
    return [*train, test] if train and test.exists() else train


def _cifar_records(path: Path, *, label_bytes: int) -> NDArray[np.uint8]:
    width = label_bytes + _CIFAR_PIXELS
    data = np.fromfile(path, np.uint8)
    if data.size == 0 or data.size % width:
        got = f"{data.size:,} bytes in {path}"
        raise DataError(f"a whole number of records of {width} bytes", got=got, fix="Fetch it anew.")
    return data.reshape(-1, width)
