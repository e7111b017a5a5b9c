"""Decode once: every image of a source, prepared and packed into one memory-mapped uint8 array.

The pass that packs also finds the images that cannot be read and the ones that are identical. A pack is known by the
content of the files and the preprocessing, so that it is found again by any run and never goes stale. Sets larger than
the limit are not packed: the pass then only reads and judges, and images are decoded anew in each epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL
from numpy.typing import NDArray

from linnaeus.data.sources import Source
from linnaeus.errors import ImageError
from linnaeus.images import Preprocess
from linnaeus.results import BadImage
from linnaeus.storage import cache_folder, clear_leftovers, is_leftover, new_folder, storage_errors, write_file

_FORMAT = 1
_BLOCK = 64
_HASHED = 16  # blocks of files whose hashes are in the making at once
_ABANDONED = 24 * 3600.0  # seconds after which nobody can still be at work on half a pack
_DIGEST = 16

Progress = Callable[[int, int], None]


class Pixels(Protocol):
    """Prepared pixels by index: `take` returns uint8 (n, height, width, channels)."""

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the prepared images with these indices, in this order."""
        ...


@dataclass(frozen=True, kw_only=True)
class PackedPixels:
    """Pixels that lie in memory or in a memory-mapped file: uint8 (N, height, width, channels)."""

    array: NDArray[np.uint8]

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the prepared images with these indices, in this order."""
        return self.array[indices]


@dataclass(frozen=True, kw_only=True)
class DecodedPixels:
    """Pixels that are decoded when they are asked for."""

    source: Source
    preprocess: Preprocess

    def take(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the prepared images with these indices, in this order."""
        images = np.empty((len(indices), *_shape(self.preprocess)), np.uint8)
        for image, i in zip(images, indices):
            image[...] = _prepare(self.source, self.preprocess, int(i))
        return images


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A source after the one pass over all its images.

    Attributes:
        pixels: the prepared images, by the source's indices.
        digests: uint8 (N, 16), equal for images whose prepared pixels are equal.
        good: int64, the indices of the images that can be read. bad: the others, by name, with the reason.
        packed: whether the pixels are packed; from_cache: whether a pack of an earlier run was found.
    """

    pixels: Pixels
    digests: NDArray[np.uint8]
    good: NDArray[np.int64]
    bad: tuple[BadImage, ...]
    packed: bool
    from_cache: bool


def prepare(source: Source, preprocess: Preprocess, *, limit: int, progress: Progress | None = None) -> Prepared:
    """Read every image of a source once, packing the prepared pixels where they fit into `limit` bytes."""
    tell = progress or (lambda done, total: None)
    if isinstance(source.images, np.ndarray) and (array := _as_they_are(source.images, preprocess)) is not None:
        return _prepare_array(array, preprocess)
    if not (isinstance(source.images, tuple) and isinstance(source.images[0], str)):
        return _prepare_in_memory(source, preprocess, tell)
    return _prepare_files(source, preprocess, limit=limit, tell=tell)


def _fits(size: int) -> bool:
    """Whether a pack leaves a tenth of the disk free."""
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    return size <= disk.free - disk.total // 10


def _make_room(folder: Path, size: int, limit: int) -> None:
    """Remove the packs that were not used for longest until one more fits into the limit.

    A run that still reads a removed pack keeps its memory map.
    """
    whole = (file for file in folder.glob("*/pixels.bin") if not is_leftover(file.parent.name))
    packs = sorted(whole, key=lambda file: file.parent.stat().st_mtime)
    total = size + sum(file.stat().st_size for file in packs)
    for file in packs:
        if total <= limit:
            return
        total -= file.stat().st_size
        shutil.rmtree(file.parent, ignore_errors=True)


def _as_they_are(images: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8] | None:
    """Return an array of images with a channel axis if the preprocessing would change nothing, else None."""
    array = images[..., None] if images.ndim == 3 else images
    return array if array.shape[1:] == _shape(preprocess) else None


def _prepare_array(array: NDArray[np.uint8], preprocess: Preprocess) -> Prepared:
    digests = np.stack([_digest(image) for image in array])
    return _finish(PackedPixels(array=array), digests, {}, packed=True, from_cache=False)


Image = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # pixels and digest


def _prepare_in_memory(source: Source, preprocess: Preprocess, tell: Progress) -> Prepared:
    shape = (len(source), *_shape(preprocess))
    array, digests, bad = np.zeros(shape, np.uint8), _no_digests(len(source)), {}
    for i, image in _decode_all(source, preprocess, tell):
        if isinstance(image, BadImage):
            bad[i] = image
        else:
            array[i], digests[i] = image
    return _finish(PackedPixels(array=array), digests, bad, packed=True, from_cache=False)


def _prepare_files(source: Source, preprocess: Preprocess, *, limit: int, tell: Progress) -> Prepared:
    size = len(source) * preprocess.height * preprocess.width * preprocess.channels
    packs, key = cache_folder() / "packs", _key(source, preprocess)
    pack = size <= limit and ((packs / key / "index.json").is_file() or _fits(size))
    folder = packs / (key if pack else key + "-index")
    from_cache = (folder / "index.json").is_file()
    if from_cache:
        with contextlib.suppress(OSError):  # a pack that belongs to another user
            os.utime(folder)  # packs that were not used for longest make room first
    else:
        if pack:
            _make_room(folder.parent, size, limit)
        _write_pack(folder, source, preprocess, pack=pack, tell=tell)
    index = json.loads((folder / "index.json").read_text())
    digests = np.load(folder / "digests.npy", allow_pickle=False)
    bad = {int(i): BadImage(path=source.where(int(i)), reason=reason) for i, reason in index["bad"].items()}
    pixels: Pixels = DecodedPixels(source=source, preprocess=preprocess)
    if pack:
        shape = (len(source), *_shape(preprocess))
        pixels = PackedPixels(array=np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="r", shape=shape))
    return _finish(pixels, digests, bad, packed=pack, from_cache=from_cache)


def _write_pack(folder: Path, source: Source, preprocess: Preprocess, *, pack: bool, tell: Progress) -> None:
    """Fill a pack under a temporary name; two runs that build the same one do not see each other's half."""
    digests, bad = _no_digests(len(source)), {}
    empty = np.zeros(_shape(preprocess), np.uint8)
    with storage_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder.parent, older_than=_ABANDONED)
    with new_folder(folder, replace=False) as part:
        with storage_errors(part), (part / "pixels.bin").open("wb") as stream:
            for i, image in _decode_all(source, preprocess, tell):
                pixels = empty
                if isinstance(image, BadImage):
                    bad[str(i)] = image.reason
                else:
                    pixels, digests[i] = image
                if pack:
                    stream.write(np.ascontiguousarray(pixels).data)
        np.save(part / "digests.npy", digests, allow_pickle=False)
        write_file(part / "index.json", json.dumps({"bad": bad}))


def _decode_all(source: Source, preprocess: Preprocess, tell: Progress) -> Iterator[tuple[int, Image | BadImage]]:
    """Yield every image in order, prepared on all cores (Pillow decodes outside the interpreter's lock)."""
    waiting: deque[tuple[range, Iterator[Image | BadImage]]] = deque()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for start in range(0, len(source) + _BLOCK, _BLOCK):
            block = range(start, min(start + _BLOCK, len(source)))
            waiting.append((block, pool.map(lambda i: _try_prepare(source, preprocess, i), block)))
            if len(waiting) > 1:  # one block is always in the making while another is written
                ready, images = waiting.popleft()
                yield from zip(ready, images)
                tell(ready.stop, len(source))


def _try_prepare(source: Source, preprocess: Preprocess, index: int) -> Image | BadImage:
    try:
        pixels = _prepare(source, preprocess, index)
        return pixels, _digest(pixels)
    except ImageError as error:
        return BadImage.of(source.where(index), error)


def _prepare(source: Source, preprocess: Preprocess, index: int) -> NDArray[np.uint8]:
    image = source.images[index]
    if isinstance(image, str):
        return preprocess.load(image)
    return preprocess.resize(source.read(index))


def _finish(
    pixels: Pixels, digests: NDArray[np.uint8], bad: dict[int, BadImage], *, packed: bool, from_cache: bool
) -> Prepared:
    good = np.array([i for i in range(len(digests)) if i not in bad], dtype=np.int64)
    reasons = tuple(bad[i] for i in sorted(bad))
    return Prepared(pixels=pixels, digests=digests, good=good, bad=reasons, packed=packed, from_cache=from_cache)


def _key(source: Source, preprocess: Preprocess) -> str:
    """Return a name made of the content of all files, in order, and of the preprocessing."""
    total = hashlib.blake2b(digest_size=20)
    total.update(json.dumps([_FORMAT, PIL.__version__, _pixel_settings(preprocess)], sort_keys=True).encode())
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        blocks = (source.images[start : start + _BLOCK] for start in range(0, len(source), _BLOCK))
        while some := list(itertools.islice(blocks, _HASHED)):
            for digests in pool.map(_hash_files, some):
                total.update(digests)
    return total.hexdigest()


def _hash_files(paths: Sequence[str]) -> bytes:
    return b"".join(map(_hash_file, paths))


def _hash_file(path: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        data = repr(error.errno).encode()
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def _digest(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    raw = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=_DIGEST).digest()
    return np.frombuffer(raw, np.uint8)


def _no_digests(n: int) -> NDArray[np.uint8]:
    """Return digests that no image has, each different, so that unreadable images are not taken for identical."""
    numbers = np.zeros((n, _DIGEST), np.uint8)
    numbers[:, :8] = np.arange(n, dtype="<u8").view(np.uint8).reshape(n, 8)
    return numbers


def _shape(preprocess: Preprocess) -> tuple[int, int, int]:
    return preprocess.height, preprocess.width, preprocess.channels


def _pixel_settings(preprocess: Preprocess) -> dict[str, object]:
    """Return what shapes the pixels; mean and standard deviation come later and do not."""
    return {name: value for name, value in preprocess.to_dict().items() if name not in ("mean", "std")}
