"""The benchmarks' own machinery: verdicts, rounds, the table, and that their scripts still fit what they measure."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pictures import save_folder

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the module that all benchmarks share."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("measuring")


@pytest.fixture
def run(measuring: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Give the program, with its scratch folder out of the way."""
    program = importlib.import_module("run")
    monkeypatch.setattr(program, "BENCH", tmp_path / "bench")
    return program


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [
        (0.5, {"at_most": 0.5}, True),
        (0.51, {"at_most": 0.5}, False),
        (-0.6, {"at_least": -0.5}, False),
        (30.0, {"at_least": 27.0, "at_most": 33.0}, True),
        (34.0, {"at_least": 27.0, "at_most": 33.0}, False),
        (7.0, {}, None),
    ],
)
def test_met(measuring, value, target, met):
    """A figure is met at its target, missed beyond it, and neither without one."""
    assert measuring.Figure(what="x", value=value, **target).met is met


def test_targets_as_text(measuring):
    """A target reads as people write it, with its unit."""
    assert measuring.Figure(what="x", value=1, unit=" s", at_most=60.0).target == "<= 60 s"
    assert measuring.Figure(what="x", value=1, unit=" s", at_least=27.0, at_most=33.0).target == "27 s to 33 s"
    assert measuring.Figure(what="x", value=1).target == ""


def test_rounds_alternate(measuring):
    """Every other round goes the other way, and each side keeps its own results in order."""
    calls: list[str] = []
    sides = {name: lambda i, name=name: calls.append(name) or i for name in "ab"}
    assert measuring.in_rounds(sides, 3) == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert calls == ["a", "b", "b", "a", "a", "b"]


def test_process_is_timed(measuring):
    """A process gives its wall time, its peak memory and what it printed."""
    outcome = measuring.run_process(["/bin/sh", "-c", "sleep 0.1; echo talk; echo '{\"a\": 1}'"])
    assert 0.1 <= outcome.seconds < 5
    assert outcome.peak_bytes > 0
    assert outcome.json() == {"a": 1}


def test_failed_process_tells_why(measuring):
    """A process that fails is no measurement; its last words are kept."""
    with pytest.raises(measuring.ProcessError, match=r"exit code 3 .*no such luck"):
        measuring.run_process(["/bin/sh", "-c", "echo no such luck >&2; exit 3"])


def test_missing_data_are_skipped(run, monkeypatch, tmp_path, capsys):
    """Without its data a benchmark is skipped with the reason, which is no failure."""
    monkeypatch.setenv("LINNAEUS_DATA", str(tmp_path))
    file = tmp_path / "results.json"
    assert run.main(["--only", "feeding", "--json", str(file)]) == 0
    assert "trashnet does not exist" in capsys.readouterr().out
    assert "trashnet" in json.loads(file.read_text())["feeding"]["skipped"]


def test_failure_is_told(run, measuring, monkeypatch, tmp_path):
    """A benchmark that breaks keeps the figures it had, and the exit code says so; others' results stay."""

    def breaks(bench: Any) -> Iterator[Any]:
        yield measuring.Figure(what="half", value=1.0, at_most=2.0)
        raise measuring.ProcessError("it broke")

    def works(bench: Any) -> Iterator[Any]:
        yield measuring.Figure(what="whole", value=3.0, at_most=2.0)

    monkeypatch.setitem(run.BENCHMARKS, "digits", breaks)
    monkeypatch.setitem(run.BENCHMARKS, "memory", works)
    file = tmp_path / "results.json"
    assert run.main(["--only", "memory", "--json", str(file)]) == 0
    assert run.main(["--only", "digits", "--json", str(file)]) == 1
    results = json.loads(file.read_text())
    assert results["digits"]["failed"] == "ProcessError: it broke"
    assert results["digits"]["figures"][0]["met"] is True
    assert results["memory"]["figures"][0]["met"] is False
    assert results["memory"]["machine"]["cores"] >= 1


def test_table(run, measuring):
    """The table has a row for each figure and for each benchmark without one."""
    figure = measuring.Figure(what="time", value=0.4, at_most=0.5)
    findings = [run.Finding(name="a", figures=[figure]), run.Finding(name="b", skipped="no data")]
    lines = run.format_table(findings).splitlines()
    assert lines[2].split() == ["time", "0.400", "<=", "0.5", "met"]
    assert lines[3].split() == ["b", "-", "-", "skipped:", "no", "data"]


def test_unknown_benchmark_is_refused(run):
    """A wrong name ends the program before anything is measured."""
    with pytest.raises(SystemExit):
        run.main(["--only", "nonsense"])


def test_feeding_runs(measuring, tmp_path):
    """Both sides of the feeding benchmark give every picture of a folder, in both epochs."""
    folder = save_folder(tmp_path / "set", {"a": 5, "b": 4})
    env = measuring.environment(LINNAEUS_CACHE=str(tmp_path / "cache"))
    assert measuring.run_script("feeding_ours.py", folder, env=env).json()["images"] == 9
    assert measuring.run_script("feeding_rival.py", folder, "--workers", "0").json()["images"] == 9


def test_loop_segments_run(measuring):
    """Both loops train, and each segment is timed."""
    options = ("--model", "simple_cnn", "--batch-size", "8", "--images", "16", "--pairs", "2")
    seconds = measuring.run_script("loop_segments.py", *options).json()
    assert {side: len(times) for side, times in seconds.items()} == {"ours": 2, "theirs": 2}
