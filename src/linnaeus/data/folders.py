"""Folders of pictures: one folder for each class, perhaps below train, val and test."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from linnaeus.data.labelled import SPLIT_CODES, Reading, natural_key, some
from linnaeus.decoding import HEAD_BYTES, SUFFIXES, picture_format
from linnaeus.errors import DataError

_HIDDEN = frozenset(("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN"))


@dataclass(frozen=True, kw_only=True)
class _Passed:
    """What a walk passes over, gathered on the way."""

    hidden: set[str] = field(default_factory=set)
    files: Counter[str] = field(default_factory=Counter)
    loose: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        counted = [f"{name} ({count})" if count > 1 else name for name, count in sorted(self.files.items())]
        found = (
            (len(self.hidden), "hidden folder{s}", sorted(self.hidden)),
            (sum(self.files.values()), "file{s} without a picture", counted),
            (len(self.loose), "picture{s} outside the class folders", sorted(self.loose)),
            (len(self.folders), "folder{s} that belong{e} to no part", sorted(self.folders)),
        )
        return tuple(
            f"Passed over {count} {what.format(s='s' * (count > 1), e='s' * (count == 1))}: {some(names)}."
            for count, what, names in found
            if count
        )


def read_folder(root: Path) -> Reading:
    """Read a folder of class folders, or of train, val and test folders that hold class folders.

    Pictures anywhere below a class folder belong to it. Hidden folders and files that are no pictures are passed
    over and noted. A file counts as a picture by its suffix or, failing that, by its first bytes.

    Raises:
        DataError: there are no class folders.
    """
    passed = _Passed()
    places = _class_folders(root, passed)
    classes = tuple(sorted({folder.name for folder, _ in places}, key=natural_key))
    images: list[str] = []
    labels: list[int] = []
    split: list[int] = []
    for folder, code in places:
        found = _pictures(folder, passed)
        images += found
        labels += [classes.index(folder.name)] * len(found)
        split += [code] * len(found)
    return Reading(
        images=tuple(images),
        labels=np.array(labels, np.int64),
        classes=classes,
        split=np.array(split, np.int8),
        notes=passed.notes(),
    )


def has_class_folders(root: Path) -> bool:
    """Tell whether a folder holds two class folders or more, or parts that hold them."""
    folders = _subfolders(root, _Passed())
    return len(folders) >= 2 or bool(_parts(folders))


def _class_folders(root: Path, passed: _Passed) -> list[tuple[Path, int]]:
    """Return each class folder with the code of its part, 0 where there are no parts."""
    folders = _subfolders(root, passed)
    if not folders:
        raise _no_classes(root, passed)
    parts = _parts(folders)
    if not parts:
        return [(folder, 0) for folder in folders]
    passed.folders.extend(folder.name for folder in folders if folder not in parts)
    return [(folder, code) for part, code in parts.items() for folder in _subfolders(part, passed)]


def _parts(folders: list[Path]) -> dict[Path, int]:
    """Return the folders that are train, val or test with their codes; empty where "train" is a class like others."""
    named = {folder: SPLIT_CODES[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_CODES}
    parts = {folder: code for folder, code in named.items() if _subfolders(folder, _Passed())}
    others = [folder for folder in folders if folder not in named]
    if len(parts) == 1 and any(_pictures(folder, _Passed()) for folder in others):
        return {}
    return parts


def _no_classes(root: Path, passed: _Passed) -> DataError:
    got = f"{len(passed.loose)} pictures and no folders" if passed.loose else "no picture"
    fix = "Put each class in a folder of its own, named for the class."
    return DataError("a folder that holds one folder for each class", got=f"{got} in {root}", fix=fix)


def _subfolders(folder: Path, passed: _Passed) -> list[Path]:
    """Return the visible folders in one, naturally sorted, and note everything else in it."""
    found = []
    for entry in _entries(folder):
        if _is_folder(entry):
            if not _is_hidden(entry, passed):
                found.append(Path(entry.path))
        elif _is_picture(entry):
            passed.loose.append(entry.name)
        else:
            passed.files[entry.name] += 1
    return sorted(found, key=lambda path: natural_key(path.name))


def _pictures(folder: Path, passed: _Passed) -> list[str]:
    """Return the paths of all pictures below a folder, sorted; links are followed, each real folder once."""
    found: list[str] = []
    waiting, seen = [str(folder)], set()
    while waiting:
        place = waiting.pop()
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _entries(place):
            if _is_folder(entry):
                waiting += [] if _is_hidden(entry, passed) else [entry.path]
            elif _is_picture(entry):
                found.append(entry.path)
            else:
                passed.files[entry.name] += 1
    return sorted(found)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        fix = "Change its permissions or move it away."
        raise DataError("a folder that can be read", got=f"{folder}: {error.strerror}", fix=fix) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_hidden(entry: os.DirEntry[str], passed: _Passed) -> bool:
    hidden = entry.name.startswith(".") or entry.name in _HIDDEN
    if hidden:
        passed.hidden.add(entry.name)
    return hidden


def _is_picture(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.name.startswith(".") or not entry.is_file():
            return False
        return os.path.splitext(entry.name)[1].lower() in SUFFIXES or _starts_like_a_picture(entry.path)
    except OSError:
        return False


def _starts_like_a_picture(path: str) -> bool:
    with open(path, "rb") as file:
        return picture_format(file.read(HEAD_BYTES)) is not None
