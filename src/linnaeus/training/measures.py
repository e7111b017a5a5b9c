"""How right logits are, where an image has one label and where it may have several. Logits are float (N, K).

Labels are int64 (N,), or uint8 (N, K) with 1 where an image has a label.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from linnaeus.evaluation.multilabel import average_precision, mean_defined


def sum_losses(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the sum over images of cross-entropy, or of the mean binary cross-entropy of several labels, in nats."""
    if labels.ndim == 1:
        return float(F.cross_entropy(logits, labels, reduction="sum"))
    losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    return float(losses.mean(dim=1).sum())


def count_right(logits: torch.Tensor, labels: torch.Tensor) -> int:
    """Return how many images are answered wholly right; of several labels, those of a probability from 0.5 on count."""
    if labels.ndim == 1:
        return int((logits.argmax(dim=1) == labels).sum())
    return int(((logits >= 0) == (labels > 0)).all(dim=1).sum())


def rank_labels(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the mean average precision in [0, 1] of several labels, NaN where images have one."""
    if labels.ndim == 1:
        return math.nan
    return mean_defined(average_precision(logits.float().cpu().numpy(), labels.cpu().numpy()))
