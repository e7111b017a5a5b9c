"""What the loop is told: how long and how to train, and what to ask of its surroundings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from linnaeus.data.loaders import Batch
from linnaeus.results import EpochResult, Validation
from linnaeus.runtime import World
from linnaeus.training.checkpoint import State
from linnaeus.training.optim import Rule, Schedule

_HALF_FROM, _FULL_FROM = 0.25, 0.65  # progress at which growing pictures reach the middle and the full side

Watch = Callable[[Iterable[Batch], int], Iterable[Batch]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how to train.

    Attributes:
        epochs: after which training ends. steps, time_limit: optimizer steps and seconds of training after which it
            ends all the same; the schedule follows whichever runs out first.
        ema: decay per step of the weights' moving average. swa: share of the run, its end, over which they are averaged
            evenly instead (Izmailov et al. 2018). Of both, the average is judged.
        patience: epochs without a better result before it stops, 0 for never.
        size: side of the pictures. grow: share of it at which training begins (progressive resizing, Howard 2018).
        freeze_norms: keep the batch statistics of a pretrained network.
    """

    rule: Rule
    schedule: Schedule
    epochs: int
    steps: float = math.inf
    time_limit: float = math.inf
    accumulate: int = 1
    clip_norm: float = 0.0
    ema: float = 0.0
    swa: float = 0.0
    patience: int = 0
    size: int = 0
    grow: float = 1.0
    freeze_norms: bool = False
    precision: str = "fp32"
    seed: int = 0
    checkpoint_every: float = math.inf
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    world: World = field(default_factory=World)


def side_at(progress: float, size: int, grow: float) -> int:
    """Return the side of growing pictures at a progress in [0, 1], a multiple of 8 below the full one."""
    if progress >= _FULL_FROM or grow == 1.0:
        return size
    share = grow if progress < _HALF_FROM else (1 + grow) / 2
    return min(size, max(8, 8 * round(size * share / 8)))


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop asks of its surroundings.

    Attributes:
        judge: returns how a network does on validation. save: writes a checkpoint.
        on_epoch: told of each finished epoch; returns whether to stop. interrupted: whether a signal asked to stop.
        refresh: brings the batch statistics of averaged weights up to date before they are judged.
        keep: keeps the weights at the end of a cycle of the learning rate, the `state.snapshots`-th.
        watch: wraps the batches of an epoch, to show progress.
        on_parts: told in how many parts batches are computed from now on, because memory did not suffice.
        release: told the progress before each step, it may freeze weights and let others learn; returns whether it did.
    """

    judge: Callable[[nn.Module], Validation]
    save: Callable[[State], None]
    on_epoch: Callable[[EpochResult], bool]
    interrupted: Callable[[], bool] = lambda: False
    refresh: Callable[[nn.Module], None] = lambda network: None
    keep: Callable[[State], None] = lambda state: None
    watch: Watch = lambda batches, total: batches
    on_parts: Callable[[int], None] = lambda parts: None
    release: Callable[[float], bool] = lambda progress: False
