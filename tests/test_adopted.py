"""Networks that know nothing of our contract: torchvision's, and the user's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import linnaeus
from commands import QUICK, run_python
from linnaeus.compression.export import to_onnx
from linnaeus.errors import ModelError
from linnaeus.models import registry
from linnaeus.models.adopted import Adopted
from linnaeus.models.registry import Blueprint, create_model, find_model, list_models
from linnaeus.models.weights import load_pretrained
from linnaeus.training.probe import open_extractor

pytest_plugins = ("fixtures_run",)


class Plain(nn.Module):
    """What a textbook writes: a `view`, which takes one layout only, a layer of two names, and an auxiliary head."""

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.layers = nn.Sequential(self.first, nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.side = nn.Linear(4 * (size // 2) ** 2, classes)
        self.last = nn.Linear(4 * (size // 2) ** 2, classes)

    def forward(self, x):
        x = self.layers(x)
        x = x.view(x.size(0), -1)
        return (self.last(x), self.side(x)) if self.training else self.last(x)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Register the network for the time of a test."""
    before = dict(registry._ENTRIES)
    linnaeus.register_model("plain", Plain, about="a test's")
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(before)


def make(name: str, *, size: int = 32, channels: int = 3) -> registry.Classifier:
    """Return a network with fresh weights, the same each time."""
    torch.manual_seed(0)
    return create_model(Blueprint(name=name, classes=5, channels=channels, size=size))


@pytest.mark.parametrize("name", ["plain", "torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_contract(name: str, channels: int) -> None:
    """Features, head, new head, gradients, rebuilt weights and ONNX are those of any other network."""
    model, x = make(name, channels=channels).eval(), torch.randn(3, channels, 32, 32)
    with torch.no_grad():
        logits, features = model(x), model.features(x)
        assert (logits.shape, features.shape) == ((3, 5), (3, model.width))
        torch.testing.assert_close(model.head(features), logits)
        exported = open_extractor(to_onnx(model, channels=channels, size=32), threads=1)(x)
        torch.testing.assert_close(exported, logits, rtol=1e-3, atol=1e-4)
        other = create_model(Blueprint(name=name, classes=5, channels=channels, size=32))
        other.published().load_state_dict(model.published().state_dict())
        assert torch.equal(other.eval()(x), logits)
    model.reset_head(2)
    answer = model.train()(x)
    answers = answer if isinstance(answer, tuple) else (answer,)
    assert {each.shape for each in answers} == {(3, 2)}
    sum(each.square().sum() for each in answers).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_building_leaves_the_statistics_alone() -> None:
    """The looks that find the head change no statistics and draw no number."""
    model = make("plain")
    drawn = torch.rand(1)
    assert model.get_submodule("net.layers.1").num_batches_tracked == 0
    torch.manual_seed(0)
    Plain(5, 3, 32)
    assert torch.equal(torch.rand(1), drawn)


def test_the_layout_of_a_view() -> None:
    """A network with a `view` gets the layout that it can take; one without gets the fast one."""
    assert make("plain").memory_format is torch.contiguous_format
    assert make("torchvision:squeezenet1_1", size=64).memory_format is torch.channels_last


@pytest.mark.parametrize(("name", "heads"), [("googlenet", 3), ("inception_v3", 2)])
def test_auxiliary_heads_of_torchvision(name: str, heads: int) -> None:
    """In training, the logits of the auxiliary heads follow, and a new head renews them too."""
    with torch.device("meta"):
        model = make(f"torchvision:{name}", size=299)
        model.reset_head(3)
        answer = model.train()(torch.zeros(2, 3, 299, 299))
    assert [each.shape for each in answer] == [(2, 3)] * heads
    assert find_model(f"torchvision:{name}").mean == (0.5,) * 3


def test_every_network_of_torchvision_is_described() -> None:
    """All 80 are listed with weights that are checked by their name, and a pattern narrows the list."""
    entries = list_models("torchvision:*")
    assert len(entries) >= 80
    assert all(entry.weights.endswith(".pth") and entry.mean and entry.licence for entry in entries)
    assert [entry.name for entry in list_models("torchvision:vit_b*")] == [
        "torchvision:vit_b_16",
        "torchvision:vit_b_32",
    ]
    assert "SWAG" in find_model("torchvision:vit_h_14").licence
    with pytest.raises(ModelError, match="torchvision:resnet18"):
        find_model("torchvision:resnet_18")


def test_weights_of_torchvision(tmp_path: Path) -> None:
    """A file of torchvision's fits, SqueezeNet's filters of 1x1 become its linear head, and the features are theirs."""
    models = pytest.importorskip("torchvision").models
    theirs = models.squeezenet1_1(num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    blueprint = Blueprint(name="torchvision:squeezenet1_1", classes=5, channels=3, size=64)
    ours = create_model(blueprint).eval()
    load_pretrained(ours, find_model(blueprint.name), blueprint, given=str(tmp_path / "weights.pth"))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(x), theirs.features(x).mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
        last = theirs.classifier[1](theirs.features(x)).mean(dim=(2, 3))
        torch.testing.assert_close(ours(x), last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("torchvision:alexnet", 32, r"features\.\d+ \(MaxPool2d\) fails .*Set image_size=64"),
        ("torchvision:vit_b_32", 40, "Set image_size=64"),
        ("timm:vgg11", 8, "image_size=8, at which .* fails"),
    ],
)
def test_pictures_that_are_too_small(name: str, size: int, words: str) -> None:
    """A picture that a network cannot see is refused when it is built, with the layer and a size that would do."""
    with pytest.raises(ModelError, match=words):
        make(name, size=size)


def broken(last: Callable[[int], nn.Module]) -> Callable[[int, int, int], nn.Module]:
    """Return the build of a network that ends in other layers."""
    return lambda classes, channels, size: nn.Sequential(nn.Flatten(), last(channels * size * size), nn.Softmax(1))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (broken(lambda width: nn.Linear(width, 5)), "without a softmax"),
        (broken(lambda width: nn.Linear(width, 6)), r"logits float \(1, 5\) .* Got float32 \(1, 6\)"),
        (broken(lambda width: nn.Linear(width - 1, 5)), r"at which 1 \(Linear\) fails"),
        (lambda *_: "a network", "Got a str"),
    ],
)
def test_a_network_that_does_not_keep_the_contract(build: Callable[..., nn.Module], words: str) -> None:
    """No linear layer at the end, logits of a wrong shape, layers that do not fit and no module are ModelErrors."""
    linnaeus.register_model("broken", build)
    with pytest.raises(ModelError, match=words):
        make("broken")


@pytest.mark.parametrize("name", ["resnet18", "a:b", "", "../x"])
def test_names_that_cannot_be_registered(name: str) -> None:
    """A name of linnaeus' own, or one that is no plain word, is a ModelError."""
    with pytest.raises(ModelError, match="new name"):
        linnaeus.register_model(name, Plain)


ELSEWHERE = """
import sys, linnaeus
run, picture, photos = sys.argv[1:]
print(linnaeus.load(run).predict(picture).labels[0], linnaeus.evaluate(run, photos).scores.n)
try:
    linnaeus.train(resume=run)
except linnaeus.LinnaeusError as error:
    print(type(error).__name__, error)
"""


def test_a_run_with_a_network_of_ones_own(photos: Path, tmp_path: Path) -> None:
    """It trains by its name; its bundle answers in a process that does not know it; to resume asks to register it."""
    run = tmp_path / "run"
    result = linnaeus.train(photos, out=run, **QUICK | {"model": "plain"})
    assert result.scores["test"].n > 0
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"finished": False}))
    done = run_python(ELSEWHERE, run, photos / "red" / "40.png", photos)
    assert (done.returncode, done.stderr) == (0, "")
    label = linnaeus.load(run).predict(photos / "red" / "40.png").labels[0]
    assert done.stdout.splitlines()[0] == f"{label} {linnaeus.evaluate(run, photos).scores.n}"
    assert "ModelError" in done.stdout
    assert "linnaeus.register_model(NAME, build)" in done.stdout
    assert linnaeus.train(resume=run).epochs[-1].epoch == result.epochs[-1].epoch


def test_an_adapted_network_is_one_class() -> None:
    """The networks of torchvision and the user's own share one adapter."""
    assert type(make("plain")) is type(make("torchvision:squeezenet1_1", size=64)) is Adopted
