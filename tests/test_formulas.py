"""What textbooks define, written out in NumPy, against what linnaeus runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from linnaeus.config import RULES
from linnaeus.durations import Moment
from linnaeus.models.activations import is_monotone, make_activation
from linnaeus.models.registry import Blueprint, Classifier, create_model
from linnaeus.training.checkpoint import State, load_state, save_state
from linnaeus.training.imbalance import log_prior, normalize_weights, resample, weigh_classes
from linnaeus.training.losses import Loss
from linnaeus.training.optim import Rule, Schedule, add_l1, make_optimizer, set_learning_rate

Array = NDArray[np.float64]

# -- layers, as they stand in the networks that users train


def network(name: str = "simple_cnn", *, size: int = 20, channels: int = 2, **options: object) -> Classifier:
    """Return a network with fresh weights."""
    torch.manual_seed(0)
    return create_model(Blueprint(name=name, classes=3, channels=channels, size=size, options=options))


def watch(model: Classifier, images: torch.Tensor) -> list[tuple[nn.Module, Array, Array]]:
    """Run a network and return each layer with its input and output."""
    seen = []
    layers = [m for m in model.modules() if not list(m.children())]
    hooks = [
        m.register_forward_hook(lambda m, x, y: seen.append((m, x[0].double().numpy(), y.double().numpy())))
        for m in layers
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen


def convolve(x: Array, weight: Array, bias: Array | None, padding: int) -> Array:
    """Cross-correlation: y[n, o, i, j] = b[o] + sum over c, u, v of w[o, c, u, v] x[n, c, i + u, j + v]."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    side = weight.shape[2]
    rows, columns = x.shape[2] - side + 1, x.shape[3] - side + 1
    y = np.zeros((len(x), len(weight), rows, columns)) + (0 if bias is None else bias[:, None, None])
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, i : i + side, j : j + side]
            y[:, :, i, j] += np.einsum("ncuv,ocuv->no", window, weight)
    return y


def pool(x: Array, side: int, of: Callable[..., Array]) -> Array:
    """Return the maximum or mean of windows that do not overlap; what is left over at the edge is not seen."""
    rows, columns = x.shape[2] // side, x.shape[3] // side
    windows = x[:, :, : rows * side, : columns * side].reshape(*x.shape[:2], rows, side, columns, side)
    return of(windows, axis=(3, 5))


def batch_norm(x: Array, norm: nn.BatchNorm2d, *, training: bool) -> Array:
    """Y = gamma (x - mean) / sqrt(variance + eps) + beta, by channel: of the batch in training, else as remembered."""
    mean, variance = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    if training:
        mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    scale = norm.weight.detach().double().numpy() / np.sqrt(variance + norm.eps)
    return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias.detach().double().numpy()[:, None, None]


def layer(module: nn.Module, x: Array) -> Array | None:
    """Return what a layer makes of its input, by its formula, or None for a layer that only rearranges."""
    if isinstance(module, nn.Conv2d):
        bias = None if module.bias is None else module.bias.detach().double().numpy()
        padding = module.kernel_size[0] // 2 if module.padding == "same" else module.padding[0]
        return convolve(x, module.weight.detach().double().numpy(), bias, padding)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return pool(x, module.kernel_size, np.max if isinstance(module, nn.MaxPool2d) else np.mean)
    if isinstance(module, nn.Linear):
        return x @ module.weight.detach().double().numpy().T + module.bias.detach().double().numpy()
    if isinstance(module, nn.BatchNorm2d):
        return batch_norm(x, module, training=module.training)
    return {nn.ReLU: np.maximum(x, 0), nn.Tanh: np.tanh(x)}.get(type(module))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"filters": (3, 4)},
        {"filters": (3, 4), "pooling": "avg", "pool_size": 3, "activation": "tanh"},
        {"filters": (3, 4, 5), "padding": True, "batch_norm": True, "dense": (6, 5)},
        {"filters": (4,), "kernel_size": 5, "dense": ()},
    ],
)
def test_layers(options: dict[str, object], training: bool) -> None:
    """Convolution, pooling, dense layer, batch norm, ReLU and tanh give what their formulas give."""
    model = network(**options).train(training)
    checked = set()
    for module, x, y in watch(model, torch.randn(4, 2, 20, 20)):
        expected = layer(module, x)
        if expected is not None:
            checked.add(type(module).__name__)
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert {"Conv2d", "Linear"} <= checked
    assert len(checked) >= 3


def test_the_rectified_maximum() -> None:
    """A pool before a rising activation gives what the textbooks' order gives, after any other one it stays behind."""
    x = torch.randn(4, 2, 20, 20)
    for name in RULES["activation"]["choices"]:
        model = network(filters=(3, 4), activation=name).eval()
        convolution, *_ = model.body.children()
        textbook = nn.MaxPool2d(2)(make_activation(name)(convolution(x)))
        torch.testing.assert_close(model.body[:3](x), textbook)
        assert isinstance(model.body[1], nn.MaxPool2d) == is_monotone(name)


_X = np.linspace(-6, 6, 121)
_SIGMOID = 1 / (1 + np.exp(-_X))
_SOFTPLUS = np.log1p(np.exp(_X))
_ERF = np.array([math.erf(x / math.sqrt(2)) for x in _X])
ACTIVATIONS: dict[str, Array] = {
    "sigmoid": _SIGMOID,
    "tanh": (np.exp(_X) - np.exp(-_X)) / (np.exp(_X) + np.exp(-_X)),
    "relu": np.where(_X > 0, _X, 0),
    "leaky_relu": np.where(_X > 0, _X, 0.01 * _X),
    "relu6": np.clip(_X, 0, 6),
    "elu": np.where(_X > 0, _X, np.exp(_X) - 1),
    "selu": 1.0507009873554805 * np.where(_X > 0, _X, 1.6732632423543772 * (np.exp(_X) - 1)),
    "softplus": _SOFTPLUS,
    "gelu": _X * (1 + _ERF) / 2,
    "silu": _X * _SIGMOID,
    "mish": _X * np.tanh(_SOFTPLUS),
    "hardswish": _X * np.clip(_X + 3, 0, 6) / 6,
}


@pytest.mark.parametrize("name", RULES["activation"]["choices"])
def test_activations(name: str) -> None:
    """Each activation that can be chosen is its formula, and rises everywhere if it is said to."""
    y = make_activation(name)(torch.from_numpy(_X)).numpy()
    np.testing.assert_allclose(y, ACTIVATIONS[name], rtol=1e-6, atol=1e-7)
    assert is_monotone(name) == bool((np.diff(ACTIVATIONS[name]) >= -1e-12).all())


def test_the_slope_of_leaky_relu() -> None:
    """The slope below zero is the one that was asked for."""
    model = network(filters=(3,), activation="leaky_relu", slope=0.3, dense=())
    (leaky,) = (m for m in model.modules() if isinstance(m, nn.LeakyReLU))
    assert leaky(torch.tensor([-2.0, 2.0])).tolist() == pytest.approx([-0.6, 2.0])


# -- losses


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
    assert np.ptp(weigh_classes(counts, "balanced") * counts) == pytest.approx(0)
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


# -- optimizers

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
    """Return the same by the formulas in training/optim.py's first lines."""
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


@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_layers_take_steps_in_proportion(optimizer: str) -> None:
    """Of lars and lamb, the step of a matrix is in proportion to its norm, whatever the scale of the gradient."""
    moved = [follow(Rule(optimizer=optimizer, lr=0.1, momentum=0.0, weight_decay=1e-9), steps=1) - START]
    GRADIENTS[0] *= 1000
    try:
        moved.append(follow(Rule(optimizer=optimizer, lr=0.1, momentum=0.0, weight_decay=1e-9), steps=1) - START)
    finally:
        GRADIENTS[0] /= 1000
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-3)
    assert np.linalg.norm(moved[0]) > 0


def test_muon_makes_steps_orthogonal() -> None:
    """A step of muon on a matrix has singular values that are near one another, however different the gradient's."""
    dense = nn.Linear(8, 8, bias=False)
    optimizer = make_optimizer(dense, Rule(optimizer="muon", lr=1.0, momentum=0.0, nesterov=False))
    before = dense.weight.detach().clone()
    left, right = (torch.linalg.qr(torch.randn(8, 8))[0] for _ in range(2))
    dense.weight.grad = left @ torch.diag(torch.logspace(0, -2, 8)) @ right
    optimizer.step()
    values = torch.linalg.svdvals(dense.weight.detach() - before)
    assert values.max() / values.min() < 3


@pytest.mark.parametrize("optimizer", RULES["optimizer"]["choices"])
def test_every_optimizer_learns_and_resumes(optimizer: str, tmp_path: Path) -> None:
    """Each optimizer lowers a loss, and goes on from a file as if it had never stopped, to the byte."""

    def start() -> State:
        model = network(filters=(3, 4))
        rule = Rule(optimizer=optimizer, lr=0.01, momentum=0.5, weight_decay=0.01)
        return State(model=model, optimizer=make_optimizer(model, rule, head=model.head))

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


# -- schedules


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


# -- backpropagation


@pytest.mark.parametrize(
    ("name", "size"),
    [("simple_cnn", 20), ("lenet5", 32), ("alexnet", 32), ("vgg11", 32), ("vgg11_bn", 32), ("googlenet", 32),
     ("resnet18", 16), ("resnet50", 16)],
)  # fmt: skip
def test_gradients_are_the_slopes(name: str, size: int) -> None:
    """Along random directions, the loss changes as backpropagation says, by numeric differences in float64."""
    model = network(name, size=size, channels=1).double().eval()
    images, labels = torch.randn(2, 1, size, size, dtype=torch.float64), torch.tensor([0, 2])

    for parameter in model.parameters():  # with no bias, whole maps lie in the kink of the ReLU
        if parameter.ndim == 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(images), labels)

    parameters = [p for n, p in model.named_parameters() if not n.startswith("aux")]
    gradients = torch.autograd.grad(loss(), parameters)
    for seed in range(3):
        chance = torch.Generator().manual_seed(seed)
        ways = [torch.randn(p.shape, generator=chance, dtype=p.dtype) * p.abs().mean() for p in parameters]
        step, ends = 1e-7, []
        with torch.no_grad():
            for sign in (1, -2):
                for p, way in zip(parameters, ways):
                    p.add_(way, alpha=sign * step)
                ends.append(float(loss()))
            for p, way in zip(parameters, ways):
                p.add_(way, alpha=step)
        slope = sum(float((g * way).sum().detach()) for g, way in zip(gradients, ways))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-6)
