"""The binary forms of data sets: .npz, IDX and CIFAR."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from linnaeus.data.sources import open_source
from linnaeus.errors import DataError
from pictures import scene


def idx(path: Path, array: np.ndarray) -> Path:
    """Write an IDX file, gzipped if its name says so."""
    data = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def idx_folder(root: Path, parts: tuple[str, ...] = ("train", "t10k"), suffix: str = ".gz") -> Path:
    """Write IDX pairs of 6 pictures of 3 classes."""
    for part in parts:
        idx(root / f"{part}-images-idx3-ubyte{suffix}", np.arange(6 * 20, dtype=np.uint8).reshape(6, 4, 5))
        idx(root / f"{part}-labels-idx1-ubyte{suffix}", np.array([0, 1, 2, 0, 1, 2], np.uint8))
    return root


@pytest.mark.parametrize("x", ["x", "images"])
def test_npz(tmp_path: Path, x: str) -> None:
    """An .npz of pictures and labels, with class names where it has them."""
    y = {"x": "y", "images": "labels"}[x]
    arrays = {x: np.zeros((4, 5, 5), np.uint8), y: np.array([0, 1, 0, 1])}
    np.savez(tmp_path / "d.npz", **arrays)
    assert open_source(tmp_path / "d.npz").classes == ("0", "1")
    np.savez(tmp_path / "d.npz", **arrays, classes=np.array(["zebra", "ant"]))
    assert open_source(tmp_path / "d.npz").classes == ("zebra", "ant")


def test_npz_in_parts(tmp_path: Path) -> None:
    """x_train, x_val and x_test give the split."""
    arrays = {f"x_{part}": np.zeros((2 + k, 5, 5, 1), np.uint8) for k, part in enumerate(("train", "val", "test"))}
    labels = {f"y_{part}": np.arange(2 + k) % 2 for k, part in enumerate(("train", "val", "test"))}
    np.savez(tmp_path / "d.npz", **arrays, **labels)
    source = open_source(tmp_path / "d.npz")
    assert source.split is not None
    assert source.split.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_npz_that_are_wrong(tmp_path: Path) -> None:
    """Objects, other names, labels outside the classes and damaged archives are refused."""
    path = tmp_path / "d.npz"
    images = np.zeros((2, 5, 5), np.uint8)
    for arrays, words in (
        ({"images": images, "labels": np.array([{}, []], object)}, "not of Python objects"),
        ({"pictures": images}, "pictures in"),
        ({"x": images, "y": np.array([0, 5]), "classes": np.array(["a", "b"])}, "the labels 5"),
        ({"x": images, "y": np.array([0, 0]), "classes": np.array(["a", "b"])}, "none in 'b'"),
        ({"x": images, "y": np.array([0, 1]), "classes": np.array(["a", "a"])}, "different name"),
        ({"x_train": images, "y_train": np.array([0, 1]), "x_test": images[:, :3], "y_test": np.array([0, 1])}, "size"),
        ({"x_train": images, "y_train": np.array(0)}, "one label"),
    ):
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=words):
            open_source(path)
    whole = path.read_bytes()
    np.save(tmp_path / "bare.npy", images)
    (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    with pytest.raises(DataError, match="plain arrays"):
        open_source(tmp_path / "bare.npz")
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            open_source(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path: Path, suffix: str) -> None:
    """A folder of IDX pairs is split by their names; a single file brings its partner."""
    source = open_source(idx_folder(tmp_path, ("train", "t3k"), suffix))
    assert source.split is not None
    assert source.split.tolist() == [0] * 6 + [2] * 6
    assert isinstance(source.images, np.ndarray)
    assert source.images.shape == (12, 4, 5)
    one = open_source(tmp_path / f"train-images-idx3-ubyte{suffix}")
    assert len(one) == 6
    assert one.split is None


def test_idx_that_are_wrong(tmp_path: Path) -> None:
    """A missing partner, a wrong mark, a size that lies and a file cut short are named."""
    idx_folder(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    for data in (whole[:-1], whole + b"x", b"\0\0\7\3" + whole[4:], whole[:4] + b"\xff" * 12, b"", whole[:7]):
        path.write_bytes(gzip.compress(data))
        with pytest.raises(DataError, match="train-images"):
            open_source(tmp_path)
    for data in (gzip.compress(whole)[:-20], b"no gzip", b""):
        path.write_bytes(data)
        with pytest.raises(DataError, match="train-images"):
            open_source(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="no train-images"):
        open_source(tmp_path)


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar(tmp_path: Path, hundred: bool) -> None:
    """CIFAR's binary folders give pictures with the channels last, fine labels and the names."""
    pictures = np.stack([scene(32, 32, seed=k) for k in range(4)])
    labels = np.array([[1], [0], [1], [0]], np.uint8)
    head = np.hstack([np.full((4, 1), 9, np.uint8), labels]) if hundred else labels
    records = np.hstack([head, pictures.transpose(0, 3, 1, 2).reshape(4, -1)]).tobytes()
    files = ("train.bin", "test.bin") if hundred else ("data_batch_1.bin", "test_batch.bin")
    for name in files:
        (tmp_path / name).write_bytes(records)
    (tmp_path / ("fine_label_names.txt" if hundred else "batches.meta.txt")).write_text("bee\nape\n\n")
    source = open_source(tmp_path)
    assert source.classes == ("bee", "ape")
    assert source.labels.tolist() == [1, 0, 1, 0] * 2
    assert np.array_equal(source.images[:4], pictures)
    assert source.split is not None
    assert source.split.tolist() == [0] * 4 + [2] * 4
    (tmp_path / files[0]).write_bytes(records[:-1])
    with pytest.raises(DataError, match=files[0]):
        open_source(tmp_path)
