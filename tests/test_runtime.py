"""The machine: threads, seeds, precision, signals."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch

from linnaeus import runtime
from linnaeus.errors import SettingError
from linnaeus.runtime import (
    Interrupted,
    Interrupts,
    World,
    autocast,
    available_cores,
    choose_device,
    choose_precision,
    choose_threads,
    join_world,
    keep_memory,
    list_versions,
    seed_all,
)


def send(number: int) -> None:
    """Send a signal to this process, and give it time to come."""
    os.kill(os.getpid(), number)
    time.sleep(0.1)


def test_the_first_signal_waits_when_patient() -> None:
    """A patient run remembers the first signal and stops at the second; the handlers before are given back."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        interrupts.patient = True
        send(signal.SIGTERM)
        assert interrupts.caught == signal.SIGTERM
        with pytest.raises(Interrupted) as caught:
            send(signal.SIGINT)
        assert caught.value.number == signal.SIGINT
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_an_impatient_run_stops_at_once() -> None:
    """Before there is anything to keep, the first signal is a KeyboardInterrupt that knows its number."""
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt) as caught:
        send(signal.SIGTERM)
    assert caught.value.number == interrupts.caught == signal.SIGTERM


def test_signals_are_left_alone_in_other_threads() -> None:
    """Training in a thread that is not the main one changes no handler and raises nothing."""
    faults: list[BaseException] = []

    def work() -> None:
        try:
            with Interrupts() as interrupts:
                assert interrupts.caught == 0
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert faults == []


class Waiting(torch.nn.Module):
    """A network that takes some seconds for each number of threads."""

    def __init__(self, seconds: dict[int, float]) -> None:
        super().__init__()
        self.seconds, self.inner, self.passes = seconds, torch.nn.Identity(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Wait, in ten small steps."""
        self.passes += 1
        for _ in range(10):
            time.sleep(self.seconds[torch.get_num_threads()] / 10)
            x = self.inner(x)
        return x


def test_threads_are_one_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The faster of one thread and all is chosen by trial; with one core nothing is tried."""
    before, x = torch.get_num_threads(), torch.zeros(1)
    monkeypatch.setattr(runtime, "available_cores", lambda: 2)
    assert choose_threads(Waiting({1: 0.01, 2: 0.03}), x) == 1
    assert choose_threads(Waiting({1: 0.03, 2: 0.01}), x) == 2
    begin = time.perf_counter()
    assert choose_threads(Waiting({1: 0.01, 2: 10.0}), x) == 1
    assert time.perf_counter() - begin < 5  # a trial that is far too slow is given up
    monkeypatch.setattr(runtime, "available_cores", lambda: 1)
    idle = Waiting({})
    assert choose_threads(idle, x) == 1
    assert idle.passes == 0
    torch.set_num_threads(before)


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS can lower the number of cores, not raise it, and nonsense in it is passed over."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    most = available_cores()
    assert 1 <= most <= (os.cpu_count() or 1)
    for text, expected in (("1", 1), ("9999", most), ("0", most), ("many", most), ("", most)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert available_cores() == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(10 * most))  # as torchrun tells it
    assert available_cores() == 1


def test_seeds_do_not_depend_on_history() -> None:
    """The same numbers give the same chance whatever ran before; other numbers or another order give other chance."""

    def chance(*numbers: int) -> tuple[float, ...]:
        torch.rand(numbers[0] % 7 + 1)
        seed_all(torch.device("cpu"), *numbers)
        return tuple(torch.rand(3).tolist())

    assert chance(1, 2, 3) == chance(1, 2, 3)
    different = [(1, 2, 3), (3, 2, 1), (1, 2, 4), (0, 2, 3), (1, 2), (1, 2, 0), (0, 0, 0), (2**31 - 1, 100_000, 9)]
    assert len({chance(*numbers) for numbers in different}) == len(different)


def test_seeds_of_neighbours_differ() -> None:
    """No two steps of a long run share their chance."""
    seen = set()
    for epoch in range(50):
        for batch in range(50):
            seed_all(torch.device("cpu"), 0, epoch, batch, 0)
            seen.add(torch.initial_seed())
    assert len(seen) == 2500


def test_devices() -> None:
    """The devices cpu and auto are there; a device that is not is a SettingError."""
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    if not torch.backends.mps.is_available():
        with pytest.raises(SettingError, match="mps"):
            choose_device("mps")


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU trains in bf16 only where it has the instructions."""
    for flags, expected in (({"avx2"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), (set(), "fp32")):
        monkeypatch.setattr(runtime, "_cpu_flags", lambda flags=flags: flags)
        assert choose_precision(torch.device("cpu")) == expected
    layer, x = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(torch.device("cpu"), precision):
            assert layer(x).dtype == dtype


def test_one_process_is_a_world() -> None:
    """Without torchrun there is one process, which leads and agrees with itself."""
    with join_world() as world:
        assert world == World()
        assert world.leads
        assert world.any(True)
        assert not world.any(False)
        assert world.sum([1.0, 2.0]) == [1.0, 2.0]
        assert world.agree(3.5) == 3.5
        world.wait()


def test_versions_and_memory() -> None:
    """The versions of what a run rests on are listed, and keeping memory does no harm."""
    keep_memory()
    assert {"python", "machine", "torch", "numpy"} <= set(list_versions())
