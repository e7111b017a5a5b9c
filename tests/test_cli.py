"""The command line, each verb from end to end."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import linnaeus
from commands import (
    CLASSES,
    QUICK,
    QUICK_FILES,
    QUICK_PAIRS,
    SOURCES,
    Answer,
    colours,
    contents,
    files_below,
    run_python,
    save_colours,
)
from linnaeus.config import RULES, Settings, describe
from linnaeus.judging import Judgement
from linnaeus.models.registry import list_models
from linnaeus.predictor import Predictor
from linnaeus.results import Choice, EpochResult, RunResult, Scores

pytest_plugins = ("fixtures_run",)

Call = Callable[..., Answer]


# -- train


def test_train_writes_a_run_folder(call: Call, tmp_path: Path) -> None:
    """Training writes exactly the files that the manual names, and tells where they are on standard error."""
    run = tmp_path / "deep" / "run"
    done = call("train", save_colours(tmp_path / "data", 6), "--out", run, *QUICK_PAIRS)
    assert (done.code, done.out) == (0, "")
    assert files_below(run) == QUICK_FILES
    assert sorted(path.name for path in run.parent.iterdir()) == ["run"]
    assert "Parts: 12 train, 3 val, 3 test (split by class)" in done.err
    assert f"linnaeus predict {run} PICTURE.jpg" in done.err
    settings = Settings.from_toml((run / "config.toml").read_text())
    assert {name: getattr(settings, name) for name in QUICK} == QUICK
    assert settings.unresolved() == []
    facts = json.loads((run / "run.json").read_text())
    assert (facts["finished"], facts["classes"]) == (True, list(CLASSES))
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_train_prints_one_document(call: Call, photos: Path, tmp_path: Path) -> None:
    """With --json standard output is one JSON document and nothing else, the same as report.json says."""
    run = tmp_path / "run"
    done = call("train", photos, "--out", run, "--json", "--epochs", "1", "--model", "simple_cnn", "threads=1")
    assert done.code == 0
    document = done.json()
    report = json.loads((run / "report.json").read_text())
    assert document["folder"] == str(run)
    assert document["scores"] == report["scores"]
    assert set(document["scores"]) == {"val", "test"}
    assert Path(document["bundle"], "model.onnx").is_file()
    assert Path(document["report"]).read_text().lower().startswith("<!doctype html>")


def test_flags_and_pairs_mean_the_same(call: Call, photos: Path, tmp_path: Path) -> None:
    """--epochs 1 is epochs=1; the data may also be missing where a pair stands first, which is refused by name."""
    done = call("train", photos, "--seed", "5", "--out", tmp_path / "run", "--budget", "0", *QUICK_PAIRS)
    assert done.code == 0
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["seed"] == 5
    done = call("train", "epochs=1", "seed=3")
    assert done.code == 2
    assert "Expected data to train on. Got none." in done.err


def test_runs_are_numbered(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --out a run takes the next free number, and never the place of another."""
    monkeypatch.chdir(tmp_path)
    save_colours(tmp_path / "birds", 4)
    for number in (1, 2):
        assert call("train", "birds", *QUICK_PAIRS).code == 0
        assert (tmp_path / "runs" / f"birds-{number}" / "report.html").is_file()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["birds-1", "birds-2"]


def test_what_is_told_to_type_next_works(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that a run and its report suggest can be pasted, blanks in the names or not."""
    monkeypatch.chdir(tmp_path)
    save_colours(tmp_path / "my photos", 4)
    done = call("train", "my photos", "--out", "my run", *QUICK_PAIRS)
    told = next(line for line in done.err.splitlines() if line.startswith("Next:"))
    assert shlex.split(told) == ["Next:", "linnaeus", "predict", "my run", "PICTURE.jpg"]
    report = call("report", "my run").out
    command = next(line for line in report.splitlines() if line.startswith("Next: linnaeus predict "))
    assert call(*shlex.split(command)[2:]).code == 0
    again = call("train", "my photos", "--out", "my run").err.partition("go on with it: ")[2]
    assert "which is finished" in call(*shlex.split(again)[1:]).err


@pytest.mark.parametrize("kind", ["a run", "a file", "other files"])
def test_train_never_overwrites(call: Call, photos: Path, run_folder: Path, tmp_path: Path, kind: str) -> None:
    """A folder that is in use is refused before anything is read, and stays as it was to the byte."""
    out = tmp_path / "used"
    if kind == "a file":
        out.write_text("mine")
    elif kind == "other files":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    else:
        out = run_folder
    before = contents(out) if out.is_dir() else out.read_bytes()
    done = call("train", photos, "--out", out, *QUICK_PAIRS)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: Expected an output folder that does not exist or is empty. Got ")
    assert "images of" not in done.err
    assert (contents(out) if out.is_dir() else out.read_bytes()) == before


def test_an_empty_folder_is_taken(call: Call, photos: Path, tmp_path: Path) -> None:
    """A folder that is there and empty is as good as none."""
    (tmp_path / "run").mkdir()
    assert call("train", photos, "--out", tmp_path / "run", *QUICK_PAIRS).code == 0


def test_a_finished_run_is_not_resumed(call: Call, run_folder: Path, tmp_path: Path) -> None:
    """Resuming what is finished, or is no run, is refused and changes nothing."""
    before = contents(run_folder)
    done = call("train", "--resume", run_folder)
    assert done.code == 2
    assert "which is finished. Start a new run." in done.err
    assert contents(run_folder) == before
    done = call("train", "--resume", tmp_path)
    assert done.code == 2
    assert "Expected a run folder with config.toml and run.json." in done.err
    done = call("train", "--resume", run_folder, "epochs=3")
    assert "Expected a resumed run to keep its settings. Got new ones: epochs." in done.err
    assert list(tmp_path.iterdir()) == []


def test_train_on_a_table_and_on_arrays(call: Call, tmp_path: Path) -> None:
    """A CSV with columns of other names and an .npz file train as a folder does."""
    pixels, labels = colours(6)
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.array(labels))
    assert call("train", tmp_path / "set.npz", "--out", tmp_path / "a", *QUICK_PAIRS).code == 0
    rows = ["file,kind"]
    for i, (picture, label) in enumerate(zip(pixels, labels)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{label}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    columns = ("path_column=file", "label_column=kind")
    assert call("train", tmp_path / "set.csv", "--out", tmp_path / "b", *columns, *QUICK_PAIRS).code == 0
    done = call("evaluate", tmp_path / "b", tmp_path / "set.csv", "--json")
    assert (done.code, done.json()["split"]) == (0, "test")
    assert Predictor(tmp_path / "a").classes == Predictor(tmp_path / "b").classes == CLASSES


# -- evaluate


@pytest.mark.parametrize("split", ["test", "val"])
def test_evaluate_agrees_with_the_report(call: Call, run_folder: Path, photos: Path, split: str) -> None:
    """The scores of `evaluate --json`, of report.json and of the bundle are the same numbers."""
    done = call("evaluate", run_folder, photos, "--split", split, "--json")
    assert done.code == 0
    scores = done.json()
    assert scores.pop("split") == split
    assert scores == json.loads((run_folder / "report.json").read_text())["scores"][split]
    assert scores == json.loads((run_folder / "bundle" / "bundle.json").read_text())["facts"]["scores"][split]


def test_evaluate_chooses_the_test_part(call: Call, run_folder: Path, photos: Path) -> None:
    """On the data of the run the test part is judged by default, and the table on standard output says so."""
    done = call("evaluate", run_folder, photos)
    assert done.code == 0
    assert done.out.startswith("test: 9 images\n  accuracy ")
    assert [line.split()[0] for line in done.out.splitlines()[-3:]] == list(CLASSES)
    done = call("evaluate", run_folder, photos, "--split", "all", "--json")
    assert (done.json()["n"], done.json()["split"]) == (60, "all")


def test_evaluate_on_other_data_uses_all(call: Call, run_folder: Path, tmp_path: Path) -> None:
    """Data that the bundle was not trained on and that have no parts are judged whole; parts of them do not exist."""
    other = save_colours(tmp_path / "other", 2, seed=9)
    done = call("evaluate", run_folder, other, "--json")
    assert (done.json()["split"], done.json()["n"]) == ("all", 6)
    done = call("evaluate", run_folder, other, "--split", "test")
    assert done.code == 2
    assert "Choose another with --split, or all." in done.err
    done = call("evaluate", run_folder, other, "--split", "most")
    assert done.code == 2
    assert "Got 'most'." in done.err


@pytest.mark.parametrize("parts", [("train", "test"), ("val", "test"), ("test",), ("train", "val")])
def test_evaluate_on_other_data_with_parts(call: Call, run_folder: Path, tmp_path: Path, parts: tuple[str]) -> None:
    """Data with parts of their own are judged by these, however few pictures the other parts have."""
    for number, part in enumerate(parts):
        save_colours(tmp_path / "other" / part, 1 + number, seed=90 + number)
    done = call("evaluate", run_folder, tmp_path / "other", "--json")
    whole = sum(3 * (1 + number) for number in range(len(parts)))
    expected = ("test", 3 * len(parts)) if "test" in parts else ("all", whole)
    assert (done.code, done.err) == (0, "")
    assert (done.json()["split"], done.json()["n"]) == expected
    missing = next(part for part in ("val", "train", "test") if part not in parts)
    done = call("evaluate", run_folder, tmp_path / "other", "--split", missing)
    assert done.code == 2
    assert f"Expected images in the part '{missing}'. Got none." in done.err


def test_classes_in_another_order_are_matched_by_name(call: Call, run_folder: Path, tmp_path: Path) -> None:
    """Labels mean their names: data without the first class, whose numbers all differ, get the same scores."""
    all_three = save_colours(tmp_path / "three", 5, seed=3)
    whole = call("evaluate", run_folder, all_three, "--json").json()
    (all_three / "blue").rename(tmp_path / "blue")
    two = call("evaluate", run_folder, all_three, "--json").json()
    assert two["n"] == 10
    assert two["classes"] == list(CLASSES)
    assert two["confusion"][1:] == whole["confusion"][1:]
    assert two["confusion"][0] == [0, 0, 0]
    assert two["per_class"]["red"]["recall"] == whole["per_class"]["red"]["recall"]


def test_unknown_classes_are_refused_by_name(call: Call, run_folder: Path, tmp_path: Path) -> None:
    """A class that the bundle does not know is named, beside those that it knows."""
    other = save_colours(tmp_path / "other", 2, names={"red": "Red", "blue": "mauve"})
    done = call("evaluate", run_folder, other)
    assert (done.code, done.out) == (2, "")
    assert "only classes that the bundle knows (blue, green, red). Got the data's 'mauve', 'Red'." in done.err


# -- predict


def test_predict_files_folders_and_patterns(call: Call, run_folder: Path, photos: Path) -> None:
    """A line for each picture, in the order of the arguments."""
    done = call("predict", run_folder, photos / "red" / "40.png", photos / "blue", str(photos / "green" / "2*.png"))
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) == 1 + 20 + 10
    assert lines[0].startswith(f"{photos / 'red' / '40.png'}: ")
    assert lines[0].count(" %") == 3


def test_predict_json(call: Call, run_folder: Path, photos: Path, predictor: Predictor) -> None:
    """--json is one list with the label, and the best classes with their probabilities to the last digit."""
    done = call("predict", run_folder, photos, "--json", "--top", "2")
    answers = done.json()
    expected = predictor.predict([answer["image"] for answer in answers])
    assert len(answers) == 60
    assert [answer["label"] for answer in answers] == expected.labels
    found = [[(best["label"], best["probability"]) for best in answer["top"]] for answer in answers]
    assert found == expected.top(2)


def test_predict_csv(call: Call, run_folder: Path, tmp_path: Path) -> None:
    """--csv is a table with a header that any reader of CSV reads, whatever the names are."""
    name = tmp_path / 'a, "b"\n.png'
    Image.fromarray(colours(1)[0][0]).save(name)
    rows = list(csv.DictReader(io.StringIO(call("predict", run_folder, name, "--csv", "--top", "9").out, newline="")))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert {row["image"] for row in rows} == {str(name)}
    assert {row["label"] for row in rows} == set(CLASSES)
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1, abs=1e-5)


def test_predict_from_standard_input(run_folder: Path, photos: Path, call: Call) -> None:
    """A picture on standard input is answered as the file is; what is no picture is refused."""
    picture = photos / "red" / "40.png"
    command = [sys.executable, "-m", "linnaeus", "predict", str(run_folder), "-", "--json"]
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    done = subprocess.run(command, input=picture.read_bytes(), env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    (answer,) = json.loads(done.stdout)
    (expected,) = call("predict", run_folder, picture, "--json").json()
    assert answer["top"] == expected["top"]
    done = subprocess.run(command, input=b"no picture", env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"Error: Expected a picture in a known format.")


@pytest.mark.parametrize("form", [(), ("--json",), ("--csv",)])
def test_predict_names_what_it_cannot_read(
    call: Call, run_folder: Path, photos: Path, tmp_path: Path, form: tuple[str]
) -> None:
    """Unreadable files are named on standard error with exit code 2, and the others are answered all the same."""
    (tmp_path / "bad.png").write_text("text")
    done = call("predict", run_folder, tmp_path / "bad.png", photos / "red", *form)
    assert done.code == 2
    assert done.err.startswith(f"unreadable: {tmp_path / 'bad.png'}: ")
    assert done.err.count("\n") == 1
    assert "bad.png" not in done.out
    assert done.out.count("40.png") == (3 if "--csv" in form else 1)
    if "--json" in form:
        assert len(done.json()) == 20


def test_predict_prints_names_that_are_no_text(run_folder: Path, photos: Path, tmp_path: Path) -> None:
    """A file whose name is not valid UTF-8, or that the output's encoding has not, does not stop the answers."""
    names = {os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/\xff.png", "/ä.png".encode())}
    for name in names:
        Path(name).write_bytes((photos / "red" / "40.png").read_bytes())
    code = "import sys; from linnaeus.cli.main import main; main(sys.argv[1:])"
    for encoding in ("utf-8", "ascii"):
        for form in ("--top=1", "--csv", "--json"):
            done = run_python(code, "predict", run_folder, tmp_path, form, env={"PYTHONIOENCODING": encoding})
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout.count(".png") == {"--top=1": 2, "--csv": 6, "--json": 2}[form]
        assert {answer["image"] for answer in json.loads(done.stdout)} == names


def test_predict_refuses_no_class_at_all(call: Call, run_folder: Path, photos: Path) -> None:
    """--top 0 is a usage error, with exit code 2."""
    done = call("predict", run_folder, photos, "--top", "0")
    assert (done.code, done.out) == (2, "")
    assert "--top" in done.err


# -- models, settings, report, help


def test_models(call: Call) -> None:
    """Every network is listed, a pattern narrows the list, and --json tells the same."""
    names = [entry.name for entry in list_models()]
    assert [line.split()[0] for line in call("models").out.splitlines()] == ["name", *names]
    found = call("models", "r*", "--json").json()
    assert [entry["name"] for entry in found] == [name for name in names if name.startswith("r")]
    assert set(found[0]) >= {"name", "about", "weights", "licence", "parameters", "multiply_adds", "size", "small"}
    assert call("models", "lenet5", "--measure", "--json").json()[0]["milliseconds"] > 0
    assert call("models", "--json", "nothing*").json() == []


def test_settings(call: Call) -> None:
    """Every setting is listed with its default and its help."""
    lines = call("settings").out.splitlines()
    assert [line.split()[0] for line in lines] == list(RULES)
    assert all(line.endswith(describe(name)) for line, name in zip(lines, RULES))


def test_report(call: Call, run_folder: Path, tmp_path: Path) -> None:
    """The report says on one screen what the page says, and where the page lies; no run has none."""
    done = call("report", run_folder)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("colours: 3 classes by simple_cnn\n")
    assert done.out.endswith(f"\n\nPage: {run_folder / 'report.html'}\n")
    done = call("report", tmp_path)
    assert (done.code, done.out) == (2, "")
    for text in ("", "[1]", "null", "{", '{"scores": 3}', '{"format": 2}'):
        (tmp_path / "report.json").write_text(text)
        assert call("report", tmp_path).err.startswith("Error: Expected the folder of a run that came to its report.")


def test_help_and_version(call: Call) -> None:
    """Help and version end with 0, and every command has help."""
    assert call("--help").code == 0
    with contextlib.suppress(PackageNotFoundError):  # where the tests run on the sources alone
        expected = version("linnaeus")
        assert call("--version").out == f"linnaeus, version {expected}\n"
    for command in ("train", "demo", "evaluate", "predict", "models", "settings", "report"):
        done = call(command, "-h")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"Usage: linnaeus {command} ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("trian",),
        ("train", "--epoch"),
        ("predict",),
        ("predict", "x"),
        ("evaluate", "x"),
        ("report",),
        ("models", "a", "b"),
        ("train", "--fast"),
    ],
)
def test_usage_errors(call: Call, arguments: tuple[str, ...]) -> None:
    """A command that is not there or lacks an argument ends with 2 and usage on standard error."""
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage: linnaeus" in done.err


def test_a_setting_as_a_flag(call: Call, photos: Path, run_folder: Path) -> None:
    """A setting written as a flag, under another name, twice, or two forms of output: each is told how it is meant."""
    assert "Write batch_size=VALUE." in call("train", photos, "--batch-size", "8").err
    assert "Did you mean lr" in call("train", photos, "learning_rate=0.1").err
    assert "two values for epochs" in call("train", photos, "--epochs", "2", "epochs=3").err
    assert "cannot be given together" in call("predict", run_folder, photos, "--csv", "--json").err


# -- pipes and signals


@pytest.mark.parametrize(
    "arguments", [("settings",), ("predict", "{run}", "{photos}", "--csv"), ("models",), ("--help",)]
)
def test_a_reader_that_goes_away(run_folder: Path, photos: Path, arguments: tuple[str, ...]) -> None:
    """Output into a closed pipe ends quietly with the code that the shell knows: 141."""
    words = [word.format(run=run_folder, photos=photos) for word in arguments]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "linnaeus", *words],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


# -- the same from Python


def test_train_returns_its_result(result: RunResult, photos: Path) -> None:
    """linnaeus.train returns documented types: scores by part, epochs, choices with reasons, paths that exist."""
    assert isinstance(result, RunResult)
    assert {part: type(scores) for part, scores in result.scores.items()} == {"val": Scores, "test": Scores}
    assert [type(epoch) for epoch in result.epochs] == [EpochResult, EpochResult]
    assert [epoch.epoch for epoch in result.epochs] == [1, 2]
    assert all(isinstance(choice, Choice) and choice.why for choice in result.choices)
    assert not {choice.name for choice in result.choices} & set(QUICK)
    assert all(Path(path).exists() for path in (result.folder, result.bundle, result.report))
    assert (list(result.bad_images), result.stopped_early, result.signal) == ([], "", 0)
    assert isinstance(linnaeus.load(result.folder), Predictor)


def test_evaluate_returns_a_judgement(result: RunResult, photos: Path) -> None:
    """linnaeus.evaluate returns scores with the answers behind them, equal to those of the run."""
    judgement = linnaeus.evaluate(result.bundle, photos)
    assert isinstance(judgement, Judgement)
    assert judgement.part == "test"
    assert judgement.scores.to_dict() == result.scores["test"].to_dict()
    assert judgement.truth.dtype == judgement.indices.dtype == np.int64
    assert judgement.probabilities.shape == (len(judgement.indices), 3)
    found = (judgement.probabilities.argmax(axis=1) == judgement.truth).mean()
    assert found == pytest.approx(judgement.scores.accuracy.value)


def test_evaluate_takes_arrays(result: RunResult) -> None:
    """Pictures and labels in memory are judged as files are."""
    pixels, labels = colours(3, seed=4)
    judgement = linnaeus.evaluate(result.folder, (pixels, labels))
    assert (judgement.part, judgement.scores.n) == ("all", 9)


def test_training_needs_no_terminal(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The library says nothing unless it is given something to say it with."""
    linnaeus.train(photos, out=tmp_path / "run", **QUICK)
    assert capfd.readouterr() == ("", "")
