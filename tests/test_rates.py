"""The learning-rate range test: what it suggests, what it leaves behind, and that it changes nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import linnaeus
from commands import QUICK
from linnaeus.errors import SettingError
from linnaeus.learning.rates import smooth, suggest_rate
from linnaeus.reporting.ranging import render_range_test

pytest_plugins = ("fixtures_run",)


def test_a_moving_average_without_bias() -> None:
    """The smoothed loss is the mean of all before it, each weighing 0.9 of the next."""
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    for n, found in enumerate(smooth(losses), start=1):
        weights = 0.9 ** np.arange(n)[::-1]
        assert found == pytest.approx(float((weights * losses[:n]).sum() / weights.sum()))


def test_what_is_suggested() -> None:
    """Of a loss that falls most at step 100 and is lowest at step 150, the suggestions lie there, a little behind."""
    steps = np.arange(190)
    losses = 2 - 1 / (1 + np.exp(-(steps - 100) / 5)) + np.where(steps > 150, (steps - 150) / 5, 0)
    found = suggest_rate(losses.tolist())
    rate = 1e-7 * 1e8 ** (steps / 200)
    assert rate[100] <= found.steepest <= rate[115]
    assert rate[150] / 10 <= found.tenth <= rate[160] / 10
    assert found.rates == pytest.approx(rate)


def test_nothing_is_suggested() -> None:
    """A loss that only rises, or is no number from the start, suggests nothing, and the page says so."""
    for losses in ([1.0 + i for i in range(60)], [math.nan] * 3):
        found = suggest_rate(losses).to_dict()
        assert (found["steepest"], found["tenth"]) == (None, None)
    rising = suggest_rate([1.0 + i for i in range(60)]).to_dict()
    assert "did not fall" in render_range_test(rising, name="pictures")


def test_the_whole_test(photos: Path, tmp_path: Path) -> None:
    """It finds rates, the same ones each time, writes its page and numbers, and no bundle."""
    settings: dict[str, Any] = {**QUICK, "model": "simple_cnn", "threads": 1}
    found, page = linnaeus.find_lr(photos, out=tmp_path / "one", **settings)
    again, _ = linnaeus.find_lr(photos, out=tmp_path / "two", **settings)
    assert found.losses == again.losses
    assert 1e-6 < found.steepest < 1
    assert json.loads((tmp_path / "one" / "lr.json").read_text())["steepest"] == found.steepest
    assert "steepest" in page.read_text()
    assert not (tmp_path / "one" / "bundle").exists()


def test_from_the_command_line(call: Callable[..., Any], photos: Path, tmp_path: Path) -> None:
    """`train --find-lr` tells the rates, the next command and where the curve is; it cannot resume a run."""
    done = call(
        "train", photos, "--find-lr", "--out", tmp_path / "run", "model=simple_cnn", "image_size=32", "threads=1"
    )
    assert done.code == 0
    assert "Next:  linnaeus train" in done.out
    assert str(tmp_path / "run" / "lr.html") in done.out
    assert call("train", "--find-lr", "--resume", tmp_path / "run").code == 2


def test_a_head_alone_has_no_rate(photos: Path) -> None:
    """A head is fitted, not followed down a gradient."""
    with pytest.raises(SettingError, match="Leave finetune out"):
        linnaeus.find_lr(photos, finetune="head")
