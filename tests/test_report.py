"""The report: one page that is whole, safe and small, whatever the run reached."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from linnaeus.evaluation.metrics import score
from linnaeus.reporting.findings import find_problems
from linnaeus.reporting.page import render_report, tell_report

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Reads a page, checks that its elements nest, and keeps what the tests ask for."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words += data + " "


def make_scores(n=499, *, classes=CLASSES, skill=4.0, seed=0):
    """Return Scores as JSON values, with the fourth class weak and taken for the sixth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(classes), n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), labels] += skill
    if len(classes) > 5:
        logits[:, 5] += np.where((labels == 3) & (rng.random(n) < 0.3), 5.0, 0.0)
    weights = np.exp(logits)
    return score(weights / weights.sum(axis=1, keepdims=True), labels, classes).to_dict()


def make_epoch(i):
    """Return the values of one epoch of a run that goes well."""
    return {
        "stage": "head" if i < 4 else "whole", "epoch": i + 1, "step": 55 * (i + 1), "seconds": 3.1,
        "learning_rate": 1e-3, "train_loss": 0.5 + 1.7 * 0.8**i,
        "train_accuracy": None if i == 0 else 0.95 - 0.6 * 0.8**i,
        "val_loss": 0.3 + 1.6 * 0.8**i + 0.004 * max(0, i - 14), "val_accuracy": 0.93 - 0.5 * 0.75**i,
        "images_per_second": 1100.0, "skipped_steps": 0, "best": i in (2, 9, 15),
    }  # fmt: skip


def make_examples():
    """Return the examples of a run, with the keys of their pictures."""
    wrong = [("cat", "dog", 0.98), ("cat", "frog", 0.95), ("deer", "horse", 0.94), ("ship", "airplane", 0.9)]
    unsure = [("bird", "bird", 0.31), ("dog", "cat", 0.34), ("deer", "deer", 0.36)]
    sure = [(name, name, 0.9999) for name in CLASSES[:6]]
    return {
        group: [
            {"name": f"{t}/{i:04}.png", "truth": t, "predicted": p, "probability": q, "picture": f"{group}-{i}"}
            for i, (t, p, q) in enumerate(members)
        ]
        for group, members in (("sure", sure), ("unsure", unsure), ("wrong", wrong))
    }


def make_report():
    """Return the values of a whole run on ten classes and twenty epochs."""
    counts = {name: 349 + 3 * i for i, name in enumerate(CLASSES)}
    return {
        "format": 1, "title": "resnet18 on cifar10", "created": "2025-03-01T10:12:30+00:00", "folder": "runs/cifar10-1",
        "model": {
            "name": "resnet18", "parameters": 11_181_642, "onnx_bytes": 44_700_000,
            "base_weights": "timm/resnet18.a1_in1k", "licence": "Apache-2.0",
        },
        "data": {
            "name": "photos/cifar10", "classes": CLASSES,
            "counts": {"train": counts, "val": dict.fromkeys(CLASSES, 50), "test": dict.fromkeys(CLASSES, 50)},
            "bad_images": [{"path": "photos/cifar10/cat/0007.png", "reason": "the file ends too early"}],
            "notes": ["There was no test folder: 15 % of the pictures were held back."], "identical_across_parts": 2,
        },
        "choices": [
            {"name": "model", "value": "resnet18", "why": "3,499 pictures are too few to train a network from nothing"},
            {"name": "image_size", "value": "96", "why": "the pictures are small: 32 pixels"},
            {"name": "lr", "value": "0.001", "why": "what a short trial found to fall fastest"},
        ],
        "epochs": [make_epoch(i) for i in range(20)],
        "scores": {"val": make_scores(500, seed=1), "test": make_scores()},
        "examples": make_examples(),
        "agreement": {"images": 499, "largest_difference": 3.1e-6, "tolerance": 1e-4, "same_labels": True},
        "timing": {"total_seconds": 83.2, "stages": {"read": 4.2, "train": 71.0, "judge": 8.0}},
        "settings": {"epochs": 20, "batch_size": 64, "lr": 0.001, "optimizer": "adamw", "flip": True, "crop": 0.6},
        "versions": {"linnaeus": "0.1.0", "torch": "2.6.0", "python": "3.11.2"},
        "stopped_early": "", "next": ["linnaeus predict runs/cifar10-1 PICTURE", "linnaeus serve runs/cifar10-1"],
    }  # fmt: skip


def make_pictures(side=96):
    """Return a picture for each example: PNG and JPEG in turn."""
    keys = [e["picture"] for group in make_examples().values() for e in group]
    return {key: make_picture(i, side) for i, key in enumerate(keys)}


def make_picture(seed, side):
    """Return the bytes of one colourful picture."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((side, side)).save(stream, "JPEG" if seed % 2 else "PNG")
    return stream.getvalue()


def test_whole_report_is_well_formed():
    """A whole report nests its elements, holds every section and links to each of them."""
    source = render_report(make_report(), make_pictures())
    page = Page(source)
    assert page.tags.count("section") == 9
    links = [value[1:] for name, value in page.attributes if name == "href"]
    assert links == [value for name, value in page.attributes if name == "id"]
    assert page.tags.count("img") == 13


def test_first_screen_speaks_plainly():
    """The page says what was trained on what, and what the score means for new pictures."""
    words = Page(render_report(make_report())).words
    assert "resnet18 (11.2 million parameters) learned to tell 10 classes apart from 3,625 pictures" in words
    assert "Of 100 new pictures like these it gets about 97 right" in words
    assert "with 499 test pictures the true figure lies between 95 and 98" in words


@pytest.mark.parametrize("part", sorted(make_report()))
@pytest.mark.parametrize("emptied", [None, "absent"])
def test_any_part_may_be_missing(part, emptied):
    """A report without one of its parts, or with null there, still renders."""
    report = make_report()
    report[part] = None
    if emptied == "absent":
        del report[part]
    Page(render_report(report, make_pictures()))


def test_nothing_at_all_renders():
    """A run that reached nothing has a page that says so."""
    assert "No picture was judged" in Page(render_report({"format": 1})).words


def test_run_stopped_before_its_first_epoch_renders():
    """A run stopped at once shows its data and why there is no more."""
    report = {key: make_report()[key] for key in ("title", "model", "data", "choices")}
    words = Page(render_report(report | {"epochs": [], "scores": {}, "stopped_early": "Ctrl-C."})).words
    assert "was to learn" in words
    assert "Training stopped early: Ctrl-C." in words


def test_report_survives_json():
    """What was read back from report.json gives the same page."""
    report = make_report()
    assert render_report(json.loads(json.dumps(report, allow_nan=False))) == render_report(report)


def poison(value):
    """Replace every text in JSON values, keys of free mappings included, by a hostile one."""
    if isinstance(value, str):
        return f'{HOSTILE}"\' onload="x" &{value}'
    if isinstance(value, list):
        return [poison(item) for item in value]
    if isinstance(value, dict):
        free = not set(value) - {*CLASSES, *make_report()["settings"], *make_report()["versions"], "read", "judge"}
        return {poison(key) if free else key: poison(item) for key, item in value.items()}
    return value


def test_hostile_texts_stay_text():
    """Markup in names, paths, settings and commands is shown and never becomes an element or attribute."""
    source = render_report(poison(make_report()))
    page = Page(source)
    assert HOSTILE not in source
    assert "&lt;script&gt;" in source
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_hostile_class_is_quoted_in_commands():
    """A data set's name cannot smuggle a second command into what one is told to type."""
    report = make_report()
    report["data"]["name"] = "pets; rm -rf ~"
    assert {"'pets; rm -rf ~'" in p.command for p in find_problems(report)} == {True}


def test_page_loads_nothing():
    """The page holds no address outside itself, no script, and a policy that allows only inline styles and images."""
    source = render_report(make_report(), make_pictures())
    page = Page(source)
    assert "http:" not in source
    assert "https:" not in source
    assert "url(" not in source
    assert "@import" not in source
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "srcset", "data")]
    assert all(value.startswith("data:image/") for value in sources)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in source


def test_page_stays_under_five_megabytes():
    """Thousands of classes with long names, many bad images, epochs and large pictures stay under 5 MB."""
    classes = [f"<&>{'é' * 300}{i}" for i in range(1500)]
    report = make_report()
    report["data"]["classes"] = classes
    report["data"]["counts"] = {part: dict.fromkeys(classes, 3) for part in ("train", "val", "test")}
    report["data"]["bad_images"] = [{"path": "p" * 5000, "reason": "r" * 5000}] * 3000
    report["data"]["notes"] = ["n" * 10_000] * 1000
    report["epochs"] = [make_epoch(i) for i in range(5000)]
    report["settings"] = {f"{'s' * 500}{i}": "v" * 10_000 for i in range(1000)}
    report["choices"] *= 1000
    report["scores"]["test"] = make_scores(3000, classes=classes)
    pictures = dict.fromkeys(make_pictures(8), make_picture(0, 8) + bytes(400_000))
    page = render_report(report, pictures)
    assert len(page.encode()) < 5e6
    assert Page(page).tags.count("img") == 3


def test_pictures_of_other_kinds_are_left_out():
    """A missing picture, or bytes that are neither JPEG nor PNG, leave an empty frame."""
    pictures = dict.fromkeys(make_pictures(8), b"<svg onload=alert(1)>")
    assert "img" not in Page(render_report(make_report(), pictures)).tags


def test_many_classes_are_shown_as_pairs():
    """Above thirty classes the most confused pairs stand in for the matrix."""
    report = make_report()
    report["scores"] = {"test": make_scores(400, classes=[f"c{i}" for i in range(31)], skill=2.0)}
    source = render_report(report)
    assert "Taken for" in source
    assert 'class="confusion' not in source


def test_best_epoch_is_the_last_one_marked():
    """Of the epochs that were the best so far, the last is the one that was kept."""
    words = Page(render_report(make_report())).words
    assert "20 epochs. Stages in order: head, whole. The model of epoch 16 was kept" in words


@pytest.mark.parametrize("key", ["largest_difference", "tolerance"])
def test_disagreement_is_told(key):
    """The page says so when the deployed model names pictures differently."""
    report = make_report()
    report["agreement"] |= {"same_labels": False, key: 0.5}
    words = Page(render_report(report)).words
    assert "but do not give every picture the same name" in words


def test_report_is_told_as_text():
    """The same score, problems and commands can be read in a terminal, also of a run that reached nothing."""
    told = tell_report(make_report())
    assert told.startswith("resnet18 on cifar10\nOf 100 new pictures like these")
    assert "Weakest class: cat: 31 of its 40 test pictures" in told
    assert told.endswith("Next: linnaeus serve runs/cifar10-1")
    assert "No picture was judged" in tell_report({})


def test_control_characters_do_not_reach_the_terminal():
    """A title or name cannot send escape sequences or extra lines to a terminal."""
    assert tell_report({"title": "a\x1b[2J\nb"}).startswith("a?[2J?b\n")
