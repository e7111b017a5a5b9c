"""Packs: every image read once, found again by content, safe to build twice, and honest when they do not fit."""

from __future__ import annotations

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from linnaeus.config import Settings
from linnaeus.data.cache import DecodedPixels, PackedPixels, Prepared, prepare
from linnaeus.data.preparation import build_dataset
from linnaeus.data.sources import Source, open_source
from linnaeus.data.survey import survey
from linnaeus.errors import DataError, ImageError, StorageError
from linnaeus.images import Preprocess
from linnaeus.storage import cache_folder
from pictures import png, save_folder, scene
from processes import start
from test_storage import limited

PREPROCESS = Preprocess(height=12, width=12, channels=3, fit="stretch", mean=(0.5,) * 3, std=(0.5,) * 3)
ENDLESS = 10**12


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test an empty cache."""
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a folder of 12 pictures, of which one is cut short and one is no picture."""
    root = save_folder(tmp_path / "data", {"a": 6, "b": 6}, size=20)
    (root / "a" / "2.png").write_bytes((root / "a" / "2.png").read_bytes()[:200])
    (root / "b" / "3.png").write_text("no picture")
    return root


def packs() -> list[Path]:
    """Return the packs of the cache, with whatever half-made ones there are."""
    return sorted((cache_folder() / "packs").iterdir())


def same(a: Prepared, b: Prepared) -> bool:
    """Return whether two preparations have the same pixels, digests and unreadable images."""
    pixels = [p.pixels.take(p.good) for p in (a, b)]
    return np.array_equal(*pixels) and np.array_equal(a.digests[a.good], b.digests[b.good]) and a.bad == b.bad


def test_a_pack_holds_what_images_are(folder: Path) -> None:
    """Every readable image is packed as its preprocessing makes it; the others are named with the reason."""
    source = open_source(folder)
    prepared = prepare(source, PREPROCESS, limit=ENDLESS)
    assert isinstance(prepared.pixels, PackedPixels)
    assert [Path(bad.path).parts[-2:] for bad in prepared.bad] == [("a", "2.png"), ("b", "3.png")]
    assert all(bad.reason for bad in prepared.bad)
    assert len(prepared.good) == 10
    for i in prepared.good:
        expected = PREPROCESS.load(source.images[int(i)])
        assert np.array_equal(prepared.pixels.take(np.array([i]))[0], expected)
    assert len({bytes(row) for row in prepared.digests}) == 12


def test_a_pack_is_found_again(folder: Path) -> None:
    """A second run finds the pack; other contents or another size make another one; other statistics do not."""
    first = prepare(open_source(folder), PREPROCESS, limit=ENDLESS)
    again = prepare(open_source(folder), PREPROCESS, limit=ENDLESS)
    assert (first.from_cache, again.from_cache) == (False, True)
    assert same(first, again)
    other = Preprocess(**{**vars(PREPROCESS), "mean": (0.1,) * 3})
    assert prepare(open_source(folder), other, limit=ENDLESS).from_cache
    assert not prepare(open_source(folder), Preprocess(**{**vars(PREPROCESS), "height": 9}), limit=ENDLESS).from_cache
    Image.fromarray(scene(20, 20, seed=77)).save(folder / "a" / "0.png")
    changed = prepare(open_source(folder), PREPROCESS, limit=ENDLESS)
    assert not changed.from_cache
    assert not np.array_equal(changed.digests, first.digests)


def test_a_moved_folder_finds_its_pack(folder: Path, tmp_path: Path) -> None:
    """A pack belongs to the contents, not to the path, and unreadable images are named where they lie now."""
    prepare(open_source(folder), PREPROCESS, limit=ENDLESS)
    moved = shutil.copytree(folder, tmp_path / "moved")
    prepared = prepare(open_source(moved), PREPROCESS, limit=ENDLESS)
    assert prepared.from_cache
    assert all(str(moved) in bad.path for bad in prepared.bad)


def test_without_a_pack(folder: Path) -> None:
    """A limit of 0 decodes anew, with the same pixels, digests and unreadable images."""
    source = open_source(folder)
    packed, decoded = (prepare(source, PREPROCESS, limit=limit) for limit in (ENDLESS, 0))
    assert isinstance(decoded.pixels, DecodedPixels)
    assert not decoded.packed
    assert same(packed, decoded)
    assert sum(path.stat().st_size for pack in packs() for path in pack.glob("pixels.bin")) == 12 * 12 * 12 * 3
    assert decoded.pixels.take(np.arange(0)).shape == (0, 12, 12, 3)


def test_in_memory(folder: Path) -> None:
    """Arrays are prepared in memory as files are, and arrays of the right shape are taken as they are."""
    source = open_source(folder)
    good = prepare(source, PREPROCESS, limit=ENDLESS).good
    arrays = [np.asarray(Image.open(source.images[int(i)])) for i in good]
    prepared = prepare(open_source((arrays, source.labels[good].tolist())), PREPROCESS, limit=0)
    assert np.array_equal(prepared.pixels.take(np.arange(10)), prepare(source, PREPROCESS, limit=0).pixels.take(good))
    exact = np.stack([scene(12, 12, seed=i) for i in range(4)])
    taken = prepare(open_source((exact, [0, 1, 0, 1])), PREPROCESS, limit=0)
    assert isinstance(taken.pixels, PackedPixels)
    assert np.shares_memory(taken.pixels.array, exact)


def test_progress_is_told(folder: Path) -> None:
    """The work tells how much is done, and ends with all of it."""
    told: list[tuple[int, int]] = []
    prepare(open_source(folder), PREPROCESS, limit=0, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (12, 12)


def test_two_runs_that_pack_at_once(folder: Path) -> None:
    """Several threads that build the same pack at the same time all get it whole, and one pack remains."""
    source = open_source(folder)
    with ThreadPoolExecutor(6) as pool:
        all_prepared = list(pool.map(lambda _: prepare(source, PREPROCESS, limit=ENDLESS), range(12)))
    assert all(same(all_prepared[0], other) for other in all_prepared)
    assert len(packs()) == 1


def test_two_processes_that_pack_at_once(tmp_path: Path) -> None:
    """Two runs begun at the same moment on the same new data both train, and one pack remains."""
    root = save_folder(tmp_path / "data", {"a": 60, "b": 60}, size=40)
    settings = ("model=lenet5", "image_size=32", "epochs=1", "threads=1")
    cache = str(tmp_path / "fresh")
    children = [
        start("train", root, *settings, "--out", tmp_path / f"run{i}", log=tmp_path / f"log{i}", LINNAEUS_CACHE=cache)
        for i in range(2)
    ]
    assert [child.wait() for child in children] == [0, 0], children[0].said() + children[1].said()
    assert len(list((tmp_path / "fresh" / "packs").iterdir())) == 1
    runs = [(tmp_path / f"run{i}" / "bundle" / "model.safetensors").read_bytes() for i in range(2)]
    assert runs[0] == runs[1]


def test_old_packs_make_room(folder: Path, tmp_path: Path) -> None:
    """Where packs together exceed the limit, the longest unused go; one that another run is making stays."""
    size = 12 * 12 * 12 * 3
    half = cache_folder() / "packs" / "0123.part-456"
    half.mkdir(parents=True)
    (half / "pixels.bin").write_bytes(bytes(2 * size))
    other = save_folder(tmp_path / "other", {"a": 6, "b": 6})
    for root in (folder, other, folder):
        prepare(open_source(root), PREPROCESS, limit=2 * size)
    Image.fromarray(scene(20, 20, seed=78)).save(other / "a" / "0.png")
    prepare(open_source(other), PREPROCESS, limit=2 * size)
    assert len(packs()) == 3
    assert half in packs()
    assert prepare(open_source(folder), PREPROCESS, limit=2 * size).from_cache
    prepare(open_source(other), Preprocess(**{**vars(PREPROCESS), "width": 10}), limit=0)
    assert sum((pack / "pixels.bin").stat().st_size == size for pack in packs()) == 2


def test_a_full_disk(folder: Path) -> None:
    """A pack that does not fit on the disk is a StorageError, leaves nothing behind, and can be made later."""
    with limited(1000), pytest.raises(StorageError, match="Free some space"):
        prepare(open_source(folder), PREPROCESS, limit=ENDLESS)
    assert packs() == []
    assert not prepare(open_source(folder), PREPROCESS, limit=ENDLESS).from_cache


def settings(**values: object) -> Settings:
    """Return settings."""
    return Settings.of({"val_fraction": 0.2, "test_fraction": 0.2, **values})


def test_unreadable_images_are_left_out(folder: Path) -> None:
    """Images that cannot be read are in no part; all the others are in exactly one."""
    dataset = build_dataset(open_source(folder), PREPROCESS, settings(max_bad=0.2))
    parts = np.concatenate([dataset.indices(part) for part in ("train", "val", "test")])
    assert sorted(parts.tolist()) == dataset.indices("all").tolist() == dataset.prepared.good.tolist()
    assert sum(sum(counts.values()) for counts in dataset.counts().values()) == 10


def test_too_many_unreadable_images(folder: Path) -> None:
    """More than the share that is allowed is a DataError that counts and names them; exactly the share is not."""
    with pytest.raises(DataError, match=r"2 of 12.*2\.png.*max_bad"):
        build_dataset(open_source(folder), PREPROCESS, settings(max_bad=0.16))
    assert len(build_dataset(open_source(folder), PREPROCESS, settings(max_bad=0.167)).prepared.bad) == 2


def test_nothing_readable(tmp_path: Path) -> None:
    """A folder without one readable picture is an error, whatever is allowed."""
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "0.png").write_bytes(png(4, 4))
    source = open_source(tmp_path / "data")
    with pytest.raises(DataError, match="2 of 2"):
        build_dataset(source, PREPROCESS, settings(max_bad=1.0))
    with pytest.raises(ImageError):
        survey(source)


def test_a_first_look(tmp_path: Path) -> None:
    """The survey tells size, length and colour; one coloured picture among grey ones is enough to be colour."""
    grey = [np.repeat(scene(30, 60, seed=i)[..., :1], 3, axis=2) for i in range(6)]
    look = survey(source_of(grey))
    assert (look.side, look.longest, look.grey, look.small) == (30, 60, True, True)
    assert look.aspect == pytest.approx(2.0)
    assert not survey(source_of([*grey, scene(30, 60)])).grey
    Image.fromarray(scene(900, 600)).save(tmp_path / "large.jpg")
    Image.fromarray(scene(900, 600)).save(tmp_path / "other.jpg")
    files = open_source(([str(tmp_path / "large.jpg"), str(tmp_path / "other.jpg")], [0, 1]))
    assert survey(files).side == 600
    assert not survey(files).small


def source_of(arrays: list[np.ndarray]) -> Source:
    """Return a source of arrays of two classes."""
    return open_source((arrays, [i % 2 for i in range(len(arrays))]))


def test_statistics(folder: Path) -> None:
    """Mean and deviation are those of the training pixels, and a constant channel does not divide by nothing."""
    dataset = build_dataset(open_source(folder), PREPROCESS, settings(max_bad=0.5))
    pixels = dataset.prepared.pixels.take(dataset.indices("train")).reshape(-1, 3) / 255
    mean, std = dataset.measure()
    assert mean == pytest.approx(pixels.mean(axis=0), abs=1e-4)
    assert std == pytest.approx(pixels.std(axis=0), abs=1e-4)
    assert dataset.normalized(mean, std).preprocess.std == std
    flat = build_dataset(source_of([np.full((12, 12, 3), i, np.uint8) for i in range(40)]), PREPROCESS, settings())
    assert min(flat.measure()[1]) >= 0.01


def test_a_fault_of_the_machine_is_not_the_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no file handles left nothing is packed, and no picture is called unreadable."""
    good = PngImageFile.load

    def fail(image: PngImageFile) -> object:
        raise OSError(errno.EMFILE, "Too many open files")

    source = open_source(folder)
    monkeypatch.setattr(PngImageFile, "load", fail)
    with pytest.raises(StorageError, match="Too many open files"):
        prepare(source, PREPROCESS, limit=ENDLESS)
    assert packs() == []
    monkeypatch.setattr(PngImageFile, "load", good)
    assert len(prepare(source, PREPROCESS, limit=ENDLESS).good) == 10
