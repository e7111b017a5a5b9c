"""Ranges: which values of a setting a search may try."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers from `low` to `high`.

    Attributes:
        log: whether they are tried evenly on a logarithmic scale.
        relative: whether they are factors of what the recipe would choose.
    """

    low: float
    high: float
    log: bool = False
    relative: bool = False

    def __str__(self) -> str:
        scale = ", logarithmic" if self.log else ""
        return f"{self.low:g} to {self.high:g}{' times what the recipe chooses' if self.relative else ''}{scale}"

    def widened(self, value: float) -> Range:
        """Return the range, widened as far as it must be to hold a value."""
        return replace(self, low=min(self.low, value), high=max(self.high, value))
