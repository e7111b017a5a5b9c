"""Opening labelled pictures of every kind, and the errors of data that are wrong."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linnaeus.data.labelled import natural_key
from linnaeus.data.sources import Source, open_source
from linnaeus.errors import DataError, ImageError
from pictures import encode, save_folder, scene

DATA = os.environ.get("LINNAEUS_DATA", "")
real = pytest.mark.skipif(not DATA, reason="LINNAEUS_DATA is not set")


def counts(source: Source) -> dict[str, int]:
    """Return how many pictures each class has."""
    return dict(Counter(source.classes[k] for k in source.labels))


def test_class_folders(tmp_path: Path) -> None:
    """Each folder is a class, in natural order; pictures anywhere below belong to it."""
    source = open_source(save_folder(tmp_path / "birds", {"c10/deep/er": 2, "c2": 3, "c1": 1}))
    assert source.name == "birds"
    assert source.classes == ("c1", "c2", "c10")
    assert counts(source) == {"c1": 1, "c2": 3, "c10": 2}
    assert source.split is None
    assert source.groups is None
    assert source.notes == ()
    assert source.read(0).shape == (12, 12, 3)
    assert source.where(0).endswith("0.png")
    assert source.labels.dtype == np.int64


def test_a_source_comes_back_as_it_is(tmp_path: Path) -> None:
    """Opening a Source gives the same object; a str opens as a Path does."""
    source = open_source(save_folder(tmp_path, {"a": 1, "b": 1}))
    assert open_source(source) is source
    assert open_source(str(tmp_path)).images == source.images


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "validation", "TESTING"), ("train", "dev", "test")]
)
def test_folders_split_already(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Folders of the parts, by any of their names and in any case, give the split."""
    source = open_source(save_folder(tmp_path, {f"{part}/{c}": 2 + k for k, part in enumerate(names) for c in "ab"}))
    assert source.split is not None
    assert source.split.dtype == np.int8
    assert np.bincount(source.split).tolist() == [4, 6, 8]
    assert source.classes == ("a", "b")


def test_only_a_train_part_is_no_split(tmp_path: Path) -> None:
    """A folder with train alone, or with a test part without class folders, is data not split."""
    save_folder(tmp_path, {"train/a": 2, "train/b": 2, "test": 3})
    source = open_source(tmp_path)
    assert len(source) == 4
    assert source.split is None
    assert "test" in source.notes[0]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Among other classes a folder called train is a class."""
    source = open_source(save_folder(tmp_path, {"train": 2, "plane": 2, "car": 2}))
    assert source.classes == ("car", "plane", "train")
    nested = open_source(save_folder(tmp_path / "n", {"train/fast": 2, "plane": 2}))
    assert nested.classes == ("plane", "train")


def test_what_is_passed_over_is_noted(tmp_path: Path) -> None:
    """Hidden folders, other files and pictures outside the class folders are passed over by name and number."""
    save_folder(tmp_path, {"a": 2, "b": 2, ".ipynb_checkpoints": 1, "__MACOSX/a": 1, "a/.thumbs": 1})
    for folder in ("a", "b"):
        (tmp_path / folder / "notes.txt").write_text("words")
    (tmp_path / "a" / "._0.png").write_text("left by a system")
    (tmp_path / "a" / "no_suffix").write_bytes(encode(scene(), "PNG"))
    Image.fromarray(scene()).save(tmp_path / "loose.png")
    source = open_source(tmp_path)
    assert counts(source) == {"a": 3, "b": 2}
    assert source.notes == (
        "Passed over 3 hidden folders: .ipynb_checkpoints, .thumbs, __MACOSX.",
        "Passed over 3 files without a picture: ._0.png, notes.txt (2).",
        "Passed over 1 picture outside the class folders: loose.png.",
    )


def test_classes_that_look_alike_are_noted(tmp_path: Path) -> None:
    """Classes that differ only by case or blanks stay apart and are pointed out."""
    source = open_source(save_folder(tmp_path, {"Cat": 1, "cat ": 1, "dog": 1}))
    assert len(source.classes) == 3
    assert source.notes == ("Classes that differ only by case or surrounding blanks: 'Cat' and 'cat '.",)


def test_links_that_go_round(tmp_path: Path) -> None:
    """A link to a folder above, to itself or to nothing does not hang; a linked class folder is read."""
    save_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    assert counts(open_source(tmp_path)) == {"a": 2, "b": 2, "c": 2}


def test_a_file_that_is_no_picture_is_an_error_only_when_read(tmp_path: Path) -> None:
    """A text called .jpg counts as a picture and is an ImageError with its path when read."""
    save_folder(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "x.jpg").write_text("text")
    source = open_source(tmp_path)
    with pytest.raises(ImageError, match=r"a/x\.jpg"):
        source.read(1)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ({"a": 2}, "only 'a'"),
        ({"a": 2, "b": 0}, "none in 'b'"),
        ({".": 3}, "3 pictures and no folders"),
        ({".": 0}, "no picture"),
        ({"train/a": 1, "train/b": 1, "test/a": 1}, "test without 'b'"),
        ({"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 1, "test/c": 1}, "train without 'c'"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 0}, "val without 'b'"),
    ],
)
def test_folders_that_are_wrong(tmp_path: Path, folders: dict[str, int], words: str) -> None:
    """One class, an empty class, no class folders and parts that differ are errors that name what is wrong."""
    with pytest.raises(DataError, match=words):
        open_source(save_folder(tmp_path, folders))


def test_pairs_of_arrays() -> None:
    """Arrays with labels of numbers or words; floats in [0, 1] become bytes."""
    images = np.stack([scene(8, 9, seed=k) for k in range(4)])
    source = open_source((images, [10, 2, 10, 2]))
    assert source.images is images
    assert source.classes == ("2", "10")
    assert source.labels.tolist() == [1, 0, 1, 0]
    assert source.where(3) == "image 3"
    scaled = open_source((images / 255.0, np.array(["x", "y", "x", "y"])))
    assert np.array_equal(scaled.images, images)
    assert open_source((images, np.array([[0.0], [1.0], [0.0], [1.0]]))).classes == ("0", "1")


def test_pairs_of_lists(tmp_path: Path) -> None:
    """Lists of paths, of Pillow images and of arrays of different sizes are taken as they come."""
    save_folder(tmp_path, {"p": 2})
    paths = open_source(([tmp_path / "p" / f"{i}.png" for i in range(2)], ["a", "b"]))
    assert isinstance(paths.images, tuple)
    assert isinstance(paths.images[0], str)
    mixed = open_source(([Image.fromarray(scene(5, 6)), scene(7, 8), np.zeros((3, 3), np.uint8)], [0, 1, 1]))
    assert [image.shape for image in mixed.images] == [(5, 6, 3), (7, 8, 3), (3, 3)]
    assert mixed.read(2).shape == (3, 3, 3)
    same = open_source(([Image.fromarray(scene(5, 6))] * 2, [0, 1]))
    assert isinstance(same.images, np.ndarray)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((3, 4, 4), np.uint8), [0, 1], "3 pictures and 2 labels"),
        (np.zeros((0, 4, 4), np.uint8), [], "shape"),
        ([], [], "at least one"),
        (np.zeros((2, 3, 8, 8), np.uint8), [0, 1], r"transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 784), np.uint8), [0, 1], "Reshape"),
        (np.zeros((2, 4, 4), np.int64), [0, 1], "astype"),
        (np.full((2, 4, 4), 7.0), [0, 1], "from 7 to 7"),
        (np.zeros((2, 4, 4), np.uint8), np.eye(2) / 2, "argmax"),
        (np.zeros((2, 4, 4), np.uint8), [0.5, 1], "float64"),
        (np.zeros((2, 4, 4), np.uint8), ["a", None], "image 1"),
        (np.zeros((2, 4, 4), np.uint8), [1.0, float("nan")], "image 1"),
        (np.zeros((2, 4, 4), np.uint8), [1, 1], "only '1'"),
        ([3, 4], [0, 1], "a int as image 0"),
        (["nowhere.png"], [0], "1 of 1 missing"),
        ([np.zeros((4, 4, 9), np.uint8)], [0], "image 0"),
        ("ab", [0, 1], "a str"),
    ],
)
def test_pairs_that_are_wrong(images: object, labels: object, words: str) -> None:
    """Shapes, types, ranges and numbers that do not fit are named, with the way out."""
    with pytest.raises(DataError, match=words):
        open_source((images, labels))  # type: ignore[arg-type]


def test_digits() -> None:
    """scikit-learn's digits use the whole range of grey."""
    source = open_source("digits")
    assert isinstance(source.images, np.ndarray)
    assert source.images.shape == (1797, 8, 8)
    assert source.images.max() == 255
    assert source.classes == tuple("0123456789")


def test_names_and_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name mistyped offers the nearest, a path is called missing, and a folder goes before a name."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Did you mean .*cifar10"):
        open_source("cifar_10")
    for wrong in ("no/such/folder", "a\0b", "x" * 5000):
        with pytest.raises(DataError):
            open_source(wrong)
    for wrong in (3, None, ["a"], ("a",)):
        with pytest.raises(DataError):
            open_source(wrong)  # type: ignore[arg-type]
    save_folder(tmp_path / "mnist", {"a": 1, "b": 1})
    assert open_source("mnist").classes == ("a", "b")


def test_files_that_are_no_data(tmp_path: Path) -> None:
    """One picture or an archive is refused with the way out."""
    (tmp_path / "a.png").write_bytes(encode(scene(), "PNG"))
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="Pass the folder"):
        open_source(tmp_path / "a.png")
    with pytest.raises(DataError, match="Unpack"):
        open_source(tmp_path / "a.zip")


def test_natural_order() -> None:
    """Numbers in names count as numbers, even very long ones."""
    names = ["b", "a10", "a2", "A3", "10", "9", "a" + "9" * 5000]
    assert sorted(names, key=natural_key) == ["9", "10", "a2", "A3", "a10", "a" + "9" * 5000, "b"]


@real
@pytest.mark.parametrize(
    ("folder", "count", "classes"),
    [
        ("trashnet", 2524, 6),
        ("neu_surface", 1799, 6),
        ("blood_cells_bccd", 4886, 3),
        ("houses_multimodal", 2140, 4),
        ("fire_detection", 644, 2),
        ("cifar10_lossless4000.npz", 4000, 10),
    ],
)
def test_real_sets(folder: str, count: int, classes: int) -> None:
    """The real sets open with the numbers of pictures and classes that they are known to have."""
    source = open_source(Path(DATA) / folder)
    assert len(source) == count
    assert len(source.classes) == classes
    assert source.read(count - 1).ndim == 3


def test_an_empty_named_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a named set without its files is a DataError."""
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("LINNAEUS_DATA", str(tmp_path))
    with pytest.raises(DataError, match="none in"):
        open_source("mnist")


@real
@pytest.mark.parametrize(("name", "counted"), [("mnist", [60000, 3000]), ("cifar10", [50000, 10000])])
def test_real_named_sets(name: str, counted: list[int]) -> None:
    """Named sets are found below LINNAEUS_DATA with their parts."""
    source = open_source(name)
    assert source.split is not None
    assert np.bincount(source.split)[[0, 2]].tolist() == counted
    assert len(source.classes) == 10


def test_several_labels_from_python() -> None:
    """Lists of names, and arrays of 0 and 1 of shape (N, K), are several labels; anything else is no such thing."""
    pixels = np.zeros((3, 4, 4), np.uint8)
    named = open_source((pixels, [["b"], {"b", "a"}, ()]))
    numbered = open_source((pixels, np.array([[0, 1], [1, 1], [0, 0]])))
    assert (named.classes, numbered.classes) == (("a", "b"), ("0", "1"))
    assert named.targets is not None
    assert numbered.targets is not None
    assert named.targets.tolist() == numbered.targets.tolist() == [[0, 1], [1, 1], [0, 0]]
    assert named.counts(np.arange(2)).tolist() == [1, 2]
    alone = open_source((pixels[:2], np.eye(2)))
    assert any("exactly one label" in note for note in alone.notes)
    for wrong in ([["a"], [None], ["b"]], [["a"], [1, 2], ["b"]], [[], [], []], np.full((3, 2), 2)):
        with pytest.raises(DataError):
            open_source((pixels, wrong))
