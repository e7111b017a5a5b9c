"""Export: what runs says what was trained, and the bundle opens elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import linnaeus
from linnaeus.bundle import read_bundle
from linnaeus.compression.export import compare, to_onnx
from linnaeus.errors import ModelError
from linnaeus.models.registry import Blueprint, create_model
from linnaeus.predictor import Predictor
from pictures import save_folder
from test_models import OWN, SIDE, TIMM, build, images


def run_onnx(data: bytes, x: torch.Tensor) -> np.ndarray:
    """Return what ONNX Runtime computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": x.numpy()})[0]


@pytest.mark.parametrize("name", OWN + TIMM)
def test_export_agrees(name: str) -> None:
    """ONNX Runtime gives PyTorch's logits for batches of 1, 2 and 5, and the network is left as it was."""
    model = build(name)
    model.look_at(images(8))
    model.train()(images(8))
    before = {n: value.clone() for n, value in model.state_dict().items()}
    data = to_onnx(model, channels=3, size=SIDE)
    assert model.training
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    model.eval()
    for count in (1, 2, 5):
        with torch.no_grad():
            expected = model(images(count)).numpy()
        assert np.abs(run_onnx(data, images(count)) - expected).max() < 1e-3 * max(1, np.abs(expected).max())


def test_a_network_that_cannot_be_traced() -> None:
    """What neither exporter can express is a ModelError with the reason."""

    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("a riddle")

    with pytest.raises(ModelError, match=r"ONNX can express.*"):
        to_onnx(Odd(), channels=1, size=4)


def test_comparing() -> None:
    """The largest difference counts, labels are compared, and what is no number never agrees."""
    a = np.array([[0.2, 0.8], [0.5, 0.5]], np.float32)
    assert compare(a, a).holds
    assert compare(a, a).largest_difference == 0
    assert compare(a, a[:, ::-1]).largest_difference == pytest.approx(0.6)
    assert not compare(a, a[:, ::-1]).holds
    assert not compare(a, a[:, ::-1]).same_labels
    assert not compare(a, np.full_like(a, np.nan)).holds
    assert compare(a[:0], a[:0]).holds


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of EfficientNet-Lite0 from its published weights on a few pictures, folded norms and all."""
    folder = tmp_path_factory.mktemp("tuned")
    data = save_folder(folder / "data", {"a": 12, "b": 12, "c": 12}, size=80)
    linnaeus.train(data, out=folder / "run", model="efficientnet_lite0", image_size=64, epochs=1, threads=1,
                   batch_size=8, ema=0)  # fmt: skip
    return folder / "run"


def test_timm_opens_a_bundle(tuned: Path) -> None:
    """timm.create_model("local-dir:BUNDLE") builds the network with its weights, and says what the bundle says."""
    theirs = timm.create_model(f"local-dir:{tuned / 'bundle'}", pretrained=True).eval()
    x = images(3, size=64)
    with torch.no_grad():
        expected = theirs(x).numpy()
    found = Predictor(tuned).logits(x.numpy())
    assert found.shape == (3, 3)
    assert np.abs(found - expected).max() < 1e-3 * max(1, np.abs(expected).max())
    assert theirs.pretrained_cfg["mean"] == tuple(read_bundle(tuned).preprocess.mean) or list(
        theirs.pretrained_cfg["mean"]
    ) == list(read_bundle(tuned).preprocess.mean)
    assert json.loads((tuned / "bundle" / "config.json").read_text())["label_names"] == ["a", "b", "c"]


def test_a_bundle_rebuilds_our_network(tuned: Path) -> None:
    """Architecture and weights of a bundle give the network that the bundle's ONNX file is."""
    bundle = read_bundle(tuned)
    options = dict(bundle.architecture.options)
    blueprint = Blueprint(name=bundle.architecture.name, classes=3, channels=options.pop("channels"),
                          size=options.pop("size"), options=options)  # fmt: skip
    model = create_model(blueprint).eval()
    model.published().load_state_dict(safetensors.torch.load_file(bundle.weights_file))
    with torch.no_grad():
        expected = model(images(3, size=64)).numpy()
    assert np.abs(Predictor(tuned).logits(images(3, size=64).numpy()) - expected).max() < 1e-3 * max(
        1, np.abs(expected).max()
    )
