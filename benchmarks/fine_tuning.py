"""Ways of fine-tuning on photographs of waste (trashnet): weights that learn, seconds, accuracy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import Bench, Figure, data_folder, judge_run, mean, run_linnaeus

METHODS = ("full", "head", "staged", "bias", "norm", "lora", "adapter")
FEW = ("bias", "norm", "lora", "adapter")
_EPOCHS = 8


def measure(bench: Bench) -> Iterator[Figure]:
    """`linnaeus train trashnet finetune=METHOD` with EfficientNet-Lite0 and fixed epochs, on all training pictures.

    The target: the best of the methods that train less than 5 % of the weights is within a point of all of them.
    """
    folder, cache = data_folder("trashnet"), bench.folder("cache")
    found: dict[str, dict[str, list[float]]] = {method: _train_all(bench, folder, cache, method) for method in METHODS}
    for line in format_methods(found):
        print(line, flush=True)
    for method, details in found.items():
        yield Figure(
            what=f"trashnet, finetune={method}: test accuracy",
            value=mean(details["accuracies"]), unit=" %", details=details,
        )  # fmt: skip
    few = {method: found[method] for method in FEW if mean(found[method]["shares"]) < 5.0}
    best = max((mean(details["accuracies"]) for details in few.values()), default=0.0)
    yield Figure(
        what="trashnet: the best with less than 5 % of the weights, less all",
        value=best - mean(found["full"]["accuracies"]), unit=" points", at_least=-1.0, details={"methods": list(few)},
    )  # fmt: skip


def format_methods(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return the table of all methods, line by line."""
    lines = [f"{'finetune':<10}{'weights':>12}{'share':>9}{'seconds':>9}{'accuracy':>10}"]
    for method, details in found.items():
        weights, share, seconds, accuracy = (mean(details[n]) for n in ("weights", "shares", "seconds", "accuracies"))
        lines.append(f"{method:<10}{weights:>12,.0f}{share:>7.2f} %{seconds:>9.0f}{accuracy:>8.1f} %")
    return lines


def _train_all(bench: Bench, folder: Path, cache: Path, method: str) -> dict[str, list[float]]:
    runs = [_train(bench, folder, cache, method, seed=seed) for seed in range(bench.seeds)]
    return {name: [run[name] for run in runs] for name in runs[0]}


def _train(bench: Bench, folder: Path, cache: Path, method: str, *, seed: int) -> dict[str, float]:
    """Return how many weights learned, their share in percent, seconds of training and test accuracy in percent."""
    out, epochs = bench.folder("run") / "run", 1 if bench.quick else _EPOCHS
    given = ("model=efficientnet_lite0", f"epochs={epochs}", f"finetune={method}", f"seed={seed}")
    small = ("image_size=64",) if bench.quick else ()
    run_linnaeus("train", folder, *given, *small, "--out", out, cache=cache)
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    trained, of = report["model"]["trained_parameters"], report["model"]["parameters"]
    return {
        "weights": trained,
        "shares": 100.0 * trained / of,
        "seconds": report["timing"]["stages"]["training"],
        "accuracies": judge_run(out, folder, cache=cache),
    }
