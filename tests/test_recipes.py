"""What linnaeus chooses by itself: every setting is settled, for every kind of data, and the user's word counts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from linnaeus.config import AUTO, Settings
from linnaeus.data.survey import Survey
from linnaeus.models.registry import Blueprint, create_model, find_model, list_models
from linnaeus.recipes import Chooser, Situation, choose_model, choose_parts, choose_preprocess, choose_training
from linnaeus.results import Choice

BY_THE_MACHINE = {"device", "precision", "threads"}  # chosen where the run finds itself
LOOKS = [
    Survey(side=side, longest=int(side * aspect), aspect=aspect, grey=grey)
    for side, aspect, grey in itertools.product((8, 28, 64, 65, 500), (1.0, 3.0), (True, False))
]
MODELS = [AUTO, *(entry.name for entry in list_models()), "timm:test_resnet"]


def choose(look: Survey, images: int = 1000, device: str = "cpu", **given: Any) -> Chooser:
    """Choose everything for some data, as a run does."""
    chooser = Chooser(settings=Settings.of({"device": device, "precision": "fp32", "threads": 1, **given}))
    choose_parts(chooser, images)
    entry = find_model(choose_model(chooser, look, images))
    preprocess = choose_preprocess(chooser, look, entry, at_hand=bool(entry.weights))
    now = Situation(
        model=entry.name,
        size=preprocess.height,
        images=images,
        small=look.small,
        grey=look.grey,
        pretrained=bool(chooser.settings.pretrained),
        packed=True,
        any_size=entry.any_size,
        device=device,
        imbalance=2.0,
    )
    choose_training(chooser, now)
    return chooser


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("length", [{}, {"epochs": 3}, {"budget": "30s"}, {"budget": 0}], ids=str)
def test_everything_is_settled(model: str, length: dict[str, Any]) -> None:
    """For small and large, grey and coloured pictures, few and many, nothing stays "auto", and all is in range."""
    for look, images, device in itertools.product(LOOKS, (30, 3_000, 60_000), ("cpu", "cuda")):
        chooser = choose(look, images, device, model=model, **length)
        assert chooser.settings.unresolved() == []
        values = chooser.settings.to_dict()
        assert Settings.of(values) == chooser.settings
        assert values["epochs"] >= 1
        assert values["budget"] > 0 or values["epochs"] < 100_000
        assert values["train_size"] <= values["image_size"]
        assert values["image_size"] >= find_model(values["model"]).smallest


def test_every_choice_has_a_reason() -> None:
    """Each setting that was open is told once, with its value and a reason; those that were given are not."""
    told: list[Choice] = []
    chooser = choose(LOOKS[5], epochs=3)
    chooser.tell = told.append
    names = [choice.name for choice in chooser.choices]
    assert len(names) == len(set(names))
    assert set(names) == set(Settings().unresolved()) - BY_THE_MACHINE - {"epochs"}
    assert all(choice.why and choice.value == str(getattr(chooser.settings, choice.name)) for choice in chooser.choices)


GIVEN = {
    "val_fraction": 0.22,
    "finetune": "full",
    "workers": 3,
    "model": "lenet5",
    "pretrained": False,
    "image_size": 32,
    "train_size": 24,
    "channels": 1,
    "fit": "pad",
    "epochs": 7,
    "budget": 99.0,
    "batch_size": 17,
    "accumulate": 3,
    "logit_adjustment": 0.5,
    "loss": "mse",
    "optimizer": "adam",
    "lr": 0.0123,
    "momentum": 0.5,
    "weight_decay": 0.0456,
    "schedule": "constant",
    "warmup": 0.33,
    "label_smoothing": 0.22,
    "ema": 0.77,
    "flip": True,
    "grow": 0.9,
    "shift": 0.11,
    "rotate": 12.0,
    "crop": 0.44,
    "colour": 0.55,
    "erase": 0.66,
}


def test_the_users_word_counts() -> None:
    """Whatever the user gives is taken as it is, one setting at a time and all at once, on any data."""
    assert set(GIVEN) >= set(Settings().unresolved()) - BY_THE_MACHINE
    for look in LOOKS[::3]:
        for name, value in GIVEN.items():
            chooser = choose(look, **{name: value})
            assert getattr(chooser.settings, name) == value
            assert name not in {choice.name for choice in chooser.choices}
        everything = choose(look, **GIVEN)
        assert {name: getattr(everything.settings, name) for name in GIVEN} == GIVEN
        assert everything.choices == []


def test_gradient_descent_sees_all_images() -> None:
    """A step of gd has all images, a few hundred at a time; a number of steps alone decides the length of a run."""
    settings = choose(LOOKS[0], images=600, optimizer="gd", steps=7).settings
    assert (settings.batch_size, settings.accumulate) == (600, 3)
    assert (settings.budget, settings.epochs) == (0.0, 100_000)
    assert choose(LOOKS[0], steps=7, budget="1m").settings.budget == 60
    assert choose(LOOKS[0], steps=7, epochs=2).settings.epochs == 2


def test_a_given_setting_that_is_zero_or_false_counts() -> None:
    """False, 0 and 0.0 are words too, not gaps to fill."""
    zeros = {"flip": False, "lr": 0.0, "ema": 0.0, "weight_decay": 0.0, "colour": 0.0, "pretrained": False}
    for look in LOOKS:
        settings = choose(look, epochs=1, **zeros).settings
        assert {name: getattr(settings, name) for name in zeros} == zeros


def test_what_is_chosen_suits_the_pictures() -> None:
    """Photographs get a pretrained network, small pictures one from scratch; long ones keep their proportions."""
    photograph = choose(Survey(side=400, longest=600, aspect=1.5, grey=False)).settings
    assert photograph.pretrained is True
    assert photograph.channels == 3
    digit = choose(Survey(side=28, longest=28, aspect=1.0, grey=True)).settings
    assert (digit.pretrained, digit.channels, digit.flip) == (False, 1, False)
    assert choose(Survey(side=28, longest=28, aspect=1.0, grey=False)).settings.flip is True
    assert choose(Survey(side=300, longest=1500, aspect=5.0, grey=False)).settings.fit == "pad"


@pytest.mark.parametrize(
    ("images", "given", "model"),
    [
        (3_000, {}, "fastnet_small"),
        (50_000, {"epochs": 3}, "fastnet_small"),
        (50_000, {"budget": "30s"}, "fastnet_small"),
        (50_000, {"budget": "5m"}, "fastnet"),
        (50_000, {"epochs": 10}, "fastnet"),
        (50_000, {"budget": "20m"}, "fastnet_large"),
        (50_000, {"device": "cuda", "epochs": 10}, "fastnet_large"),
    ],
)
def test_the_network_suits_the_time(images: int, given: dict[str, Any], model: str) -> None:
    """Small pictures get a larger network the more time there is for each, or where a GPU makes it cheap."""
    assert choose(LOOKS[4], images, **{"device": "cpu", **given}).settings.model == model


@pytest.mark.parametrize(
    ("images", "given", "method"),
    [(100, {}, "head"), (100, {"budget": "3m"}, "head"), (100, {"epochs": 5}, "full"), (2_000, {}, "full")],
)
def test_few_photographs_teach_a_head(images: int, given: dict[str, Any], method: str) -> None:
    """A pretrained network is not fine-tuned on very few photographs, unless its user says for how long."""
    assert choose(LOOKS[-2], images, **given).settings.finetune == method


@pytest.mark.parametrize(("images", "share"), [(100, 0.15), (30_000, 0.15), (50_000, 0.1), (1_000_000, 0.01)])
def test_few_enough_are_held_back(images: int, share: float) -> None:
    """A seventh of few images validates, but no more of many than tell half a point apart."""
    assert choose(LOOKS[4], images, epochs=1).settings.val_fraction == share


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: f"{look.side}-{look.grey}")
def test_what_is_chosen_can_be_built(look: Survey) -> None:
    """The network that is chosen takes the size and channels that are chosen."""
    settings = choose(look).settings
    create_model(
        Blueprint(name=settings.model, classes=3, channels=settings.channels, size=settings.image_size)
    )  # fmt: skip


def test_the_preprocessing_is_that_of_the_weights() -> None:
    """Pretrained weights get the mean, deviation and interpolation that they were trained with, for grey too."""
    entry = find_model("efficientnet_lite0")
    for channels in (1, 3):
        chooser = Chooser(settings=Settings.of({"channels": channels}))
        preprocess = choose_preprocess(chooser, LOOKS[-1], entry, at_hand=bool(entry.weights))
        assert preprocess.mean == (0.5,) * channels
        assert preprocess.std == (0.5,) * channels
        assert preprocess.interpolation == "bicubic"
        assert preprocess.height == preprocess.width == chooser.settings.image_size
