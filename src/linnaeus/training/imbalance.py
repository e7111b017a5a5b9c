"""Classes of unequal size: what each class should weigh, and how often its images should be seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BETA = 0.999  # of the effective number: beyond a thousand images, more of the same kind add little
_SAMPLE_STREAM = 7


def weigh_classes(counts: NDArray[np.int64], how: str) -> NDArray[np.float64]:
    """Return a weight for each class, float64 (K,), that averages 1 over the images.

    "balanced" is in inverse proportion to the images n_k of a class; "effective" to their effective number
    (1 - beta^n_k) / (1 - beta) (Cui et al. 2019). A class without images weighs 0.
    """
    size = _sizes(counts, how)
    return normalize_weights(np.divide(1.0, size, out=np.zeros_like(size), where=counts > 0), counts)


def weigh_positives(counts: NDArray[np.int64], images: int, how: str) -> NDArray[np.float64]:
    """Return how much more it weighs, float64 (K,), that an image has a label than that it has not.

    For labels that `counts` of so many images have: "balanced" is the number of images without a label over that of
    images with it, "effective" the same ratio of effective numbers. A label that no image has weighs 1.
    """
    with_it, without = _sizes(counts, how), _sizes(images - counts, how)
    weights: NDArray[np.float64] = np.where(counts > 0, without / np.maximum(with_it, 1.0), 1.0)
    return weights


def _sizes(counts: NDArray[np.int64], how: str) -> NDArray[np.float64]:
    """Return as how many images those of each class count, float64 (K,)."""
    n = counts.astype(np.float64)
    sizes: NDArray[np.float64] = {
        "none": np.ones_like(n),
        "balanced": n,
        "effective": (1 - _BETA**n) / (1 - _BETA),
    }[how]
    return sizes


def normalize_weights(weights: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scale weights float64 (K,) so that they average 1 over the images."""
    normalized: NDArray[np.float64] = weights * counts.sum() / (weights * counts).sum()
    return normalized


def log_prior(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the logarithm of each class's share, float64 (K,): what logit adjustment adds (Menon et al. 2021)."""
    shares: NDArray[np.float64] = np.log(np.maximum(counts, 1) / counts.sum())
    return shares


def resample(indices: NDArray[np.int64], labels: NDArray[np.int64], how: str, *, seed: int) -> NDArray[np.int64]:
    """Return the images of an epoch, int64; `labels` int64 are those of the indices.

    "over" repeats those of small classes until all are as large as the largest, "under" leaves images of large classes
    out until all are as small as the smallest, "balanced" does both, to as many images as there were. The choice is
    fixed by the seed. Where an image may have several labels, each counts by its rarest one.
    """
    if how == "none":
        return indices
    classes, counts = np.unique(labels, return_counts=True)
    wanted = _times_each(counts, how)
    chance = np.random.default_rng([seed, _SAMPLE_STREAM])
    chosen = []
    for k in classes:
        members = chance.permutation(indices[labels == k])
        chosen.append(np.resize(members, wanted))  # whole rounds first, so that no image is seen twice as often
    return np.concatenate(chosen)


def count_seen(counts: NDArray[np.int64], how: str) -> int:
    """Return how many images an epoch has after `resample`, for the numbers of images of the classes, int64 (K,)."""
    there = counts[counts > 0]
    return int(there.sum()) if how == "none" else len(there) * _times_each(there, how)


def _times_each(counts: NDArray[np.int64], how: str) -> int:
    """Return how many images of each class an epoch has."""
    return int({"over": counts.max(), "under": counts.min(), "balanced": -(-counts.sum() // len(counts))}[how])
