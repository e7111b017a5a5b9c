"""Classes of unequal size: CIFAR-10 cut so that the largest class has 50 times the images of the smallest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measuring import Bench, Figure, data_folder, mean, run_linnaeus

_LARGEST, _RATIO = 5_000, 50
_PLAIN = ("logit_adjustment=0", "class_weights=none", "sampling=none")


def measure(bench: Bench) -> Iterator[Figure]:
    """Train by the default recipe, and with every remedy for imbalance turned off; both tested on 1,000 of each class.

    Target: macro F1 at least 5 points higher (mean over the seeds).
    """
    table = cut(bench)
    epochs = "1" if bench.quick else "15"
    scores: dict[str, list[float]] = {"auto": [], "plain": []}
    for seed in range(bench.seeds):
        for name, pairs in (("auto", ()), ("plain", _PLAIN)):
            out = bench.folder("run") / "run"
            run_linnaeus("train", table, *pairs, "--epochs", epochs, "--seed", str(seed), "--out", out)
            report = json.loads((out / "report.json").read_text())
            scores[name].append(100 * report["scores"]["test"]["macro_f1"])
    yield Figure(
        what=f"CIFAR-10, classes up to 1:{_RATIO}: macro F1 of auto less that of plain training",
        value=mean(scores["auto"]) - mean(scores["plain"]), unit=" points", at_least=5.0, details=scores,
    )  # fmt: skip


def cut(bench: Bench) -> Path:
    """Write an .npz of CIFAR-10 whose classes shrink geometrically, with the whole test part."""
    from linnaeus.data.sources import open_source

    source = open_source(str(data_folder("cifar-10-batches-bin")))
    assert source.split is not None
    chance, kept = np.random.default_rng(0), []
    classes = len(source.classes)
    for k in range(classes):
        members = np.flatnonzero((source.labels == k) & (source.split == 0))
        kept.append(chance.permutation(members)[: round(_LARGEST * _RATIO ** (-k / (classes - 1)))])
    train, test = np.sort(np.concatenate(kept)), np.flatnonzero(source.split == 2)
    images, file = np.asarray(source.images), bench.folder("cut") / "unequal.npz"
    np.savez(file, x_train=images[train], y_train=source.labels[train], x_test=images[test], y_test=source.labels[test])
    return file
