"""TensorBoard events of a run, where TensorBoard is installed."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from linnaeus.results import EpochResult

_SHOWN = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "val_mean_ap",
    "learning_rate",
    "images_per_second",
)


class Tracker:
    """Writes each epoch's numbers; does nothing where TensorBoard is missing. It is imported at the first epoch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None
        self._there = importlib.util.find_spec("tensorboard") is not None

    def write(self, epoch: EpochResult) -> None:
        """Add the numbers of an epoch."""
        if not self._there:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for name, value in asdict(epoch).items():
            if name in _SHOWN and math.isfinite(value):
                self._writer.add_scalar(f"{epoch.stage}/{name}", value, epoch.epoch)

    def close(self) -> None:
        """Flush what was written."""
        if self._writer is not None:
            self._writer.close()
