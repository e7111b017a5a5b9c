"""The first minute: `linnaeus demo` on 1,797 scanned digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator

from measuring import Bench, Figure, accuracy_of, mean, run_linnaeus


def measure(bench: Bench) -> Iterator[Figure]:
    """Test accuracy (mean of the seeds 0, 1, 2) and the longest wall time. Targets: 98.5 % and 60 s."""
    seconds, accuracies = [], []
    for seed in range(1 if bench.quick else 3):
        out = bench.folder("run") / "run"
        seconds.append(run_linnaeus("demo", "--seed", str(seed), "--out", out).seconds)
        accuracies.append(accuracy_of(out))
    details = {"seconds": seconds, "accuracies": accuracies}
    yield Figure(what="digits: test accuracy", value=mean(accuracies), unit=" %", at_least=98.5, details=details)
    yield Figure(what="digits: longest wall time", value=max(seconds), unit=" s", at_most=60.0, details=details)
