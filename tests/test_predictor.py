"""The Predictor: all kinds of pictures in, the same answers out, whatever lies beside them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import linnaeus
from commands import CLASSES, colours, sign
from linnaeus.bundle import read_bundle
from linnaeus.compression.export import to_onnx
from linnaeus.errors import BundleError, DataError, ImageError
from linnaeus.models.registry import Blueprint, create_model
from linnaeus.predictor import Predictor, expand_paths, load
from linnaeus.results import BadImage, Predictions
from pictures import FORMATS, encode, in_mode, save_folder, scene, turned

pytest_plugins = ("fixtures_run",)


def same(left: Predictions, right: Predictions) -> bool:
    """Tell whether two answers are equal to the last bit."""
    return left.probabilities.tobytes() == right.probabilities.tobytes()


def test_an_answer(predictor: Predictor, photos: Path) -> None:
    """An answer has the classes, a row of probabilities for each picture that sums to 1, and its name."""
    path = str(photos / "red" / "40.png")
    answer = predictor.predict(path)
    assert isinstance(answer, Predictions)
    assert answer.classes == predictor.classes == CLASSES
    assert answer.names == (path,)
    assert len(answer) == 1
    assert answer.probabilities.shape == (1, 3)
    assert answer.probabilities.dtype == np.float32
    assert answer.probabilities.sum() == pytest.approx(1, abs=1e-6)
    assert answer.labels == [answer.top(1)[0][0][0]]
    assert answer.confidences[0] == answer.top()[0][0][1]
    assert [label for label, _ in answer.top(7)[0]] == [CLASSES[k] for k in np.argsort(-answer.probabilities[0])]


def test_all_kinds_of_pictures_get_one_answer(predictor: Predictor, photos: Path) -> None:
    """A path as text or object, the file's bytes, its array, its Pillow image: alone or in a list, one answer."""
    path = photos / "green" / "20.png"
    pixels = np.asarray(Image.open(path))
    kinds = (str(path), path, path.read_bytes(), pixels, pixels / np.float32(255), Image.open(path))
    expected = predictor.predict(path)
    for kind in kinds:
        assert same(predictor.predict(kind), expected)
        assert same(predictor.predict([kind]), expected)
        assert same(predictor.predict(iter([kind])), expected)
    assert same(predictor.predict(pixels[None]), expected)
    mixed = predictor.predict(kinds)
    assert mixed.names == (str(path), str(path), "image 2", "image 3", "image 4", "image 5")
    assert (mixed.probabilities == expected.probabilities).all()


def test_grey_and_transparent_arrays(predictor: Predictor) -> None:
    """A grey array of two or three axes, an RGB one of equal channels and one without transparency say the same."""
    grey = scene(20, 20)[..., 0]
    expected = predictor.predict(grey)
    assert same(predictor.predict(grey[..., None]), expected)
    assert same(predictor.predict(np.repeat(grey[..., None], 3, axis=2)), expected)
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    assert same(predictor.predict(opaque), expected)
    assert predictor.predict(np.stack([grey] * 5)).probabilities.shape == (5, 3)


def test_nothing_in_nothing_out(predictor: Predictor) -> None:
    """No picture gives an empty answer, not an error."""
    for nothing in ([], (), np.empty((0, 9, 9, 3), np.uint8)):
        answer = predictor.predict(nothing)
        assert (len(answer), answer.labels, answer.top(), answer.confidences.tolist()) == (0, [], [], [])
        assert answer.probabilities.shape == (0, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_turned_photograph_gets_the_same_answer(predictor: Predictor, kind: str, orientation: int) -> None:
    """However the camera was held, the answer is that of the upright picture."""
    upright = scene(40, 40)
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    answer = predictor.predict(encode(turned(upright, orientation), kind, exif=orientation, **options))
    expected = predictor.predict(upright)
    # A JPEG is not exact, and its blocks turn with the picture.
    assert np.abs(answer.probabilities - expected.probabilities).max() <= (0.01 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_is_answered(predictor: Predictor, mode: str) -> None:
    """Pictures of every usual mode get an answer, as images and as files."""
    image = in_mode(mode)
    answer = predictor.predict(image)
    assert np.isfinite(answer.probabilities).all()
    assert same(predictor.predict(encode(image, "TIFF")), answer)


def test_the_answer_does_not_depend_on_the_batch(predictor: Predictor) -> None:
    """A picture alone, among others, first, last, in a batch that is full or not: the answer is the same to the bit."""
    pixels, _ = colours(24, seed=5)
    whole = predictor.predict(pixels).probabilities
    for size in (1, 2, 3, 31, 32, 33):
        parts = [predictor.predict(pixels[start : start + size]).probabilities for start in range(0, 72, size)]
        assert (np.concatenate(parts) == whole).all()
    assert (predictor.predict(pixels[::-1]).probabilities[::-1] == whole).all()


@pytest.mark.parametrize("name", ["lenet5", "simple_cnn"])
def test_no_network_depends_on_the_batch(name: str) -> None:
    """Untrained networks of two kinds, exported, answer each picture the same in any batch."""
    import onnxruntime

    model = create_model(Blueprint(name=name, classes=10, channels=3, size=32)).eval()
    session = onnxruntime.InferenceSession(to_onnx(model, channels=3, size=32), providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).normal(size=(32, 3, 32, 32)).astype(np.float32)
    whole = session.run(None, {"images": batch})[0]
    for size in (1, 3, 16):
        parts = [session.run(None, {"images": batch[i : i + size]})[0] for i in range(0, 32, size)]
        assert (np.concatenate(parts) == whole).all()


def test_threads_do_not_change_the_answer(run_folder: Path, predictor: Predictor) -> None:
    """One thread and several give the same answer."""
    pixels, _ = colours(11, seed=7)
    assert same(load(run_folder, threads=2).predict(pixels), predictor.predict(pixels))


def test_opening(run_folder: Path, predictor: Predictor) -> None:
    """A run folder, its bundle and a Bundle that was read open the same predictor; what is no bundle does not."""
    picture = scene(30, 20)
    for way in (run_folder, str(run_folder), run_folder / "bundle", read_bundle(run_folder)):
        assert same(Predictor(way).predict(picture), predictor.predict(picture))
    assert isinstance(linnaeus.load(run_folder), Predictor)
    with pytest.raises(BundleError, match="which does not exist"):
        linnaeus.load(run_folder / "nowhere")


def test_a_bundle_that_lost_its_network(bundle: Path) -> None:
    """A network that vanishes after the bundle was checked is a BundleError too."""
    opened = read_bundle(bundle)
    opened.onnx_file.unlink()
    with pytest.raises(BundleError, match=r"model\.onnx"):
        Predictor(opened)


def test_an_untrained_network_is_opened(bundle: Path) -> None:
    """Any exported network with the right ends can be put into a bundle."""
    model = create_model(Blueprint(name="simple_cnn", classes=3, channels=3, size=18))
    sign(bundle, model_onnx=to_onnx(model, channels=3, size=18))
    assert Predictor(bundle).predict(scene()).probabilities.shape == (1, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"no picture",
        "nowhere.png",
        Path("nowhere.png"),
        np.zeros((4, 4, 4, 2), np.uint8),
        np.zeros((4, 4), np.int64),
        np.zeros((0, 4), np.uint8),
        [3],
        [None],
    ],
)
def test_what_is_no_picture_is_an_error(predictor: Predictor, wrong: object) -> None:
    """Whatever cannot be read as a picture is an ImageError, never another."""
    with pytest.raises(ImageError):
        predictor.predict(wrong)


def test_a_stream_names_what_it_cannot_read(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    """Unreadable files go to `on_bad`, the others are answered in order, as `predict` answers them."""
    good = sorted(str(path) for path in photos.rglob("*.png"))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((photos / "red" / "40.png").read_bytes()[:200])
    wrong = [str(tmp_path / name) for name in ("text.png", "cut.png", "nowhere.png", "")]
    bad: list[BadImage] = []
    batches = list(predictor.stream([wrong[0], *good[:40], wrong[1], *wrong[2:], *good[40:]], on_bad=bad.append))
    assert [image.path for image in bad] == wrong
    assert all(image.reason for image in bad)
    assert [name for batch in batches for name in batch.names] == good
    probabilities = np.concatenate([batch.probabilities for batch in batches])
    assert (probabilities == predictor.predict(good).probabilities).all()


def test_a_stream_reads_no_further_than_it_must(predictor: Predictor, photos: Path) -> None:
    """Paths are taken as they are needed, so that an endless list can be streamed."""
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield str(photos / "red" / "40.png")

    assert len(next(predictor.stream(endless(), on_bad=print))) == taken == 32


def test_a_stream_of_bad_files_alone(predictor: Predictor, tmp_path: Path) -> None:
    """Where nothing can be read there is no batch, and every file is named."""
    bad: list[BadImage] = []
    assert list(predictor.stream([str(tmp_path / f"{i}.png") for i in range(70)], on_bad=bad.append)) == []
    assert len(bad) == 70


def test_paths_stand_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is itself, a folder its pictures at any depth, a pattern its matches, in order."""
    save_folder(tmp_path, {"a": 2, "a/b": 1, ".hidden": 1, "a/.thumbs": 1})
    (tmp_path / "a" / "notes.txt").write_text("text")
    (tmp_path / "a" / "._1.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert expand_paths(["a"]) == ["a/0.png", "a/1.png", "a/b/0.png"]
    assert expand_paths(["a/1.png", "a/notes.txt", "a/1.png"]) == ["a/1.png", "a/notes.txt", "a/1.png"]
    assert expand_paths(["a/*.png"]) == ["a/0.png", "a/1.png"]
    assert expand_paths(["**/*.png"]) == ["a/0.png", "a/1.png", "a/b/0.png"]
    assert expand_paths(["a*"]) == ["a/0.png", "a/1.png", "a/b/0.png"]
    for nothing in ("nowhere", "*.jpg", "", "a/*.gif"):
        with pytest.raises(DataError, match="Check the path"):
            expand_paths(["a", nothing])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="'empty'"):
        expand_paths(["empty"])


def test_every_suffix_that_trains_predicts(tmp_path: Path) -> None:
    """A folder's pictures are the same files for prediction as for training, by suffix in any case."""
    suffixes = ("jpg", "JPEG", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "TIFF")
    for suffix in suffixes:
        (tmp_path / f"x.{suffix}").write_bytes(b"")
    assert len(expand_paths([str(tmp_path)])) == len(suffixes)


def test_a_file_named_like_a_pattern(tmp_path: Path) -> None:
    """A file whose name holds a star or brackets is that file."""
    name = tmp_path / "[1]*.png"
    name.write_bytes(encode(scene(), "PNG"))
    assert expand_paths([str(name)]) == [str(name)]


def test_a_name_that_is_no_text(predictor: Predictor, tmp_path: Path) -> None:
    """A file whose name is not valid UTF-8 is found and answered under its name."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(path).write_bytes(encode(scene(), "PNG"))
    assert predictor.predict(expand_paths([str(tmp_path)])).names == (path,)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_answered(predictor: Predictor, kind: str, tmp_path: Path) -> None:
    """A file of each format gets the same answer by path and by bytes."""
    data = encode(scene(30, 30), kind)
    (tmp_path / "picture").write_bytes(data)
    assert same(predictor.predict(tmp_path / "picture"), predictor.predict(data))
