"""Measure linnaeus's figures beside their targets.

    python benchmarks/run.py                          everything; see README.md for how long that takes
    python benchmarks/run.py --only digits,loop_cost  some of it
    python benchmarks/run.py --quick                  a look at whether it runs; its figures mean nothing

Prints a line for each figure as soon as it is known and one table at the end, and writes every number to
results.json beside this file. Exit code 1 if something could not be measured because it failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import against_keras
import digits
import feeding
import few_labels
import fine_tuning
import from_scratch
import imbalance
import loop_cost
import memory
import photographs
import predict_start
import serving
from machine import describe_machine, tell_machine
from measuring import BENCH, HERE, Bench, Figure, ProcessError, Skip

BENCHMARKS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "digits": digits.measure,
    "predict_start": predict_start.measure,
    "serving": serving.measure,
    "loop_cost": loop_cost.measure,
    "feeding": feeding.measure,
    "memory": memory.measure,
    "keras_same": against_keras.measure_same,
    "time_to_accuracy": against_keras.measure_time_to_accuracy,
    "photographs": photographs.measure,
    "few_labels": few_labels.measure,
    "imbalance": imbalance.measure,
    "from_scratch": from_scratch.measure,
    "fine_tuning": fine_tuning.measure,
}
_BUSY = 0.3  # load average above which other programs disturb what is measured


@dataclass(kw_only=True)
class Finding:
    """What came of one benchmark: its figures, and why there are no more of them if it was skipped or failed."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    skipped: str = ""
    failed: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {
            "seconds": round(self.seconds, 1),
            "skipped": self.skipped,
            "failed": self.failed,
            "figures": [figure.to_dict() for figure in self.figures],
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that were asked for and return the exit code."""
    options = _parse(arguments)
    BENCH.mkdir(exist_ok=True)
    machine = describe_machine()
    print(tell_machine(machine))
    if machine["load_before"] > _BUSY:
        print(f"Other programs use this machine (load {machine['load_before']:.1f}): times and ratios will suffer.")
    findings = []
    with tempfile.TemporaryDirectory(prefix="run-", dir=BENCH) as scratch:
        bench = Bench(seeds=1 if options.quick else options.seeds, quick=options.quick, scratch=Path(scratch))
        for name in options.only:
            findings.append(run_one(name, bench))
            machine["versions"] |= bench.remembered.get("tensorflow", {})
            write_results(options.json, findings[-1], machine, bench)
    print("\n" + format_table(findings, quick=options.quick))
    print(f"\nEvery number: {options.json}")
    return int(any(finding.failed for finding in findings))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure linnaeus's figures beside their targets.")
    parser.add_argument(
        "--only", type=_names, default=list(BENCHMARKS), metavar="NAME[,NAME]", help=", ".join(BENCHMARKS)
    )
    parser.add_argument("--seeds", type=_positive, default=3, help="repeats of each training run (3)")
    parser.add_argument("--quick", action="store_true", help="one epoch, one seed: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where every number goes (results.json, here)")
    options = parser.parse_args(arguments)
    if options.json is None:
        options.json = BENCH / "results-quick.json" if options.quick else HERE / "results.json"
    return options


def _names(text: str) -> list[str]:
    names = text.split(",")
    if wrong := [name for name in names if name not in BENCHMARKS]:
        raise argparse.ArgumentTypeError(f"no benchmark {wrong[0]!r}; there are {', '.join(BENCHMARKS)}")
    return [name for name in BENCHMARKS if name in names]


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def run_one(name: str, bench: Bench) -> Finding:
    """Run one benchmark and tell each of its figures as it comes."""
    finding, start = Finding(name=name), time.perf_counter()
    try:
        for figure in BENCHMARKS[name](bench):
            finding.figures.append(figure)
            print(f"{name:<17} {' | '.join(_cells(figure, quick=bench.quick))}", flush=True)
    except Skip as reason:
        finding.skipped = str(reason)
        print(f"{name:<17} skipped: {reason}", flush=True)
    except (ProcessError, OSError, KeyError, ValueError) as error:
        finding.failed = f"{type(error).__name__}: {error}"
        print(f"{name:<17} failed: {finding.failed}", flush=True)
    finding.seconds = time.perf_counter() - start
    return finding


def write_results(path: Path, finding: Finding, machine: dict[str, Any], bench: Bench) -> None:
    """Put one benchmark's numbers, with the machine they are from, in the place of its older ones."""
    results = json.loads(path.read_text()) if path.is_file() else {}
    results[finding.name] = {"seeds": bench.seeds, "quick": bench.quick, **finding.to_dict(), "machine": machine}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def format_table(findings: Sequence[Finding], *, quick: bool = False) -> str:
    """Return the one table: figure, measured, target, met or missed."""
    rows = [("figure", "measured", "target", "")]
    for finding in findings:
        rows += [_cells(figure, quick=quick) for figure in finding.figures]
        if finding.skipped or finding.failed:
            rows.append((finding.name, "-", "-", f"skipped: {finding.skipped}" if finding.skipped else "failed"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    rows.insert(1, ("-" * widths[0], "-" * widths[1], "-" * widths[2], "------"))
    return "\n".join(
        f"{what:<{widths[0]}}  {measured:>{widths[1]}}  {target:>{widths[2]}}  {verdict}".rstrip()
        for what, measured, target, verdict in rows
    )


def _cells(figure: Figure, *, quick: bool) -> tuple[str, str, str, str]:
    verdict = {True: "met", False: "missed", None: ""}[figure.met]
    return figure.what, figure.measured, figure.target, "quick look" if quick and verdict else verdict


if __name__ == "__main__":
    sys.exit(main())
