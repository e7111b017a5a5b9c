"""Batches in an order that depends on (seed, epoch) alone: the same with any number of workers or processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from linnaeus.data.augment import Augment, draw
from linnaeus.data.cache import Pixels
from linnaeus.runtime import use_one_thread

Side = Callable[[int], int]

_ORDER_STREAM = 1_000_003  # apart from the streams that augmentation draws from


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some labelled images of one step.

    Attributes:
        pixels: uint8 (n, C, H, W). labels: int64 (n,). samples: int64 (n,), the images' numbers in their source.
        share: n over the number of images of this step in all processes.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    samples: NDArray[np.int64]
    share: float = 1.0

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        if device.type == "cpu":
            return self
        pixels, labels = (t.to(device, non_blocking=True) for t in (self.pixels, self.labels))
        return Batch(pixels=pixels, labels=labels, samples=self.samples, share=self.share)


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Feeds some images of a source in batches.

    Attributes:
        pixels, labels: of the whole source. indices: int64, the images to feed.
        shuffle: whether the order changes from epoch to epoch; without it, the order is that of `indices`.
        rank, world: this process feeds every world-th image of each batch, so that all processes together feed
            what one alone would.
        workers: threads that prepare batches ahead.
    """

    pixels: Pixels
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    batch_size: int
    augment: Augment = field(default_factory=Augment)
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
        parts = np.array_split(self._order(epoch), self.steps)

        def load(number: int) -> Batch:
            return self._load(parts[number], epoch, side(number))

        numbers = range(start, len(parts))
        yield from self._load_ahead(load, numbers) if self.workers else map(load, numbers)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return self.indices
        keys = draw(self.seed, epoch, self.indices, _ORDER_STREAM)
        return self.indices[np.argsort(keys, kind="stable")]

    def _load(self, part: NDArray[np.int64], epoch: int, side: int) -> Batch:
        mine = part[self.rank :: self.world]
        images = self.augment.apply(self.pixels.take(mine), seed=self.seed, epoch=epoch, samples=mine, size=side)
        labels = torch.from_numpy(self.labels[mine])
        return Batch(pixels=images, labels=labels, samples=mine, share=len(mine) / len(part))

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
