"""The labelled pictures that every reader ends in, and the checks that all of them share."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from linnaeus.errors import DataError, ImageError
from linnaeus.images import read_image
from linnaeus.labelling import MULTI, SINGLE, Labelling
from linnaeus.results import SPLITS

# What people call the three parts, and their codes, which are the places of the names in SPLITS.
SPLIT_CODES = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}

Images = tuple[str, ...] | tuple[NDArray[np.uint8], ...] | NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Labelled pictures, wherever they lie.

    Attributes:
        name: what to call the data set.
        classes: K class names; labels are places in it.
        labels: int64 (N,), 0 to K - 1. Where a picture may have several labels, the rarest of them, by which it is
            counted where it can be counted but once, and K for a picture without any.
        images: N paths of files, or N arrays uint8 (H, W) or (H, W, C) of different sizes, or one array
            uint8 (N, H, W) or (N, H, W, C) with C of 1, 3 or 4, which may be a memory map.
        split: int8 (N,) with places in results.SPLITS (0 train, 1 val, 2 test), None when the data are not split.
        targets: uint8 (N, K), 1 where a picture has a label; None when each has exactly one.
        groups: int64 (N,), pictures that belong together (one patient, one photograph) have one number;
            None when nothing is known of that.
        notes: sentences about what was passed over or looks odd.
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    images: Images
    split: NDArray[np.int8] | None = None
    groups: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()
    targets: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelling(self) -> Labelling:
        """Whether each picture has one label or any number."""
        return SINGLE if self.targets is None else MULTI

    @property
    def truth(self) -> NDArray[Any]:
        """What is learned and judged by: `targets` where a picture may have several labels, else `labels`."""
        return self.labels if self.targets is None else self.targets

    def counts(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many of some pictures have each label, int64 (K,)."""
        if self.targets is not None:
            return np.asarray(self.targets[indices].sum(axis=0, dtype=np.int64))
        return np.bincount(self.labels[indices], minlength=len(self.classes))

    def label_of(self, i: int) -> str | tuple[str, ...]:
        """Return the label of picture i, by name, or all that it has where it may have several."""
        if self.targets is None:
            return self.classes[int(self.labels[i])]
        return tuple(self.classes[k] for k in np.flatnonzero(self.targets[i]))

    def read(self, i: int, *, at_least: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return picture i as upright RGB, uint8 (H, W, 3), as images.read_image does. Raises ImageError."""
        try:
            return read_image(self.images[i], at_least=at_least)
        except ImageError as error:
            if isinstance(self.images[i], str):
                raise
            raise ImageError(error.expected, got=f"{self.where(i)}: {error.got}", fix=error.fix) from error

    def where(self, i: int) -> str:
        """Return the path of picture i, or "image 17" where it has none."""
        image = self.images[i]
        return image if isinstance(image, str) else f"image {i}"

    def digest(self, i: int) -> str:
        """Return the hash of picture i's file, or of its pixels where it has none; "" if the file has gone."""
        image = self.images[i]
        try:
            data = Path(image).read_bytes() if isinstance(image, str) else np.ascontiguousarray(image).tobytes()
        except OSError:
            return ""
        return hashlib.blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What a reader found, not yet checked.

    `labels` holds N label values, strings or whole numbers; where `classes` names the classes, places in it. Where a
    picture may have several, it holds N lists of names, or it is an array (N, K) of 0 and 1.
    """

    images: Images
    labels: Sequence[Any] | NDArray[Any]
    classes: tuple[str, ...] = ()
    split: NDArray[np.int8] | None = None
    groups: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()


def build_source(name: str, reading: Reading) -> Source:
    """Check what a reader found and number its labels.

    Raises:
        DataError: no picture, as many labels as pictures it is not, a label missing, fewer than two classes, a class
            without a picture, or parts whose classes differ.
    """
    count = len(reading.images)
    if count == 0:
        raise DataError("at least one picture", got=f"none in {name}", fix="Check that this is the right place.")
    if len(reading.labels) != count:
        got = f"{count} pictures and {len(reading.labels)} labels"
        raise DataError("one label for each picture", got=got, fix="Give both in the same order and number.")
    classes, targets = _number_sets(reading)
    classes, labels = _number(reading) if targets is None else (classes, rarest_labels(targets))
    source = Source(
        name=name,
        classes=classes,
        labels=labels,
        targets=targets,
        images=reading.images,
        split=reading.split if reading.split is not None and reading.split.any() else None,
        groups=reading.groups,
        notes=reading.notes + _odd_classes(classes) + (() if targets is None else _describe_sets(targets)),
    )
    _check_classes(classes, source.counts(np.arange(count)))
    _check_parts(source)
    return source


def natural_key(text: str) -> tuple[tuple[object, ...], str]:
    """Return a key that sorts "class 2" before "class 10" and, among equals, capitals first."""
    parts = re.split(r"([0-9]+)", text)
    # Digits are compared as text of a known length: int() refuses very long ones.
    keys = [(len(p.lstrip("0")), p.lstrip("0")) if i % 2 else p.casefold() for i, p in enumerate(parts)]
    return tuple(keys), text


def some(names: Iterable[object], most: int = 5) -> str:
    """Return the names joined by commas, with "and 7 more" after the first few."""
    listed = [str(name) for name in names]
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def split_code(word: str) -> int:
    """Return the code of a part by any of its names, in any case. Raises DataError."""
    code = SPLIT_CODES.get(word.strip().lower())
    if code is None:
        raise DataError(f"a part called {', '.join(SPLITS)}", got=repr(word), fix="Change the entry.")
    return code


def rarest_labels(targets: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return for targets uint8 (N, K) the rarest label of each picture, int64 (N,), K for one without any."""
    counts = targets.sum(axis=0, dtype=np.int64)
    rarest = np.where(targets, counts, len(targets) + 1).argmin(axis=1)
    return np.asarray(np.where(targets.any(axis=1), rarest, targets.shape[1]), np.int64)


def _number_sets(reading: Reading) -> tuple[tuple[str, ...], NDArray[np.uint8] | None]:
    """Return the class names and targets uint8 (N, K) of pictures with several labels each, else None for these."""
    labels = reading.labels
    if not isinstance(labels, np.ndarray) and all(isinstance(each, list | tuple | set | frozenset) for each in labels):
        names = sorted({name for each in labels for name in each if isinstance(name, str)}, key=natural_key)
        if names and all(isinstance(name, str) and name.strip() for each in labels for name in each):
            has = [set(each) for each in labels]
            return tuple(names), np.array([[name in each for name in names] for each in has], np.uint8)
        labels = _as_table(labels)
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.shape[1] < 2:
        return reading.classes, None
    if labels.dtype.kind not in "buif" or not np.isin(labels, (0, 1)).all():
        fix = "Pass labels.argmax(axis=1) for the most probable one, or labels > 0.5 for several."
        raise DataError("0 and 1 in labels of shape (N, K)", got="other values", fix=fix)
    classes = reading.classes or tuple(map(str, range(labels.shape[1])))
    if len(classes) != labels.shape[1]:
        got = f"{len(classes)} names and {labels.shape[1]} columns"
        raise DataError("a name for each column of the labels", got=got, fix="Give as many names as columns.")
    return classes, labels.astype(np.uint8)


def _as_table(labels: Sequence[Any]) -> NDArray[Any]:
    try:
        return np.asarray([list(each) for each in labels])
    except ValueError as error:  # rows of different lengths
        fix = "Pass lists of names, or an array of 0 and 1."
        raise DataError("lists of names, none of them blank, as labels", got="others", fix=fix) from error


def _describe_sets(targets: NDArray[np.uint8]) -> tuple[str, ...]:
    sizes = targets.sum(axis=1, dtype=np.int64)
    notes = [f"A picture has {sizes.mean():.2f} labels on average, {sizes.max()} at most."]
    if without := int((sizes == 0).sum()):
        notes.append(f"{without:,} {'picture has' if without == 1 else 'pictures have'} no label.")
    if (sizes == 1).all():
        notes = ["Each picture has exactly one label: given one by one, they would be classes that exclude each other."]
    return tuple(notes)


def _number(reading: Reading) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the class names in their order and int64 (N,) labels."""
    if reading.classes:
        return reading.classes, _places(np.asarray(reading.labels), reading.classes)
    values = _label_values(reading.labels)
    distinct, labels = np.unique(values, return_inverse=True)
    names = [str(value) for value in distinct]
    order = sorted(
        range(len(names)), key=lambda k: int(names[k]) if values.dtype.kind in "iu" else natural_key(names[k])
    )
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return tuple(names[k] for k in order), rank[labels]


def _label_values(labels: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
    """Return (N,) of int64 or str. Raises DataError for labels that are missing or no labels at all."""
    array = np.asarray(labels if isinstance(labels, np.ndarray) else list(labels))
    array = array.reshape(len(array)) if array.size == len(array) else array
    if array.ndim != 1:
        fix = "Pass one label for each picture, or 0 and 1 for each picture and class."
        raise DataError("labels of shape (N,) or (N, K)", got=f"shape {array.shape}", fix=fix)
    if array.dtype.kind == "S":  # as HDF5 keeps texts
        array = np.char.decode(array, "utf-8", "backslashreplace")
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind in "iu":
        return array
    if array.dtype.kind not in "UOb" or any(_is_missing(value) for value in array.tolist()):
        missing = [i for i, value in enumerate(array.tolist()) if _is_missing(value)]
        got = f"none for {len(missing)}: {some(f'image {i}' for i in missing)}" if missing else str(array.dtype)
        raise DataError("a label, text or a whole number, for each picture", got=got, fix="Fill or drop them.")
    return np.array([str(value) for value in array.tolist()])


def _is_missing(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def _places(labels: NDArray[Any], classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return labels given as places in `classes`, or as its names, as int64 places. Raises DataError."""
    if labels.dtype.kind == "U":
        places = {name: k for k, name in enumerate(classes)}
        unknown = sorted(set(labels.tolist()) - set(places))
        labels = np.array([places.get(name, -1) for name in labels.tolist()])
    else:
        unknown = sorted({int(k) for k in labels.ravel() if not 0 <= k < len(classes)})
    if unknown:
        got = f"the labels {some(unknown)}"
        raise DataError(f"labels of the {len(classes)} classes {some(classes)}", got=got, fix="Add the names.")
    return labels.astype(np.int64).reshape(-1)


def _check_classes(classes: tuple[str, ...], counts: NDArray[np.int64]) -> None:
    if len(set(classes)) != len(classes):
        raise DataError("a different name for each class", got=some(classes, 20), fix="Rename one of the twins.")
    if (counts == 0).any():
        empty = some(repr(classes[k]) for k in np.flatnonzero(counts == 0))
        raise DataError("pictures in every class", got=f"none in {empty}", fix="Fill the class or remove it.")
    if len(classes) < 2:
        raise DataError("at least two classes", got=f"only {classes[0]!r}", fix="Add pictures of what it is not.")


def _check_parts(source: Source) -> None:
    faults = []
    for code in np.unique(source.split) if source.split is not None else ():
        lacking = np.flatnonzero(source.counts(np.flatnonzero(source.split == code)) == 0)
        if len(lacking):
            faults.append(f"{SPLITS[code]} without {some(repr(source.classes[k]) for k in lacking)}")
    if faults:
        fix = "Give each part pictures of every class, or leave the splitting to linnaeus."
        raise DataError("the same classes in every part", got="; ".join(faults), fix=fix)


def _odd_classes(classes: tuple[str, ...]) -> tuple[str, ...]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[name.strip().casefold()].append(name)
    twins = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    blanks = [repr(name) for name in classes if name != name.strip() and len(alike[name.strip().casefold()]) == 1]
    notes = [f"Classes that differ only by case or surrounding blanks: {text}." for text in twins]
    return (*notes, *([f"Class names with surrounding blanks: {some(blanks)}."] if blanks else []))


def file_name(path: str | os.PathLike[str]) -> str:
    """Return the last part of a path, for messages and names."""
    return os.path.basename(os.path.abspath(path))
