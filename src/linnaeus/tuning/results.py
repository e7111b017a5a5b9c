"""What came of a search: its trials, the winner, and how the winner did on the test part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from linnaeus.results import Scores


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One trial.

    Attributes:
        settings: the searched ones with their values; those of trial 0 are the default recipe's.
        pruned: why it did not come to its end, "" if it did.
        accuracy, loss: of its best weights on validation, None where nothing was judged.
        curve: validation accuracy after each epoch, by the share of the trial that was done.
    """

    number: int
    settings: Mapping[str, Any]
    pruned: str
    accuracy: float | None
    loss: float | None
    seconds: float
    curve: Sequence[tuple[float, float]]

    @property
    def rank(self) -> tuple[float, float]:
        """By what it is compared: accuracy, then loss; larger is better."""
        return (-1.0 if self.accuracy is None else self.accuracy, float("-inf") if self.loss is None else -self.loss)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What `tune` returns.

    Attributes:
        folder: where all trials lie. bundle, report: of the winner, "" while there is none.
        trials: in order. winner: the best of those that came to their end, None while there is none.
        scores: the winner's, "val" by which it was chosen and "test", which no other trial was judged on; without
            "test" where the search was interrupted or the data have no such part.
        tested: the numbers of all trials that were judged on the test part, more than one if a search went on.
        importance: which share of the differences each setting explains.
        command: what trains the winner again. signal: number of the signal that stopped the search, or 0.
    """

    folder: str
    bundle: str
    report: str
    trials: Sequence[Attempt]
    winner: Attempt | None
    scores: Mapping[str, Scores]
    tested: Sequence[int]
    importance: Mapping[str, float]
    command: str
    signal: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        return {
            "folder": self.folder,
            "bundle": self.bundle,
            "report": self.report,
            "winner": None if self.winner is None else self.winner.number,
            "command": self.command,
            "scores": {part: scores.to_dict() for part, scores in self.scores.items()},
            "tested": list(self.tested),
            "importance": dict(self.importance),
            "trials": [{**asdict(trial), "curve": [list(point) for point in trial.curve]} for trial in self.trials],
        }


def choose_winner(trials: Sequence[Attempt]) -> Attempt | None:
    """Return the best trial of those that came to their end, the first of equals."""
    return max((trial for trial in trials if not trial.pruned), key=lambda trial: trial.rank, default=None)
