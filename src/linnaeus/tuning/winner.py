"""From the best trial to what a user gets: its bundle, judged once on the test part, and the page of the search."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from linnaeus.answers import FILE, format_answers
from linnaeus.bundle import MANIFEST, find_bundle, read_bundle, write_bundle
from linnaeus.display import Display
from linnaeus.judging import Judgement, judge_images, list_answers
from linnaeus.looking import Look
from linnaeus.predictor import Predictor
from linnaeus.reporting.search import render_search
from linnaeus.runfolder import read_report
from linnaeus.storage import write_file
from linnaeus.tuning.results import Tuning


def deliver_winner(found: Tuning, look: Look, *, display: Display) -> Tuning:
    """Write the bundle and the pages of a search. A search that came to its end has its winner judged on test."""
    folder = Path(found.folder)
    if found.winner is None:
        return found
    place = folder / f"trial-{found.winner.number}"
    parts = ("val",) if found.signal else ("val", "test")
    judged = _judge(place, look, parts, display)
    tested = _tested(folder, [found.winner.number] if "test" in judged else [])
    scores = {part: judgement.scores for part, judgement in judged.items()}
    found = replace(found, bundle=str(folder / "bundle"), report=str(folder / "report.html"), scores=scores,
                    tested=tested)  # fmt: skip
    _write_bundle(folder, place, {part: s.to_dict() for part, s in scores.items()})
    answers = [answer for judgement in judged.values() for answer in list_answers(look.dataset, judgement)]
    write_file(folder / FILE, format_answers(answers, look.dataset.source.classes))
    _write_reports(found, place, look.dataset.source.name)
    return found


def _judge(place: Path, look: Look, parts: tuple[str, ...], display: Display) -> dict[str, Judgement]:
    predictor, dataset = Predictor(place), look.dataset
    indices = {part: dataset.indices(part) for part in parts}
    return {
        part: judge_images(predictor, dataset, some, part=part, display=display)
        for part, some in indices.items()
        if len(some)
    }


def _tested(folder: Path, now: list[int]) -> list[int]:
    """Return the numbers of all trials that were judged on test, those before the search went on included."""
    file = folder / "tune.json"
    before = json.loads(file.read_text(encoding="utf-8"))["tested"] if file.is_file() else []
    return list(dict.fromkeys([*before, *now]))


def _write_bundle(folder: Path, place: Path, scores: Mapping[str, Any]) -> None:
    """Write the winner's bundle with all scores that it has now."""
    there = find_bundle(place)
    files = {file.name: file.read_bytes() for file in there.iterdir() if file.name not in (MANIFEST, "bundle.json")}
    bundle = read_bundle(there)
    write_bundle(replace(bundle, folder=folder / "bundle", facts={**bundle.facts, "scores": scores}), files)


def _write_reports(found: Tuning, place: Path, name: str) -> None:
    """Write the winner's report.json, tune.json and the page of the search."""
    folder, facts = Path(found.folder), found.to_dict()
    mine = {"folder": found.folder, "scores": facts["scores"],
            "next": [shlex.join(("linnaeus", "predict", found.folder, "PICTURE.jpg"))]}  # fmt: skip
    write_file(folder / "report.json", json.dumps(read_report(place) | mine, indent=1, allow_nan=False) + "\n")
    when = datetime.now(UTC).isoformat(timespec="seconds")
    told = {"format": 1, "created": when, "name": name, "interrupted": bool(found.signal), **facts}
    write_file(folder / "tune.json", json.dumps(told, indent=1, allow_nan=False) + "\n")
    write_file(folder / "report.html", render_search(told))
