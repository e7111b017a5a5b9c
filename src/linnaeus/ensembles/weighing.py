"""How much each member of an ensemble counts: weights on the simplex that make the mean's log-loss small. NumPy only.

All take `truth`, float (M, N): the probability that each of M members gives to the true class of each of N images.
The ensemble's loss is then -mean_n log Σ_m w_m truth[m, n].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STEPS = 2000
_STEADY = 1e-9  # change of the weights in a step, below which they stay
_LEAST = 1e-3  # a member that weighs less is left out
_SMALLEST = 1e-12
_PICKS = 50


def mean_loss(truth: NDArray[np.floating], weights: NDArray[np.float64]) -> float:
    """Return the mean cross-entropy in nats of the weighted mean of members, probabilities below 1e-12 as 1e-12."""
    return float(-np.log(np.maximum(weights @ truth, _SMALLEST)).mean())


def fit_weights(truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the weights float64 (M,) of the least loss; they sum to 1, and those below 0.001 are 0.

    The loss is convex. Expectation maximization of a mixture's weights never raises it:
    w_m = mean_n (w_m truth[m, n] / Σ_j w_j truth[j, n])   (Dempster, Laird and Rubin 1977).
    """
    known = np.maximum(truth.astype(np.float64), _SMALLEST)
    weights = np.full(len(known), 1 / len(known))
    for _ in range(_STEPS):
        before = weights
        weights = weights * (known / (weights @ known)).mean(axis=1)
        if np.abs(weights - before).max() < _STEADY:
            break
    kept = np.where(weights < _LEAST, 0.0, weights)
    found: NDArray[np.float64] = kept / kept.sum()
    return found


def pick_members(truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the weights float64 (M,) of greedy selection with replacement (Caruana et al. 2004).

    Each of 50 picks takes the member that makes the mean of all picked best, the same one again if it is; of the
    rows of picks from the first on, the best counts. A member's weight is its share of the picks.
    """
    known = truth.astype(np.float64)
    total, picked, best, counts = np.zeros(known.shape[1]), np.zeros(len(known)), np.inf, np.zeros(len(known))
    for n in range(1, _PICKS + 1):
        losses = -np.log(np.maximum((total + known) / n, _SMALLEST)).mean(axis=1)
        chosen = int(losses.argmin())
        total, picked[chosen] = total + known[chosen], picked[chosen] + 1
        if losses[chosen] < best:
            best, counts = float(losses[chosen]), picked.copy()
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares
