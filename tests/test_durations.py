"""Spans of a run in every unit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linnaeus.durations import Moment, Span


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        (0.05, 0.05, "share"), (0, 0.0, "share"),
        ("0.05", 0.05, "share"), ("5%", 0.05, "share"), ("1e-1", 0.1, "share"),
        ("500 steps", 500, "steps"), ("1step", 1, "steps"), ("2 epochs", 2, "epochs"), ("0.5 Epoch", 0.5, "epochs"),
        ("30s", 30, "seconds"), ("1h30m", 5400, "seconds"), (" 2 m ", 120, "seconds"),
    ],
)  # fmt: skip
def test_a_span_is_read(text: float | str, amount: float, unit: str) -> None:
    """Numbers are shares, a unit says otherwise."""
    assert Span.of(text) == Span(amount=amount, unit=unit)


@pytest.mark.parametrize("text", ["", "-1 steps", "steps", "5 images", "1e999", "9" * 400, "9" * 400 + "s", "5%%", "."])
def test_what_is_no_span(text: str) -> None:
    """Negative, endless and unknown amounts are refused."""
    with pytest.raises(ValueError, match=r"^"):
        Span.of(text)


@given(st.floats(0, 1e12), st.sampled_from(["steps", "epochs", "seconds"]))
def test_what_is_written_is_read_again(amount: float, unit: str) -> None:
    """The plain form of a span gives the same plain form again."""
    plain = Span(amount=amount, unit=unit).plain()
    assert Span.of(plain).plain() == plain
    assert Span.of(plain).unit == unit
    assert Span.of(plain).amount == pytest.approx(amount, abs=1e-6)


def test_the_end_of_a_span() -> None:
    """Half way through 40 steps of 4 epochs in 20 s, each unit tells where its span will end."""
    now = Moment(progress=0.5, steps=20, epochs=2.0, seconds=10.0)
    ends = [Span.of(text).end(now) for text in ("30%", "10 steps", "1 epoch", "5s")]
    assert ends == [0.3, 0.25, 0.25, 0.25]
    assert Span.of("10 steps").end(Moment(progress=0.0)) == 1.0
    assert Span.of("0 steps").end(Moment(progress=0.0)) == 0.0
