"""Losses and unequal classes: the textbooks' formulas in NumPy, against what linnaeus runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from linnaeus.config import RULES, Settings
from linnaeus.data.loaders import Batch
from linnaeus.data.sources import Source
from linnaeus.learning.learner import Learner, make_loss
from linnaeus.training.imbalance import log_prior, normalize_weights, resample, weigh_classes, weigh_positives
from linnaeus.training.losses import Loss
from linnaeus.training.tasks import Supervised

Array = NDArray[np.float64]


def softmax(z: Array) -> Array:
    """p_k = exp(z_k) / sum_j exp(z_j)."""
    return np.exp(z - z.max(axis=1, keepdims=True)) / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)[:, None]


def expected_losses(name: str, z: Array, q: Array, y: NDArray[np.int64], gamma: float) -> Array:
    """Return the loss of each image, by its formula."""
    p = softmax(z)
    s = 1 / (1 + np.exp(-z))
    return {
        "cross_entropy": -(q * np.log(p)).sum(axis=1),
        "focal": -((1 - p[np.arange(len(y)), y]) ** gamma) * np.log(p[np.arange(len(y)), y]),
        "bce": -(q * np.log(s) + (1 - q) * np.log(1 - s)).mean(axis=1),
        "mse": ((p - q) ** 2).mean(axis=1),
    }[name]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", RULES["loss"]["choices"])
def test_losses(name: str, smoothing: float, weighted: bool) -> None:
    """Each loss is its formula, for labels and for soft targets, with and without weights of the classes."""
    if name == "focal" and smoothing:
        pytest.skip("focal takes hard labels")
    rng = np.random.default_rng(0)
    z, y, w = rng.standard_normal((8, 4)), rng.integers(0, 4, 8), np.array([0.5, 1.0, 2.0, 3.0])
    q = (1 - smoothing) * np.eye(4)[y] + smoothing / 4
    weights = torch.from_numpy(w).float() if weighted else None
    loss = Loss(name=name, smoothing=smoothing, gamma=1.5, weights=weights)
    expected = (expected_losses(name, z, q, y, 1.5) * (w[y] if weighted else 1.0)).mean()
    logits = torch.from_numpy(z)
    assert float(loss(logits, torch.from_numpy(y))) == pytest.approx(expected, rel=1e-5)
    soft = torch.from_numpy(np.eye(4)[y]).float()
    assert float(loss(logits, soft)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_losses_of_several_labels(smoothing: float) -> None:
    """Binary cross-entropy with each positive answer weighed, targets smoothed between yes and no."""
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((8, 4)), rng.integers(0, 2, (8, 4))
    v = weigh_positives(np.array([5, 4, 2, 1]), 8, "balanced")
    assert v.tolist() == [3 / 5, 1, 3, 7]
    q, s = (1 - smoothing) * y + smoothing / 2, 1 / (1 + np.exp(-z))
    expected = -(v * q * np.log(s) + (1 - q) * np.log(1 - s)).mean()
    loss = Loss(name="bce", smoothing=smoothing, several=True, positive=torch.from_numpy(v).float())
    assert float(loss(torch.from_numpy(z), torch.from_numpy(y).to(torch.uint8))) == pytest.approx(expected, rel=1e-5)


def test_mixed_targets_are_weighed_by_their_shares() -> None:
    """An image that is 0.7 of one class and 0.3 of another has 0.7 of the one's weight and 0.3 of the other's."""
    z, q, w = np.array([[0.5, -1.0, 2.0]]), np.array([[0.7, 0.0, 0.3]]), np.array([0.5, 1.0, 4.0])
    expected = (q @ w)[0] * -(q * np.log(softmax(z))).sum()
    loss = Loss(weights=torch.from_numpy(w).float())
    assert float(loss(torch.from_numpy(z), torch.from_numpy(q).float())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_of_sure_answers(gamma: float) -> None:
    """Answers of probability 1, right or wrong, give focal a finite slope, which pulls the wrong one back."""
    logits = torch.tensor([[40.0, 0.0, 0.0], [0.0, 40.0, 0.0]], requires_grad=True)
    Loss(name="focal", gamma=gamma)(logits, torch.tensor([0, 0])).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[1].tolist() == pytest.approx([-0.5, 0.5, 0.0], abs=1e-6)


def test_auxiliary_heads() -> None:
    """The loss of a network with auxiliary heads is that of its answer and 0.3 of each other's (Szegedy 2015)."""
    rng = np.random.default_rng(0)
    answers, labels = rng.standard_normal((3, 5, 4)), rng.integers(0, 4, 5)

    class Network(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(torch.from_numpy(z) for z in answers)

    batch = Batch(pixels=torch.zeros(5, 1, 8, 8), labels=torch.from_numpy(labels), samples=np.arange(5))
    found = Supervised(normalize=nn.Identity()).step(Network(), batch)  # type: ignore[arg-type]
    each = [-np.log(softmax(z))[np.arange(5), labels].mean() for z in answers]
    assert float(found.loss) == pytest.approx(each[0] + 0.3 * (each[1] + each[2]), rel=1e-5)
    assert torch.equal(found.logits, torch.from_numpy(answers[0]))


def test_settings_become_the_loss() -> None:
    """A run's loss has the numbers of its settings, and what it needs to know of the training images' classes."""
    labels = np.repeat([0, 1], [30, 10])
    source = Source(name="two", classes=("a", "b"), labels=labels, images=np.zeros((40, 1, 1), np.uint8))
    dataset = SimpleNamespace(source=source, indices=lambda part: np.arange(40))
    values = {"label_smoothing": 0.1, "focal_gamma": 1.5, "loss": "focal", "class_weights": "1,2"}
    settings = Settings.of(values | {"logit_adjustment": 0.5})
    learner: Learner = SimpleNamespace(settings=settings, blueprint=SimpleNamespace(classes=2), dataset=dataset)  # type: ignore[assignment]
    loss = make_loss(learner, torch.device("cpu"))
    assert (loss.name, loss.smoothing, loss.gamma) == ("focal", 0.1, 1.5)
    assert loss.weights.tolist() == pytest.approx([40 / 50, 80 / 50])
    assert loss.adjustment.tolist() == pytest.approx((0.5 * np.log([0.75, 0.25])).tolist())


def test_adjusted_logits() -> None:
    """With logit adjustment the loss is the cross-entropy of logits plus the log of each class's share."""
    z, y, counts = np.array([[1.0, 0.0, -1.0]]), np.array([2]), np.array([70, 20, 10])
    adjusted = Loss(adjustment=torch.from_numpy(log_prior(counts)).float())
    expected = -np.log(softmax(z + np.log(counts / 100))[0, 2])
    assert float(adjusted(torch.from_numpy(z), torch.from_numpy(y))) == pytest.approx(expected, rel=1e-5)


def test_weights_of_classes() -> None:
    """Weights average 1 over the images; balanced ones make all classes count the same, effective ones less so."""
    counts = np.array([1000, 100, 10])
    for how in ("none", "balanced", "effective"):
        assert (weigh_classes(counts, how) * counts).sum() == pytest.approx(counts.sum())
    assert weigh_classes(counts, "balanced") == pytest.approx(1110 / (3 * counts))
    effective = (1 - 0.999 ** counts.astype(float)) / (1 - 0.999)
    assert weigh_classes(counts, "effective") * effective == pytest.approx(
        np.full(3, 1110 / (counts / effective).sum())
    )
    assert weigh_classes(counts, "none").tolist() == [1, 1, 1]
    assert weigh_classes(np.array([5, 0]), "balanced").tolist() == [1, 0]
    assert normalize_weights(np.array([1.0, 3.0]), np.array([2, 2])).tolist() == [0.5, 1.5]


@pytest.mark.parametrize(("how", "sizes"), [("none", [60, 12, 3]), ("over", [60] * 3), ("under", [3] * 3),
                                            ("balanced", [25] * 3)])  # fmt: skip
def test_resampling(how: str, sizes: list[int]) -> None:
    """Each class is seen as often as it should be, all its images about as often as one another."""
    labels = np.repeat([0, 1, 2], [60, 12, 3])
    indices = np.arange(100, 175)
    chosen = resample(indices, labels, how, seed=1)
    assert np.bincount(labels[chosen - 100]).tolist() == sizes
    times = [np.bincount(chosen - 100, minlength=75)[labels == k] for k in range(3)]
    assert all(np.ptp(t) <= 1 for t in times)
    assert (resample(indices, labels, how, seed=1) == chosen).all()
