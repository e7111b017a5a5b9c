"""Two images in one, with both their labels: mixup and CutMix. Chance comes from (seed, epoch, sample) alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from linnaeus.data.augment import draw

_STREAM = 2_000_003  # apart from the streams that augmentation draws from


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How much of another image is mixed into each.

    Attributes:
        mixup, cutmix: alpha of the Beta(alpha, alpha) that the share is drawn from, 0 for never. With both, each
            image gets the one or the other. classes: K.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    classes: int = 0

    def __bool__(self) -> bool:
        """Whether anything is mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def apply(
        self,
        images: tuple[torch.Tensor, torch.Tensor],
        labels: tuple[torch.Tensor, torch.Tensor],
        *,
        seed: int,
        epoch: int,
        samples: NDArray[np.int64],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix images uint8 (N, C, H, W) with others of the same shape, and their labels, int64 (N,) or uint8 (N, K).

        Returns uint8 (N, C, H, W) and soft targets float32 (N, K):

            mixup   x = r a + (1 - r) b,                          q = r onehot(a) + (1 - r) onehot(b)
            cutmix  x = b within a box of 1 - r of the area, a elsewhere, r then what is left of a

        (Zhang et al. 2018; Yun et al. 2019).
        """
        from scipy.special import betaincinv

        chance = [draw(seed, epoch, samples, _STREAM + i) for i in range(4)]
        cuts = chance[0] < 0.5 if self.mixup and self.cutmix else np.full(len(samples), bool(self.cutmix))
        alphas = np.where(cuts, self.cutmix, self.mixup)
        kept = betaincinv(alphas, alphas, chance[1])
        inside = _boxes(images[0].shape[2:], kept, chance[2], chance[3]) & torch.from_numpy(cuts)[:, None, None]
        shares = torch.from_numpy(np.where(cuts, 1 - inside.float().mean(dim=(1, 2)).numpy(), kept)).float()
        mixed = torch.where(inside[:, None], images[1], self._blend(images, shares, torch.from_numpy(cuts)))
        first, second = (self._as_rows(each) for each in labels)
        targets = shares[:, None] * first + (1 - shares[:, None]) * second
        return mixed.contiguous(memory_format=torch.channels_last), targets

    def _as_rows(self, labels: torch.Tensor) -> torch.Tensor:
        """Return float (N, K): 1 where an image has a label."""
        return (F.one_hot(labels, self.classes) if labels.ndim == 1 else labels).float()

    def _blend(
        self, images: tuple[torch.Tensor, torch.Tensor], shares: torch.Tensor, cuts: torch.Tensor
    ) -> torch.Tensor:
        """Return mixed images where they are not cut, the first ones elsewhere."""
        if not self.mixup:
            return images[0]
        weight = torch.where(cuts, torch.ones_like(shares), shares)[:, None, None, None]
        return torch.lerp(images[1].float(), images[0].float(), weight).round_().to(torch.uint8)


def _boxes(
    shape: torch.Size, kept: NDArray[np.float64], across: NDArray[np.float64], down: NDArray[np.float64]
) -> torch.Tensor:
    """Return bool (N, H, W): a box of 1 - kept of the area about a random middle, cut off at the edges."""
    places = []
    for side, middle in zip(shape, (down, across)):
        half = np.sqrt(1 - kept) * side / 2
        low, high = np.rint(middle * side - half), np.rint(middle * side + half)
        at = np.arange(side)[None]
        places.append((at >= low[:, None]) & (at < high[:, None]))
    return torch.from_numpy(places[0][:, :, None] & places[1][:, None, :])
