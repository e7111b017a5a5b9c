"""What a run tells while it runs: choices, progress, epochs. All of it goes to standard error."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from linnaeus.results import Choice, EpochResult

T = TypeVar("T")
Advance = Callable[[int, int], None]


class Display(Protocol):
    """Where a run speaks to."""

    def say(self, text: str) -> None:
        """Tell one line."""
        ...

    def choice(self, choice: Choice) -> None:
        """Tell a setting that was chosen, and why."""
        ...

    def epoch(self, result: EpochResult) -> None:
        """Tell a finished epoch."""
        ...

    def progress(self, label: str) -> contextlib.AbstractContextManager[Advance]:
        """Give a function to tell (done, total) of a long work."""
        ...

    def watch(self, items: Iterable[T], total: int, label: str) -> Iterable[T]:
        """Pass the items on and show how many there were."""
        ...


class Silent:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def choice(self, choice: Choice) -> None:
        """Say nothing."""

    def epoch(self, result: EpochResult) -> None:
        """Say nothing."""

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Advance]:
        """Show nothing."""
        yield lambda done, total: None

    def watch(self, items: Iterable[T], total: int, label: str) -> Iterable[T]:
        """Pass the items on."""
        return items


class Terminal:
    """Speaks to a person: a live table and bars on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._header: tuple[str, ...] = ()

    def say(self, text: str) -> None:
        """Tell one line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def choice(self, choice: Choice) -> None:
        """Tell a setting that was chosen, and why."""
        self._console.print(f"  {choice.name:>15} = {choice.value:<20} {choice.why}", markup=False, soft_wrap=True)

    def epoch(self, result: EpochResult) -> None:
        """Tell a finished epoch as one row of a table."""
        several = not math.isnan(result.val_mean_ap)
        right, chosen_by = ("exact", "val mAP") if several else ("acc", "val acc")
        row = {
            "stage": result.stage,
            "epoch": f"{result.epoch}",
            "train loss": _number(result.train_loss),
            f"train {right}": _percent(result.train_accuracy),
            "val loss": _number(result.val_loss),
            f"val {right}": _percent(result.val_accuracy),
            **({"val mAP": _percent(result.val_mean_ap)} if several else {}),
            "lr": f"{result.learning_rate:.2g}",
            "images/s": f"{result.images_per_second:,.0f}",
            "seconds": f"{result.seconds:.1f}",
        }
        row[chosen_by] += " *" if result.best else ""
        if self._header != tuple(row):
            self._header = tuple(row)
            self._console.print("".join(f"{name:>13}" for name in row), style="bold", soft_wrap=True)
        self._console.print("".join(f"{value:>13}" for value in row.values()), markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Advance]:
        """Show a bar that goes when the work is done."""
        with self._bar() as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def watch(self, items: Iterable[T], total: int, label: str) -> Iterator[T]:
        """Pass the items on under a bar."""
        with self.progress(label) as advance:
            for done, item in enumerate(items):
                advance(done, total)
                yield item

    def _bar(self) -> Any:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = self._console.is_terminal
        return Progress(*columns, console=self._console, transient=True, disable=not shown, refresh_per_second=4)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f} %"
