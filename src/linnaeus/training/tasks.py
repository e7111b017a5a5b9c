"""Tasks: what one step computes. Whatever is new in learning is another task, never another loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from linnaeus.data.loaders import Batch
from linnaeus.images import Preprocess
from linnaeus.training.losses import cross_entropy


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step computed: the loss to follow (mean over the batch), the logits float (n, K), and numbers to log."""

    loss: torch.Tensor
    logits: torch.Tensor
    logs: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """Computes one step."""

    def step(self, model: nn.Module, batch: Batch) -> StepResult:
        """Run the model on a batch and say how wrong it was."""
        ...


class Normalizer(nn.Module):
    """Turns pixels uint8 (N, C, H, W) into what the network expects: float32, mean and deviation removed."""

    def __init__(self, preprocess: Preprocess, device: torch.device) -> None:
        super().__init__()
        shape = (1, -1, 1, 1)
        mean = torch.tensor(preprocess.mean, device=device).reshape(shape)
        std = torch.tensor(preprocess.std, device=device).reshape(shape)
        self.scale, self.offset = 1 / (255 * std), mean / std

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return float32 (N, C, H, W) = (pixels / 255 - mean) / std, channels last."""
        images = pixels.float() * self.scale - self.offset
        return images.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Classification with labels: cross-entropy of what the network says of each image."""

    normalize: Normalizer
    smoothing: float = 0.0

    def step(self, model: nn.Module, batch: Batch) -> StepResult:
        """Run the model on a batch and say how wrong it was."""
        logits = model(self.normalize(batch.pixels))
        return StepResult(loss=cross_entropy(logits, batch.labels, smoothing=self.smoothing), logits=logits)
