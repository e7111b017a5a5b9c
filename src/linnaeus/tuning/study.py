"""The trials of a search: what to try next, which trial falls behind, and what mattered. Kept by Optuna in SQLite."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from linnaeus.ranges import Range
from linnaeus.tuning.space import Dimension, Space

STEPS = 1000  # a trial's progress in numbers that Optuna keeps
_NAME = "linnaeus"
_FIRST_STEP = STEPS // 5  # no trial falls behind before a fifth of it
_FEWEST_WHOLE = 3  # nor before so many trials came to their end
_FEWEST_TO_WEIGH = 4  # trials that came to their end, below which nobody can tell what mattered


class Study:
    """All trials of a search, in a file that outlives the process.

    Args:
        file: of SQLite, made if it is not there; Optuna's own tools read it too.
        space: what is searched. seed: start of all chance.
    """

    def __init__(self, file: Path, space: Space, *, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{file.resolve()}")
        self._study = optuna.create_study(
            study_name=_NAME,
            storage=self._storage,
            direction="maximize",
            pruner=optuna.pruners.NopPruner(),  # `falls_behind` decides
            load_if_exists=True,
        )
        self._space, self._seed = space, seed

    def close(self) -> None:
        """Let go of the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def trials(self) -> list[FrozenTrial]:
        """Return all trials that were begun, in order."""
        return [trial for trial in self._study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def next_trial(self) -> optuna.Trial:
        """Return the trial that was cut short, or else a new one, whose parameters are then chosen.

        Chance depends on (seed, number) alone, so that a search that was cut short tries what it would have tried.
        """
        begun = self.trials()
        cut_short = [trial.number for trial in begun if trial.state == TrialState.RUNNING]
        number = cut_short[0] if cut_short else len(begun)
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)
        if not begun:
            self._study.enqueue_trial({d.name: d.default for d in self._space}, skip_if_exists=True)
        trial = self._reopen(number) if cut_short else self._study.ask()
        for dimension in self._space:
            _suggest(trial, dimension)
        return trial

    def _reopen(self, number: int) -> optuna.Trial:
        study = self._storage.get_study_id_from_name(_NAME)
        return optuna.Trial(self._study, self._storage.get_trial_id_from_study_id_trial_number(study, number))

    def report(self, trial: optuna.Trial, values: Mapping[int, float]) -> None:
        """Keep a trial's validation accuracies by its progress, 0 to STEPS; those that are known stay."""
        known = self.trials()[trial.number].intermediate_values
        for step, value in values.items():
            if step not in known:
                trial.report(value, step)

    def falls_behind(self, trial: optuna.Trial) -> bool:
        """Whether a trial does worse than the median of those that came to their end did by then."""
        others = [t.intermediate_values for t in self.trials() if t.state == TrialState.COMPLETE]
        return falls_behind(self.trials()[trial.number].intermediate_values, others)

    def complete(self, trial: optuna.Trial, accuracy: float, facts: Mapping[str, Any]) -> None:
        """Close a trial that came to its end."""
        _note(trial, facts)
        self._study.tell(trial, accuracy)

    def prune(self, trial: optuna.Trial, facts: Mapping[str, Any]) -> None:
        """Close a trial that did not: it counts as worse than all that did."""
        _note(trial, facts)
        self._study.tell(trial, state=TrialState.PRUNED)

    def weigh(self) -> dict[str, float]:
        """Return which share of the differences between whole trials each setting explains, the largest first.

        By functional ANOVA on a random forest (Hutter et al. 2014); {} where trials are too few or alike.
        """
        whole = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        if len(whole) < _FEWEST_TO_WEIGH or len({trial.value for trial in whole}) == 1:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self._seed)
        with contextlib.suppress(RuntimeError):  # a forest that sees no differences
            found = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
            return {name: float(share) for name, share in found.items()}
        return {}


@contextlib.contextmanager
def open_study(file: Path, space: Space, *, seed: int) -> Iterator[Study]:
    """Open the study of a search, and let go of its file at the end."""
    study = Study(file, space, seed=seed)
    try:
        yield study
    finally:
        study.close()


def falls_behind(curve: Mapping[int, float], others: Sequence[Mapping[int, float]]) -> bool:
    """Whether a trial's best accuracy so far lies below the median of what the others had reached by then.

    This is Optuna's median pruner, after the median rule of Vizier (Golovin et al. 2017), with the share of a trial
    that is done in the place of an epoch's number: trials of one length in time have epochs of different lengths.
    A trial that has come to its end does not fall behind.
    """
    step = max(curve, default=0)
    reached = [max(v for s, v in other.items() if s <= step) for other in others if min(other, default=STEPS) <= step]
    if not _FIRST_STEP <= step < STEPS or len(reached) < _FEWEST_WHOLE:
        return False
    return max(curve.values()) < statistics.median(reached)


def _suggest(trial: optuna.Trial, dimension: Dimension) -> None:
    """Choose a parameter of a trial, or find the one that was chosen."""
    values = dimension.values
    if not isinstance(values, Range):
        trial.suggest_categorical(dimension.name, values)
    elif dimension.whole:
        trial.suggest_int(dimension.name, int(values.low), int(values.high), log=values.log)
    else:
        trial.suggest_float(dimension.name, values.low, values.high, log=values.log)


def _note(trial: optuna.Trial, facts: Mapping[str, Any]) -> None:
    for name, value in facts.items():
        trial.set_user_attr(name, value)
