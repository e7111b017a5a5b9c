"""Losses: each maps logits float (N, K) and targets to one number in nats per image.

Targets are labels int64 (N,), or soft ones float (N, K) whose rows sum to 1, or, where an image may have several
labels, (N, K) with 1 for each that it has. Formulas, for an image with logits z,
p = softmax(z), target q (one-hot for a label, smoothed if asked for) and label y:

    cross_entropy  w_y * -sum_k q_k log p_k
    focal          w_y * -(1 - p_y)^gamma log p_y                          (Lin et al. 2017)
    bce            w_y * -mean_k [q_k log s(z_k) + (1 - q_k) log(1 - s(z_k))], s the sigmoid
    mse            w_y * mean_k (p_k - q_k)^2

The loss of a batch is the plain mean over its images. The weights w average 1 over the training images, so that a
weighted loss neither changes the scale of the gradient nor depends on how images fall into batches.

Of several labels each class is a question of its own, so that bce alone makes sense, smoothing spreads over yes and no,
q = (1 - s) y + s / 2, and what a class weighs is a factor v_k of its positive answers:

    bce            -mean_k [v_k q_k log s(z_k) + (1 - q_k) log(1 - s(z_k))]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_LEAST_UNSURE = 1e-7  # what 1 - p of float32 can hardly tell from 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """One of the losses with its numbers.

    Attributes:
        name: which. smoothing: in [0, 1), spread evenly over all classes (Szegedy et al. 2016).
        gamma: how much less focal counts what is known well already.
        weights: float (K,), of each class; None for 1.
        adjustment: float (K,), added to the logits, in training alone (Menon et al. 2021); None for 0.
        several: whether an image may have several labels. positive: float (K,), v_k of these; None for 1.
    """

    name: str = "cross_entropy"
    smoothing: float = 0.0
    gamma: float = 2.0
    weights: torch.Tensor | None = None
    adjustment: torch.Tensor | None = None
    several: bool = False
    positive: torch.Tensor | None = None

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over a batch."""
        z = logits.float()  # a bf16 log-softmax has two to three digits
        if self.adjustment is not None:
            z = z + self.adjustment
        if self.name == "cross_entropy" and self.weights is None:
            return F.cross_entropy(z, targets, label_smoothing=self.smoothing)
        losses = _FORMULAS[self.name](z, self._soften(targets, z.shape[1]), self)
        return (losses if self.weights is None else losses * self._weigh(targets)).mean()

    def _soften(self, targets: torch.Tensor, classes: int) -> torch.Tensor:
        """Return the targets as float (N, K), smoothed."""
        soft = (F.one_hot(targets, classes) if targets.ndim == 1 else targets).float()
        return soft * (1 - self.smoothing) + self.smoothing / (2 if self.several else classes)

    def _weigh(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the weight of each image, float (N,)."""
        assert self.weights is not None
        return self.weights[targets] if targets.ndim == 1 else targets @ self.weights


def _cross_entropy(z: torch.Tensor, q: torch.Tensor, loss: Loss) -> torch.Tensor:
    return -(q * F.log_softmax(z, dim=1)).sum(dim=1)


def _focal(z: torch.Tensor, q: torch.Tensor, loss: Loss) -> torch.Tensor:
    log_p = F.log_softmax(z, dim=1)
    # Of exactly 0 a power below 1 has no finite slope: one sure answer would spoil all weights.
    unsure = (1 - log_p.exp()).clamp(min=_LEAST_UNSURE)
    return -(q * unsure**loss.gamma * log_p).sum(dim=1)


def _bce(z: torch.Tensor, q: torch.Tensor, loss: Loss) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(z, q, pos_weight=loss.positive, reduction="none").mean(dim=1)


def _mse(z: torch.Tensor, q: torch.Tensor, loss: Loss) -> torch.Tensor:
    return (F.softmax(z, dim=1) - q).square().mean(dim=1)


_FORMULAS: dict[str, Callable[[torch.Tensor, torch.Tensor, Loss], torch.Tensor]] = {
    "cross_entropy": _cross_entropy,
    "focal": _focal,
    "bce": _bce,
    "mse": _mse,
}
