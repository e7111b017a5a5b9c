"""Losses: each maps logits float (N, K) and labels int64 (N,) to one number in nats."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy; `smoothing` in [0, 1) is spread evenly over all classes (Szegedy et al. 2016)."""
    # In float32: a bf16 log-softmax has two to three digits.
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
