"""Segments of training in turn: linnaeus's loop and loader, and loop_rival.py, in one process.

    python loop_segments.py --model simple_cnn --batch-size 32 --images 2048 --pairs 11

Both train the same network from the same weights on the same images in memory, with the same number of equal batches,
fused Adam, precision and threads. A segment is one epoch. The last line printed tells the seconds of each.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable

import loop_rival
import numpy as np
import torch

from linnaeus.data.cache import PackedPixels
from linnaeus.data.loaders import Loader
from linnaeus.images import Preprocess
from linnaeus.models.registry import Blueprint, Classifier, create_model
from linnaeus.results import Validation
from linnaeus.runtime import available_cores, choose_precision, keep_memory
from linnaeus.training.checkpoint import State
from linnaeus.training.loop import fit
from linnaeus.training.optim import Rule, Schedule, make_optimizer
from linnaeus.training.plan import Hooks, Plan
from linnaeus.training.tasks import Normalizer, Supervised

_CPU = torch.device("cpu")
_SIDE = 32


def ours(model: Classifier, pixels: np.ndarray, labels: np.ndarray, batch_size: int) -> Callable[[], None]:
    """Return what trains one epoch with linnaeus."""
    rule = Rule(optimizer="adam", lr=1e-3)
    half = (0.5, 0.5, 0.5)
    preprocess = Preprocess(height=_SIDE, width=_SIDE, channels=3, fit="stretch", mean=half, std=half)
    task = Supervised(normalize=Normalizer(preprocess, _CPU))
    loader = Loader(
        pixels=PackedPixels(array=pixels), labels=labels, indices=np.arange(len(labels)), batch_size=batch_size,
        shuffle=True, workers=0,
    )  # fmt: skip
    hooks = Hooks(
        judge=lambda network: Validation(loss=0.0, accuracy=0.0), save=lambda state: None, on_epoch=lambda result: False
    )
    state = State(model=model, optimizer=make_optimizer(model, rule))

    def segment() -> None:
        plan = Plan(
            rule=rule, schedule=Schedule(shape="constant"), epochs=state.epoch + 1, precision=choose_precision(_CPU)
        )
        fit(state, task, loader, plan, hooks)

    return segment


def theirs(model: Classifier, pixels: np.ndarray, labels: np.ndarray, batch_size: int) -> Callable[[], None]:
    """Return what trains one epoch by hand."""
    data = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels)
    optimizer = loop_rival.make_optimizer(model)
    precision = choose_precision(_CPU)

    def segment() -> None:
        loop_rival.train_epoch(model, optimizer, data, batch_size=batch_size, precision=precision)

    return segment


def time_segments(sides: dict[str, Callable[[], None]], pairs: int) -> dict[str, list[float]]:
    """Return the seconds of each segment, after one of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(-1, pairs):
        for name in sorted(sides, reverse=i % 2 == 0):
            start = time.perf_counter()
            sides[name]()
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Time the segments and print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True)
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(available_cores())
    torch.manual_seed(0)
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (options.images, _SIDE, _SIDE, 3), dtype=np.uint8)
    labels = chance.integers(0, 10, options.images)
    model = create_model(Blueprint(name=options.model, classes=10, channels=3, size=_SIDE))
    model = model.to(memory_format=torch.channels_last)
    sides = {
        "ours": ours(copy.deepcopy(model), pixels, labels, options.batch_size),
        "theirs": theirs(copy.deepcopy(model), pixels, labels, options.batch_size),
    }
    print(json.dumps(time_segments(sides, options.pairs)))


if __name__ == "__main__":
    main()
