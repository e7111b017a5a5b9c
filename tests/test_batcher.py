"""The batcher: who is computed with whom, who waits for whom, and who is refused."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from linnaeus.serving.batcher import Batcher, Done, OverloadedError, Pace


class Machine:
    """Doubles numbers, remembers its batches, and works only while it is let."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.go = threading.Event()
        self.go.set()

    def compute(self, key: str, items: list[int]) -> Sequence[int]:
        self.batches.append((key, items))
        assert self.go.wait(10)
        if any(item < 0 for item in items):
            raise ValueError(f"negative: {items}")
        return [2 * item for item in items]


def run(machine: Machine, scene: Callable[[Batcher], Awaitable[Any]], **options: Any) -> Any:
    """Play a scene with a batcher over a machine."""

    async def play() -> Any:
        settings = {"lanes": 1, "size": 4, "window": 0.0, "capacity": 100, "longest_wait": 1000.0} | options
        batcher = Batcher(machine.compute, pace=Pace(**settings))
        try:
            return await asyncio.wait_for(scene(batcher), 10)
        finally:
            machine.go.set()
            batcher.close()

    return asyncio.run(play())


async def one(batcher: Batcher, item: int, key: str = "a") -> Done[int]:
    with batcher.admit(1) as admission:
        return await admission.submit(key, item)


def test_an_item_gets_its_own_result() -> None:
    """Each of many items gets what was computed for it, whatever lies beside it in the batches."""
    machine = Machine()

    async def scene(batcher: Batcher) -> list[Done[int]]:
        return await asyncio.gather(*(one(batcher, i) for i in range(30)))

    done = run(machine, scene)
    assert [each.result for each in done] == [2 * i for i in range(30)]
    assert sorted(item for _, items in machine.batches for item in items) == list(range(30))
    assert max(len(items) for _, items in machine.batches) == 4


def test_what_waits_goes_together_in_order() -> None:
    """While a batch is computed others gather; then they go together, oldest first, no more than fit."""
    machine = Machine()
    machine.go.clear()

    async def scene(batcher: Batcher) -> None:
        tasks = []
        for i in range(7):
            tasks.append(asyncio.create_task(one(batcher, i)))
            await asyncio.sleep(0)
        machine.go.set()
        await asyncio.gather(*tasks)

    run(machine, scene)
    assert machine.batches == [("a", [0]), ("a", [1, 2, 3, 4]), ("a", [5, 6])]


def test_lanes_share_the_work() -> None:
    """With two lanes two batches are computed at one time, and what comes together is shared out between them."""
    machine = Machine()
    machine.go.clear()

    async def scene(batcher: Batcher) -> None:
        with batcher.admit(9) as admission:
            tasks = [asyncio.create_task(admission.submit("a", i)) for i in range(9)]
            await asyncio.sleep(0.05)
            assert len(machine.batches) == 2
            machine.go.set()
            await asyncio.gather(*tasks)

    run(machine, scene, lanes=2, window=5.0)
    assert sorted(item for _, items in machine.batches for item in items) == list(range(9))
    assert max(len(items) for _, items in machine.batches) <= 4


def test_keys_are_not_mixed() -> None:
    """A batch has one key; the oldest item says which, and its companions keep their order."""
    machine = Machine()
    machine.go.clear()

    async def scene(batcher: Batcher) -> None:
        tasks = []
        for i, key in enumerate("abaabb"):
            tasks.append(asyncio.create_task(one(batcher, i, key)))
            await asyncio.sleep(0)
        machine.go.set()
        await asyncio.gather(*tasks)

    run(machine, scene)
    assert machine.batches == [("a", [0]), ("b", [1, 4, 5]), ("a", [2, 3])]


def test_the_only_item_does_not_wait() -> None:
    """With nobody else on the way an item is computed at once, however long the window."""
    done = run(Machine(), lambda batcher: one(batcher, 3), window=5.0)
    assert done.result == 6
    assert done.waited < 1


def test_an_item_waits_for_company_no_longer_than_the_window() -> None:
    """While another is on its way an item waits for it, up to the window; the other then goes alone."""
    machine = Machine()

    async def scene(batcher: Batcher) -> Done[int]:
        with batcher.admit(1) as late:
            first = await one(batcher, 1)
            await late.submit("a", 2)
        return first

    first = run(machine, scene, window=0.05)
    assert 0.04 < first.waited < 2
    assert machine.batches == [("a", [1]), ("a", [2])]


def test_company_that_comes_ends_the_wait() -> None:
    """When the last one on its way has come, or has given up, the batch goes before the window ends."""
    machine = Machine()

    async def scene(batcher: Batcher) -> Done[int]:
        with batcher.admit(1) as late:
            first = asyncio.create_task(one(batcher, 1))
            await asyncio.sleep(0.01)
            await late.submit("a", 2)
        await first
        with batcher.admit(1):
            third = asyncio.create_task(one(batcher, 3))
            await asyncio.sleep(0.01)
        return await third

    third = run(machine, scene, window=8.0)
    assert machine.batches == [("a", [1, 2]), ("a", [3])]
    assert third.waited < 4


def test_nobody_is_admitted_beyond_the_capacity() -> None:
    """Admitted items count until they are done; one too many is refused at once, and let in when there is room."""

    async def scene(batcher: Batcher) -> None:
        with batcher.admit(3):
            with pytest.raises(OverloadedError), batcher.admit(2):
                pytest.fail("admitted")
            batcher.check_room(1)
            with batcher.admit(1), pytest.raises(OverloadedError) as refusal:
                batcher.check_room()
            assert refusal.value.retry_after >= 1
        assert batcher.admitted == 0
        with batcher.admit(4):
            pass

    run(Machine(), scene, capacity=4)


def test_nobody_is_admitted_beyond_the_longest_wait() -> None:
    """Where items take long, fewer are admitted than the capacity; a client is told when to come back."""
    machine = Machine()

    async def scene(batcher: Batcher) -> None:
        machine.go.clear()
        first = asyncio.create_task(one(batcher, 1))
        await asyncio.sleep(0.3)
        machine.go.set()
        await first
        assert batcher.seconds_per_item > 0.2
        with batcher.admit(11):
            with pytest.raises(OverloadedError) as refusal:
                batcher.check_room()
            assert refusal.value.retry_after >= 3
        with batcher.admit(3):
            batcher.check_room()

    run(machine, scene, longest_wait=2.0)


def test_a_failing_item_fails_alone() -> None:
    """What cannot be computed raises for the one who asked; those in its batch get their answers."""
    machine = Machine()
    machine.go.clear()

    async def scene(batcher: Batcher) -> list[Any]:
        tasks = [asyncio.create_task(one(batcher, item)) for item in (0, 1, -5, 2)]
        await asyncio.sleep(0.01)
        machine.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    zero, first, failed, second = run(machine, scene)
    assert (zero.result, first.result, second.result) == (0, 2, 4)
    assert isinstance(failed, ValueError)
    assert str(failed) == "negative: [-5]"


def test_who_gives_up_harms_nobody() -> None:
    """A client that leaves while its item waits or is computed frees its room; the others are answered."""
    machine = Machine()
    machine.go.clear()

    async def scene(batcher: Batcher) -> Done[int]:
        tasks = [asyncio.create_task(one(batcher, item)) for item in (1, 2, 3)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        machine.go.set()
        done = await tasks[2]
        assert batcher.admitted == 0
        return done

    assert run(machine, scene).result == 6


def test_a_batch_that_does_not_end_is_seen() -> None:
    """How long the batch of this moment has run is known, and 0 when there is none."""
    machine = Machine()
    machine.go.clear()

    async def scene(batcher: Batcher) -> None:
        assert batcher.running_for() == 0
        task = asyncio.create_task(one(batcher, 1))
        await asyncio.sleep(0.05)
        assert batcher.running_for() > 0.04
        machine.go.set()
        await task
        assert batcher.running_for() == 0

    start = time.monotonic()
    run(machine, scene)
    assert time.monotonic() - start < 5
