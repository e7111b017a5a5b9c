"""Batches in an order that depends on (seed, epoch) alone: the same with any number of workers or processes."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from linnaeus.data.augment import Augment, draw
from linnaeus.data.cache import Pixels
from linnaeus.data.mixing import Mix
from linnaeus.runtime import use_one_thread

Side = Callable[[int], int]

_ORDER_STREAM = 1_000_003  # apart from the streams that augmentation draws from


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some labelled images of one step.

    Attributes:
        pixels: uint8 (n, C, H, W). samples: int64 (n,), the images' numbers in their source.
        labels: int64 (n,), or uint8 (n, K) with 1 where an image has a label, where it may have several.
        share: n over the number of images of this step in all processes.
        targets: float (n, K), soft targets of mixed images; None where the labels say all.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    samples: NDArray[np.int64]
    share: float = 1.0
    targets: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        if device.type == "cpu":
            return self
        pixels, labels = (t.to(device, non_blocking=True) for t in (self.pixels, self.labels))
        targets = None if self.targets is None else self.targets.to(device, non_blocking=True)
        return replace(self, pixels=pixels, labels=labels, targets=targets)

    def cut(self, start: int, end: int) -> Batch:
        """Return the images from start to before end as a batch of their own."""
        return Batch(
            pixels=self.pixels[start:end],
            labels=self.labels[start:end],
            samples=self.samples[start:end],
            share=self.share * (end - start) / len(self.labels),
            targets=None if self.targets is None else self.targets[start:end],
        )

    def split(self, parts: int, *, processes: int) -> list[Batch]:
        """Return the batch in as many parts in every process, none of them empty."""
        n = len(self.labels)
        parts = max(1, min(parts, round(n / self.share) // processes)) if n else 1
        if parts == 1:
            return [self]
        edges = [n * i // parts for i in range(parts + 1)]
        return [self.cut(start, end) for start, end in itertools.pairwise(edges)]


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Feeds some images of a source in batches.

    Attributes:
        pixels, labels: of the whole source, labels as in a batch. indices: int64, the images to feed.
        shuffle: whether the order changes from epoch to epoch; without it, the order is that of `indices`.
        rank, world: this process feeds every world-th image of each batch, so that all processes together feed
            what one alone would.
        workers: threads that prepare batches ahead.
    """

    pixels: Pixels
    labels: NDArray[np.int64] | NDArray[np.uint8]
    indices: NDArray[np.int64]
    batch_size: int
    augment: Augment = field(default_factory=Augment)
    mix: Mix = field(default_factory=Mix)
    seed: int = 0
    shuffle: bool = False
    workers: int = 0
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Batches in an epoch. They differ in size by at most one image, so that none is left small at the end.

        Where there are images enough, each has one at least for every process.
        """
        return min(-(-len(self.indices) // self.batch_size), max(1, len(self.indices) // self.world))

    def batches(self, epoch: int = 0, *, start: int = 0, side: Side = lambda batch: 0) -> Generator[Batch]:
        """Yield the batches of an epoch, from the start-th on.

        `side` tells the side of the pictures of each batch when it is loaded, 0 for that of the pixels.
        """
        ids = _distinct(self.indices, len(self.labels))
        parts = np.array_split(self._order(ids, epoch), self.steps)

        def load(number: int) -> Batch:
            return self._load(parts[number], ids, epoch, side(number))

        numbers = range(start, len(parts))
        yield from self._load_ahead(load, numbers) if self.workers else map(load, numbers)

    def _order(self, ids: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """Return the places in `indices` in the order of an epoch."""
        if not self.shuffle:
            return np.arange(len(ids))
        return np.argsort(draw(self.seed, epoch, ids, _ORDER_STREAM), kind="stable")

    def _load(self, part: NDArray[np.int64], ids: NDArray[np.int64], epoch: int, side: int) -> Batch:
        mine = part[self.rank :: self.world]
        samples = self.indices[mine]
        images, labels, targets = self._augmented(mine, ids, epoch, side), torch.from_numpy(self.labels[samples]), None
        if self.mix and len(mine):
            others = np.roll(part, 1)[self.rank :: self.world]  # each is mixed with the one before it
            other_images = images.roll(1, 0) if self.world == 1 else self._augmented(others, ids, epoch, side)
            other_labels = torch.from_numpy(self.labels[self.indices[others]])
            pairs = (images, other_images), (labels, other_labels)
            images, targets = self.mix.apply(*pairs, seed=self.seed, epoch=epoch, samples=ids[mine])
        return Batch(pixels=images, labels=labels, samples=samples, share=len(mine) / len(part), targets=targets)

    def _augmented(self, places: NDArray[np.int64], ids: NDArray[np.int64], epoch: int, side: int) -> torch.Tensor:
        pixels = self.pixels.take(self.indices[places])
        return self.augment.apply(pixels, seed=self.seed, epoch=epoch, samples=ids[places], size=side)

    def _load_ahead(self, load: Callable[[int], Batch], numbers: range) -> Generator[Batch]:
        """Keep `workers` batches in the making, and hand them out in order."""
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(self.workers, initializer=use_one_thread) as pool:
            try:
                for number in numbers:
                    waiting.append(pool.submit(load, number))
                    if len(waiting) > self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def _distinct(indices: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return a number for each place in `indices`: the index itself, and others for its second, third ... time.

    By these numbers chance is drawn, so that an image that stands there twice is not seen twice alike.
    """
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    first = np.searchsorted(ordered, ordered)
    times = np.empty_like(indices)
    times[order] = np.arange(len(indices)) - first
    ids: NDArray[np.int64] = indices + total * times
    return ids
