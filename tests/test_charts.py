"""Drawings of the report."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from linnaeus.reporting.charts import bar_cell, confusion_table, interval_bar, line_chart, percent, table, text

HOSTILE = "<script>alert(1)</script>"


def points_of(chart):
    """Return the points of each line of a chart."""
    lines = re.findall(r'points="([^"]+)"', chart)
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]


def test_line_chart_draws_what_it_is_given():
    """Lower values lie lower, epochs go right, and values stay within the drawing."""
    (line,) = points_of(line_chart("Loss", {"training": [3.0, 2.0, 1.0]}, best=2, top=None))
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert [y for _, y in line] == sorted(y for _, y in line)
    assert all(0 <= x <= 480 and 0 <= y <= 250 for x, y in line)


def test_missing_values_leave_a_gap():
    """Null and NaN break a line, and a lonely value becomes a dot."""
    chart = line_chart("Loss", {"a": [1.0, 2.0, None, 3.0, float("nan")]}, best=None, top=None)
    assert [len(line) for line in points_of(chart)] == [2]
    assert chart.count("<circle") == 1


@pytest.mark.parametrize("values", [[], [None], [float("nan"), float("inf")]])
def test_chart_without_values_is_empty(values):
    """Nothing measured draws nothing."""
    assert line_chart("Loss", {"a": values}, best=None, top=None) == ""


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0], [1e-12, 1e12], [1e300, 1e300], [0.9999, 1.0]])
def test_extreme_values_can_be_drawn(values):
    """Equal, tiny and huge values all give a chart."""
    ET.fromstring(line_chart("Loss", {"a": values}, best=0, top=None))
    ET.fromstring(line_chart("Accuracy", {"a": values}, best=0, top=1.0))


def test_long_runs_are_thinned():
    """Ten thousand epochs are drawn with a few hundred points, the last among them."""
    (line,) = points_of(line_chart("Loss", {"a": [1.0 / (i + 1) for i in range(10_000)]}, best=None, top=None))
    assert len(line) <= 402
    assert line[-1][0] == 468


def test_interval_bar_holds_its_interval():
    """Band and dot lie within the scale for every score."""
    for value, low, high in ((0.0, 0.0, 0.1), (0.5, 0.4, 0.6), (0.999, 0.998, 1.0), (1.0, 1.0, 1.0)):
        bar = interval_bar(value, low, high)
        assert 8 <= float(re.search(r'cx="([^"]+)"', bar)[1]) <= 392
        ET.fromstring(bar)


def test_confusion_table_marks_right_and_wrong():
    """The diagonal is marked right, mistakes wrong, and zeros stay plain."""
    source = confusion_table(["a", HOSTILE], [[9, 1], [0, 5]])
    assert re.findall(r'<td class="(\w+)', source)[1:] == ["good", "bad", "zero", "good"]
    assert HOSTILE not in source


def test_small_parts_are_escaped_and_bounded():
    """Texts are cut before escaping, shares end at full width, tables end at 500 rows and say so."""
    assert text("<" * 500).count("&lt;") == 119
    assert "width:100.0%" in bar_cell(7.0, "7")
    assert "… and 100 more." in table(["a"], [["x"]] * 600, label="x")
    assert (percent(0.5), percent(0.9999), percent(1.0), percent(None)) == ("50.0 %", "99.9 %", "100.0 %", "–")
