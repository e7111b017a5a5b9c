"""Small pictures from scratch, by the default recipe within a budget of time: MNIST, Fashion-MNIST, CIFAR-10."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from measuring import Bench, Figure, data_folder, judge_run, mean, run_linnaeus


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A data set, the time that a training of it may take, and the test accuracy wanted, in percent."""

    folder: str
    title: str
    budget: str
    accuracy: float


GOALS = (
    Goal(folder="mnist", title="MNIST", budget="5m", accuracy=99.6),
    Goal(folder="fashion_mnist", title="Fashion-MNIST", budget="30m", accuracy=94.5),
    Goal(folder="cifar-10-batches-bin", title="CIFAR-10", budget="20m", accuracy=91.0),
)


def measure(bench: Bench) -> Iterator[Figure]:
    """`linnaeus train SET --budget B`: test accuracy, mean over the seeds, judged on every test picture."""
    for goal in GOALS:
        data, budget = data_folder(goal.folder), "20s" if bench.quick else goal.budget
        accuracies, seconds = [], []
        for seed in range(bench.seeds):
            out = bench.folder("run") / "run"
            done = run_linnaeus("train", data, "--budget", budget, "--seed", str(seed), "--out", out)
            seconds.append(done.seconds)
            accuracies.append(judge_run(out, data))
        yield Figure(
            what=f"{goal.title}, budget {budget} ({max(seconds):.0f} s taken): test accuracy",
            value=mean(accuracies), unit=" %", at_least=goal.accuracy,
            details={"accuracies": accuracies, "seconds": seconds},
        )  # fmt: skip
