"""Steps of the optimizers, schedules and averages: published formulas in NumPy, against what linnaeus runs."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from linnaeus.config import RULES
from linnaeus.data.cache import PackedPixels
from linnaeus.data.loaders import Loader
from linnaeus.durations import Moment, Span
from linnaeus.images import Preprocess
from linnaeus.models.registry import Blueprint, Classifier, create_model
from linnaeus.results import Validation
from linnaeus.training.checkpoint import State, load_state, save_state
from linnaeus.training.loop import fit
from linnaeus.training.losses import Loss
from linnaeus.training.optim import Rule, Schedule, add_l1, make_optimizer, set_learning_rate
from linnaeus.training.plan import Hooks, Plan
from linnaeus.training.tasks import Normalizer, Supervised

Array = NDArray[np.float64]


def network(**options: object) -> Classifier:
    """Return a small network with fresh weights."""
    torch.manual_seed(0)
    return create_model(Blueprint(name="simple_cnn", classes=3, channels=2, size=20, options=options))


GRADIENTS = [np.array([[0.5, -0.2], [0.1, 1.0]]), np.array([[-0.3, 0.4], [0.0, 0.8]]), np.array([[0.2, 0.2], [1, -1]])]
START = np.array([[1.0, -2.0], [0.5, 0.3]])


def follow(rule: Rule, steps: int = 3) -> Array:
    """Return a weight matrix after steps along the gradients."""
    dense = nn.Linear(2, 2, bias=False)
    dense.weight.data = torch.from_numpy(START).float()
    optimizer = make_optimizer(dense, rule)
    for gradient in GRADIENTS[:steps]:
        dense.weight.grad = torch.from_numpy(gradient).float()
        add_l1(optimizer)
        optimizer.step()
    return dense.weight.detach().double().numpy()


def by_formula(rule: Rule) -> Array:
    """Return the same by the published formulas."""
    w, v, s, m = START.copy(), np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))
    beta, eps, momentum = (0.99 if rule.optimizer == "adamw" else 0.999), 1e-8, rule.momentum
    for t, gradient in enumerate(GRADIENTS, start=1):
        decoupled = rule.optimizer == "adamw"
        g = gradient + rule.l1 * np.sign(w) + (0 if decoupled else rule.weight_decay * w)
        if rule.optimizer in ("gd", "sgd"):
            momentum = 0 if rule.optimizer == "gd" else rule.momentum
            v = momentum * v + g
            w = w - rule.lr * (g + momentum * v if rule.nesterov else v)
        elif rule.optimizer == "rmsprop":
            s = 0.9 * s + 0.1 * g**2
            v = momentum * v + g / (np.sqrt(s) + eps)
            w = w - rule.lr * v
        else:
            w = w - (rule.lr * rule.weight_decay * w if decoupled else 0)
            m, s = 0.9 * m + 0.1 * g, beta * s + (1 - beta) * g**2
            w = w - rule.lr * (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - beta**t)) + eps)
    return w


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("optimizer", "momentum", "nesterov"),
    [
        ("gd", 0.9, True), ("sgd", 0.0, True), ("sgd", 0.9, False), ("sgd", 0.9, True), ("rmsprop", 0.0, True),
        ("rmsprop", 0.5, True), ("adam", 0.9, True), ("adamw", 0.9, True),
    ],
)  # fmt: skip
def test_optimizers(optimizer: str, momentum: float, nesterov: bool, decay: float) -> None:
    """Three steps of each optimizer, with decay and L1, are those of its formula."""
    rule = Rule(optimizer=optimizer, lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=decay, l1=0.02)
    np.testing.assert_allclose(follow(rule), by_formula(rule), rtol=1e-5, atol=1e-6)


def lars(rule: Rule) -> Array:
    """You et al. 2017, with eta = 0.001: the gradient times eta |w| / (|g| + d |w|), then as sgd."""
    w, v = START.copy(), np.zeros((2, 2))
    for gradient in GRADIENTS:
        size = np.linalg.norm(w)
        g = gradient + rule.weight_decay * w
        g = g * 0.001 * size / (np.linalg.norm(gradient) + rule.weight_decay * size)
        v = rule.momentum * v + g
        w = w - rule.lr * (g + rule.momentum * v if rule.nesterov else v)
    return w


def lamb(rule: Rule) -> Array:
    """You et al. 2020, decay apart: adam's step times |w| over its own norm."""
    w, m, s = START.copy(), np.zeros((2, 2)), np.zeros((2, 2))
    for t, g in enumerate(GRADIENTS, start=1):
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g**2
        step = (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-6)
        w = w - rule.lr * rule.weight_decay * w
        w = w - rule.lr * np.linalg.norm(w) / np.linalg.norm(step) * step
    return w


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("nesterov", [True, False])
def test_lars(nesterov: bool, decay: float) -> None:
    """Three steps of lars are those of its formula, with and without decay."""
    rule = Rule(optimizer="lars", lr=2.0, momentum=0.9, nesterov=nesterov, weight_decay=decay)
    np.testing.assert_allclose(follow(rule), lars(rule), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lamb(decay: float) -> None:
    """Three steps of lamb are those of its formula, with and without decay."""
    rule = Rule(optimizer="lamb", lr=0.05, weight_decay=decay)
    np.testing.assert_allclose(follow(rule), lamb(rule), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_norms_and_biases_are_not_scaled(optimizer: str) -> None:
    """Of lars and lamb, what has no decay takes the steps of sgd and adam."""
    plain = {"lars": "sgd", "lamb": "adam"}[optimizer]
    moved = []
    for name in (optimizer, plain):
        norm = nn.BatchNorm1d(4)
        chosen = make_optimizer(norm, Rule(optimizer=name, lr=0.1, weight_decay=0.1))
        norm.weight.grad, norm.bias.grad = torch.tensor([3.0, -2.0, 1.0, 0.5]), torch.ones(4)
        chosen.step()
        moved.append(norm.weight.detach())
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-5)


def orthogonalize(g: Array) -> Array:
    """X = g / |g|; five times X = a X + (b A + c A A) X with A = X X^T: singular values go to 1."""
    x = (g if g.shape[0] <= g.shape[1] else g.T) / np.linalg.norm(g)
    for a, b, c in (
        (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ):  # fmt: skip
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if g.shape[0] <= g.shape[1] else x.T


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(8, 8), (12, 6), (6, 2, 3, 3)])
def test_muon(shape: tuple[int, ...], nesterov: bool) -> None:
    """Two steps of muon, of the size of adamw's, go along the momentum whose singular values are made 1 (Jordan 2024).

    It computes in bf16, so that only two digits agree; against exact singular values the formula itself is checked.
    """
    rng = np.random.default_rng(0)
    layer = nn.Linear(shape[1], shape[0], bias=False) if len(shape) == 2 else nn.Conv2d(2, 6, 3, bias=False)
    rule = Rule(optimizer="muon", lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    optimizer = make_optimizer(layer, rule)
    w = layer.weight.detach().double().numpy().reshape(shape[0], -1)
    m, steps = np.zeros_like(w), []
    for _ in range(2):
        before = layer.weight.detach().double().numpy().reshape(w.shape)
        g = rng.standard_normal(w.shape)
        layer.weight.grad = torch.from_numpy(g.reshape(shape)).float()
        optimizer.step()
        m = 0.9 * m + 0.1 * g
        steps.append(orthogonalize(0.1 * g + 0.9 * m if nesterov else m))
        expected = before * (1 - 0.02 * 0.1) - 0.02 * 0.2 * math.sqrt(max(w.shape)) * steps[-1]
        found = layer.weight.detach().double().numpy().reshape(w.shape)
        assert np.abs(found - expected).max() < 0.12 * np.abs(expected - before).max()
    for step in steps:  # five iterations leave the smallest singular values behind
        assert np.median(np.abs(np.linalg.svd(step, compute_uv=False) - 1)) < 0.1


@pytest.mark.parametrize("optimizer", RULES["optimizer"]["choices"])
def test_every_optimizer_learns_and_resumes(optimizer: str, tmp_path: Path) -> None:
    """Each optimizer lowers a loss, and goes on from a file as if it had never stopped, to the byte."""

    def start() -> State:
        model = network(filters=(3, 4))
        rule = Rule(optimizer=optimizer, lr=0.01, momentum=0.5, weight_decay=0.01)
        return State(model=model, optimizer=make_optimizer(model, rule))

    def run(state: State, steps: int) -> list[float]:
        images = torch.randn(6, 2, 20, 20, generator=torch.Generator().manual_seed(1))
        losses = []
        for _ in range(steps):
            set_learning_rate(state.optimizer, 0.01)
            state.optimizer.zero_grad()
            loss = Loss()(state.model(images), torch.tensor([0, 1, 2, 0, 1, 2]))
            loss.backward()
            state.optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    whole, first, second = start(), start(), start()
    losses = run(whole, 6)
    assert losses[-1] < losses[0]
    run(first, 3)
    save_state(first, tmp_path / "state")
    load_state(second, tmp_path / "state")
    assert run(second, 3) == losses[3:]
    for a, b in zip(whole.model.state_dict().values(), second.model.state_dict().values()):
        assert torch.equal(a, b)


# -- schedules and the average


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("step", {0.0: 1, 0.3: 1, 0.35: 0.5, 0.65: 0.5, 0.7: 0.25, 1.0: 0.25}),
        ("exponential", {0.0: 1, 0.5: 0.5, 0.75: 0.5**1.5, 1.0: 0.25}),
    ],
)
def test_schedules_that_drop(shape: str, expected: dict[float, float]) -> None:
    """After each third, or evenly, the rate falls by the factor."""
    schedule = Schedule(shape=shape, factor=0.5)
    for progress, factor in expected.items():
        assert schedule.at(Moment(progress=progress)) == pytest.approx(factor)


def test_a_plateau() -> None:
    """The rate falls after three epochs without a lower loss, and only after three more once again."""
    schedule, losses = Schedule(shape="plateau", factor=0.1), [3, 2, 2, 2, 2, 1, 1.5, 1.2, 1.1, 1.0, 1.0, 1.0]
    factors = [schedule.at(Moment(progress=0.5), losses[:n]) for n in range(len(losses) + 1)]
    assert factors == pytest.approx([1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])


def test_every_schedule_at_once() -> None:
    """At each hundredth of a run, each schedule is its formula; warm-up before it is a straight line or a cosine."""
    formulas = {
        "constant": lambda p: 1.0,
        "linear": lambda p: 1 - p,
        "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
        "onecycle": lambda p: (1 + math.cos(math.pi * p)) / 2,
        "step": lambda p: 0.3 ** min(2, math.floor(3 * p)),
        "exponential": lambda p: 0.3 ** (2 * p),
        "plateau": lambda p: 0.3**2,
    }
    assert set(formulas) == set(RULES["schedule"]["choices"])
    losses = [1.0] * 7  # the first, and twice three that are no lower
    for shape, formula in formulas.items():
        schedule = Schedule(shape=shape, warmup=Span.of(0.25), factor=0.3)
        for progress in np.linspace(0, 1, 101):
            up = progress / 0.25
            if shape == "onecycle":
                up = 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * up)) / 2
            expected = up if progress < 0.25 else formula((progress - 0.25) / 0.75)
            assert schedule.at(Moment(progress=progress), losses) == pytest.approx(expected, abs=1e-9), (
                shape,
                progress,
            )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_a_run_does_with_it(accumulate: int) -> None:
    """Four batches follow the schedule from batch to batch, are clipped after L1, and their average follows.

    g += l1 sign(w); w -= lr(t) min(1, most / |g|) g; a = b a + (1 - b) w, b = min(ema, (1 + t) / (10 + t)).
    """
    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), dtype=np.uint8)
    loader = Loader(pixels=PackedPixels(array=pixels), labels=np.arange(12) % 2, indices=np.arange(12), batch_size=3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    w = average = model[1].weight.detach().double().numpy().copy()
    rule = Rule(optimizer="sgd", lr=0.5, momentum=0.0, l1=0.01)
    plan = Plan(rule=rule, schedule=Schedule(shape="linear"), epochs=1, clip_norm=0.3, ema=0.15, accumulate=accumulate)
    state = State(model=model, optimizer=make_optimizer(model, rule), average=copy.deepcopy(model))
    preprocess = Preprocess(height=4, width=4, channels=1, fit="stretch", mean=(0.5,), std=(0.5,))
    judged = Validation(loss=1.0, accuracy=0.0)
    hooks = Hooks(judge=lambda network: judged, save=lambda state: None, on_epoch=lambda result: False)
    fit(state, Supervised(normalize=Normalizer(preprocess, torch.device("cpu"))), loader, plan, hooks)
    for t in range(4):
        x, y = (pixels[3 * t : 3 * t + 3].reshape(3, 16) / 255 - 0.5) / 0.5, np.eye(2)[np.arange(3 * t, 3 * t + 3) % 2]
        p = np.exp(x @ w.T) / np.exp(x @ w.T).sum(axis=1, keepdims=True)
        g = (p - y).T @ x / 3 + 0.01 * np.sign(w)
        w = w - 0.5 * (1 - t / 4) * min(1.0, 0.3 / np.linalg.norm(g)) * g
        kept = min(0.15, (2 + t) / (11 + t))
        average = kept * average + (1 - kept) * w
    np.testing.assert_allclose(model[1].weight.detach().numpy(), w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.average[1].weight.detach().numpy(), average, rtol=1e-4, atol=1e-5)
