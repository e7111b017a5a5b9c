"""Micro-batching: single items in, batches computed, single results out. Knows no HTTP and no network.

An item waits only while others run or are on their way, and for company never longer than a window. What cannot be
answered in time is refused before anything was done for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")

_MEMORY = 0.9  # share of the old estimate of seconds per item that stays with each batch


class OverloadedError(Exception):
    """There is no room. `retry_after` is in how many whole seconds there may be some."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"busy for {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True, kw_only=True)
class Done(Generic[Result]):
    """A result; the seconds for which its item waited and its batch was computed, and how many were in the batch."""

    result: Result
    waited: float
    computed: float
    together: int


@dataclass(kw_only=True)
class _Waiting(Generic[Key, Item, Result]):
    key: Key
    item: Item
    since: float
    future: asyncio.Future[Done[Result]]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How a batcher works.

    Attributes:
        lanes: batches that are computed at one time, each in a thread of its own.
        size: most items in a batch. window: longest wait for company, in seconds.
        capacity: items that may be admitted at one time.
        longest_wait: seconds of work beyond which nobody else is admitted; one batch for each lane always is.
    """

    lanes: int
    size: int
    window: float
    capacity: int
    longest_wait: float


@dataclass(kw_only=True, eq=False)
class _Batch(Generic[Key, Item, Result]):
    waiting: list[_Waiting[Key, Item, Result]]
    started: float


class Admission(Generic[Key, Item, Result]):
    """Room for some items in a batcher; `left` is for how many more."""

    def __init__(self, batcher: Batcher[Key, Item, Result], count: int) -> None:
        self._batcher = batcher
        self.left = count

    async def submit(self, key: Key, item: Item) -> Done[Result]:
        """Return an item's result. Raises what `compute` raised for it."""
        self.left -= 1
        return await self._batcher._enqueue(key, item)


class Batcher(Generic[Key, Item, Result]):
    """Computes items of the same key together, first come, first served.

    Args:
        compute: called with a key and items; returns one result for each. If it raises for several items, each is
            computed alone, so that an item fails for itself only. With several lanes it is called in several threads.
        pace: how many, how large, how soon.

    All methods are to be called from one event loop.
    """

    def __init__(self, compute: Callable[[Key, list[Item]], Sequence[Result]], *, pace: Pace) -> None:
        self._compute, self._pace = compute, pace
        self._queue: deque[_Waiting[Key, Item, Result]] = deque()
        self._running: list[_Batch[Key, Item, Result]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(pace.lanes, "compute")
        self._expected = 0  # admitted and not submitted yet
        self.admitted = 0
        self.seconds_per_item = 0.0

    def check_room(self, count: int = 1) -> None:
        """Raise OverloadedError unless so many more items can be admitted now."""
        work = self.admitted * self.seconds_per_item
        full = self.admitted + count > self._pace.capacity
        if full or (self.admitted >= self._pace.lanes * self._pace.size and work > self._pace.longest_wait):
            raise OverloadedError(max(1, math.ceil(work)))

    @contextlib.contextmanager
    def admit(self, count: int) -> Iterator[Admission[Key, Item, Result]]:
        """Keep room for so many items while they are made ready, wait and are computed. Raises OverloadedError."""
        self.check_room(count)
        admission = Admission(self, count)
        self.admitted += count
        self._expected += count
        try:
            yield admission
        finally:
            self.admitted -= count
            self._expected -= admission.left
            self._consider()

    def _enqueue(self, key: Key, item: Item) -> asyncio.Future[Done[Result]]:
        future: asyncio.Future[Done[Result]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(key=key, item=item, since=time.monotonic(), future=future))
        self._expected -= 1
        self._consider()
        return future

    def running_for(self) -> float:
        """Return for how many seconds the oldest batch of this moment has been computed; 0 if there is none."""
        return time.monotonic() - self._running[0].started if self._running else 0.0

    def close(self) -> None:
        """Let the threads end; nothing can be submitted any more."""
        self._threads.shutdown(wait=False)

    def _consider(self) -> None:
        """Start batches while a lane is free and nobody is worth waiting for."""
        while self._queue and len(self._running) < self._pace.lanes:
            left = self._queue[0].since + self._pace.window - time.monotonic()
            if len(self._queue) < self._pace.size and self._expected > 0 and left > 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(left, self._wake)
                return
            self._launch()

    def _wake(self) -> None:
        self._timer = None
        self._consider()

    def _launch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = _Batch(waiting=self._take(), started=time.monotonic())
        self._running.append(batch)
        key, items = batch.waiting[0].key, [waiting.item for waiting in batch.waiting]
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._compute_all, key, items)
        work.add_done_callback(lambda work: self._finish(batch, work))

    def _take(self) -> list[_Waiting[Key, Item, Result]]:
        """Remove the oldest item and those of the same key that fit in its batch, in their order.

        What waits is shared out among the free lanes.
        """
        key = self._queue[0].key
        share = math.ceil(len(self._queue) / (self._pace.lanes - len(self._running)))
        batch = [waiting for waiting in self._queue if waiting.key == key][: min(share, self._pace.size)]
        chosen = {id(waiting) for waiting in batch}
        self._queue = deque(waiting for waiting in self._queue if id(waiting) not in chosen)
        return batch

    def _compute_all(self, key: Key, items: list[Item]) -> Sequence[Result | Exception]:
        try:
            return self._compute(key, items)
        except Exception as error:  # the caller of each item gets its own
            if len(items) == 1:
                return [error]
            return [self._compute_all(key, [item])[0] for item in items]

    def _finish(self, batch: _Batch[Key, Item, Result], work: asyncio.Future[Sequence[Result | Exception]]) -> None:
        self._running.remove(batch)
        seconds = time.monotonic() - batch.started
        each = seconds / len(batch.waiting) / self._pace.lanes
        known = self.seconds_per_item or each
        self.seconds_per_item = _MEMORY * known + (1 - _MEMORY) * each
        for waiting, result in zip(batch.waiting, work.result(), strict=True):
            if waiting.future.done():  # nobody waits for it any more
                continue
            if isinstance(result, Exception):
                waiting.future.set_exception(result)
                continue
            waited, together = batch.started - waiting.since, len(batch.waiting)
            waiting.future.set_result(Done(result=result, waited=waited, computed=seconds, together=together))
        self._consider()
