"""The loop that one writes by hand in PyTorch, with what makes it fast on a CPU. Knows nothing of linnaeus."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import nn


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[torch.Tensor, torch.Tensor],
    *,
    batch_size: int,
    precision: str,
) -> float:
    """Train one epoch on images uint8 (N, C, H, W), channels last, and labels int64 (N,); return the mean loss."""
    images, labels = data
    total = 0.0
    model.train()
    for chosen in torch.randperm(len(images)).split(batch_size):
        batch = (images[chosen].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        cast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
        with cast:
            loss = F.cross_entropy(model(batch).float(), labels[chosen])
        loss.backward()
        optimizer.step()
        total += loss.item() * len(chosen)
    return total / len(images)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return Adam in its fastest form."""
    return torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
