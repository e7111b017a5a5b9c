"""What `linnaeus serve` costs beyond decoding and the network, how soon it is ready, and what it does when overrun."""

from __future__ import annotations

import contextlib
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import Bench, Figure, ProcessError, environment, in_rounds, mean, median, run_linnaeus, run_script

CLIENTS = 16


@dataclass(frozen=True, kw_only=True)
class Service:
    """A running `linnaeus serve`: its port, the seconds until it was ready, and the process that holds the others."""

    port: int
    ready: float
    process: int

    def peak_bytes(self) -> int:
        """Return the largest resident memory of all its processes together."""
        children = Path(f"/proc/{self.process}/task/{self.process}/children").read_text().split()
        return sum(_peak(int(process)) for process in (self.process, *children))


def measure(bench: Bench) -> Iterator[Figure]:
    """Serve an EfficientNet-Lite0 at 224 pixels JPEG files of 853 x 640, clients and server on the same cores.

    Throughput with 16 clients, median over rounds, over that of a bare loop of decoding and network in one process.
    Then an open loop at four times that throughput: answers a second over the peak, and how soon it refuses. Targets:
    at least 0.95; 0.9; refusals within 50 ms (median); ready within 2 s; less than 350 MB.
    """
    seconds = 2.0 if bench.quick else 10.0
    bundle, pictures = _train(bench), _make_pictures(bench)
    with _serve(bench, bundle) as service:
        _ask(service, pictures, seconds=1.0)
        sides = {
            "served": lambda _: _throughput(_ask(service, pictures, seconds=seconds)),
            "bare": lambda _: _bare(bundle, pictures, seconds),
        }
        found = in_rounds(sides, 1 if bench.quick else 5)
        peak = median(found["served"])
        quotients = [served / bare for served, bare in zip(found["served"], found["bare"], strict=True)]
        yield Figure(
            what=f"{CLIENTS} clients: images a second over a bare loop ({peak:.0f} / {median(found['bare']):.0f})",
            value=median(quotients), at_least=0.95, details=found,
        )  # fmt: skip
        yield _tail(_ask(service, pictures, seconds=seconds)["seconds"]["200"])
        yield from _overrun(_ask(service, pictures, seconds=seconds, rate=4 * peak), peak)
        yield Figure(what="seconds until it is ready", value=service.ready, unit=" s", at_most=2.0)
        yield Figure(what="peak memory of all processes", value=service.peak_bytes() / 1e6, unit=" MB", at_most=350.0)


def _tail(times: list[float]) -> Figure:
    cuts = statistics.quantiles(times, n=100)
    details = {"p50": cuts[49], "p99": cuts[98]}
    return Figure(
        what=f"{CLIENTS} clients: p99 over p50 ({1000 * cuts[98]:.0f} ms / {1000 * cuts[49]:.0f} ms)",
        value=cuts[98] / cuts[49], details=details,
    )  # fmt: skip


def _overrun(found: dict[str, Any], peak: float) -> Iterator[Figure]:
    refused = found["seconds"].get("503", [0.0])
    counts = {status: len(times) for status, times in found["seconds"].items()}
    yield Figure(
        what="at four times the capacity: answers a second over the peak",
        value=_throughput(found) / peak, at_least=0.9, details=counts,
    )  # fmt: skip
    yield Figure(
        what="at four times the capacity: a refusal (median)", value=1000 * median(refused), unit=" ms", at_most=50.0,
        details={"mean": mean(refused), "worst": max(refused)},
    )  # fmt: skip
    others = sum(count for status, count in counts.items() if status not in ("200", "503"))
    yield Figure(what="at four times the capacity: failed requests", value=float(others), at_most=0.0, details=counts)


def _throughput(found: dict[str, Any]) -> float:
    return len(found["seconds"].get("200", [])) / float(found["wall"])


def _ask(service: Service, pictures: Path, *, seconds: float, rate: float | None = None) -> dict[str, Any]:
    options = ["--clients", str(CLIENTS), "--seconds", str(seconds), *(["--rate", f"{rate:.1f}"] if rate else [])]
    return run_script("serving_client.py", str(service.port), pictures, *options).json()


def _bare(bundle: Path, pictures: Path, seconds: float) -> float:
    outcome = run_script("serving_rival.py", bundle / "model.onnx", pictures, "--seconds", str(seconds))
    return float(outcome.json()["images_per_second"])


@contextlib.contextmanager
def _serve(bench: Bench, bundle: Path) -> Iterator[Service]:
    log, start = bench.folder("serve") / "log", time.perf_counter()
    with log.open("w") as stream:
        command = [sys.executable, "-m", "linnaeus", "serve", str(bundle), "--port", "0"]
        process = subprocess.Popen(command, env=environment(), stderr=stream)
    try:
        while not (found := re.search(r"http://\S+:(\d+)", log.read_text())):
            if process.poll() is not None:
                raise ProcessError(f"linnaeus serve: {log.read_text()}")
            time.sleep(0.005)
        yield Service(port=int(found[1]), ready=time.perf_counter() - start, process=process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _train(bench: Bench) -> Path:
    """Return a bundle; how well it does plays no part here."""
    folder, out = bench.folder("pictures") / "set", bench.folder("run") / "run"
    run_script("make_pictures.py", folder, "--number", "80", "--side", "224")
    settings = ("model=efficientnet_lite0", "image_size=224", "budget=5s")
    run_linnaeus("train", folder, *settings, "--out", out, cache=bench.folder("cache"))
    return out / "bundle"


def _make_pictures(bench: Bench) -> Path:
    folder = bench.folder("pictures") / "asked"
    run_script("make_pictures.py", folder, "--number", "40", "--side", "640")
    return folder


def _peak(process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(match[1]) * 1024 if match else 0
