"""Tasks: what one step computes. Whatever is new in learning is another task, never another loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from linnaeus.data.loaders import Batch
from linnaeus.images import Preprocess
from linnaeus.training.losses import Loss

_CACHED = 2**16  # floats that a core keeps at hand
_SIDE_SHARE = 0.3  # of an auxiliary head's loss (Szegedy et al. 2015)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step computed: the loss to follow (mean over the batch) and the logits float (n, K)."""

    loss: torch.Tensor
    logits: torch.Tensor


class Task(Protocol):
    """Computes one step."""

    def step(self, model: nn.Module, batch: Batch) -> StepResult:
        """Run the model on a batch and say how wrong it was."""
        ...


class Normalizer(nn.Module):
    """Turns pixels uint8 (N, C, H, W) into what the network expects: float32, mean and deviation removed."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocess.mean, device=device), torch.tensor(preprocess.std, device=device)
        self.scale, self.offset = 1 / (255 * std), -mean / std
        self._rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 (N, C, H, W) = (pixels / 255 - mean) / std, channels last."""
        n, channels, height, width = pixels.shape
        # Rows of all channels of all columns make one long inner loop, and blocks of them stay in a CPU's cache:
        # together four times as fast as broadcasting over three channels.
        rows = pixels.permute(0, 2, 3, 1).reshape(n * height, width * channels)
        images = torch.empty(rows.shape, device=rows.device)
        if width not in self._rows:
            self._rows[width] = self.scale.repeat(width), self.offset.repeat(width)
        scale, offset = self._rows[width]
        step = max(1, _CACHED // rows.shape[1]) if rows.device.type == "cpu" else max(1, len(rows))
        for start in range(0, len(rows), step):
            block = images[start : start + step]
            block.copy_(rows[start : start + step])
            torch.addcmul(offset, block, scale, out=block)
        return images.view(n, height, width, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Classification with labels: the loss of what the network, and each of its auxiliary heads, says of an image."""

    normalize: Normalizer
    loss: Loss = field(default_factory=Loss)

    def step(self, model: nn.Module, batch: Batch) -> StepResult:
        """Run the model on a batch and say how wrong it was."""
        answer = model(self.normalize(batch.pixels))
        logits, *others = answer if isinstance(answer, tuple) else (answer,)
        targets = batch.labels if batch.targets is None else batch.targets
        loss = self.loss(logits, targets)
        for other in others:
            loss = loss + _SIDE_SHARE * self.loss(other, targets)
        return StepResult(loss=loss, logits=logits)
