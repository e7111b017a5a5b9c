"""Every network keeps one contract, and the published ones are what they are said to be."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import nn

from linnaeus.errors import DownloadError, ModelError
from linnaeus.models import efficientnet, plain
from linnaeus.models.folding import fold_norms, unfold_norms
from linnaeus.models.registry import Blueprint, Classifier, count_parameters, create_model, find_model, list_models
from linnaeus.models.weights import at_hand, load_pretrained

OWN = [entry.name for entry in list_models()]
TIMM = ["timm:test_resnet", "timm:test_vit"]
SIDE = 32


def build(name: str, *, classes: int = 7, channels: int = 3, size: int = SIDE) -> Classifier:
    """Return a network with fresh weights, the same each time."""
    torch.manual_seed(0)
    return create_model(Blueprint(name=name, classes=classes, channels=channels, size=size))


def images(count: int = 2, *, channels: int = 3, size: int = SIDE) -> torch.Tensor:
    """Return noise as images."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_the_registry_holds_the_known_networks() -> None:
    """The networks that the documentation names are there, each with one sentence."""
    assert {"simple_cnn", "lenet5", "alexnet", "vgg16_bn", "googlenet", "fastnet", "efficientnet_lite0"} <= set(OWN)
    assert all(entry.about and entry.smallest >= 4 for entry in list_models())
    assert [entry.name for entry in list_models("resnet?8")] == ["resnet18"]


@pytest.mark.parametrize("name", OWN + TIMM)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_parts(name: str, channels: int) -> None:
    """Features are (N, width), logits (N, K), and the head makes the one of the other, for any N."""
    model = build(name, channels=channels).eval()
    with torch.no_grad():
        for count in (1, 3):
            x = images(count, channels=channels)
            features, logits = model.features(x), model(x)
            assert features.shape == (count, model.width)
            assert logits.shape == (count, 7)
            torch.testing.assert_close(model.head(features), logits)


@pytest.mark.parametrize("name", OWN + TIMM)
def test_every_weight_learns(name: str) -> None:
    """Each parameter that is not frozen gets a gradient that is finite, and not nothing everywhere."""
    model = build(name).train()
    for parameter in model.parameters():  # some norms begin at zero, which hides what is behind them
        if parameter.ndim == 1 and not parameter.any():
            nn.init.constant_(parameter, 0.5)
    model.look_at(images(8))
    answer = model(images(4))
    for logits in answer if isinstance(answer, tuple) else (answer,):  # auxiliary heads after the logits
        F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward(retain_graph=True)
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(learning) > 3
    for n, p in learning.items():
        assert p.grad is not None, n
        assert p.grad.isfinite().all(), n
        assert p.grad.any() or n.endswith("bias"), n


@pytest.mark.parametrize("name", OWN + TIMM)
def test_a_new_head(name: str) -> None:
    """A new head has the new number of classes on the same features, and learns."""
    model = build(name).eval()
    with torch.no_grad():
        before = model.features(images())
        model.reset_head(4)
        assert model(images()).shape == (2, 4)
        torch.testing.assert_close(model.features(images()), before)
    assert all(p.requires_grad for p in model.head.parameters())


@pytest.mark.parametrize("name", OWN + TIMM)
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    """Weights that go through a file give a rebuilt network the same output to the byte, under the published names."""
    model = build(name)
    model.look_at(images(8))
    model.train()(images(8))
    weights = {n: value.contiguous() for n, value in model.published().state_dict().items()}
    safetensors.torch.save_file(weights, tmp_path / "weights")
    torch.manual_seed(9)
    other = create_model(Blueprint(name=name, classes=7, channels=3, size=SIDE))
    other.published().load_state_dict(safetensors.torch.load_file(tmp_path / "weights"))
    with torch.no_grad():
        assert torch.equal(model.eval()(images()), other.eval()(images()))


@pytest.mark.parametrize("name", OWN)
def test_the_smallest_picture(name: str) -> None:
    """The smallest side that a network claims to see works in training, and a smaller one is a ModelError."""
    smallest = find_model(name).smallest
    model = build(name, size=smallest).train()
    answer = model(images(2, size=smallest))
    assert all(logits.isfinite().all() for logits in (answer if isinstance(answer, tuple) else (answer,)))
    with pytest.raises(ModelError, match=f"at least {smallest} pixels"):
        build(name, size=smallest - 1)


@pytest.mark.parametrize("name", OWN + TIMM)
def test_the_seed_builds_the_same(name: str) -> None:
    """A network is built from the seed alone."""
    for a, b in zip(build(name).state_dict().values(), build(name).state_dict().values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "channels", "size", "weights"),
    [
        ("simple_cnn", 3, 32, 122_570),
        ("simple_cnn", 1, 28, 93_322),
        ("lenet5", 1, 32, 61_706),
        ("lenet5", 1, 28, 61_706),
    ],
)
def test_textbook_sizes(name: str, channels: int, size: int, weights: int) -> None:
    """The textbook networks have exactly the textbook's number of weights."""
    assert count_parameters(build(name, classes=10, channels=channels, size=size)) == weights


TORCHVISION = {
    "alexnet": 61_100_840, "vgg11": 132_863_336, "vgg11_bn": 132_868_840, "vgg13": 133_047_848, "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544, "vgg16_bn": 138_365_992, "vgg19": 143_667_240, "vgg19_bn": 143_678_248,
    "googlenet": 6_624_904, "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032,
    "resnet101": 44_549_160, "resnet152": 60_192_808,
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_sizes_of_published_networks(name: str) -> None:
    """For ImageNet, each classic has the published number of weights, auxiliary heads aside."""
    with torch.device("meta"):
        model = build(name, classes=1000, size=224)
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("aux")) == TORCHVISION[name]


def test_the_size_of_lite0() -> None:
    """EfficientNet-Lite0 for ImageNet has as many weights as timm's."""
    theirs = timm.create_model("tf_efficientnet_lite0")
    assert count_parameters(build("efficientnet_lite0", classes=1000, size=224)) == count_parameters(theirs)


def test_the_maps_of_lenet5() -> None:
    """LeNet-5's layers have the sizes of the paper: 28x28x6, 14x14x6, 10x10x16, 5x5x16, 120, 84, for 28 pixels too."""
    for size in (32, 28):
        x, shapes = images(channels=1, size=size), []
        for module in build("lenet5", channels=1, size=size).body:
            x = module(x)
            if not isinstance(module, nn.Tanh | nn.Flatten):
                shapes.append(tuple(x.shape[1:]))
        assert shapes == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120,), (84,)]


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "vgg13_bn", "googlenet", "resnet18", "resnet50"])
def test_classics_are_torchvisions(name: str, tmp_path: Path) -> None:
    """With torchvision's weights, given as a file, each classic says what torchvision's says; a new head stays new."""
    torchvision = pytest.importorskip("torchvision")
    options = {"init_weights": False} if name.startswith(("vgg", "goog")) else {}
    torch.manual_seed(1)
    theirs = getattr(torchvision.models, name)(num_classes=9, **options).eval()
    file = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), file)
    for classes in (9, 7):
        blueprint = Blueprint(name=name, classes=classes, channels=3, size=96)
        ours = create_model(blueprint)
        head = copy.deepcopy(ours.head.state_dict())
        load_pretrained(ours, find_model(name), blueprint, given=str(file))
        x = images(size=96)
        with torch.no_grad():
            if classes == 9:
                torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-4, atol=1e-5)
        same = all(torch.equal(a, b) for a, b in zip(head.values(), ours.head.state_dict().values()))
        assert same == (classes == 7)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    """Weights of another network, for small pictures, or in a file that holds none are a ModelError."""
    file, blueprint = tmp_path / "weights.pth", Blueprint(name="resnet18", classes=3, channels=3, size=96)
    model, entry = create_model(blueprint), find_model("resnet18")
    torch.save(build("resnet34", size=96).state_dict(), file)
    with pytest.raises(ModelError, match="weights that fit"):
        load_pretrained(model, entry, blueprint, given=str(file))
    torch.save(model.state_dict(), file)
    small = Blueprint(name="resnet18", classes=3, channels=3, size=32)
    with pytest.raises(ModelError, match="image_size=224"):
        load_pretrained(create_model(small), entry, small, given=str(file))
    for content in (b"", b"no weights"):
        file.write_bytes(content)
        with pytest.raises(ModelError, match="file of weights"):
            load_pretrained(model, entry, blueprint, given=str(file))
    torch.save([1, 2], file)
    with pytest.raises(ModelError, match="tensors by name"):
        load_pretrained(model, entry, blueprint, given=str(file))


def test_weights_are_looked_for_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights are found in the cache by their name, and refused if their bytes are not theirs."""
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    blueprint = Blueprint(name="resnet18", classes=3, channels=3, size=96)
    model = create_model(blueprint)
    file = tmp_path / "made.pth"
    torch.save(model.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    entry = dataclasses.replace(find_model("resnet18"), weights=f"resnet18-{digest}.pth")
    assert not at_hand(entry)
    for folder in (tmp_path / "torch" / "hub" / "checkpoints", tmp_path / "cache" / "weights"):
        folder.mkdir(parents=True)
        file.rename(folder / entry.weights)
        assert at_hand(entry)
        load_pretrained(model, entry, blueprint)
        (folder / entry.weights).rename(file)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    file.rename(tmp_path / "cache" / "weights" / entry.weights)
    with pytest.raises(DownloadError, match="Delete it"):
        load_pretrained(model, entry, blueprint)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel_size": 9}, "a filter of 9 pixels on 6 pixels in block 2"),
        ({"filters": (8,) * 6}, "a pool of 2 pixels on 1 pixels in block 3"),
        ({"pool_size": 16}, "a filter of 3 pixels on 1 pixels in block 2"),
        ({"kernel_size": 3, "pool_size": 10}, "a filter of 3 pixels on 1 pixels in block 2"),
        ({"padding": True, "pool_size": 5}, "a pool of 5 pixels on 4 pixels in block 2"),
        ({"kernel_size": 9}, "Set image_size=60 or larger"),
    ],
)
def test_layers_that_do_not_fit(options: dict[str, object], words: str) -> None:
    """A filter or a pool larger than what is left of the picture is refused with its block."""
    with pytest.raises(ModelError, match=words):
        create_model(Blueprint(name="simple_cnn", classes=3, channels=1, size=20, options=options))


@pytest.mark.parametrize("options", [{"kernel_size": 9}, {"filters": (8,) * 6}, {"padding": True, "pool_size": 5}])
def test_the_size_that_would_do(options: dict[str, object]) -> None:
    """The size named for layers that do not fit is the smallest that they fit into."""
    side = plain.CnnShape(**options).smallest()
    plain.CnnShape(**options).check(side)
    with pytest.raises(ModelError):
        plain.CnnShape(**options).check(side - 1)


def test_settings_that_are_another_networks() -> None:
    """A network refuses settings that it does not take, and says which it takes."""
    with pytest.raises(ModelError, match="takes stochastic_depth"):
        create_model(Blueprint(name="resnet18", classes=3, channels=3, size=32, options={"filters": (3,)}))


def test_stochastic_depth() -> None:
    """In training, blocks are skipped for some images, the later the more; in use, never."""
    torch.manual_seed(0)
    blueprint = Blueprint(name="resnet18", classes=3, channels=3, size=32, options={"stochastic_depth": 0.8})
    model = create_model(blueprint)
    skips = [m.skip for m in model.modules() if hasattr(m, "skip")]
    assert skips == pytest.approx([0.1 * i for i in range(1, 9)])
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 0.0
    x = images().expand(2, -1, -1, -1)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def pretrained(channels: int = 3) -> Classifier:
    """Return EfficientNet-Lite0 with its published weights."""
    blueprint = Blueprint(name="efficientnet_lite0", classes=7, channels=channels, size=SIDE)
    model = create_model(blueprint)
    load_pretrained(model, find_model("efficientnet_lite0"), blueprint)
    return model.eval()


@pytest.mark.parametrize("size", [64, 97, 224])
def test_lite0_is_timms(size: int) -> None:
    """With the published weights, our features are those of timm's tf_efficientnet_lite0, for odd sides too."""
    ours, theirs = pretrained(), timm.create_model("tf_efficientnet_lite0", num_classes=7).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    x = images(size=size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)
        expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        torch.testing.assert_close(ours.features(x), expected, rtol=1e-3, atol=1e-3)


def test_symmetric_padding_is_not_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap is real: the same weights with symmetric padding load, and see something else."""
    model, x = pretrained(), images()
    with torch.no_grad():
        right = model.features(x)
        monkeypatch.setattr(
            efficientnet.SameConv2d,
            "forward",
            lambda conv, y: F.conv2d(y, conv.weight, conv.bias, conv.stride, conv.kernel_size[0] // 2, 1, conv.groups),
        )
        wrong = model.features(x)
    assert (right - wrong).abs().mean() > 0.05 * right.abs().mean()


def test_pretrained_weights_of_grey_pictures() -> None:
    """With one channel, a grey picture gives the features of the same picture in three."""
    grey = images(channels=1)
    with torch.no_grad():
        torch.testing.assert_close(
            pretrained(1).features(grey), pretrained(3).features(grey.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-3
        )


def test_weights_that_do_not_exist() -> None:
    """A network without published weights is a ModelError that says what to do."""
    blueprint = Blueprint(name="lenet5", classes=7, channels=3, size=32)
    with pytest.raises(ModelError, match="pretrained=false"):
        load_pretrained(create_model(blueprint), find_model("lenet5"), blueprint)


@pytest.mark.parametrize("name", OWN)
def test_folding_changes_nothing(name: str) -> None:
    """A network with folded norms, and one with the norms taken out again, gives what it gave before."""
    model = build(name)
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.8, 1.5)
            norm.weight.uniform_(0.2, 0.8)  # more, and a hundred layers overflow
            norm.bias.normal_()
        model.eval()
        names, before = list(model.state_dict()), model(images())
        foldable = len(model.foldable())
        norms = fold_norms(model)
        assert len(norms) == foldable
        torch.testing.assert_close(model(images()), before, rtol=1e-3, atol=1e-3)
        trained = copy.deepcopy(model)
        for p in trained.parameters():
            p.mul_(1.01)
        folded = trained(images())
        unfold_norms(trained, copy.deepcopy(norms))
        torch.testing.assert_close(trained.eval()(images()), folded, rtol=1e-3, atol=1e-3)
        unfold_norms(model, norms)
        assert sorted(model.state_dict()) == sorted(names)
        torch.testing.assert_close(model.eval()(images()), before, rtol=1e-3, atol=1e-3)


def test_lite0_folds_every_norm() -> None:
    """No batch norm of EfficientNet-Lite0 is left after folding."""
    model = build("efficientnet_lite0")
    fold_norms(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(
    ("name", "hint"), [("lenet", "lenet5"), ("timm:resnet_18", "timm:resnet18"), ("qqqqqq", "Known")]
)
def test_an_unknown_network(name: str, hint: str) -> None:
    """A mistyped name is a ModelError with the nearest names."""
    with pytest.raises(ModelError, match=hint):
        find_model(name)


def test_a_network_that_looks_first() -> None:
    """Fastnet whitens: after looking at pictures, the responses of its first layer have no common direction."""
    model = build("fastnet", size=32)
    x = torch.nn.functional.avg_pool2d(images(64, size=64), 2)
    model.look_at(x)
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        responses = stem(x).transpose(0, 1).flatten(1)
    half = responses[: stem.out_channels // 2]
    kept = half[half.abs().sum(dim=1) > 0]
    products = kept @ kept.T / kept.shape[1]
    off = products - torch.diag(products.diag())
    assert off.abs().max() < 0.2 * products.diag().max()
