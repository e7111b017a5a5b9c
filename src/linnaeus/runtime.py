"""The machine a run finds itself on: device, precision, threads, processes, and where chance comes from."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import threadpoolctl
import torch
import torch.distributed as dist
from torch import nn

from linnaeus.errors import RunError, SettingError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more
_TRIAL_SECONDS = 0.25
_PATIENCE = timedelta(days=1)
_MEMORY_LOST = re.compile(
    r"(?i)out of memory|can't allocate memory|not enough memory|failed to allocate|alloc_failed|bad_alloc"
)
_PEER_LOST = re.compile(r"(?i)connection (closed|reset|refused)|broken pipe|timed? ?out")  # in what gloo and NCCL raise
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of one run. One process alone is rank 0 of 1."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process, so that all of them act alike."""
        if self.size == 1:
            return flag
        votes = torch.tensor(float(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item() > 0)

    def sum(self, values: list[float]) -> list[float]:
        """Return the element-wise sum of the values over all processes."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def join(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows (n, D) of all processes, which may have different numbers of them, one below the other."""
        if self.size == 1:
            return rows
        counts = [int(n) for n in self.sum([float(len(rows) * (rank == self.rank)) for rank in range(self.size)])]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()

    def share(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return rank 0's tensor in every process."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def agree(self, value: float) -> float:
        """Return rank 0's value in every process."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return float(shared.item())


@contextlib.contextmanager
def join_world() -> Iterator[World]:
    """Join the processes that torchrun started, if it did, and leave them at the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    # Gloo carries CPU tensors (flags, counters); NCCL carries a GPU's gradients.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)  # the others wait while the first packs the pictures
    try:
        yield World(rank=dist.get_rank(), size=size)
    except RuntimeError as error:
        if not _PEER_LOST.search(str(error)):
            raise
        fix = "Look at what that process said."
        raise RunError("all processes of the run to go on", got="one that ended before its time", fix=fix) from error
    finally:
        gc.collect()  # DistributedDataParallel lies in cycles; freed at the end of the process, it may abort it
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """Return the device of that name, for "auto" the fastest there is. Raises SettingError if it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in there.items() if present)
    if not there[name]:
        raise SettingError(f"a machine with {name}", got="one without it", fix="Use device=cpu or device=auto.")
    if name == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


def choose_precision(device: torch.device) -> str:
    """Return the fastest precision that trains safely: bf16 in hardware, else fp16 on CUDA, else fp32.

    A CPU without bf16 instructions emulates it, ten times slower than fp32.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and _cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        return "bf16"
    return "fp32"


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def choose_threads(network: nn.Module, images: torch.Tensor) -> int:
    """Time a network with one thread and with all, and return the faster number.

    With the cores taken by other programs, two spinning OpenMP threads can run forty times slower than one. So the
    second trial is given up as soon as it has taken longer than the first.
    """
    most = available_cores()
    if most == 1:
        return 1
    alone = _time_forward(network, images, threads=1, limit=math.inf)
    return most if _time_forward(network, images, threads=most, limit=alone) < alone else 1


def use_one_thread() -> None:
    """Let torch's operators use one thread when called from this thread; other threads keep theirs.

    A worker that resizes small images one by one loses time with a team of threads for each.
    """
    torch.get_num_threads()  # torch sets a thread's number when it first asks, so ask before it is set
    threadpoolctl.threadpool_limits(1, user_api="openmp")


class _TooSlowError(Exception):
    """A trial has taken longer than it may."""


@torch.no_grad()
def _time_forward(network: nn.Module, images: torch.Tensor, *, threads: int, limit: float) -> float:
    """Return the seconds of the fastest of a few passes, infinity if one takes longer than three times the limit."""
    torch.set_num_threads(threads)
    deadline = math.inf

    def give_up(*_: object) -> None:
        if time.perf_counter() > deadline:
            raise _TooSlowError

    hooks = [module.register_forward_pre_hook(give_up) for module in network.modules()]
    best, end = math.inf, time.perf_counter() + _TRIAL_SECONDS
    try:
        while best == math.inf or time.perf_counter() < end:
            start = time.perf_counter()
            deadline = start + 3 * limit
            network(images)
            best = min(best, time.perf_counter() - start)
    except _TooSlowError:
        return math.inf
    finally:
        for hook in hooks:
            hook.remove()
    return best


def available_cores() -> int:
    """Return how many CPU cores this process may use.

    That is its affinity, shared with the other processes that torchrun started on this machine, or OMP_NUM_THREADS
    where that is set and less.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    mine = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return min(mine, int(wanted)) if wanted.isdigit() and int(wanted) > 0 else mine


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a network computes in this precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a device or of the machine."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(_MEMORY_LOST.search(str(error)))


def free_memory(device: torch.device) -> None:
    """Give back what the device's allocator keeps of tensors that are gone."""
    if device.type != "cpu":
        gc.collect()
        torch.get_device_module(device).empty_cache()


def compute_in_halves(compute: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Return what a function says of each image (N, ...), of half of them at a time where memory runs out."""
    try:
        return compute(images)
    except (RuntimeError, MemoryError) as error:
        if len(images) < 2 or not ran_out(error):
            raise
    free_memory(images.device)
    return torch.cat([compute_in_halves(compute, half) for half in images.tensor_split(2)])


def seed_all(device: torch.device, *numbers: int) -> None:
    """Set torch's generators from numbers alone, so that dropout at a step does not depend on what ran before.

    Only the CPU's and the device's: torch.manual_seed also notes for every device that is not in use yet what was
    asked of it, with a trace of the stack, which takes as long as a small network's step.
    """
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = ((mixed ^ number) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    seed = mixed & 0x7FFFFFFFFFFFFFFF
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def list_versions() -> dict[str, str]:
    """Return the versions of what a run rests on, by name."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": f"{platform.machine()}, {available_cores()} cores"}
    for package in ("linnaeus", "torch", "torchvision", "timm", "onnxruntime", "numpy", "pillow"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def keep_memory() -> None:
    """Tell glibc to keep freed memory for the next tensor, where glibc is.

    By default each large tensor is mapped from the system and given back at once, and its pages are cleared anew
    at every layer: on a CPU that halves the speed of networks whose activations are large.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class Interrupted(KeyboardInterrupt):
    """A signal asked to stop while there was nothing to finish in good order."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """Catches Ctrl-C and SIGTERM. While `patient`, the first is only remembered; a second one stops at once."""

    def __init__(self) -> None:
        self.caught = 0
        self.patient = False

    def __enter__(self) -> Interrupts:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        first, self.caught = self.caught == 0, number
        if not (self.patient and first):
            raise Interrupted(number)
