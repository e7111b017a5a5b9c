"""Ensembles: the merged network gives the mean of its members, and nothing is chosen or judged on what they learned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.optimize
import torch
from PIL import Image
from safetensors.torch import load_file

import linnaeus
from commands import CLASSES, QUICK, Answer, colours, describe_anew, save_colours, sign
from linnaeus.bundle import read_bundle
from linnaeus.compression.export import to_onnx
from linnaeus.compression.merging import Branch, merge_networks
from linnaeus.compression.views import View, list_views
from linnaeus.delivery import table_file
from linnaeus.ensembles.soup import mean_weights
from linnaeus.ensembles.weighing import fit_weights, mean_loss, pick_members
from linnaeus.errors import BundleError, DataError, SettingError
from linnaeus.images import Preprocess
from linnaeus.models.registry import Blueprint, create_model
from linnaeus.predictor import Predictor

pytest_plugins = ("fixtures_run",)

Call = Callable[..., Answer]
PIXELS = colours(3, size=18, seed=7)[0]


def copy_of(run_folder: Path, place: Path) -> Path:
    """Return a copy of the run's bundle, to change."""
    return Path(shutil.copytree(run_folder / "bundle", place))


@pytest.fixture
def other(run_folder: Path, tmp_path: Path) -> Path:
    """Return a member with another order of classes and another normalization than the run's bundle."""
    place = copy_of(run_folder, tmp_path / "other")
    preprocess = read_bundle(place).preprocess.to_dict() | {"mean": [0.3, 0.5, 0.4], "std": [0.2, 0.3, 0.25]}
    describe_anew(place, classes=list(reversed(CLASSES)), preprocess=preprocess)
    return place


def reversed_answers(folder: Path) -> np.ndarray:
    """Return a member's probabilities, its last class first."""
    return Predictor(folder).predict_pixels(PIXELS)[:, ::-1]


# -- the merged network


def test_the_mean_of_two_members(run_folder: Path, other: Path, tmp_path: Path) -> None:
    """The bundle answers with NumPy's mean of its members, matched by class name, each normalized its own way."""
    found = linnaeus.ensemble([run_folder, other], out=tmp_path / "both")
    expected = (Predictor(run_folder).predict_pixels(PIXELS) + reversed_answers(other)) / 2
    both = Predictor(tmp_path / "both")
    np.testing.assert_allclose(both.predict_pixels(PIXELS), expected, atol=1e-5)
    assert both.classes == CLASSES
    assert [member.weight for member in found.members] == [0.5, 0.5]
    assert (found.networks, found.scores) == (2, {})
    for i in range(len(PIXELS)):
        np.testing.assert_allclose(both.predict_pixels(PIXELS[i : i + 1])[0], expected[i], atol=1e-5)
    facts = read_bundle(tmp_path / "both").facts["ensemble"]
    assert [member["name"] for member in facts["members"]] == [str(run_folder), str(other)]
    assert read_bundle(tmp_path / "both").architecture.name == "ensemble"
    assert not onnx.load(tmp_path / "both" / "model.onnx").graph.initializer[0].external_data


def test_probabilities_of_nothing_have_a_logarithm(tmp_path: Path) -> None:
    """A class to which every member gives 0 keeps the answer finite."""
    inputs = onnx.helper.make_tensor_value_info("images", 1, ["n", 1, 2, 2])
    flat, scale = onnx.helper.make_node("Flatten", ["images"], ["f"]), onnx.helper.make_node("Mul", ["f", "c"], ["z"])
    graph = onnx.helper.make_graph(
        [flat, scale], "g", [inputs], [onnx.helper.make_tensor_value_info("z", 1, ["n", 4])],
        [onnx.numpy_helper.from_array(np.float32(1e6), "c")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    gray = Preprocess(height=2, width=2, channels=1, fit="stretch", mean=(0.0,), std=(1.0,))
    branch = Branch(network=model.SerializeToString(), preprocess=gray, order=(0, 1, 2, 3))
    logits = run(merge_networks([branch], gray, [View()]), np.array([[[[1, 0], [0, 0]]]], np.float32))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(np.exp(logits), [[1, 0, 0, 0]], atol=1e-6)


def run(network: bytes, batch: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime computes."""
    return onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"]).run(None, {"images": batch})[0]


def test_a_smaller_grey_member() -> None:
    """A member of half the size that sees no colour gets what Pillow would have made of the picture, nearly."""
    torch.manual_seed(0)
    small = Preprocess(height=16, width=16, channels=1, fit="stretch", mean=(0.4,), std=(0.3,))
    large = Preprocess(height=32, width=32, channels=3, fit="stretch", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    model = create_model(Blueprint(name="lenet5", classes=3, channels=1, size=16)).eval()
    branch = Branch(network=to_onnx(model, channels=1, size=16), preprocess=small, order=(0, 1, 2))
    pictures = colours(2, size=32)[0]
    shrunk = [np.asarray(Image.fromarray(x).convert("L").resize((16, 16), Image.Resampling.BILINEAR)) for x in pictures]
    with torch.no_grad():
        expected = torch.softmax(model(torch.from_numpy(small.normalize(np.stack(shrunk)[..., None]))), 1).numpy()
    found = np.exp(run(merge_networks([branch], large, [View()]), large.normalize(pictures)))
    np.testing.assert_allclose(found, expected, atol=5e-3)


# -- views


def test_views_are_mirrored_and_moved() -> None:
    """Views are NumPy's flips and edge-padded slices; there are 1, 2, 5 and 10 of them."""
    pixels = PIXELS
    assert np.array_equal(View(mirrored=True).show(pixels), pixels[:, :, ::-1])
    right = np.pad(pixels, ((0, 0), (0, 0), (3, 0), (0, 0)), mode="edge")[:, :, :18]
    up = np.pad(pixels, ((0, 0), (0, 2), (0, 0), (0, 0)), mode="edge")[:, 2:]
    assert np.array_equal(View(right=3).show(pixels), right)
    assert np.array_equal(View(down=-2).show(pixels), up)
    assert np.array_equal(View(mirrored=True, right=3).show(pixels), right[:, :, ::-1]) is False
    moved = np.pad(pixels[:, :, ::-1], ((0, 0), (0, 0), (3, 0), (0, 0)), mode="edge")[:, :, :18]
    assert np.array_equal(View(mirrored=True, right=3).show(pixels), moved)
    square = Preprocess(height=32, width=32, channels=1, fit="stretch", mean=(0.5,), std=(0.5,))
    assert [len(list_views(name, square)) for name in ("none", "flip", "shifts", "flip_shifts")] == [1, 2, 5, 10]
    assert {(v.right, v.down) for v in list_views("shifts", square)} == {(0, 0), (2, 0), (-2, 0), (0, 2), (0, -2)}


@pytest.mark.parametrize("tta", ["flip", "flip_shifts"])
def test_one_bundle_with_views(run_folder: Path, tmp_path: Path, tta: str) -> None:
    """The bundle answers with the mean over the views, and is of its member's architecture still."""
    found = linnaeus.ensemble([run_folder], out=tmp_path / "tta", tta=tta)
    one, views = Predictor(run_folder), list_views(tta, read_bundle(run_folder).preprocess)
    expected = np.mean([one.predict_pixels(view.show(PIXELS)) for view in views], axis=0)
    np.testing.assert_allclose(Predictor(tmp_path / "tta").predict_pixels(PIXELS), expected, atol=1e-5)
    made = read_bundle(tmp_path / "tta")
    assert (made.architecture, made.recipe["tta"]) == (read_bundle(run_folder).architecture, tta)
    assert found.networks == len(views)
    with pytest.raises(SettingError, match="which has tta="):
        linnaeus.ensemble([tmp_path / "tta"], out=tmp_path / "more", tta="flip")


# -- weights


def test_fitted_weights_are_the_best_on_the_simplex() -> None:
    """Expectation maximization finds the minimum that a general solver finds, and leaves a useless member out."""
    rng = np.random.default_rng(0)
    truth = np.stack([rng.beta(4, 2, 300), rng.beta(3, 2, 300), rng.beta(1, 9, 300)])
    sure = {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = scipy.optimize.minimize(
        lambda w: mean_loss(truth, w), np.full(3, 1 / 3), bounds=[(0, 1)] * 3, constraints=sure, tol=1e-10
    )
    weights = fit_weights(truth)
    assert weights.sum() == pytest.approx(1)
    assert mean_loss(truth, weights) <= best.fun + 1e-6
    assert mean_loss(truth, weights) == pytest.approx(-np.log(weights @ truth).mean())
    assert weights[2] == 0


def test_greedy_selection() -> None:
    """The first pick is the best member; the weights are shares of the picks, and no worse than it alone."""
    rng = np.random.default_rng(1)
    truth = rng.beta(3, 2, (4, 200))
    weights = pick_members(truth)
    alone = [mean_loss(truth, row) for row in np.eye(4)]
    assert weights.sum() == pytest.approx(1)
    assert mean_loss(truth, weights) < min(alone)
    assert pick_members(np.stack([np.full(9, 0.9), np.full(9, 0.5)])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("how", ["weighted", "greedy", "soup"])
def test_chosen_on_validation(run_folder: Path, photos: Path, tmp_path: Path, how: str) -> None:
    """Two equal members give what one gives, by weights or as a soup, and the scores are those of the run."""
    twin = copy_of(run_folder, tmp_path / "twin")
    found = linnaeus.ensemble([run_folder, twin], out=tmp_path / "e", data=photos, how=how)
    expected = Predictor(run_folder).predict_pixels(PIXELS)
    np.testing.assert_allclose(Predictor(tmp_path / "e").predict_pixels(PIXELS), expected, atol=1e-4)
    report = json.loads((run_folder / "report.json").read_text())["scores"]
    for part in ("val", "test"):
        assert found.scores[part].n == report[part]["n"]
        assert found.members[0].scores[part].accuracy.value == report[part]["accuracy"]
    assert sum(member.weight for member in found.members) == pytest.approx(1)
    again = linnaeus.evaluate(tmp_path / "e", photos)
    assert (again.part, again.scores.n) == ("test", report["test"]["n"])


def test_the_mean_of_weights() -> None:
    """A soup's weights are NumPy's mean; counters are the first's."""
    several = [{"w": torch.randn(3, generator=torch.Generator().manual_seed(i)), "n": torch.tensor(i)} for i in (1, 2)]
    found = mean_weights(several)
    np.testing.assert_allclose(found["w"], np.mean([x["w"].numpy() for x in several], axis=0), atol=1e-7)
    assert found["n"] == 1


# -- honesty


def test_what_one_member_learned_from_judges_nobody(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    """An image that is test in one member and train in another is neither test nor, in the new bundle, unseen."""
    twin = copy_of(run_folder, tmp_path / "twin")
    table = read_bundle(twin).read_parts()
    moved = np.flatnonzero(table[:, -1] == 2)[:4]
    table[moved, -1] = 0
    sign(twin, parts_npy=table_file(table))
    found = linnaeus.ensemble([run_folder, twin], out=tmp_path / "e", data=photos)
    assert found.scores["test"].n == found.members[0].scores["test"].n == 5
    written = {row[:-1].tobytes(): row[-1] for row in read_bundle(tmp_path / "e").read_parts()}
    assert [written[table[i, :-1].tobytes()] for i in moved] == [0, 0, 0, 0]
    assert linnaeus.evaluate(tmp_path / "e", photos).scores.n == 5


def test_without_common_validation_nothing_is_chosen(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    """Where every image was learned from by some member, or there are no data, weights are refused with what helps."""
    twin = copy_of(run_folder, tmp_path / "twin")
    table = read_bundle(twin).read_parts()
    table[:, -1] = 0
    sign(twin, parts_npy=table_file(table))
    with pytest.raises(DataError, match=r"none of 60.*train, val and test"):
        linnaeus.ensemble([run_folder, twin], out=tmp_path / "e", data=photos, how="greedy")
    with pytest.raises(DataError, match="no --data"):
        linnaeus.ensemble([run_folder, twin], out=tmp_path / "e", how="weighted")
    assert not (tmp_path / "e").exists()


# -- what does not fit


def test_members_that_do_not_fit(call: Call, run_folder: Path, other: Path, tmp_path: Path) -> None:
    """Other classes are named; one bundle alone and other fits are refused; nothing is written."""
    strange = copy_of(run_folder, tmp_path / "strange")
    describe_anew(strange, classes=["blue", "green", "mauve"])
    done = call("ensemble", run_folder, strange, "--out", tmp_path / "e")
    assert done.code == 2
    assert f"Got {strange} with 'mauve' and without 'red'." in done.err
    assert "two bundles or more" in call("ensemble", run_folder, "--out", tmp_path / "e").err
    assert "in use" in call("ensemble", run_folder, other, "--out", run_folder).err
    assert "one of mean" in call("ensemble", run_folder, other, "--out", tmp_path / "e", "--how", "most").err
    padded = copy_of(run_folder, tmp_path / "padded")
    describe_anew(padded, preprocess=read_bundle(padded).preprocess.to_dict() | {"fit": "pad"})
    with pytest.raises(BundleError, match="fit=pad"):
        linnaeus.ensemble([run_folder, padded], out=tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_the_command_prints_all_scores(call: Call, run_folder: Path, photos: Path, tmp_path: Path) -> None:
    """The table has a line for each member and for the ensemble, and the bundle answers by the usual command."""
    done = call("ensemble", run_folder, run_folder, "--out", tmp_path / "e", "--data", photos, "--tta", "flip")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[:4]] == [
        "member",
        str(run_folder),
        str(run_folder),
        "ensemble",
    ]
    assert "Each answer takes 4 networks' time." in done.out
    answer = call("predict", tmp_path / "e", photos / "red" / "40.png")
    assert (answer.code, answer.err) == (0, "")


# -- runs


def test_a_run_with_snapshots_and_views(photos: Path, tmp_path: Path) -> None:
    """The bundle of a run with two snapshots and mirrored views gives the mean of all four answers."""
    run_of = linnaeus.train(photos, out=tmp_path / "run", snapshots=2, tta="flip", flip=True, **QUICK)
    made = read_bundle(run_of.bundle)
    assert made.architecture.name == "ensemble"
    answers = []
    for number in (1, 2):
        described = made.architecture.options["members"][number - 1]
        options = dict(described["options"])
        blueprint = Blueprint(name=described["name"], classes=3, channels=options.pop("channels"),
                              size=options.pop("size"), options=options)  # fmt: skip
        model = create_model(blueprint).eval()
        model.load_state_dict(load_file(tmp_path / "run" / "checkpoints" / f"snapshot-{number}.safetensors"))
        for pixels in (PIXELS, np.ascontiguousarray(PIXELS[:, :, ::-1])):
            with torch.no_grad():
                answers.append(torch.softmax(model(torch.from_numpy(made.preprocess.normalize(pixels))), 1).numpy())
    np.testing.assert_allclose(Predictor(run_of.bundle).predict_pixels(PIXELS), np.mean(answers, axis=0), atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"swa": 0.5, "ema": 0.9},
        {"swa": 0.5, "snapshots": 2},
        {"swa": 0.5, "schedule": "plateau"},
        {"snapshots": 2, "schedule": "linear"},
        {"snapshots": 2, "patience": 1},
        {"tta": "flip", "flip": False},
    ],
)
def test_averages_that_contradict_each_other(photos: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    """Two averages, a schedule that fits none, and views never learned from are refused before training."""
    with pytest.raises(SettingError, match="Leave "):
        linnaeus.train(photos, out=tmp_path / "run", **QUICK, **settings)


def test_the_bundle_of_all_folds(call: Call, tmp_path: Path) -> None:
    """Cross-validation leaves the mean of its folds as a bundle that says that it has seen every image."""
    data = save_colours(tmp_path / "data", 9)
    found = linnaeus.cross_validate(data, folds=3, out=tmp_path / "cv", **QUICK)
    pixels = PIXELS
    expected = np.mean([Predictor(tmp_path / "cv" / f"fold-{k}").predict_pixels(pixels) for k in (1, 2, 3)], axis=0)
    np.testing.assert_allclose(Predictor(tmp_path / "cv").predict_pixels(pixels), expected, atol=1e-4)
    facts = read_bundle(tmp_path / "cv").facts
    assert facts["scores"] == {}
    assert facts["out_of_fold"]["accuracy"] == found.accuracy.value
    done = call("evaluate", tmp_path / "cv", data)
    assert "warning: 27 of these images were learned from" in done.err
    assert "crossval.json" in done.err
