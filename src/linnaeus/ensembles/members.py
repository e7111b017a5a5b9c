"""The members of an ensemble: bundles with the same classes, and what each of them knows of the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from linnaeus.bundle import MANIFEST, Bundle, read_bundle
from linnaeus.compression.views import list_views
from linnaeus.data.preparation import Dataset
from linnaeus.display import Display
from linnaeus.errors import BundleError, SettingError
from linnaeus.images import Preprocess
from linnaeus.judging import open_known, read_known
from linnaeus.labelling import SINGLE
from linnaeus.predictor import Predictor
from linnaeus.results import SPLITS

_MADE = 32  # pictures made where there are none to prove on
_UNKNOWN = len(SPLITS)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One bundle of an ensemble.

    Attributes:
        name: the path it was given by. order: the place of each class of the ensemble among the bundle's.
        dataset: the common images as the bundle wants them, their labels those of the ensemble.
        recalled: int8 (N,), the part in which the bundle's run had each image, -1 if it did not have it.
    """

    name: str
    predictor: Predictor
    order: tuple[int, ...]
    dataset: Dataset
    recalled: NDArray[np.int8]

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self.predictor.bundle

    @property
    def digest(self) -> str:
        """The SHA-256 of the bundle's list of hashes, by which it is known."""
        return hashlib.sha256((self.bundle.folder / MANIFEST).read_bytes()).hexdigest()

    def answer(self, indices: NDArray[np.int64], *, tta: str = "none") -> NDArray[np.float32]:
        """Return probabilities float32 (n, K) of some images, the mean over views, in the ensemble's order."""
        pixels = self.dataset.prepared.pixels.take(indices)
        views = list_views(tta, self.bundle.preprocess)
        answers = [self.predictor.predict_pixels(view.show(pixels)) for view in views]
        mean: NDArray[np.float32] = np.mean(answers, axis=0)[:, list(self.order)]
        return mean


def open_members(paths: Sequence[str | Path], data: Any, display: Display) -> list[Member]:
    """Open bundles or run folders that know the same classes, and read the images for each.

    Where `data` is None some pictures are made, which nothing can be scored on. The classes are in the first's order.
    Raises BundleError for other classes, or pictures fitted otherwise.
    """
    bundles = [read_bundle(path) for path in paths]
    _check_labelling(paths, bundles)
    _check_classes(paths, bundles)
    _check_fit(paths, bundles)
    first = bundles[0]
    source = open_known(data, first) if data is not None else open_known(_make_pictures(bundles), first)
    read: dict[Preprocess, Dataset] = {}
    members = []
    for path, bundle in zip(paths, bundles):
        key = pixels_of(bundle.preprocess)
        if key not in read:
            read[key] = read_known(source, bundle, display)
        members.append(_open(str(path), bundle, first.classes, read[key]))
    return members


def _open(name: str, bundle: Bundle, classes: tuple[str, ...], dataset: Dataset) -> Member:
    mine = replace(dataset, preprocess=bundle.preprocess)
    _, recalled = mine.recall_parts(bundle.read_parts())
    order = tuple(bundle.classes.index(name) for name in classes)
    return Member(name=name, predictor=Predictor(bundle), order=order, dataset=mine, recalled=recalled)


def pixels_of(preprocess: Preprocess) -> Preprocess:
    """Return what of a preprocessing the pixels depend on: two that are equal see the same ones."""
    plain = (0.0,) * preprocess.channels
    return replace(preprocess, mean=plain, std=(1.0,) * preprocess.channels)


def _check_labelling(paths: Sequence[str | Path], bundles: Sequence[Bundle]) -> None:
    """Refuse several labels an image: a mean of what adds up to one is all that the merged network can tell."""
    for path, bundle in zip(paths, bundles):
        if bundle.labelling is not SINGLE:
            got = f"{path}, which gives several"
            raise BundleError("members that give each image one label", got=got, fix="Use that bundle by itself.")


def _check_classes(paths: Sequence[str | Path], bundles: Sequence[Bundle]) -> None:
    known = set(bundles[0].classes)
    for path, bundle in zip(paths, bundles):
        if set(bundle.classes) != known:
            more, less = sorted(set(bundle.classes) - known), sorted(known - set(bundle.classes))
            differences = [f"with {', '.join(map(repr, more[:20]))}"] if more else []
            differences += [f"without {', '.join(map(repr, less[:20]))}"] if less else []
            raise BundleError(
                f"members with the classes of {paths[0]}",
                got=f"{path} {' and '.join(differences)}",
                fix="Leave it out, or train it on data with these classes.",
            )


def _check_fit(paths: Sequence[str | Path], bundles: Sequence[Bundle]) -> None:
    """Refuse pictures fitted into their square in several ways, which nothing within a network can undo."""
    first = bundles[0].preprocess
    for path, bundle in zip(paths, bundles):
        fit, fill = bundle.preprocess.fit, bundle.preprocess.fill
        if fit != first.fit or (fit == "pad" and fill != first.fill):
            got = f"{path} with fit={fit}, fill={fill}"
            expected = f"members whose pictures are fitted like those of {paths[0]}, fit={first.fit}, fill={first.fill}"
            raise BundleError(expected, got=got, fix=f"Train it with fit={first.fit}.")


def _make_pictures(bundles: Sequence[Bundle]) -> tuple[NDArray[np.uint8], list[str]]:
    """Return pictures of coloured noise, and labels without meaning."""
    if len({pixels_of(bundle.preprocess) for bundle in bundles}) > 1:
        raise SettingError(
            "data to know again what each member learned from",
            got="none, for members that see pictures of several sizes or colours",
            fix="Name the data that they were trained on with --data.",
        )
    side, classes = bundles[0].preprocess.height, bundles[0].classes
    rng = np.random.default_rng(0)
    tones = rng.integers(0, 160, (_MADE, 1, 1, 3))
    pictures = (tones + rng.integers(0, 96, (_MADE, side, side, 3))).astype(np.uint8)
    return pictures, [classes[i % len(classes)] for i in range(_MADE)]


def common_parts(members: Sequence[Member]) -> NDArray[np.int8]:
    """Return int8 (N,), the part that each image has for all members together, -1 for none.

    What one member learned from counts as train, what one was chosen by as val, and test is what all others know of it
    or the data themselves say. An image that nobody knows and that the data give no part to has none.
    """
    own = members[0].dataset.split
    held = np.isin(own, (SPLITS.index("val"), SPLITS.index("test")))
    part = np.where(held, own, _UNKNOWN)
    for member in members:
        part = np.minimum(part, np.where(member.recalled >= 0, member.recalled, _UNKNOWN))
    found: NDArray[np.int8] = np.where(part == _UNKNOWN, -1, part).astype(np.int8)
    return found


def join_tables(members: Sequence[Member], dataset: Dataset) -> NDArray[np.uint8]:
    """Return uint8 (n, 17), the parts of all images, the members' and a data set's, known by the latter's pixels."""
    key = pixels_of(dataset.preprocess)
    tables = [member.bundle.read_parts() for member in members if pixels_of(member.bundle.preprocess) == key]
    parts: dict[bytes, int] = {}
    for row in np.concatenate([*tables, dataset.parts_table()]):
        digest = row[:-1].tobytes()
        parts[digest] = min(int(row[-1]), parts.get(digest, _UNKNOWN))
    rows = [digest + bytes([part]) for digest, part in parts.items()]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1) if rows else dataset.parts_table()


def count_lost(members: Sequence[Member], preprocess: Preprocess) -> int:
    """Return how many images members of other pixels learned from that are not among the common ones."""
    lost = 0
    for member in members:
        if pixels_of(member.bundle.preprocess) != pixels_of(preprocess):
            here = {row.tobytes() for row in member.dataset.prepared.digests[member.dataset.prepared.good]}
            lost += sum(row[:-1].tobytes() not in here for row in member.bundle.read_parts())
    return lost


def choose_pixels(members: Sequence[Member]) -> Preprocess:
    """Return the preprocessing of an ensemble: the largest member's size, and colour if any member sees it."""
    wanted = [member.bundle.preprocess for member in members]
    largest, coloured = max(wanted, key=lambda p: p.height * p.width), max(wanted, key=lambda p: p.channels)
    return replace(coloured, height=largest.height, width=largest.width)
