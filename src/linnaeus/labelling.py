"""How many labels an image has, exactly one or any number, and all that follows from it. NumPy only.

A `Source` says which it is, a bundle keeps it, and whoever needs to know asks its `labelling`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return p_k = exp(z_k) / sum_j exp(z_j) for logits float32 (N, K): rows sum to 1."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return p_k = 1 / (1 + exp(-z_k)) for logits float32 (N, K): each class stands alone."""
    decay = np.exp(-np.abs(logits))  # of at most 1, so that nothing overflows
    probabilities: NDArray[np.float32] = np.where(logits >= 0, 1, decay) / (1 + decay)
    return probabilities.astype(logits.dtype, copy=False)


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """One of the two ways in which images are labelled.

    Attributes:
        name: as bundles and reports write it. about: the same as a clause.
        losses: what training can make small; the first is what "auto" means.
        activate: turns logits float32 (N, K) into probabilities of the same shape.
    """

    name: str
    about: str
    losses: tuple[str, ...]
    activate: Callable[[NDArray[np.float32]], NDArray[np.float32]]


SINGLE = Labelling(
    name="single-label",
    about="each image has one label",
    losses=("cross_entropy", "focal", "bce", "mse"),
    activate=softmax,
)
MULTI = Labelling(
    name="multi-label",
    about="an image may have several labels: each is a question of its own",
    losses=("bce",),
    activate=sigmoid,
)
LABELLINGS = {labelling.name: labelling for labelling in (SINGLE, MULTI)}
