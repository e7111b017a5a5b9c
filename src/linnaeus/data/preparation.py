"""A source made ready: every image prepared, the unreadable ones named, all of them split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from linnaeus.config import Settings
from linnaeus.data.cache import Prepared, Progress, prepare
from linnaeus.data.sources import Source
from linnaeus.data.splits import count_straddling, group_identical, split
from linnaeus.errors import DataError
from linnaeus.images import Preprocess
from linnaeus.results import SPLITS

_SAMPLE = 2048
_BLOCK = 128  # images at a time, to keep memory flat


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Prepared images with their parts.

    Attributes:
        split: int8 (N,), 0 train, 1 val, 2 test, -1 for an image that cannot be read or was not asked to be split.
        straddling: identical images that the user's own split has on more than one side.
        own_parts: whether the data came with a split.
    """

    source: Source
    preprocess: Preprocess
    prepared: Prepared
    split: NDArray[np.int8]
    straddling: int
    own_parts: bool

    def indices(self, part: str, *, at_most: int = 0) -> NDArray[np.int64]:
        """Return the indices of the images of "train", "val" or "test", or of "all".

        With `at_most` other than 0, no more than so many, spread evenly.
        """
        found = self.prepared.good
        if part != "all":
            found = np.flatnonzero(self.split == SPLITS.index(part)).astype(np.int64)
        if at_most and len(found) > at_most:
            found = found[np.linspace(0, len(found) - 1, at_most).astype(np.int64)]
        return found

    @property
    def signature(self) -> str:
        """A hash of all images with their classes and parts, in their order: what a resumed run must find again."""
        good = self.prepared.good
        content = hashlib.blake2b(self.prepared.digests[good].tobytes(), digest_size=16)
        content.update(self.source.labels[good].astype("<i8").tobytes() + self.split[good].tobytes())
        if self.source.targets is not None:
            content.update(self.source.targets[good].tobytes())
        return content.hexdigest()

    def parts_table(self) -> NDArray[np.uint8]:
        """Return uint8 (n, 17): the digest of each image that has a part, then the part."""
        good = np.flatnonzero(self.split >= 0)
        return np.column_stack([self.prepared.digests[good], self.split[good].astype(np.uint8)])

    def recall_parts(self, table: NDArray[np.uint8]) -> tuple[Dataset, NDArray[np.int8]]:
        """Return the same data with each image in the part that a table, made by `parts_table`, has it in.

        Images are known by their content, so it matters not where they lie now or how they are named. One that the
        table does not have stays in its own part, or in none. What the user put into a part stays there, but for the
        images that were cut from the training part to be validated or tested with.

        The second value, int8 (N,), is the part that the table has each image in, -1 if it does not have it.
        """
        known = {row[:-1].tobytes(): int(row[-1]) for row in table}
        recalled = np.full(len(self.split), -1, np.int8)
        for i in self.prepared.good:
            recalled[i] = known.get(self.prepared.digests[i].tobytes(), -1)
        open_ = (recalled >= 0) & np.isin(self.split, (-1, SPLITS.index("train")))
        return replace(self, split=np.where(open_, recalled, self.split)), recalled

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many images each part has of each class, by name."""
        source = self.source
        return {part: dict(zip(source.classes, source.counts(self.indices(part)).tolist())) for part in SPLITS}

    def measure(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel over training pixels in [0, 1], from a sample."""
        indices = self.indices("train")
        chosen = indices[:: max(1, len(indices) // _SAMPLE)]
        count, total, squares = 0, np.zeros(self.preprocess.channels), np.zeros(self.preprocess.channels)
        for start in range(0, len(chosen), _BLOCK):
            pixels = self.prepared.pixels.take(chosen[start : start + _BLOCK]).reshape(-1, self.preprocess.channels)
            values = pixels.astype(np.float32) / 255
            count += len(values)
            total += values.sum(axis=0, dtype=np.float64)
            squares += np.square(values).sum(axis=0, dtype=np.float64)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return tuple(round(float(x), 4) for x in mean), tuple(round(max(float(x), 0.01), 4) for x in std)

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
        """Return the same data with other normalization; the packed pixels do not change."""
        return replace(self, preprocess=replace(self.preprocess, mean=mean, std=std))


def build_dataset(
    source: Source,
    preprocess: Preprocess,
    settings: Settings,
    *,
    divide: bool = True,
    progress: Progress | None = None,
) -> Dataset:
    """Prepare a source and, if it is to be divided, split what came without parts.

    Raises DataError for too many unreadable images or classes too small to split.
    """
    prepared = prepare(source, preprocess, limit=settings.cache_limit, progress=progress)
    _refuse_bad(prepared, len(source), settings.max_bad)
    good = prepared.good
    taken = source.split[good] if source.split is not None else None
    groups = group_identical(
        [row.tobytes() for row in prepared.digests[good]],
        source.groups[good] if source.groups is not None else None,
    )
    parts = np.full(len(source), -1, np.int8)
    if divide:
        fractions = (settings.val_fraction, settings.test_fraction)
        parts[good] = split(
            source.truth[good], groups, fractions=fractions, seed=settings.seed, taken=taken, classes=source.classes
        )
    elif taken is not None:
        parts[good] = taken
    return Dataset(
        source=source,
        preprocess=preprocess,
        prepared=prepared,
        split=parts,
        straddling=count_straddling(parts[good], groups) if divide or taken is not None else 0,
        own_parts=source.split is not None,
    )


def _refuse_bad(prepared: Prepared, total: int, allowed: float) -> None:
    bad = prepared.bad
    if len(bad) <= allowed * total and len(prepared.good):
        return
    names = "; ".join(f"{image.path} ({image.reason})" for image in bad[:5])
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    raise DataError(
        f"at most {allowed:.1%} unreadable images",
        got=f"{len(bad)} of {total}: {names}{more}",
        fix="Mend or remove these files" + (", or allow more with max_bad=0.05." if len(prepared.good) else "."),
    )
