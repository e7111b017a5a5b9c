"""What networks cost: counted without their weights, and measured as deployed."""

from __future__ import annotations

import pytest
import torch

import linnaeus
from linnaeus.catalogue import SMALL_MACHINES, _count_foreign, _count_ours, choose_networks, describe_networks
from linnaeus.display import Silent
from linnaeus.errors import ModelError
from linnaeus.models.registry import Blueprint, count_parameters, create_model, list_models

pytest_plugins = ("fixtures_run",)


class Notes(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """Remember it."""
        self.lines.append(text)


@pytest.mark.parametrize("name", [e.name for e in list_models() if not e.name.startswith(("vgg1", "resnet1"))])
def test_two_ways_of_counting_agree(name: str) -> None:
    """What our layers report is what torch's own counter finds, to the last product."""
    blueprint = Blueprint(name=name, classes=10, channels=3, size=64)
    assert _count_ours(blueprint) == _count_foreign(blueprint)


@pytest.mark.parametrize(
    ("name", "parameters", "billions"),
    [("resnet18", 11.69, 1.81), ("resnet50", 25.56, 4.09), ("vgg16", 138.36, 15.47), ("alexnet", 61.10, 0.71)],
)
def test_published_costs(name: str, parameters: float, billions: float) -> None:
    """For 224 pixels and 1,000 classes, the classics cost what torchvision publishes, in millions and billions."""
    facts = linnaeus.describe_model(name)
    assert (facts.size, facts.classes) == (224, 1000)
    assert facts.parameters / 1e6 == pytest.approx(parameters, abs=0.01)
    assert facts.multiply_adds / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit_b_32"])
def test_costs_of_torchvision(name: str) -> None:
    """Weights and operations of torchvision's networks, attention too, are those that it publishes itself."""
    models = pytest.importorskip("torchvision").models
    published = models.get_model_weights(name).DEFAULT.meta
    facts = linnaeus.describe_model(f"torchvision:{name}")
    assert facts.parameters == published["num_params"]
    assert facts.multiply_adds / 1e9 == pytest.approx(published["_ops"], rel=0.02, abs=0.002)


def test_counting_fills_no_weights() -> None:
    """A network that is counted draws no random number, and has as many weights as one that is built to be used."""
    torch.manual_seed(0)
    counted, drawn = linnaeus.describe_model("simple_cnn"), torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), drawn)
    model = create_model(Blueprint(name="simple_cnn", classes=10, channels=3, size=32))
    assert counted.parameters == count_parameters(model)
    assert counted.milliseconds is None


def test_measured() -> None:
    """One picture through ONNX Runtime takes some time, more than nothing and less than a second."""
    milliseconds = linnaeus.describe_model("lenet5", measure=True).milliseconds
    assert milliseconds is not None
    assert 0 < milliseconds < 1000


def test_networks_for_small_machines() -> None:
    """Each of them exists, and costs at most 450 million products and 6 million weights."""
    rows = describe_networks(choose_networks(small=True), measure=False, display=Silent())
    assert [row["name"] for row in rows] == list(SMALL_MACHINES)
    assert all(row["small"] and row["parameters"] < 6e6 and row["multiply_adds"] < 450e6 for row in rows)
    assert [entry.name for entry in choose_networks("timm:m*", small=True)] == [
        name for name in SMALL_MACHINES if name.startswith("timm:m")
    ]


def test_a_long_list_is_only_named() -> None:
    """Of many networks of another library the costs are not told, which is said."""
    notes = Notes()
    rows = describe_networks(choose_networks("torchvision:*"), measure=False, display=notes)
    assert {row["parameters"] for row in rows} == {None}
    assert "narrow the pattern" in notes.lines[0]


def test_a_network_that_cannot_be_counted() -> None:
    """A network that computes with values while it is built is listed without costs, and the reason is said."""
    notes = Notes()
    rows = describe_networks(choose_networks("torchvision:regnet_x_400mf"), measure=False, display=notes)
    assert [(row["name"], row["parameters"]) for row in rows] == [("torchvision:regnet_x_400mf", None)]
    assert "built without weights" in notes.lines[0]


def test_a_size_that_does_not_fit() -> None:
    """A network is described for another size if asked, and one that it cannot see is a ModelError."""
    small, large = (linnaeus.describe_model("resnet18", size=size).multiply_adds for size in (32, 64))
    assert large == pytest.approx(4 * small, rel=0.01)
    with pytest.raises(ModelError, match="at least 32 pixels"):
        linnaeus.describe_model("vgg11", size=16)
