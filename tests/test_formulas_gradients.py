"""Backpropagation through every classic network, against numeric differences in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from linnaeus.models.registry import Blueprint, Classifier, create_model
from linnaeus.models.resnet import Bottleneck, ResNet
from linnaeus.training.losses import Loss

Way = list[torch.Tensor]


def network(name: str, size: int) -> Classifier:
    """Return a network in float64, away from the kinks that a bias of 0 puts whole maps of a ReLU into."""
    torch.manual_seed(0)
    if name == "bottlenecks":  # the fifty layers of resnet50 have more edges than any step can avoid
        model: Classifier = ResNet(Bottleneck, (1, 1, 1, 1), 3, 1, size)
    else:
        model = create_model(Blueprint(name=name, classes=3, channels=1, size=size))
    model.double()
    for parameter in model.parameters():
        if parameter.ndim == 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "size"),
    [("simple_cnn", 20), ("lenet5", 32), ("alexnet", 16), ("vgg11", 32), ("vgg11_bn", 32), ("googlenet", 16),
     ("resnet18", 16), ("bottlenecks", 16)],
)  # fmt: skip
def test_gradients_are_the_slopes(name: str, size: int, training: bool) -> None:
    """Along a random direction of all weights, the loss changes as backpropagation says.

    In training with batch statistics, dropout and auxiliary heads, whose losses count 0.3.
    """
    model = network(name, size).train(training)
    images, labels = torch.randn(4, 1, size, size, dtype=torch.float64), torch.tensor([0, 2, 1, 0])

    def loss() -> torch.Tensor:
        torch.manual_seed(1)  # the same values are dropped each time
        answer = model(images)
        logits, *others = answer if isinstance(answer, tuple) else (answer,)
        assert len(others) == (2 if name == "googlenet" and training else 0)
        losses = [nn.functional.cross_entropy(z, labels) for z in (logits, *others)]
        return losses[0] + 0.3 * sum(losses[1:])

    parameters = [p for n, p in model.named_parameters() if training or not n.startswith("aux")]
    gradients = torch.autograd.grad(loss(), parameters)
    ways = [(torch.randn_like(p) * p.abs().mean()).detach() for p in parameters]
    slope = sum(float((g * way).sum()) for g, way in zip(gradients, ways))
    assert differ(parameters, ways, loss, 1e-7) == pytest.approx(slope, rel=1e-4, abs=1e-6)


@torch.no_grad()
def differ(parameters: Way, ways: Way, loss: object, step: float) -> float:
    """Return (loss(w + step way) - loss(w - step way)) / (2 step)."""
    ends = []
    for length in (step, -2 * step):
        for parameter, way in zip(parameters, ways):
            parameter.add_(way, alpha=length)
        ends.append(float(loss()))
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "bce", "mse"])
def test_slopes_of_the_losses(name: str) -> None:
    """The gradient of each loss after each logit is the numeric one."""
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 4))).float()
    loss, labels = Loss(name=name, weights=torch.tensor([0.5, 1.0, 2.0, 0.7])), torch.tensor([0, 3, 2])
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z, labels), z)
    for i in range(3):
        for k in range(4):
            step = torch.zeros(3, 4)
            step[i, k] = 1e-2
            with torch.no_grad():
                slope = (float(loss(z + step, labels)) - float(loss(z - step, labels))) / 2e-2
            assert slope == pytest.approx(float(gradient[i, k]), rel=2e-3, abs=2e-4)
