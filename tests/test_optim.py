"""Optimizers, schedules and losses against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from linnaeus.durations import Moment, Span
from linnaeus.training.losses import Loss
from linnaeus.training.optim import Rule, Schedule, make_optimizer, set_learning_rate


def model() -> nn.Sequential:
    """Return a network with filters, a norm, a dense layer and a head."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 2))


def test_only_matrices_decay() -> None:
    """Weights of convolutions and dense layers decay, norms and biases do not, and none is left out."""
    network = model()
    groups = make_optimizer(network, Rule(optimizer="adamw", lr=1.0, weight_decay=0.3)).param_groups
    for group in groups:
        assert group["weight_decay"] == (0.3 if group["params"][0].ndim > 1 else 0.0)
        assert len({p.ndim > 1 for p in group["params"]}) == 1
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in network.parameters()}


def test_the_head_learns_faster() -> None:
    """The head's rate is the rate times its factor, and frozen weights are left out."""
    network = model()
    network[0].requires_grad_(False)
    optimizer = make_optimizer(network, Rule(optimizer="sgd", lr=1.0), factors={"4.weight": 3.0, "4.bias": 3.0})
    set_learning_rate(optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {
        id(p): 1.5 if p.shape[0] == 2 and p is not network[1].weight and p is not network[1].bias else 0.5
        for p in network.parameters()
        if p.requires_grad
    }


def step(rule: Rule, values: list[float], gradients: list[list[float]]) -> list[float]:
    """Return a matrix of one row after steps along some gradients."""
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor([values])
    optimizer = make_optimizer(layer, rule)
    for gradient in gradients:
        layer.weight.grad = torch.tensor([gradient])
        optimizer.step()
    found: list[float] = layer.weight.detach()[0].tolist()
    return found


def test_nesterov_momentum() -> None:
    """Two steps of sgd are those of the formula, decay added to the gradient."""
    w, v = np.array([1.0, -2.0]), np.zeros(2)
    for g in ([0.5, 0.25], [-0.1, 0.3]):
        d = np.array(g) + 0.1 * w
        v = 0.8 * v + d
        w = w - 0.05 * (d + 0.8 * v)
    rule = Rule(optimizer="sgd", lr=0.05, momentum=0.8, weight_decay=0.1)
    assert step(rule, [1.0, -2.0], [[0.5, 0.25], [-0.1, 0.3]]) == pytest.approx(w.tolist(), rel=1e-5)


def test_the_first_adam_step() -> None:
    """The first step of adam is the rate along the gradient's sign; adamw shrinks the weight apart from that."""
    assert step(Rule(optimizer="adam", lr=0.1), [1.0, -2.0], [[5.0, -0.01]]) == pytest.approx([0.9, -1.9], abs=1e-4)
    decayed = step(Rule(optimizer="adamw", lr=0.1, weight_decay=0.5), [1.0, -2.0], [[5.0, -0.01]])
    assert decayed == pytest.approx([0.95 - 0.1, -1.9 + 0.1], abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("constant", {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.55: 1.0, 1.0: 1.0}),
        ("linear", {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 1.0: 0.0}),
        ("cosine", {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.55: 0.5, 0.325: (1 + math.sqrt(0.5)) / 2, 1.0: 0.0}),
        ("onecycle", {0.0: 0.04, 0.05: 0.52, 0.1: 1.0, 0.55: 0.5, 1.0: 0.0}),
    ],
)
def test_schedules(shape: str, expected: dict[float, float]) -> None:
    """At the start, in warm-up, at its end, in the middle and at the end, the rate is the formula's."""
    schedule = Schedule(shape=shape, warmup=Span.of(0.1))
    for progress, factor in expected.items():
        assert schedule.at(Moment(progress=progress)) == pytest.approx(factor, abs=1e-9), progress


@pytest.mark.parametrize(
    ("warmup", "passed"), [("25%", "progress"), ("30 steps", "steps"), ("3 epochs", "epochs"), ("15s", "seconds")]
)
def test_a_warmup_in_any_unit(warmup: str, passed: str) -> None:
    """A quarter of a run, told in any unit, gives the factors of that share at every step."""
    schedule, share = Schedule(shape="cosine", warmup=Span.of(warmup)), Schedule(shape="cosine", warmup=Span.of(0.25))
    for step in range(121):
        now = Moment(progress=step / 120, steps=step, epochs=step / 10, seconds=step / 2)
        assert schedule.at(now) == pytest.approx(share.at(now), abs=1e-12), step


def test_a_warmup_that_the_pace_decides() -> None:
    """Where a run of unknown length slows down, the rate rises by the warm-up's own unit and is at its top at its end.

    No share of the run is remembered for it: each moment tells its own factor.
    """
    schedule = Schedule(shape="linear", warmup=Span.of("10 steps"))
    progress = [0.001 * step**2 for step in range(30)]
    factors = [schedule.at(Moment(progress=p, steps=step)) for step, p in enumerate(progress)]
    assert factors[:11] == pytest.approx([step / 10 for step in range(11)])
    assert factors[11:] == sorted(factors[11:], reverse=True)


@given(st.sampled_from(["constant", "linear", "cosine", "onecycle"]), st.floats(0, 0.9), st.floats(0, 1))
def test_a_schedule_stays_between_zero_and_one(shape: str, warmup: float, progress: float) -> None:
    """Any warm-up and progress give a factor in [0, 1], and without warm-up it starts at the top."""
    assert 0 <= Schedule(shape=shape, warmup=Span.of(warmup)).at(Moment(progress=progress)) <= 1
    assert Schedule(shape=shape).at(Moment(progress=0.0)) == 1.0


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_cross_entropy(smoothing: float, scale: float) -> None:
    """The loss is NumPy's mean of -sum(target * log softmax), in bf16 too, and finite for huge logits."""
    rng = np.random.default_rng(0)
    logits, labels = scale * rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    shifted = logits - logits.max(axis=1, keepdims=True)
    expected = -(target * (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))).sum(axis=1).mean()
    found = Loss(smoothing=smoothing)(torch.from_numpy(logits).float(), torch.from_numpy(labels))
    assert float(found) == pytest.approx(expected, rel=1e-4)
    half = Loss(smoothing=smoothing)(torch.from_numpy(logits).bfloat16(), torch.from_numpy(labels))
    assert half.dtype == torch.float32
    assert float(half) == pytest.approx(expected, rel=2e-2)
