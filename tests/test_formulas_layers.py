"""Layers and activations: the textbooks' formulas in NumPy, against what runs in the networks that users train."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from linnaeus.config import RULES
from linnaeus.images import Preprocess
from linnaeus.labelling import softmax
from linnaeus.models.activations import is_monotone, make_activation
from linnaeus.models.googlenet import Inception
from linnaeus.models.registry import Blueprint, Classifier, create_model
from linnaeus.models.resnet import BasicBlock, Bottleneck
from linnaeus.training.tasks import Normalizer

Array = NDArray[np.float64]


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


def convolve(x: Array, weight: Array, bias: Array | None, padding: int, stride: int = 1) -> Array:
    """Cross-correlation: y[n, o, i, j] = b[o] + sum over c, u, v of w[o, c, u, v] x[n, c, s i + u, s j + v]."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    side = weight.shape[2]
    rows, columns = ((length - side) // stride + 1 for length in x.shape[2:])
    y = np.zeros((len(x), len(weight), rows, columns)) + (0 if bias is None else bias[:, None, None])
    for i in range(rows):
        for j in range(columns):
            window = x[:, :, i * stride : i * stride + side, j * stride : j * stride + side]
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
        return convolve(x, module.weight.detach().double().numpy(), bias, padding, module.stride[0])
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
    assert all(module.training == training for module in model.modules())


def test_what_the_settings_ask_for() -> None:
    """The layers of a network are those that its settings name, with their sizes, one after the other."""
    options = {
        "filters": (3, 4),
        "kernel_size": 5,
        "pooling": "avg",
        "pool_size": 3,
        "activation": "tanh",
        "dense": (6,),
    }
    model = network(**options, dropout=0.25)
    kinds = [type(m).__name__ for m in model.body]
    assert kinds == ["Conv2d", "Tanh", "AvgPool2d", "Conv2d", "Tanh", "Flatten", "Dropout", "Linear", "Tanh"]
    first, pool_, dense = model.body[0], model.body[2], model.body[7]
    assert (first.out_channels, first.kernel_size, pool_.kernel_size, dense.out_features) == (3, (5, 5), 3, 6)
    assert first.padding == (0, 0)
    assert network(**options, padding=True).body[0].padding == "same"


def test_dropout() -> None:
    """In training a share d of the values is 0 and the others are divided by 1 - d; in use nothing changes."""
    model = network(filters=(3,), dense=(6,), dropout=0.4)
    (drop,) = (m for m in model.modules() if isinstance(m, nn.Dropout))
    x = torch.rand(200, 200) + 1
    torch.manual_seed(0)
    y = drop.train()(x)
    kept = y != 0
    assert float(kept.float().mean()) == pytest.approx(0.6, abs=0.01)
    np.testing.assert_allclose(y[kept].numpy(), x[kept].numpy() / 0.6, rtol=1e-6)
    assert torch.equal(drop.eval()(x), x)


def test_the_rectified_maximum() -> None:
    """A pool before a rising activation gives what the textbooks' order gives, after any other one it stays behind."""
    x = torch.randn(4, 2, 20, 20)
    for name in RULES["activation"]["choices"]:
        model = network(filters=(3, 4), activation=name).eval()
        convolution, *_ = model.body.children()
        textbook = nn.MaxPool2d(2)(make_activation(name)(convolution(x)))
        torch.testing.assert_close(model.body[:3](x), textbook)
        assert isinstance(model.body[1], nn.MaxPool2d) == is_monotone(name)


_X = np.linspace(-9, 9, 181)
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


# -- what networks are built of


def norms_apart(model: nn.Module) -> None:
    """Give each batch norm statistics and weights of its own."""
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for values in (norm.running_mean, norm.bias, norm.weight):
            nn.init.normal_(values)
        nn.init.uniform_(norm.running_var, 0.5, 2)


def in_turn(x: Array, *modules: nn.Module) -> Array:
    """Return what some layers make of an input, by their formulas, with a ReLU between one norm and the next layer."""
    for number, module in enumerate(modules):
        x = layer(module, x)
        if isinstance(module, nn.BatchNorm2d) and number < len(modules) - 1:
            x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize("kind", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_residual_block(kind: type[nn.Module], stride: int) -> None:
    """A block gives relu(F(x) + x), F of convolutions and norms; where shapes differ, a 1x1 convolution fits x."""
    torch.manual_seed(0)
    block = kind(8, 8 // kind.expansion, stride).eval()
    norms_apart(block)
    x = torch.randn(2, 8, 7, 7)
    pairs = [(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
    assert len(pairs) == (2 if kind is BasicBlock else 3)
    found = in_turn(x.double().numpy(), *(module for pair in pairs for module in pair))
    shortcut = x.double().numpy() if stride == 1 else in_turn(x.double().numpy(), *block.downsample)
    with torch.no_grad():
        np.testing.assert_allclose(block(x).numpy(), np.maximum(found + shortcut, 0), rtol=1e-4, atol=1e-4)


def test_stochastic_depth() -> None:
    """In training F(x) is left out for a share p of the images and divided by 1 - p for the others; in use, neither."""
    torch.manual_seed(0)
    block = BasicBlock(2, 2, 1, skip=0.3).eval()
    norms_apart(block)
    x = torch.randn(3000, 2, 4, 4)
    with torch.no_grad():
        f = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
        torch.testing.assert_close(block(x), torch.relu(f + x))
        block.training = True
        y = block(x)
    skipped = (y == torch.relu(x)).all(dim=(1, 2, 3))
    assert float(skipped.float().mean()) == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(y[~skipped], torch.relu(f / 0.7 + x)[~skipped])
    options = {"stochastic_depth": 0.8}
    model = network("resnet18", size=32, **options)
    skips = [m.skip for m in model.modules() if isinstance(m, BasicBlock)]
    assert skips == pytest.approx([0.8 * number / 8 for number in range(1, 9)])


def test_an_inception_block() -> None:
    """Four branches see the same input: 1x1; 1x1 and 3x3; 1x1 and 3x3; a 3x3 maximum and 1x1; one after the other."""
    torch.manual_seed(0)
    block = Inception(3, (2, 3, 4, 5, 6, 7)).eval()
    norms_apart(block)
    x = torch.randn(2, 3, 5, 5)
    padded = np.pad(x.double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    highest = np.max([padded[:, :, i : i + 5, j : j + 5] for i in range(3) for j in range(3)], axis=0)
    inputs = (x.double().numpy(),) * 3 + (highest,)
    branches = ([block.branch1], [*block.branch2], [*block.branch3], [block.branch4[1]])
    found = [
        np.maximum(in_turn(seen, *(m for step in branch for m in (step.conv, step.bn))), 0)
        for seen, branch in zip(inputs, branches)
    ]
    assert [maps.shape[1] for maps in found] == [2, 4, 6, 7]
    with torch.no_grad():
        np.testing.assert_allclose(block(x).numpy(), np.concatenate(found, axis=1), rtol=1e-4, atol=1e-4)


def test_softmax() -> None:
    """p_k = exp(z_k) / sum_j exp(z_j) of each image, for logits of any size."""
    z = np.random.default_rng(0).standard_normal((5, 4))
    for shift in (0.0, 1000.0):
        found = softmax((z + shift).astype(np.float32))
        np.testing.assert_allclose(found, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), rtol=1e-3)


def test_normalization() -> None:
    """A pixel becomes (value / 255 - mean) / std of its channel, in training and in use alike."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    preprocess = Preprocess(height=5, width=5, channels=3, fit="stretch", mean=mean, std=std)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    expected = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    trained = Normalizer(preprocess, torch.device("cpu"))(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    np.testing.assert_allclose(trained.numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(preprocess.normalize(pixels), expected, rtol=1e-5, atol=1e-6)
