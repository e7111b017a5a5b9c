"""The story of a run as plain facts (report.json), with the pictures that belong to it, and the page made of both."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from linnaeus.answers import FILE, format_answers
from linnaeus.data.preparation import Dataset
from linnaeus.errors import ImageError
from linnaeus.judging import Judgement, list_answers
from linnaeus.reporting.page import render_report
from linnaeus.results import SPLITS, Choice, EpochResult, say_label
from linnaeus.runfolder import to_json
from linnaeus.storage import write_file

_EXAMPLES = 12
_THUMBNAIL = 128


@dataclass(frozen=True, kw_only=True)
class Story:
    """What is told of a run, beside its data and its judgements."""

    folder: str
    data: str
    model: Mapping[str, Any]
    choices: Sequence[Choice]
    epochs: Sequence[EpochResult]
    agreement: Mapping[str, Any]
    timing: Mapping[str, float]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    stopped_early: str = ""
    notes: Sequence[str] = field(default_factory=tuple)


def write_report(folder: Path, story: Story, dataset: Dataset, judgements: Mapping[str, Judgement]) -> None:
    """Write predictions.csv, report.json and report.html into a run's folder."""
    answers = [a for j in judgements.values() for a in list_answers(dataset, j)]
    write_file(folder / FILE, format_answers(answers, dataset.source.classes))
    shown = judgements.get("test") or judgements.get("val")
    examples, pictures = _examples(shown, dataset) if shown else ({}, {})
    report = _facts(story, dataset, judgements) | {"examples": examples}
    write_file(folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    write_file(folder / "report.html", render_report(report, pictures))


def _facts(story: Story, dataset: Dataset, judgements: Mapping[str, Judgement]) -> dict[str, Any]:
    source = dataset.source
    first = source.where(int(dataset.indices("test")[0])) if len(dataset.indices("test")) else "PICTURE.jpg"
    return {
        "format": 1,
        "title": f"{source.name}: {len(source.classes)} classes by {story.model['name']}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "folder": story.folder,
        "model": dict(story.model),
        "data": {
            "name": source.name,
            "path": story.data,
            "classes": list(source.classes),
            "labelling": source.labelling.name,
            "images": {part: len(dataset.indices(part)) for part in SPLITS},
            "counts": dataset.counts(),
            "bad_images": [asdict(image) for image in dataset.prepared.bad],
            "notes": [*source.notes, *story.notes],
            "identical_across_parts": dataset.straddling,
        },
        "choices": [asdict(choice) for choice in story.choices],
        "epochs": [to_json(epoch) for epoch in story.epochs],
        "scores": {part: judgement.scores.to_dict() for part, judgement in judgements.items()},
        "agreement": dict(story.agreement),
        "timing": {"total_seconds": sum(story.timing.values()), "stages": dict(story.timing)},
        "settings": dict(story.settings),
        "versions": dict(story.versions),
        "stopped_early": story.stopped_early,
        "next": [shlex.join(("linnaeus", "predict", story.folder, first if Path(first).exists() else "PICTURE.jpg"))],
    }


def _examples(judgement: Judgement, dataset: Dataset) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Choose the pictures worth looking at: the surest right ones, the least sure, the surest wrong ones."""
    confidence, right, labels = judgement.predictions.confidences, judgement.right, judgement.predictions.labels
    surest, least = np.argsort(-confidence, kind="stable"), np.argsort(confidence, kind="stable")
    chosen = {
        "wrong": surest[~right[surest]][:_EXAMPLES],
        "unsure": least[:_EXAMPLES],
        "sure": surest[right[surest]][:_EXAMPLES],
    }
    pictures = {
        f"image-{i}": _thumbnail(dataset, int(i)) for i in judgement.indices[np.concatenate([*chosen.values()])]
    }
    examples = {
        kind: [
            _example(dataset, int(judgement.indices[row]), labels[row], float(confidence[row])) for row in rows.tolist()
        ]
        for kind, rows in chosen.items()
    }
    return examples, pictures


def _example(dataset: Dataset, index: int, predicted: str | tuple[str, ...], confidence: float) -> dict[str, Any]:
    return {
        "name": dataset.source.where(index),
        "truth": say_label(dataset.source.label_of(index)),
        "predicted": say_label(predicted),
        "probability": confidence,
        "picture": f"image-{index}",
    }


def _thumbnail(dataset: Dataset, index: int) -> bytes:
    """Return a small JPEG or, of a tiny picture, an exact PNG. Empty if it cannot be read any more."""
    try:
        picture = Image.fromarray(dataset.source.read(index, at_least=(_THUMBNAIL, _THUMBNAIL)))
    except ImageError:
        return b""
    tiny = max(picture.size) <= _THUMBNAIL // 2
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if tiny else "JPEG", quality=80)
    return buffer.getvalue()
