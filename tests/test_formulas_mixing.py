"""Mixed images and the sizes of crops: published formulas in NumPy, against what training images become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from linnaeus.data.augment import Augment
from linnaeus.data.mixing import Mix

COUNT = 3000


def mix(pixels: NDArray[np.uint8], **alphas: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mix two images uint8 (2, H, W) many times. Returns float64 (N, H, W) and the first one's share of each target."""
    first, second = (torch.from_numpy(image)[None, None].expand(COUNT, -1, -1, -1) for image in pixels)
    labels = torch.zeros(COUNT, dtype=torch.int64), torch.full((COUNT,), 2)
    mixed, targets = Mix(classes=3, **alphas).apply((first, second), labels, seed=0, epoch=0, samples=np.arange(COUNT))
    shares = targets.double().numpy()
    np.testing.assert_allclose(
        shares, np.outer(shares[:, 0], [1, 0, 0]) + np.outer(1 - shares[:, 0], [0, 0, 1]), atol=1e-6
    )
    return mixed[:, 0].double().numpy(), shares[:, 0]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup(alpha: float) -> None:
    """Pixels are r a + (1 - r) b and targets r onehot(a) + (1 - r) onehot(b), r from Beta(alpha, alpha).

    (Zhang et al. 2018)
    """
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7), dtype=np.uint8)
    mixed, r = mix(pixels, mixup=alpha)
    a, b = pixels.astype(np.float64)
    assert np.abs(mixed - (r[:, None, None] * a + (1 - r[:, None, None]) * b)).max() <= 0.51
    assert r.mean() == pytest.approx(0.5, abs=0.02)
    assert r.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 8.0])
def test_cutmix(alpha: float) -> None:
    """A box with sides of sqrt(1 - r), r from Beta(alpha, alpha), about any point; the target counts its pixels.

    Sides of s are cut off at the edges to s - s^2 / 4 on average (Yun et al. 2019).
    """
    mixed, share = mix(np.stack([np.zeros((30, 50), np.uint8), np.full((30, 50), 255, np.uint8)]), cutmix=alpha)
    inside = mixed == 255
    assert (inside | (mixed == 0)).all()
    np.testing.assert_allclose(share, 1 - inside.mean(axis=(1, 2)), atol=1e-6)
    rows, columns = inside.any(axis=2).sum(axis=1) / 30, inside.any(axis=1).sum(axis=1) / 50
    np.testing.assert_allclose(rows * columns, inside.mean(axis=(1, 2)))
    whole = ~(
        inside[:, 0].any(axis=1)
        | inside[:, -1].any(axis=1)
        | inside[:, :, 0].any(axis=1)
        | inside[:, :, -1].any(axis=1)
    )
    assert np.abs(rows - columns)[whole].max() < 2 / 30
    s = np.sqrt(1 - np.random.default_rng(0).beta(alpha, alpha, 200_000))
    assert inside.mean() == pytest.approx(((s - s**2 / 4) ** 2).mean(), rel=0.04)
    assert rows.mean() == pytest.approx((s - s**2 / 4).mean(), rel=0.04)
    assert columns.mean() == pytest.approx((s - s**2 / 4).mean(), rel=0.04)


def test_both_take_turns() -> None:
    """With mixup and CutMix half of the images are blended and half are cut."""
    mixed, share = mix(
        np.stack([np.zeros((20, 20), np.uint8), np.full((20, 20), 200, np.uint8)]), mixup=1.0, cutmix=1.0
    )
    blended = (mixed == mixed[:, :1, :1]).all(axis=(1, 2)) & (share > 0.01) & (share < 0.99)
    assert blended.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("least", [0.35, 0.9])
def test_the_area_of_a_crop(least: float) -> None:
    """A random resized crop keeps an area spread evenly from the asked share to 1, its sides up to 4 to 3."""
    y, x = np.mgrid[:100, :100].astype(np.uint8)
    ramp = np.stack([y, x, x], axis=2)[None].repeat(400, axis=0)
    cropped = Augment(crop=least).apply(ramp, seed=0, epoch=0, samples=np.arange(400), size=100).double().numpy()
    down, across = (np.ptp(c, axis=(1, 2)) + 1 for c in (cropped[:, 0], cropped[:, 1]))
    area, ratio = down * across / 1e4, across / down
    assert area.min() > least - 0.04
    assert area.mean() == pytest.approx((least + 1) / 2, abs=0.025)
    assert np.abs(np.log(ratio)).max() < np.log(4 / 3) + 0.04
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.03)
