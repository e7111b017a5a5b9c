"""Drawings for the report: pure functions that return HTML or inline SVG, with every text escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NAME_LIMIT = 120
ROW_LIMIT = 500
POINT_LIMIT = 400

# From so many classes on, the confusion matrix turns its column titles upright, and then shrinks its cells.
_UPRIGHT, _DENSE = 7, 16
_DEEP = 0.6  # colour so strong that the number on it must be light

# Drawing area of a line chart in its own units; the page scales it.
_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 22, 34


def text(value: Any, *, limit: int = NAME_LIMIT) -> str:
    """Return a value as escaped text of at most `limit` characters before escaping."""
    written = str(value)
    return html.escape(written if len(written) <= limit else written[: limit - 1] + "…")


def percent(share: float | None) -> str:
    """Return a share in [0, 1] as "93.2 %", or a dash for None. Only what is whole is "100.0 %"."""
    if share is None:
        return "–"
    return f"{100 * (share if share >= 1 else min(share, 0.999)):.1f} %"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, kind: str = "") -> str:
    """Return a table that scrolls sideways on its own.

    Args:
        head: column titles, plain text. The first column names the row.
        rows: cells of each row as HTML, or whole `<td>` elements. Above 500 rows the rest is only counted.
        label: what the table shows, for those who hear the page.
        kind: a class for the style sheet.
    """
    lines = list(rows)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in lines[:ROW_LIMIT])
    titles = "".join(f'<th scope="col">{text(title)}</th>' for title in head)
    more = f"<p class=quiet>… and {len(lines) - ROW_LIMIT:,} more.</p>" if len(lines) > ROW_LIMIT else ""
    return scroll(f'<table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>', label) + more


def scroll(inner: str, label: str) -> str:
    """Return HTML in a box that the keyboard can scroll."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">{inner}</div>'


def _cells(row: Sequence[str]) -> str:
    rest = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row[1:])
    return f'<th scope="row">{row[0]}</th>{rest}'


def bar_cell(share: float, shown: str) -> str:
    """Return a `<td>` with a number and a bar of `share` in [0, 1] of its width."""
    width = 100 * min(1.0, max(0.0, share))
    return f'<td class="bar"><span class="n">{text(shown)}</span><i><b style="width:{width:.1f}%"></b></i></td>'


def interval_bar(value: float, low: float, high: float) -> str:
    """Return an SVG scale up to 100 % with an interval and its score, all in [0, 1].

    The scale starts at the highest of 0, 50, 80 and 90 % that leaves the interval room.
    """
    start = max(s for s in (0.0, 0.5, 0.8, 0.9) if s == 0 or s + 0.02 <= low)
    x, a, b = (8 + 384 * (v - start) / (1 - start) for v in (value, low, high))
    ticks = "".join(_interval_tick(i, start) for i in range(6))
    return (
        f'<svg class="interval" viewBox="0 0 400 48" role="img" aria-label="{percent(value)}, 95 % interval from '
        f'{percent(low)} to {percent(high)}"><line class="axis" x1="8" x2="392" y1="14" y2="14"/>{ticks}'
        f'<rect class="band" x="{a:.1f}" y="5" width="{max(2.0, b - a):.1f}" height="18" rx="4"/>'
        f'<circle class="dot" cx="{x:.1f}" cy="14" r="5"/></svg>'
    )


def _interval_tick(i: int, start: float) -> str:
    x = 8 + 384 * i / 5
    anchor = {0: "start", 5: "end"}.get(i, "middle")
    edge = {0: -6, 5: 6}.get(i, 0)
    return f'<text x="{x + edge:.1f}" y="43" text-anchor="{anchor}">{100 * (start + (1 - start) * i / 5):.0f} %</text>'


def line_chart(
    title: str,
    series: Mapping[str, Sequence[float | None]],
    *,
    best: int | None,
    top: float | None,
    along: str = "epoch",
) -> str:
    """Return a figure with one line per series over the epochs 1, 2, ...

    Args:
        title: heading, plain text.
        series: values by name; None or NaN leaves a gap. The first is drawn dashed, the second solid.
        best: position of the epoch to mark, counted from 0.
        top: highest value of the scale, and the scale then need not start at 0; None for the data's maximum.
        along: what is counted instead of epochs.
    """
    known = [v for values in series.values() for v in values if v is not None and math.isfinite(v)]
    if not known:
        return ""
    n = max(len(values) for values in series.values())
    ticks = _ticks(0.0, max(known)) if top is None else _ticks(min(*known, top), top)
    drawn = "".join(_line(values, n, ticks, f"s{i}") for i, values in enumerate(series.values()))
    names = "".join(f'<span class="key k{i}">{text(name)}</span>' for i, name in enumerate(series))
    return (
        f'<figure class="chart"><figcaption><b>{text(title)}</b>{names}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)} by {text(along)}">'
        f"{_grid(ticks, n)}{_mark(best, n)}{drawn}</svg></figure>"
    )


def curve_chart(title: str, curves: Sequence[tuple[Sequence[tuple[float, float]], str]]) -> str:
    """Return a figure with many lines over the share of a run that was done, the best one drawn last.

    Args:
        title: heading, plain text.
        curves: points (share in [0, 1], value up to 1) of each line, and its kind: "best", "whole" or "pruned".
    """
    known = [value for points, _ in curves for _, value in points if math.isfinite(value)]
    if not known:
        return ""
    ticks = _ticks(min(*known, 1.0), 1.0)
    drawn = "".join(_curve(points, ticks, kind) for points, kind in sorted(curves, key=lambda c: c[1] == "best"))
    names = "".join(f'<span class="key t-{kind}">{kind}</span>' for kind in ("best", "whole", "pruned"))
    return (
        f'<figure class="chart"><figcaption><b>{text(title)}</b>{names}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)} by the share that was done">'
        f"{_levels(ticks)}{drawn}</svg></figure>"
    )


def rate_chart(title: str, rates: Sequence[float], losses: Sequence[float], marks: Mapping[str, float]) -> str:
    """Return a figure with losses over rising learning rates on a logarithmic scale, some of them marked by name."""
    low, high = math.log10(rates[0]), math.log10(rates[-1])
    wide = _WIDTH - _LEFT - _RIGHT
    # What diverges at the end would leave no room for the rest.
    ticks = _ticks(min(losses), min(max(losses), 2 * losses[0]))

    def place(rate: float) -> float:
        return _LEFT + wide * (math.log10(rate) - low) / max(1e-9, high - low)

    line = _stroke([f"{place(rate):.1f},{_y(loss, ticks):.1f}" for rate, loss in zip(rates, losses)], "s1")
    powers = "".join(
        f'<text x="{place(10.0**power):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">1e{power}</text>'
        for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    )
    lowest = min(marks, key=lambda name: marks[name], default="")  # whose name stands to its left
    drawn = "".join(
        f'<line class="best" x1="{place(rate):.1f}" x2="{place(rate):.1f}" y1="{_TOP - 2}" y2="{_HEIGHT - _BOTTOM}"/>'
        f'<text class="best" x="{place(rate):.1f}" y="{_TOP - 6}" '
        f'text-anchor="{"end" if name == lowest else "start"}">{text(name)}</text>'
        for name, rate in marks.items()
    )
    return (
        f'<figure class="chart"><figcaption><b>{text(title)}</b></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(title)}">'
        f"{_levels(ticks)}{powers}{drawn}{line}</svg></figure>"
    )


def _curve(points: Sequence[tuple[float, float]], ticks: Sequence[float], kind: str) -> str:
    wide = _WIDTH - _LEFT - _RIGHT
    finite = [(share, value) for share, value in points if math.isfinite(value)]
    run = [f"{_LEFT + share * wide:.1f},{_y(value, ticks):.1f}" for share, value in finite]
    return _stroke(run, f"t-{kind}") if run else ""


def _ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers that enclose [low, high]."""
    span = max(high - low, 1e-9 * max(1.0, abs(high)), 1e-6)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if span / (s * power) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _x(position: int, n: int) -> float:
    share = position / (n - 1) if n > 1 else 0.5
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, ticks: Sequence[float]) -> float:
    share = min(1.0, max(0.0, (value - ticks[0]) / (ticks[-1] - ticks[0])))
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _levels(ticks: Sequence[float]) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_y(t, ticks):.1f}" y2="{_y(t, ticks):.1f}"/>'
        f'<text x="{_LEFT - 7}" y="{_y(t, ticks) + 4:.1f}" text-anchor="end">{t:.4g}</text>'
        for t in ticks
    )


def _grid(ticks: Sequence[float], n: int) -> str:
    shown = sorted({round(i * (n - 1) / 5) for i in range(6)})
    lines = [
        f'<text x="{_x(i, n):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{i + 1}</text>' for i in shown
    ]
    return _levels(ticks) + "".join(lines)


def _mark(best: int | None, n: int) -> str:
    if best is None:
        return ""
    x = _x(best, n)
    anchor, shift = ("end", 4) if best > n / 2 else ("start", -4)
    return (
        f'<line class="best" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 2}" y2="{_HEIGHT - _BOTTOM}"/>'
        f'<text class="best" x="{x + shift:.1f}" y="{_TOP - 6}" text-anchor="{anchor}">best</text>'
    )


def _line(values: Sequence[float | None], n: int, ticks: Sequence[float], kind: str) -> str:
    # A line of more points than the screen has pixels only makes the page heavy.
    stride = max(1, math.ceil(len(values) / POINT_LIMIT))
    points: list[list[str]] = [[]]
    for i in sorted({*range(0, len(values), stride), len(values) - 1} - {-1}):
        value = values[i]
        if value is None or not math.isfinite(value):
            points.append([])
        else:
            points[-1].append(f"{_x(i, n):.1f},{_y(value, ticks):.1f}")
    return "".join(_stroke(run, kind) for run in points if run)


def _stroke(run: Sequence[str], kind: str) -> str:
    if len(run) > 1:
        return f'<polyline class="{kind}" points="{" ".join(run)}"/>'
    x, y = run[0].split(",")
    return f'<circle class="{kind} point" cx="{x}" cy="{y}" r="3.5"/>'


def confusion_table(classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """Return the confusion matrix (K, K) as a table: rows are the truth, columns the prediction.

    Colour grows with the square root of the share of the row, so that single mistakes can be seen.
    """
    head = "".join(f'<th scope="col"><span>{text(name)}</span></th>' for name in classes)
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th>{_confusion_cells(i, row)}</tr>'
        for i, (name, row) in enumerate(zip(classes, confusion, strict=False))
    )
    kind = "confusion" + " upright" * (len(classes) >= _UPRIGHT) + " dense" * (len(classes) >= _DENSE)
    return scroll(
        f'<table class="{kind}"><thead><tr><td class="corner">truth ↓ &nbsp; prediction →</td>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table>",
        "Confusion matrix",
    )


def _confusion_cells(truth: int, row: Sequence[int]) -> str:
    total = max(1, sum(row))
    return "".join(_confusion_cell(n, math.sqrt(n / total), j == truth) for j, n in enumerate(row))


def _confusion_cell(n: int, strength: float, is_right: bool) -> str:
    if not n:
        return '<td class="zero">0</td>'
    colour = "good" if is_right else "bad"
    deep = " deep" if strength > _DEEP else ""
    return f'<td class="{colour}{deep}" style="--i:{strength:.2f}">{n}</td>'
