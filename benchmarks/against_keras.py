"""The usual first CNN: Keras as introductions write it (keras_rival.py) against `linnaeus train`.

Both are whole processes, from the shell to the test accuracy; linnaeus also exports, proves and reports in that time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measuring import (
    HERE,
    Bench,
    Figure,
    data_folder,
    in_rounds,
    judge_run,
    mean,
    median,
    ratios,
    run_linnaeus,
    run_process,
)
from own_home import find_tensorflow, plain_environment

_FOLDERS = {"cifar10": "cifar-10-batches-bin", "fashion_mnist": "fashion_mnist"}
_EPOCHS = {"cifar10": 10, "fashion_mnist": 5}
_TITLES = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST"}

# The same network, optimizer and images as in Keras, and nothing that Keras does not do. linnaeus must hold some
# training images back to choose by: the fewest that it allows.
PLAIN = (
    "model=simple_cnn", "optimizer=adam", "schedule=constant", "warmup=0", "weight_decay=0", "label_smoothing=0",
    "ema=0", "crop=1", "colour=0", "erase=0", "val_fraction=0.01",
)  # fmt: skip
UNCHANGED = ("rotate=0", "shift=0", "flip=false")
AUGMENTED = ("rotate=15", "shift=0.1", "flip=true")
SAME_BATCH = ("batch_size=32", "lr=0.001")
OWN_BATCH = ("batch_size=256", "lr=0.003")  # the rate grows with the root of the batch, as Adam's noise asks

SHARES = (0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5)  # of Keras's time, tried in turn until its accuracy is reached


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: wall seconds of the whole process, test accuracy in percent."""

    seconds: float
    accuracy: float


def measure_same(bench: Bench) -> Iterator[Figure]:
    """Compare the same CNN on the same images for the same epochs: wall time over Keras's, accuracy less Keras's.

    Targets: at most 0.5 with Keras's batch of 32, 0.36 with a batch of 256, 0.25 with a batch of 256 and the
    introductions' augmentation, each at an accuracy at most 0.5 points lower (mean over the seeds).
    """
    _warm(*_FOLDERS)
    for name in _FOLDERS:
        sides = {
            "Keras": _keras(bench, name),
            "batch 32": _plain(bench, name, *SAME_BATCH, *UNCHANGED),
            "batch 256": _plain(bench, name, *OWN_BATCH, *UNCHANGED),
        }
        runs = in_rounds(sides, bench.seeds)
        bench.remembered[name] = runs["Keras"]
        yield from _compare(f"{_TITLES[name]}, batch 32", runs["batch 32"], runs["Keras"], most=0.5)
        yield from _compare(f"{_TITLES[name]}, batch 256", runs["batch 256"], runs["Keras"], most=0.36)
    sides = {
        "Keras": _keras(bench, "cifar10", "--augment"),
        "batch 256": _plain(bench, "cifar10", *OWN_BATCH, *AUGMENTED),
    }
    runs = in_rounds(sides, bench.seeds)
    yield from _compare("CIFAR-10, augmented, batch 256", runs["batch 256"], runs["Keras"], most=0.25)


def measure_time_to_accuracy(bench: Bench) -> Iterator[Figure]:
    """Compare the default recipe on CIFAR-10 with Keras's ten epochs.

    First: the shortest of the budgets tried whose test accuracy (mean over the seeds) is at least Keras's, as wall
    time over Keras's; target: at most 0.1. Second: the test accuracy at a budget of Keras's own time; target: at
    least 84 %.
    """
    _warm("cifar10")
    if "cifar10" not in bench.remembered:
        bench.remembered["cifar10"] = in_rounds({"Keras": _keras(bench, "cifar10")}, bench.seeds)["Keras"]
    keras: list[Run] = bench.remembered["cifar10"]
    wanted, time = mean([run.accuracy for run in keras]), median([run.seconds for run in keras])
    tried: dict[str, list[Run]] = {}
    for share in SHARES:
        runs = tried[f"{share:g}"] = _default(bench, share * time)
        if mean([run.accuracy for run in runs]) >= wanted:
            break
    reached = mean([run.accuracy for run in runs])
    yield Figure(
        what=f"CIFAR-10, to Keras's {wanted:.1f} % ({reached:.1f} % reached): wall time / Keras",
        # Where even the largest budget does not get there, that is no figure below the target either.
        value=median([run.seconds for run in runs]) / time if reached >= wanted else 1.0,
        at_most=0.1,
        details={"keras": _rows(keras), "tried": {share: _rows(found) for share, found in tried.items()}},
    )
    runs = _default(bench, time)
    yield Figure(
        what=f"CIFAR-10, test accuracy in Keras's {time:.0f} s (Keras {wanted:.1f} %)",
        value=mean([run.accuracy for run in runs]),
        unit=" %",
        at_least=84.0,
        details={"linnaeus": _rows(runs), "keras": _rows(keras)},
    )


def _warm(*names: str) -> None:
    """Start both sides once, so that neither reads its packages from the disk when it counts."""
    for name in names:
        data_folder(_FOLDERS[name])  # what is missing is told before anything is measured
    run_process([find_tensorflow(), "-c", "import tensorflow, scipy"], env=plain_environment())
    run_linnaeus("models")


def _keras(bench: Bench, name: str, *options: str) -> Callable[[int], Run]:
    """Return what trains with Keras, with one seed after the other."""
    python, folder = find_tensorflow(), data_folder(_FOLDERS[name])

    def train(seed: int) -> Run:
        numbers = ("--epochs", str(_epochs(bench, name)), "--seed", str(seed))
        command = (python, HERE / "keras_rival.py", name, folder, *numbers, *options)
        outcome = run_process(command, env=plain_environment())
        found = outcome.json()
        bench.remembered["tensorflow"] = found["versions"]
        return Run(seconds=outcome.seconds, accuracy=found["accuracy"])

    return train


def _plain(bench: Bench, name: str, *settings: str) -> Callable[[int], Run]:
    """Return what trains the same network with linnaeus."""
    epochs = f"epochs={_epochs(bench, name)}"
    return lambda seed: _train(bench, data_folder(_FOLDERS[name]), *PLAIN, *settings, epochs, f"seed={seed}")


def _default(bench: Bench, seconds: float) -> list[Run]:
    """Train by the default recipe for this long, with each seed."""
    folder = data_folder(_FOLDERS["cifar10"])
    return [_train(bench, folder, f"budget={seconds:.2f}s", f"seed={seed}") for seed in range(bench.seeds)]


def _train(bench: Bench, folder: Path, *settings: str) -> Run:
    out = bench.folder("run") / "run"
    outcome = run_linnaeus("train", folder, "--out", out, *settings)
    return Run(seconds=outcome.seconds, accuracy=judge_run(out, folder))


def _epochs(bench: Bench, name: str) -> int:
    return 1 if bench.quick else _EPOCHS[name]


def _compare(title: str, ours: Sequence[Run], keras: Sequence[Run], *, most: float) -> Iterator[Figure]:
    details: Mapping[str, Any] = {"linnaeus": _rows(ours), "keras": _rows(keras)}
    seconds, others = ([run.seconds for run in runs] for runs in (ours, keras))
    yield Figure(
        what=f"{title}: wall time / Keras ({median(seconds):.0f} s / {median(others):.0f} s)",
        value=median(ratios(seconds, others)),
        at_most=most,
        details=details,
    )
    accuracies, theirs = (mean([run.accuracy for run in runs]) for runs in (ours, keras))
    yield Figure(
        what=f"{title}: test accuracy less Keras's ({accuracies:.1f} % less {theirs:.1f} %)",
        value=accuracies - theirs,
        unit=" points",
        at_least=-0.5,
        details=details,
    )


def _rows(runs: Sequence[Run]) -> list[dict[str, float]]:
    return [asdict(run) for run in runs]
