"""What users get wrong: each is one typed error in one sentence, exit code 2, no traceback, and nothing is lost."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import linnaeus
from commands import QUICK, QUICK_PAIRS, Answer, contents, describe_anew, run_python, save_colours
from linnaeus.bundle import read_bundle, write_bundle
from linnaeus.errors import (
    BundleError,
    DataError,
    DownloadError,
    ImageError,
    LinnaeusError,
    MissingExtraError,
    ModelError,
    RunError,
    SettingError,
    StorageError,
    TrainingError,
    suggest,
)
from pictures import encode, png, scene

pytest_plugins = ("fixtures_run",)

Call = Callable[..., Answer]


@pytest.fixture
def refused(call: Call, tmp_path: Path) -> Callable[..., str]:
    """Give a function that trains on data that are wrong, checks the manner of the refusal, and returns its text."""

    def train(data: Path | str, *pairs: str) -> str:
        done = call("train", data, "--out", tmp_path / "never", *QUICK_PAIRS, *pairs)
        error = one_error(done)
        assert not (tmp_path / "never").exists()
        return error

    return train


def one_error(done: Answer) -> str:
    """Check that a command ended with one error of ours in its one shape, and return it."""
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert done.err.splitlines()[-1] == lines[0]
    expected, _, rest = lines[0].removeprefix("Error: Expected ").partition(". Got ")
    assert expected
    assert ". " in rest
    return lines[0]


# -- data


def test_a_missing_path(refused: Callable[..., str], tmp_path: Path) -> None:
    """A path where nothing is, and a set that nobody knows, are named; the nearest set is offered."""
    assert f"'{tmp_path / 'photos'}', where nothing is. Check the path." in refused(tmp_path / "photos")
    assert "Did you mean mnist" in refused("mnits")


@pytest.mark.parametrize("below", ["", "train"])
def test_an_empty_folder(refused: Callable[..., str], tmp_path: Path, below: str) -> None:
    """A folder without pictures is named, and what should be in it."""
    (tmp_path / "vacant" / below).mkdir(parents=True)
    assert "vacant" in refused(tmp_path / "vacant")


def test_empty_class_folders(refused: Callable[..., str], tmp_path: Path) -> None:
    """Class folders without a picture are an error that names them or the place."""
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
    assert "data" in refused(tmp_path / "data")
    save_colours(tmp_path / "data", 4)
    assert "none in 'cat', 'dog'" in refused(tmp_path / "data")


def test_one_class_only(refused: Callable[..., str], tmp_path: Path) -> None:
    """One class cannot be told from anything."""
    shutil.copytree(save_colours(tmp_path / "all", 4) / "red", tmp_path / "data" / "red")
    assert "Expected at least two classes. Got only 'red'." in refused(tmp_path / "data")


def test_pictures_without_class_folders(refused: Callable[..., str], tmp_path: Path) -> None:
    """Pictures that lie in the folder itself have no label: it is said how to give them one."""
    save_colours(tmp_path / "data", 4)
    assert "Put each class in a folder of its own" in refused(tmp_path / "data" / "red")


DAMAGED = {
    "empty": b"",
    "text": b"this is no picture",
    "cut short": encode(scene(60, 60), "JPEG")[:700],
    "a bomb": png(60_000, 60_000),
    "a wide bomb": png(60_000, 10),
    "half": encode(scene(), "PNG")[:300],
    "a web page": b"<!DOCTYPE html><html>404</html>",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_too_many_damaged_files(refused: Callable[..., str], tmp_path: Path, damage: str) -> None:
    """A file that is no picture, cut short, or a bomb is named with what is wrong with it."""
    data = save_colours(tmp_path / "data", 4)
    (data / "red" / "bad.jpg").write_bytes(DAMAGED[damage])
    error = refused(data)
    assert "Expected at most 1.0% unreadable images. Got 1 of 13: " in error
    assert str(data / "red" / "bad.jpg") in error
    assert error.endswith("Mend or remove these files, or allow more with max_bad=0.05.")


def test_a_few_damaged_files_are_left_out(call: Call, tmp_path: Path) -> None:
    """Below the limit damaged files are named and passed over, in training, in the report and in judging."""
    data = save_colours(tmp_path / "data", 6)
    for name, damage in DAMAGED.items():
        (data / "red" / f"{name}.jpg").write_bytes(damage)
    done = call("train", data, "--out", tmp_path / "run", "max_bad=0.5", *QUICK_PAIRS)
    assert done.code == 0
    assert "Parts: 12 train, 3 val, 3 test" in done.err
    assert all(f"unreadable, left out: {data / 'red' / name}.jpg: " in done.err for name in DAMAGED)
    assert all(name in (tmp_path / "run" / "report.json").read_text() for name in DAMAGED)
    assert call("evaluate", tmp_path / "run", data, "--split", "all", "--json").json()["n"] == 18


def test_nothing_but_damaged_files(refused: Callable[..., str], tmp_path: Path) -> None:
    """Where no picture at all can be read it is an error, whatever is allowed."""
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_bytes(b"no picture")
    refused(tmp_path / "data", "max_bad=1")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "of nothing"),
        ("file,label\nx.png,a\n", "Expected a column 'path'"),
        ("path,kind\n{good},a\n", "Expected a column 'label'"),
        ("path,label\nx.png,a\ny.png,b\n", "2 of 2 missing: "),
        ("path,label\n,a\n", "no path in 1 rows: row 2"),
        ("path,label\n{good},\n{good},b\n", "none for 1: image 0"),
        ("path,label\n{good},a,b\n", "row 2"),
        ("path,label,split\n{good},a,train\n{good},b,maybe\n", "Got 'maybe'"),
        ("path,label\n", "Expected at least one picture"),
        ('path,label\n"{good},a\n', "Save it as CSV in UTF-8"),
        ("path,label\n{good},a\n{good},a\n", "Expected at least two classes"),
    ],
)
def test_a_wrong_table(refused: Callable[..., str], tmp_path: Path, table: str, message: str) -> None:
    """A table whose column is missing, whose paths do not exist or whose cells are empty is refused by row."""
    Image.fromarray(scene()).save(tmp_path / "good.png")
    (tmp_path / "table.csv").write_text(table.format(good="good.png"))
    assert message in refused(tmp_path / "table.csv")


def test_a_table_that_is_no_text(refused: Callable[..., str], tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are refused, with what to save them as."""
    (tmp_path / "table.csv").write_bytes(b"path,label\n\xff\xfe,\x00\n")
    assert "Save it as CSV in UTF-8." in refused(tmp_path / "table.csv")


def test_an_archive(refused: Callable[..., str], tmp_path: Path) -> None:
    """An archive is to be unpacked, and any other file is no data."""
    (tmp_path / "photos.zip").write_bytes(b"PK")
    assert "Unpack it and pass the folder." in refused(tmp_path / "photos.zip")
    (tmp_path / "notes.txt").write_text("hello")
    assert str(tmp_path / "notes.txt") in refused(tmp_path / "notes.txt")
    (tmp_path / "set.npz").write_bytes(b"PK no zip")
    assert str(tmp_path / "set.npz") in refused(tmp_path / "set.npz")


def test_labels_that_look_alike_are_named(call: Call, tmp_path: Path) -> None:
    """Labels that differ by case or trailing blanks are told before training, and again in the report."""
    save_colours(tmp_path / "data", 4, names={"blue": "Red", "green": "green "})
    done = call("train", tmp_path / "data", "--out", tmp_path / "run", *QUICK_PAIRS)
    assert done.code == 0
    assert "note: Classes that differ only by case or surrounding blanks: 'Red' and 'red'." in done.err
    assert "note: Class names with surrounding blanks: 'green '." in done.err
    assert "differ only by case" in (tmp_path / "run" / "report.html").read_text()


def test_hidden_folders_are_passed_over_and_named(call: Call, tmp_path: Path) -> None:
    """What file managers and notebooks leave behind is no class, and is named."""
    data = save_colours(tmp_path / "data", 4)
    for name in (".ipynb_checkpoints", "__MACOSX"):
        shutil.copytree(data / "red", data / name)
    done = call("train", data, "--out", tmp_path / "run", *QUICK_PAIRS)
    assert done.code == 0
    assert "12 images of 3 classes" in done.err
    assert "note: Passed over 2 hidden folders: .ipynb_checkpoints, __MACOSX." in done.err


def test_classes_with_too_few_images(refused: Callable[..., str], tmp_path: Path) -> None:
    """A class that cannot be in each part is named, with its number and the number needed."""
    data = save_colours(tmp_path / "data", 4)
    for name in ("1.png", "2.png"):
        (data / "blue" / name).unlink()
    error = refused(data)
    assert "Expected at least 3 pictures or groups of each class" in error
    assert "Got 'blue' has 2." in error


def test_identical_pictures_do_not_make_a_class_large(refused: Callable[..., str], tmp_path: Path) -> None:
    """Copies of one picture stay in one part, so that many copies are as few as one."""
    data = save_colours(tmp_path / "data", 4)
    for path in sorted((data / "blue").iterdir())[1:]:
        shutil.copy(data / "blue" / "0.png", path)
    assert "Got 'blue' has 1." in refused(data)


def test_parts_whose_classes_differ(refused: Callable[..., str], tmp_path: Path) -> None:
    """A part that lacks a class is named with it."""
    for part in ("train", "test"):
        save_colours(tmp_path / "data" / part, 4)
    shutil.rmtree(tmp_path / "data" / "test" / "green")
    assert "Got test without 'green'." in refused(tmp_path / "data")


def test_identical_pictures_across_parts_are_told(call: Call, tmp_path: Path) -> None:
    """A picture that the user's own split has in two parts is warned of."""
    for part in ("train", "val", "test"):
        save_colours(tmp_path / "data" / part, 3, seed=7)
    done = call("train", tmp_path / "data", "--out", tmp_path / "run", *QUICK_PAIRS)
    assert done.code == 0
    assert "warning: 9 pictures have copies on another side of your split" in done.err


# -- settings and models


def test_a_misspelt_model(refused: Callable[..., str], photos: Path) -> None:
    """The nearest names are offered for a model with a typing error."""
    assert "Did you mean simple_cnn" in refused(photos, "model=simple_cn")
    assert "Did you mean resnet18" in refused(photos, "model=resnet-18")
    refused(photos, "model=timm:no_such_network")
    refused(photos, "model=")


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("epoch=3", "Expected a setting that exists. Got 'epoch'. Did you mean epochs"),
        ("epochs=0", "Expected epochs to be a whole number from 1 to 100000, or auto. Got '0'."),
        ("lr=fast", "Got 'fast'."),
        ("optimizer=lion", "Expected optimizer to be one of gd, sgd, rmsprop, adam, adamw, lars, lamb, muon, or auto."),
        ("budget=soon", "a duration such as 30s, 5m or 1h30m"),
        ("epochs", "Write epochs=VALUE, or remove it."),
        ("val_fraction=0.5 test_fraction=0.5", "Leave something to train with."),
        ("path_column=", "Expected a column name for path."),
        ("warmup=2", "Expected warmup to be 500 steps, 2 epochs, 30s, a share such as 5%, or a number from 0.0 to 0.9"),
        (
            "warmup=12steps epochs=2 batch_size=21",
            "Expected a warmup shorter than the run, 4 steps. Got warmup=12 steps.",
        ),
        ("warmup=3epochs steps=3 batch_size=21", "shorter than the run, 1.5 epochs. Got warmup=3 epochs."),
        ("warmup=1m budget=40s", "shorter than the run, 40s. Got warmup=60s."),
        ("batch_size=4 accumulate=8", "Expected at most 4 parts of a batch of 4. Got accumulate=8. Set accumulate=4"),
        ("optimizer=gd batch_size=8", "all 42 images in a step of gradient descent. Got batch_size=8."),
    ],
)
def test_wrong_settings(refused: Callable[..., str], photos: Path, pair: str, message: str) -> None:
    """An unknown setting, a value out of range and a contradiction are told apart, with what is accepted."""
    assert message in refused(photos, *pair.split())


def test_a_picture_too_small_for_the_network(call: Call, photos: Path, tmp_path: Path) -> None:
    """A network that cannot see so small a picture says from which size on it can, and the folder stays free."""
    arguments = ("train", photos, "--out", tmp_path / "run", "model=simple_cnn", "epochs=1", "threads=1")
    assert "Set image_size=" in one_error(call(*arguments, "image_size=4"))
    assert call(*arguments).code == 0


# -- bundles, pictures and runs


@pytest.mark.parametrize("command", [("predict", "{bundle}", "{photos}"), ("evaluate", "{bundle}", "{photos}")])
@pytest.mark.parametrize("damage", ["flipped", "newer", "gone", "empty"])
def test_a_bundle_that_cannot_be_used(
    call: Call, bundle: Path, photos: Path, command: tuple[str, ...], damage: str
) -> None:
    """A damaged bundle, one of a newer version, and none at all are refused by both commands that take one."""
    network = bundle / "model.onnx"
    if damage == "flipped":
        data = bytearray(network.read_bytes())
        data[len(data) // 3] ^= 4
        network.write_bytes(data)
    elif damage == "newer":
        describe_anew(bundle, format=99)
    elif damage == "gone":
        shutil.rmtree(bundle)
    else:
        network.write_bytes(b"")
    error = one_error(call(*(word.format(bundle=bundle, photos=photos) for word in command)))
    assert {"flipped": "with SHA-256", "newer": "pip install --upgrade", "gone": "does not exist"}.get(
        damage, ""
    ) in error


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_picture_is_not_answered(call: Call, run_folder: Path, tmp_path: Path, damage: str) -> None:
    """A picture that cannot be read is named on standard error, with exit code 2 and nothing on standard output."""
    (tmp_path / "x.png").write_bytes(DAMAGED[damage])
    done = call("predict", run_folder, tmp_path / "x.png")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"unreadable: {tmp_path / 'x.png'}: ")
    assert done.err.count("\n") == 1


def test_nothing_to_predict(call: Call, run_folder: Path, tmp_path: Path) -> None:
    """A path where no picture is, is an error that names it."""
    for path in (tmp_path / "nowhere.png", tmp_path, tmp_path / "*.png"):
        assert f"Got '{path}'. Check the path." in one_error(call("predict", run_folder, path))


@pytest.mark.parametrize("file", ["run.json", "config.toml", "report.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[[1, 2]]", "null", "{}", '{"finished": false, "choices": [{"a": 1}]}', "\udcff"]
)
def test_a_run_whose_files_are_damaged(call: Call, run_folder: Path, tmp_path: Path, file: str, text: str) -> None:
    """A run folder of which somebody spoiled a file is refused by resume or by report."""
    run = Path(shutil.copytree(run_folder, tmp_path / "run"))
    (run / file).write_text(text, errors="surrogateescape")
    if file == "config.toml":
        facts = (run / "run.json").read_text()
        (run / "run.json").write_text(facts.replace('"finished": true', '"finished": false'))
    one_error(call("report", run) if file == "report.json" else call("train", "--resume", run))


def test_an_output_folder_with_a_name_too_long(call: Call, photos: Path, tmp_path: Path) -> None:
    """A name that the disk does not take is a StorageError."""
    assert "File name too long" in one_error(call("train", photos, "--out", tmp_path / ("x" * 300), *QUICK_PAIRS))


def test_a_run_that_another_process_writes(call: Call, run_folder: Path, tmp_path: Path) -> None:
    """A run folder that is locked is not resumed at the same time."""
    run = shutil.copytree(run_folder, tmp_path / "run")
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    with _running(code, run / ".lock"):
        assert "which another process writes" in one_error(call("train", "--resume", run))


@contextlib.contextmanager
def _running(code: str, *arguments: str | Path) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.communicate(b"\n")


# -- a full disk


@contextlib.contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("most", [0, 300, 3_000, 30_000, 100_000])
def test_a_full_disk(call: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Wherever the disk is full, in the cache, the settings or a checkpoint, it is said so; no half file is left."""
    monkeypatch.setenv("LINNAEUS_CACHE", str(tmp_path / "cache"))
    with full_disk(most):
        done = call("train", photos, "--out", tmp_path / "run", *QUICK_PAIRS)
    error = one_error(done)
    assert error.startswith("Error: Expected to write ")
    assert "Free some space" in error
    assert [path for path in tmp_path.rglob("*") if ".part-" in path.name] == []
    assert not (tmp_path / "run" / "bundle").exists()


@pytest.mark.parametrize("most", [0, 300, 4_600])
def test_a_disk_full_at_the_start_leaves_the_folder_free(call: Call, photos: Path, tmp_path: Path, most: int) -> None:
    """A run that could not even write its settings can be started again in the same folder, or resumed."""
    linnaeus.train(photos, out=tmp_path / "first", **QUICK)  # its pack is there from now on
    with full_disk(most):
        error = one_error(call("train", photos, "--out", tmp_path / "run", *QUICK_PAIRS))
    assert "/run" in error
    anew = call("train", photos, "--out", tmp_path / "run", *QUICK_PAIRS)
    assert anew.code == 0 or call("train", "--resume", tmp_path / "run").code == 0


def test_a_full_disk_later_is_mended(call: Call, photos: Path, tmp_path: Path) -> None:
    """A run that the disk stopped goes on when there is room again, and ends as any other."""
    with full_disk(100_000):
        assert call("train", photos, "--out", tmp_path / "run", *QUICK_PAIRS).code == 2
    assert call("train", "--resume", tmp_path / "run").code == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_full_disk_keeps_the_old_bundle(bundle: Path) -> None:
    """A bundle that cannot be written anew stays as it was."""
    before = contents(bundle)
    opened = read_bundle(bundle)
    with full_disk(1000), pytest.raises(StorageError):
        write_bundle(opened, {"model.onnx": bytes(5000)})
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_folder_that_cannot_be_written(call: Call, photos: Path, tmp_path: Path) -> None:
    """A place where no folder can be made is named."""
    (tmp_path / "file").write_text("mine")
    done = call("train", photos, "--out", tmp_path / "file" / "run", *QUICK_PAIRS)
    assert "Choose a folder that can be written." in one_error(done)
    assert (tmp_path / "file").read_text() == "mine"


# -- names of files, and the errors themselves


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Files and classes whose names are not valid UTF-8 are trained on, judged and reported like others."""
    code = """
import os, sys
from linnaeus.cli.main import main
data, run = os.path.join(sys.argv[1], "data"), os.path.join(sys.argv[1], "run")
os.rename(os.path.join(data, "red"), os.fsencode(data) + b"/r\\xffd")
main(["train", data, "--out", run, *sys.argv[2:]])
main(["evaluate", run, data])
main(["report", run])
"""
    save_colours(tmp_path / "data", 6)
    done = run_python(code, tmp_path, *QUICK_PAIRS)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_errors_are_one_family() -> None:
    """Every error of ours is a LinnaeusError of three parts; its kinds are those that the tree shows."""
    kinds = (SettingError, DataError, ImageError, DownloadError, ModelError, BundleError, RunError, TrainingError)
    for kind in (*kinds, StorageError):
        error = kind("a", got="b", fix="Do c.")
        assert str(error) == "Expected a. Got b. Do c."
        assert (error.expected, error.got, error.fix, error.exit_code) == ("a", "b", "Do c.", 2)
        assert isinstance(error, LinnaeusError)
    assert issubclass(ImageError, DataError)
    assert issubclass(DownloadError, DataError)
    assert str(MissingExtraError("timm", extra="train")).endswith('Run: pip install "linnaeus[train]"')


def test_suggestions() -> None:
    """The nearest names come first; where none is near, the known ones are listed."""
    assert suggest("epoch", ["epochs", "lr"]) == "Did you mean epochs?"
    assert suggest("zzz", ["b", "a"]) == "Known are: a, b."


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (3, DataError),
        (("a", "b", "c"), DataError),
        ((np.zeros((4, 9, 9), np.uint8), [0, 1]), DataError),
        ((np.zeros((4, 9), np.uint8), [0, 1, 0, 1]), DataError),
        ((np.zeros((4, 9, 9), np.int64), [0, 1, 0, 1]), DataError),
        ((np.full((4, 9, 9), np.nan, np.float32), [0, 1, 0, 1]), DataError),
        ((np.zeros((4, 9, 9), np.uint8), [0, 1, None, 1]), DataError),
        ((np.zeros((4, 9, 9), np.uint8), [0.5, 1, 1, 1]), DataError),
        (([b"x", b"y"], ["a", "b"]), DataError),
        ("\0", DataError),
        ("x" * 5000, DataError),
        (None, DataError),
    ],
)
def test_wrong_data_in_memory(data: object, error: type[LinnaeusError], tmp_path: Path) -> None:
    """Whatever is given from Python that is no data is a DataError too, and no folder is made."""
    with pytest.raises(error):
        linnaeus.train(data, out=tmp_path / "run", **QUICK)
    assert list(tmp_path.iterdir()) == []
