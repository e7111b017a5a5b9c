"""The head on frozen features: a logistic regression as scikit-learn fits it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from linnaeus.compression.export import to_onnx
from linnaeus.data.cache import PackedPixels
from linnaeus.data.loaders import Loader
from linnaeus.images import Preprocess
from linnaeus.training.losses import Loss
from linnaeus.training.probe import Features, extract_features, fit_head, fit_logistic, open_extractor
from linnaeus.training.tasks import Normalizer


def blobs(count: int, *, seed: int = 0, spread: float = 1.0) -> Features:
    """Return features of three classes around three points, with columns of very different scale."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = np.random.default_rng(99).standard_normal((3, 6))
    x = (centres[labels] + spread * rng.standard_normal((count, 6))) * [0.1, 1, 1, 1, 5, 1] + 2
    return Features(features=torch.from_numpy(x).float(), labels=torch.from_numpy(labels))


def objective(weight: torch.Tensor, bias: torch.Tensor, data: Features, penalty: float, scale: torch.Tensor) -> float:
    """Return mean cross-entropy plus the penalty of the weights on scaled features."""
    loss = nn.functional.cross_entropy(data.features @ weight.T + bias, data.labels)
    return float(loss + penalty / 2 * (weight / scale).square().sum())


@pytest.mark.parametrize("penalty", [1e-3, 1e-2, 0.3])
def test_it_is_logistic_regression(penalty: float) -> None:
    """The fitted head reaches scikit-learn's minimum and says the same of new features."""
    data, fresh = blobs(240), blobs(300, seed=1)
    weight, bias = fit_logistic(data, loss=Loss(), classes=3, penalty=penalty)
    centred = data.features - data.features.mean(dim=0)
    scale = (centred.std(dim=0) + 1e-3) ** -0.5
    scale = scale * 30 / (centred * scale).square().sum(dim=1).mean().sqrt()
    theirs = LogisticRegression(C=1 / (penalty * 240), tol=1e-8, max_iter=5000)
    theirs.fit((centred * scale).double().numpy(), data.labels.numpy())
    other = torch.from_numpy(theirs.coef_).float() * scale
    other_bias = torch.from_numpy(theirs.intercept_).float() - other @ data.features.mean(dim=0)
    ours, best = (objective(*head, data, penalty, scale) for head in ((weight, bias), (other, other_bias)))
    assert ours <= best * 1.01 + 1e-4
    a = torch.softmax(fresh.features @ weight.T + bias, dim=1)
    b = torch.softmax(fresh.features @ other.T + other_bias, dim=1)
    assert (a - b).abs().max() < 0.05
    assert (a.argmax(dim=1) == b.argmax(dim=1)).float().mean() > 0.98


def test_several_labels_are_as_many_logistic_regressions() -> None:
    """Of several labels the head says what scikit-learn's logistic regression of each label alone says."""
    data, fresh, penalty = blobs(240), blobs(300, seed=1), 0.01
    targets = torch.stack([data.labels != 0, data.labels == 1], dim=1).to(torch.uint8)
    weight, bias = fit_logistic(
        Features(features=data.features, labels=targets), loss=Loss(several=True), classes=2, penalty=penalty
    )
    centred = data.features - data.features.mean(dim=0)
    scale = (centred.std(dim=0) + 1e-3) ** -0.5
    scale = scale * 30 / (centred * scale).square().sum(dim=1).mean().sqrt()
    for k in range(2):
        theirs = LogisticRegression(C=1 / (penalty * 240), tol=1e-8, max_iter=5000)
        theirs.fit((centred * scale).double().numpy(), targets[:, k].numpy())
        expected = theirs.predict_proba(((fresh.features - data.features.mean(dim=0)) * scale).double().numpy())[:, 1]
        found = torch.sigmoid(fresh.features @ weight[k] + bias[k]).numpy()
        assert np.abs(found - expected).max() < 0.02


def test_the_best_penalty_is_chosen_on_validation() -> None:
    """Of heads of several penalties, the one with the lowest validation loss is returned with its true scores."""
    train, val = blobs(24, spread=2.0), blobs(300, seed=1, spread=2.0)
    penalties = (1e-4, 1e-2, 1.0, 100.0)
    head = fit_head(train, val, loss=Loss(), classes=3, penalties=penalties)
    losses = []
    for penalty in penalties:
        weight, bias = fit_logistic(train, loss=Loss(), classes=3, penalty=penalty)
        losses.append(float(nn.functional.cross_entropy(val.features @ weight.T + bias, val.labels)))
    assert head.found.loss == pytest.approx(min(losses), rel=1e-5)
    assert head.penalty == penalties[int(np.argmin(losses))]
    right = (val.features @ head.weight.T + head.bias).argmax(dim=1) == val.labels
    assert head.found.accuracy == pytest.approx(float(right.float().mean()))


def test_odd_features() -> None:
    """A constant feature, a single example of each class, and validation without images do no harm."""
    data = blobs(30)
    data.features[:, 2] = 7.0
    weight, bias = fit_logistic(data, loss=Loss(), classes=3, penalty=0.01)
    assert weight.isfinite().all()
    assert bias.isfinite().all()
    few = Features(features=data.features[:3], labels=data.labels[:3])
    assert fit_logistic(few, loss=Loss(), classes=3, penalty=0.01)[0].isfinite().all()
    nothing = Features(features=torch.zeros(0, 6), labels=torch.zeros(0, dtype=torch.int64))
    assert math.isnan(fit_head(data, nothing, loss=Loss(), classes=3, penalties=(0.1,)).found.loss)
    joined = data.join(few)
    assert joined.features.shape == (33, 6)
    assert joined.labels[30:].tolist() == few.labels.tolist()


def test_features_by_onnx_runtime() -> None:
    """Features come in the loader's order, equal PyTorch's, and `watch` may end the work early."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    loader = Loader(pixels=PackedPixels(array=pixels), labels=np.arange(20), indices=np.arange(20), batch_size=6)
    preprocess = Preprocess(height=8, width=8, channels=3, fit="stretch", mean=(0.5,) * 3, std=(0.2,) * 3)
    normalize = Normalizer(preprocess, torch.device("cpu"))
    extract = open_extractor(to_onnx(body, channels=3, size=8), threads=1)
    found = extract_features(loader, normalize, extract, watch=lambda batch: True)
    with torch.no_grad():
        expected = body(normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)
    assert found.labels.tolist() == list(range(20))
    assert np.allclose(
        normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy(), preprocess.normalize(pixels), atol=1e-5
    )
    cut = extract_features(loader, normalize, extract, watch=lambda batch: False)
    assert len(cut.labels) == 5
