"""Prove that each formula's test can fail: break one line of a copy of the sources, and demand that the test notices.

Run: python tests/sabotage.py [WORDS]   (only the breaks whose description or test holds the words)

Each test runs once on an untouched copy, where it must pass, and once on each broken copy, where it must fail by an
assertion. The program ends with 1 if a break survives. The sources themselves are never touched.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from breaks import BREAKS, Break

TESTS = Path(__file__).parent
SOURCES = TESTS.parent / "src"
HEAVY = (
    "hypothesis", "safetensors.torch", "scipy.special", "scipy.stats", "sklearn.model_selection",
    "timm.optim", "torch._dynamo",
)  # fmt: skip
_AT_ONCE = max(1, min(4, os.cpu_count() or 1))


class Recorder:
    """A plugin of pytest that notes how each test ended: "" for well, else the error's name."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Note a test that ran, or what stopped it before."""
        if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
            self.ends.append("assertion" if call.excinfo.errisinstance(AssertionError) else call.excinfo.typename)
        elif call.when == "call":
            self.ends.append("")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that cannot even be imported."""
        if report.failed:
            self.ends.append("collection")


def apply(each: Break, sources: Path) -> str:
    """Break a copy of the sources. Returns "" or what is wrong with the break itself."""
    file = sources / "linnaeus" / each.file
    text = file.read_text(encoding="utf-8")
    if text.count(each.old) != 1:
        return f"the text stands {text.count(each.old)} times in {each.file}"
    file.write_text(text.replace(each.old, each.new), encoding="utf-8")
    return ""


def run_tests(sources: Path, tests: Iterable[str]) -> list[str]:
    """Run tests with these sources in this process. Returns how each that ran ended."""
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(sources), str(TESTS)]
    os.environ["PYTHONPATH"] = str(sources)
    recorder = Recorder()
    names = [str(TESTS / test) for test in tests]
    # What is imported before pytest starts, one of its plugins among them, cannot be rewritten by it; and of what the
    # process was forked from, much is left behind that nobody closes.
    quiet = ("-q", "-p", "no:cacheprovider", "-p", "no:unraisableexception")
    quiet += ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main([*names, *quiet, "--rootdir", str(TESTS.parent)], plugins=[recorder])
    assert sys.modules["linnaeus"].__file__ == str(sources / "linnaeus" / "__init__.py"), "the wrong sources ran"
    return recorder.ends


def try_break(each: Break) -> str:
    """Return "" if a break is noticed, else what happened instead."""
    with tempfile.TemporaryDirectory() as folder:
        sources = copy_sources(Path(folder))
        if wrong := apply(each, sources):
            return wrong
        ends = run_tests(sources, [each.test])
    if "assertion" in ends:
        return ""
    return f"ended with {', '.join(sorted(set(filter(None, ends))))}" if any(ends) else "survived"


def try_untouched(tests: Sequence[str]) -> str:
    """Return "" if all of some tests pass on untouched sources, else what happened instead."""
    with tempfile.TemporaryDirectory() as folder:
        ends = run_tests(copy_sources(Path(folder)), tests)
    if len(ends) < len(tests) or any(ends):
        return f"{len(ends)} tests of {len(tests)} ran on untouched sources, {sum(map(bool, ends))} failed"
    return ""


def copy_sources(folder: Path) -> Path:
    """Copy the package. Returns the folder to import it from."""
    shutil.copytree(SOURCES / "linnaeus", folder / "linnaeus", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def warm_up() -> None:
    """Import what is heavy and no source of ours: every process then starts with it."""
    for name in HEAVY:
        importlib.import_module(name)


def main(words: Sequence[str] = ()) -> int:
    """Try all breaks whose description or test holds each word. Returns 1 if any is not noticed."""
    chosen = [each for each in BREAKS if all(word in f"{each.what} {each.test}" for word in words)]
    if not chosen:
        print(f"no break speaks of {' '.join(words)}")
        return 1
    os.environ["OMP_NUM_THREADS"] = "1"
    warm_up()
    jobs: list[tuple[Any, Any]] = [(try_break, each) for each in chosen]
    jobs.append((try_untouched, sorted({each.test for each in chosen})))
    with get_context("fork").Pool(_AT_ONCE, maxtasksperchild=1) as pool:
        waiting = [pool.apply_async(job, (what,)) for job, what in jobs]
        wrong = []
        for number, job in enumerate(waiting):
            wrong.append(job.get())
            if number < len(chosen):
                each, end = chosen[number], "MISSED" if wrong[-1] else "noticed"
                print(f"{end:8} {each.what:48} {each.test} {wrong[-1]}", flush=True)
    missed = sum(map(bool, wrong[:-1]))
    untouched = wrong[-1] or "All tests pass on untouched sources."
    print(f"\n{len(chosen) - missed} of {len(chosen)} breaks noticed. {untouched}")
    return int(any(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
