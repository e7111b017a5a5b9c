"""Photographs with few labels: trashnet with 20 pictures a class, tested on its 499, with fastai beside linnaeus."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measuring import HERE, Bench, Figure, data_folder, judge_run, mean, run_linnaeus, run_process, run_script
from own_home import find_home, plain_environment

_A_CLASS = 20
_DRAWS = 5
_SHORT, _LONG = "15s", "3m"  # of the whole command; training is what of it is neither start, reading nor judging
_EPOCHS = (5, 20)  # of fastai's fine_tune
_PACKAGES = ("fastai", "timm", "safetensors")


def measure(bench: Bench) -> Iterator[Figure]:
    """Train on 20 pictures a class, drawn anew each time; both sides start from the same weights.

    Targets: at least 74 % after at most 5 s of training, at least 77 % within 3 minutes (means of 5 draws).
    """
    tables = [draw(bench, seed) for seed in range(1 if bench.quick else _DRAWS)]
    _train(bench, tables[0], _SHORT)  # packs the pictures, and does not count
    for budget, at_least in ((_SHORT, 74.0), (_LONG, 77.0)):
        runs = [_train(bench, table, budget) for table in tables]
        details = {"accuracies": [run[0] for run in runs], "training_seconds": [run[1] for run in runs]}
        yield Figure(
            what=f"trashnet, {_A_CLASS} a class, budget {budget}: test accuracy",
            value=mean(details["accuracies"]), unit=" %", at_least=at_least, details=details,
        )  # fmt: skip
        if budget == _SHORT:
            yield Figure(
                what=f"trashnet, {_A_CLASS} a class, budget {budget}: longest training",
                value=max(details["training_seconds"]), unit=" s", at_most=5.0, details=details,
            )  # fmt: skip
    yield from _beside(bench, tables[0])


def draw(bench: Bench, seed: int) -> Path:
    """Write a table of 20 random training pictures a class and every test picture."""
    folder, chance = data_folder("trashnet"), np.random.default_rng(seed)
    rows = [(path, path.parent.name, "test") for path in sorted((folder / "test").glob("*/*"))]
    for place in sorted((folder / "train").iterdir()):
        files = sorted(place.iterdir())
        rows += [(files[i], place.name, "train") for i in chance.permutation(len(files))[:_A_CLASS]]
    table = bench.folder("draw") / "few.csv"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "split"), *rows])
    return table


def _train(bench: Bench, table: Path, budget: str) -> tuple[float, float]:
    """Return test accuracy in percent and seconds of training."""
    out = bench.folder("run") / "run"
    run_linnaeus("train", table, "--budget", budget, "--out", out)
    stages = json.loads((out / "report.json").read_text())["timing"]["stages"]
    return judge_run(out, table), float(stages["training"])


def _beside(bench: Bench, table: Path) -> Iterator[Figure]:
    """Tell what fastai makes of the first draw, from the same weights."""
    python = find_home("fastai", _PACKAGES, proof="import fastai.vision.all, timm")
    weights = bench.folder("weights") / "lite0.safetensors"
    run_script("few_labels_weights.py", weights)
    for epochs in _EPOCHS[:1] if bench.quick else _EPOCHS:
        told = run_process(
            [python, HERE / "few_labels_rival.py", table, weights, str(epochs)], env=plain_environment()
        ).json()
        yield Figure(
            what=f"the same, first draw: fastai's fine_tune({epochs}), {told['seconds']:.0f} s of training",
            value=told["accuracy"], unit=" %", details=told,
        )  # fmt: skip
