"""The report as a real browser shows it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linnaeus.reporting.page import render_report
from test_report import make_report

CHROMIUM = shutil.which("chromium")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=2000",
)  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")


def look(page: Path, width: int, *options: str) -> np.ndarray:
    """Return a screenshot of a page as (H, W, 3)."""
    picture = page.with_suffix(f".{width}.png")
    arguments = [f"--user-data-dir={page.parent / 'profile'}", f"--screenshot={picture}", f"--window-size={width},1400"]
    subprocess.run([CHROMIUM, *QUIET, *arguments, *options, page.as_uri()], check=True, capture_output=True, timeout=90)
    return np.asarray(Image.open(picture).convert("RGB"))


@pytest.mark.parametrize("width", [1100, 500])
def test_the_page_is_shown(tmp_path: Path, width: int) -> None:
    """Chromium draws the page at desk and phone width: light ground, dark words, and nothing beyond its edges."""
    page = tmp_path / "report.html"
    page.write_text(render_report(make_report()), encoding="utf-8")
    shown = look(page, width)
    assert shown.mean() > 200
    assert (shown.max(axis=2) < 110).mean() > 0.005
    assert (shown[:, -8:] == shown[0, -1]).mean() > 0.98  # the margin on the right is empty
