"""How long something takes: times such as "5m", and spans of a run in steps, epochs, time or shares of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "steps", "epochs", "seconds"]

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNITS: dict[str, Unit] = {"step": "steps", "steps": "steps", "epoch": "epochs", "epochs": "epochs"}


def parse_duration(text: str) -> float:
    """Return the seconds that "90", "90s", "5m", "1h" or "1h30m" stand for. Raises ValueError."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    written = re.sub(r"\s", "", text.lower())
    if not parts or "".join(number + unit for number, unit in parts) != written:
        raise ValueError(text)
    if any(unit not in _SECONDS for _, unit in parts):
        raise ValueError(text)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """How far a run is: its progress in [0, 1], and what it has done so far in each unit."""

    progress: float
    steps: int = 0
    epochs: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Span:
    """A span of a run from its start: an amount, at least 0, of a unit."""

    amount: float
    unit: Unit

    @classmethod
    def of(cls, value: float | str) -> Span:
        """Return the span that 0.05, "5%", "500 steps", "2 epochs" or "30s" stand for. Raises ValueError."""
        if not isinstance(value, str):
            return cls(amount=float(value), unit="share")
        text = value.strip().lower()
        match = re.fullmatch(r"([\d.]+(?:e-?\d+)?)\s*(%|steps?|epochs?|)", text)
        if match is None:
            span = cls(amount=parse_duration(text), unit="seconds")
        else:
            amount = float(match[1]) / 100 if match[2] == "%" else float(match[1])
            span = cls(amount=amount, unit=_UNITS.get(match[2], "share"))
        if not math.isfinite(span.amount):
            raise ValueError(value)
        return span

    def plain(self) -> float | str:
        """Return what `of` reads: a number for a share, a text for the others."""
        if self.unit == "share":
            return self.amount
        written = f"{self.amount:.6f}".rstrip("0").rstrip(".")
        return written + ("s" if self.unit == "seconds" else f" {self.unit}")

    def passed(self, now: Moment) -> float:
        """Return how much of the unit is over at a moment."""
        return {"share": now.progress, "steps": now.steps, "epochs": now.epochs, "seconds": now.seconds}[self.unit]

    def end(self, now: Moment) -> float:
        """Return the progress at which the span ends, judged by the pace until now.

        Nothing is remembered for it, so that a resumed run finds the same. Where the length of the run is known in the
        unit, it is the span's exact share; where a time limit decides, it comes true when the span ends.
        """
        if self.unit == "share":
            return self.amount
        passed = self.passed(now)
        return self.amount * now.progress / passed if passed else float(self.amount > 0)
