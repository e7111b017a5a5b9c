"""Transfer learning: what learns, what does not, and that the network is a plain one again in the end."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import linnaeus
from linnaeus.config import FEW, Settings
from linnaeus.data.cache import PackedPixels
from linnaeus.data.loaders import Loader
from linnaeus.errors import ModelError, SettingError
from linnaeus.images import Preprocess
from linnaeus.learning.transfer import Thaw, begin_transfer, check_transfer, rate_factors
from linnaeus.models.adapters import Adapter, LowRank, adapt, merge
from linnaeus.models.folding import fold_norms, unfold_norms
from linnaeus.models.registry import Blueprint, Classifier, count_parameters, create_model
from linnaeus.models.stages import place_weights
from linnaeus.results import Validation
from linnaeus.training.checkpoint import State, Weights, copy_weights, load_state, save_state
from linnaeus.training.loop import fit
from linnaeus.training.optim import Rule, Schedule, make_optimizer
from linnaeus.training.plan import Hooks, Plan
from linnaeus.training.tasks import Normalizer, Supervised
from pictures import save_folder

SIDE = 32
SMALL = ["simple_cnn", "efficientnet_lite0", "timm:test_resnet", "timm:test_vit", "timm:test_convnext"]
ALL = [*SMALL, "vgg11_bn", "googlenet", "resnet18", "fastnet_small"]
NORMALIZE = Normalizer(
    Preprocess(height=SIDE, width=SIDE, channels=3, fit="stretch", mean=(0.5,) * 3, std=(0.5,) * 3),
    torch.device("cpu"),
)
PLAN = Plan(
    rule=Rule(optimizer="adamw", lr=1e-3, weight_decay=0.1), schedule=Schedule(shape="constant"), epochs=1, ema=0.5,
    size=SIDE, freeze_norms=True,
)  # fmt: skip


def build(name: str) -> Classifier:
    """Return a network with fresh weights, none of them hidden behind zeros."""
    torch.manual_seed(0)
    model = create_model(Blueprint(name=name, classes=3, channels=3, size=SIDE))
    for parameter in model.parameters():
        if parameter.ndim == 1 and not parameter.any():
            nn.init.constant_(parameter, 0.1)
    return model


def images() -> torch.Tensor:
    """Return noise as images."""
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def loader(count: int = 6) -> Loader:
    """Return pictures of noise in three steps."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)
    return Loader(pixels=PackedPixels(array=pixels), labels=np.arange(count) % 3, indices=np.arange(count),
                  batch_size=2, shuffle=True)  # fmt: skip


def settings(method: str, **more: object) -> Settings:
    """Return the settings of a run from published weights."""
    return Settings.of({"finetune": method, "pretrained": True, **more})


def new_state(model: Classifier, chosen: Settings, plan: Plan = PLAN) -> State:
    """Return the state with which training begins."""
    optimizer = make_optimizer(model, plan.rule, factors=rate_factors(model, chosen))
    return State(model=model, optimizer=optimizer, average=copy.deepcopy(model).eval())


def hooks(model: Classifier, method: str, **more: Any) -> Hooks:
    """Return surroundings that judge nothing."""
    release = Thaw(model) if method == "staged" else lambda progress: False
    judged = Validation(loss=1.0, accuracy=0.5)
    given = {"judge": lambda network: judged, "save": lambda state: None, "on_epoch": lambda result: False}
    return Hooks(**{**given, "release": release, **more})


def train(model: Classifier, chosen: Settings, plan: Plan = PLAN) -> State:
    """Take three steps as a run does."""
    state = new_state(model, chosen, plan)
    fit(state, Supervised(normalize=NORMALIZE), loader(), plan, hooks(model, chosen.finetune))
    return state


def differing(a: Weights, b: Weights) -> set[str]:
    """Return the names of the tensors that are not the same."""
    return {name for name in a if not torch.equal(a[name], b[name])}


def may_change(model: Classifier, method: str) -> set[str]:
    """Return the names of the plain weights before the head that a method is for."""
    found = set()
    for name, module in model.named_modules():
        own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
        if method == "bias":
            found |= {key for key in own if key.endswith("bias")}
        elif method == "norm" and isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            found |= set(own)
        elif method in ("lora", "adapter") and isinstance(module, nn.Linear | nn.Conv2d):
            found |= {key for key in own if key.endswith("weight") and getattr(module, "groups", 1) == 1}
    return found


CASES = [(name, method) for name in SMALL for method in FEW if (name, method) != ("simple_cnn", "norm")]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_few_weights_learn(name: str, method: str) -> None:
    """What should learn gets a gradient and moves, all else stays to the bit, in the average too; names are plain."""
    model, chosen = build(name), settings(method)
    plain = set(model.state_dict())
    norms = fold_norms(model) if method != "norm" else {}
    before, expected, stages = copy_weights(model), may_change(model, method), model.stages()
    in_head = {n for n, stage in place_weights(before, stages).items() if stage == len(stages)}
    begin_transfer(model, chosen)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images()), rebuilt(name, before, method)(images()))
    begun = copy_weights(model)
    state = train(model, chosen)
    for n, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, n
        assert p.grad is None or p.grad.any() or n.endswith("bias"), n
    few = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in state.optimizer.state} == few
    assert count_parameters(model, learning=True) < 0.5 * count_parameters(model)
    frozen = {n for n in begun if n not in dict(model.named_parameters()) or not model.get_parameter(n).requires_grad}
    assert not frozen & (differing(begun, copy_weights(model)) | differing(begun, copy_weights(state.judged)))
    model.load_state_dict(state.judged.state_dict())
    with torch.no_grad():
        learned = model.eval()(images())
        merge(model)
        changed = differing(before, copy_weights(model))
        assert changed <= expected | in_head
        assert changed - in_head
        unfold_norms(model, norms)
        assert set(model.state_dict()) == plain
        torch.testing.assert_close(model.eval()(images()), learned, rtol=1e-3, atol=1e-3)


def rebuilt(name: str, weights: Weights, method: str) -> Classifier:
    """Return a network with these weights, folded as they are."""
    model = build(name).eval()
    if method != "norm":
        fold_norms(model)
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("name", ALL)
def test_stages_are_a_network_in_order(name: str) -> None:
    """Every weight lies in one stage, the head's in none; a stage is nearer to the picture than the next."""
    model = build(name)
    stages = model.stages()
    places = place_weights((n for n, _ in model.named_parameters()), stages)
    heads = {id(p) for p in model.head.parameters()}
    assert {places[n] for n, p in model.named_parameters() if id(p) in heads} == {len(stages)}
    assert set(places.values()) == set(range(len(stages) + 1))
    assert len(stages) >= 3
    order: list[int] = []
    for n, module in model.named_modules():
        weights = [f"{n}.{key}" for key, _ in module.named_parameters(recurse=False)]
        if weights and not any(module.children()) and places[weights[0]] < len(stages):
            module.register_forward_hook(lambda *_, place=places[weights[0]]: order.append(place))
    model.eval()(images())
    assert order == sorted(order)


@pytest.mark.parametrize("name", ALL)
def test_staged_thaws_from_the_head(name: str) -> None:
    """At first only the head and the last stage get gradients, then one stage more at a time, after half all."""
    model = build(name)
    stages, thaw = model.stages(), Thaw(model)
    places = place_weights((n for n, _ in model.named_parameters()), stages)
    assert thaw(0.0)
    assert not thaw(0.0)
    learning = []
    for progress in np.linspace(0, 1, 41):
        thaw(float(progress))
        learning.append({places[n] for n, p in model.named_parameters() if p.requires_grad})
    assert learning[0] == {len(stages) - 1, len(stages)}
    assert learning[20] == learning[-1] == set(range(len(stages) + 1))
    assert all(a <= b for a, b in itertools.pairwise(learning))
    assert len({len(each) for each in learning}) == len(stages)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw", "lars", "lamb", "muon"])
def test_what_is_frozen_does_not_move(optimizer: str) -> None:
    """With decay, momentum and an average, a stage that has not thawed is the same to the bit and has no state."""
    model, chosen = build("simple_cnn"), settings("staged")
    plan = replace(PLAN, rule=Rule(optimizer=optimizer, lr=1e-3, weight_decay=0.1, late=True), epochs=100)
    before, state = copy_weights(model), new_state(model, chosen, plan)
    stop = hooks(model, "staged", on_epoch=lambda result: True)
    assert fit(state, Supervised(normalize=NORMALIZE), loader(), plan, stop) == "stopped"
    moved = {"body.9.weight", "body.9.bias", "head.weight", "head.bias"}
    assert isinstance(state.average, Classifier)
    for network in (model, state.average):
        assert differing(before, copy_weights(network)) == moved
    assert {n for n, p in model.named_parameters() if state.optimizer.state.get(p)} == moved


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw", "lars", "lamb", "muon"])
def test_all_thaw_under_every_optimizer(optimizer: str) -> None:
    """Where weights join one by one, an optimizer takes each on, and in the end all have moved."""
    model, chosen = build("simple_cnn"), settings("staged")
    plan = replace(PLAN, rule=Rule(optimizer=optimizer, lr=1e-3, weight_decay=0.1, late=True), epochs=4)
    before, state = copy_weights(model), new_state(model, chosen, plan)
    assert fit(state, Supervised(normalize=NORMALIZE), loader(), plan, hooks(model, "staged")) == "done"
    assert differing(before, copy_weights(model)) == set(before)


@pytest.mark.parametrize("method", ["staged", *FEW])
@pytest.mark.parametrize("at", [1, 4])
def test_interrupted_and_resumed(tmp_path: Path, method: str, at: int) -> None:
    """A run that is interrupted and goes on in a fresh network ends with the same bytes."""
    plan, chosen, states = replace(PLAN, epochs=2), settings(method, layer_decay=0.7), []
    for interrupted in (False, True):
        model = begun("timm:test_resnet", chosen)
        state, steps = new_state(model, chosen), iter(range(1, 100))
        given = hooks(
            model, method, save=lambda s: save_state(s, tmp_path / "s"),
            interrupted=lambda steps=steps, interrupted=interrupted: interrupted and next(steps) == at,
        )  # fmt: skip
        ended = fit(state, Supervised(normalize=NORMALIZE), loader(), plan, given)
        assert ended == ("interrupted" if interrupted else "done")
        states.append(state)
    model = begun("timm:test_resnet", chosen)
    resumed = new_state(model, chosen)
    load_state(resumed, tmp_path / "s")
    assert resumed.step == at
    fit(resumed, Supervised(normalize=NORMALIZE), loader(), plan, hooks(model, method))
    for a, b in ((states[0].model, resumed.model), (states[0].judged, resumed.judged)):
        assert differing(copy_weights(a), copy_weights(b)) == set()


def begun(name: str, chosen: Settings) -> Classifier:
    """Return a network that is ready to learn."""
    model = build(name)
    begin_transfer(model, chosen)
    return model


def test_half_precision() -> None:
    """In bf16, what learns stays float32, and merged weights say what the adapted ones said."""
    chosen = settings("lora")
    model = begun("simple_cnn", chosen)
    state = train(model, chosen, replace(PLAN, precision="bf16"))
    assert state.tally.skipped == 0
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        learned = model.eval()(images())
        merge(model)
        torch.testing.assert_close(model(images()), learned, rtol=1e-4, atol=1e-4)


def test_rates_decay_from_the_head_backwards() -> None:
    """Each stage's rate is that of the next times layer_decay; without it only the head's differs."""
    model = build("efficientnet_lite0")
    factors = rate_factors(model, settings("full", layer_decay=0.5))
    assert factors["conv_head.weight"] == 0.5
    assert factors["blocks.6.0.conv_pw.weight"] == 0.25
    assert factors["conv_stem.weight"] == 0.5**9
    assert factors["classifier.weight"] == 3.0
    assert set(rate_factors(model, settings("full")).values()) == {1.0, 3.0}
    assert set(rate_factors(model, Settings.of({"pretrained": False})).values()) == {1.0}
    begin_transfer(model, settings("lora"))
    name = "blocks.6.0.conv_pw.parametrizations.weight.0.up"
    assert rate_factors(model, settings("lora", layer_decay=0.5))[name] == 0.25


def test_the_formulas_of_adapters() -> None:
    """LoRA adds s B A to the weights; an adapter before a layer is W (I + s U D), for borders too."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, 5)
    for kind in (LowRank, Adapter):
        layer = nn.Conv2d(6, 8, 3, padding=1)
        plain = copy.deepcopy(layer)
        adapt(layer, {LowRank: "lora", Adapter: "adapter"}[kind], 2)
        change = layer.parametrizations["weight"][0]
        assert isinstance(change, kind)
        nn.init.normal_(change.up)
        down, up = change.down.detach().numpy(), change.up.detach().numpy()
        if kind is LowRank:
            moved = torch.from_numpy(4.0 * (up @ down).reshape(8, 6, 3, 3)).float()
            expected = plain(x) + nn.functional.conv2d(x, moved, padding=1)
        else:
            bridged = x.numpy() + 4.0 * np.einsum("ir,rj,njhw->nihw", up, down, x.numpy())
            expected = plain(torch.from_numpy(bridged))
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
        merge(layer)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
        assert type(layer) is nn.Conv2d


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("resnet18", {"finetune": "lora", "pretrained": False}, "published weights for finetune=lora.*finetune=full"),
        ("resnet18", {"finetune": "head", "pretrained": False}, "published weights for finetune=head"),
        ("simple_cnn", {"finetune": "norm"}, "norms.*simple_cnn.*finetune=full, finetune=head, finetune=bias"),
        ("simple_cnn", {"finetune": "lora", "rank": 1024}, "rank=1024.*a lower rank.*finetune=bias"),
    ],
)
def test_what_cannot_be_is_refused(name: str, given: dict[str, object], words: str) -> None:
    """A method without weights to start from, or without layers to work on, is refused with what would fit."""
    with pytest.raises(SettingError, match=f"(?s){words}"):
        check_transfer(Settings.of({"pretrained": True, **given}), build(name), name)


def test_layers_that_no_method_knows() -> None:
    """One opaque layer has no stages, norms, biases or matrices; a head that is not linear has no fit."""

    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gain * x.mean(dim=(2, 3))

    model = Classifier(Opaque(), 3, 2)
    for method in ("staged", *FEW):
        with pytest.raises(SettingError, match="finetune=full or finetune=head, or choose"):
            check_transfer(settings(method), model, "opaque")
    model.head = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ModelError, match="ends in Sequential"):
        check_transfer(settings("full"), model, "opaque")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder of 2 classes with 16 pictures each."""
    return save_folder(tmp_path_factory.mktemp("data"), {"a": 16, "b": 16}, size=SIDE)


@pytest.mark.parametrize("method", ["head", "staged", "norm", "lora"])
def test_a_whole_run(pictures: Path, tmp_path: Path, method: str) -> None:
    """A run ends with the plain network's weights, which timm opens, and its report counts what learned."""
    result = linnaeus.train(
        pictures, out=tmp_path / "run", model="efficientnet_lite0", image_size=SIDE, epochs=1, threads=1,
        batch_size=8, finetune=method, layer_decay=0.9,
    )  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    facts, head = report["model"], 1280 * 2 + 2
    assert (facts["trained_parameters"] == head) == (method == "head")
    few = facts["trained_parameters"] < 0.05 * facts["parameters"]
    assert few == (method != "staged")
    assert report["timing"]["stages"]["training"] > 0
    assert [epoch.stage for epoch in result.epochs] == (["head"] if method == "head" else ["head", "train"])
    weights = safetensors.torch.load_file(tmp_path / "run" / "bundle" / "model.safetensors")
    theirs = timm.create_model("tf_efficientnet_lite0", num_classes=2)
    assert set(weights) == set(theirs.state_dict())
    timm.create_model(f"local-dir:{tmp_path / 'run' / 'bundle'}", pretrained=True)


def test_a_refusal_comes_before_any_work(pictures: Path, tmp_path: Path) -> None:
    """A way of fine-tuning that cannot be makes no folder and reads no picture."""
    with pytest.raises(SettingError, match="published weights"):
        linnaeus.train(pictures, out=tmp_path / "run", model="lenet5", finetune="lora")
    assert not (tmp_path / "run").exists()
