"""The page of a learning-rate range test, and its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linnaeus.reporting.charts import rate_chart, text
from linnaeus.reporting.style import render_document
from linnaeus.storage import write_file


def write_range_test(folder: Path, found: Mapping[str, Any], *, name: str) -> Path:
    """Write lr.json and lr.html into a folder from the JSON values of a RangeTest. Returns the page."""
    write_file(folder / "lr.json", json.dumps(dict(found), indent=1, allow_nan=False) + "\n")
    write_file(folder / "lr.html", render_range_test(found, name=name))
    return folder / "lr.html"


def render_range_test(found: Mapping[str, Any], *, name: str) -> str:
    """Return the page of a range test on a data set of this name: it loads nothing and runs no script."""
    title = f"{name}: which learning rate?"
    marks = {word: found[word] for word in ("steepest", "tenth") if found[word] is not None}
    chart = rate_chart("Loss over the learning rate", found["rates"], found["losses"], marks)
    lead = (
        f"The loss fell fastest at {found['steepest']:.2g}; a tenth of the rate with the lowest loss is "
        f"{found['tenth']:.2g}. Both are usual choices for lr."
        if marks
        else "The loss did not fall at any rate: is it the right network, are the labels right?"
    )
    first = (
        f'<header><p class="kicker">linnaeus range test</p><h1>{text(title)}</h1><p class="lead">{text(lead)}</p>'
        f'</header><div class="charts">{chart}</div><p class="quiet">The learning rate rose from step to step; the '
        "loss is that of training batches, smoothed (Smith 2017).</p>"
    )
    return render_document(text(title), first, [])
