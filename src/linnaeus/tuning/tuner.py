"""Search for better settings: trials that are ordinary runs, chosen among by validation alone."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from linnaeus.config import AUTO, check_value
from linnaeus.display import Advance, Display, Silent
from linnaeus.errors import DataError, LinnaeusError, ModelError, SettingError, TrainingError
from linnaeus.labelling import SINGLE
from linnaeus.learning.learner import Oversight
from linnaeus.looking import Look, look_at_data
from linnaeus.results import EpochResult
from linnaeus.runfolder import RunFolder, claim_folder, read_report
from linnaeus.runs import train
from linnaeus.runtime import Interrupted, Interrupts
from linnaeus.tuning.results import Attempt, Tuning, choose_winner
from linnaeus.tuning.space import Space, find_space, list_open, make_settings, settle
from linnaeus.tuning.study import STEPS, Study, open_study
from linnaeus.tuning.winner import deliver_winner

_TRIALS = 20  # where nothing else is said
_MARGIN = 1.5  # times what a trial takes must be left to begin one
_PRUNED = {"stopped": "fell behind", "diverged": "training diverged", "memory": "memory did not suffice"}


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search with all that its trials share.

    Attributes:
        trials: how many there may be, None for as many as the budget allows. budget: seconds, 0 for no limit.
        share: of the budget, in seconds, that a trial takes; 0 where its epochs are counted.
        begun: on the clock of time.perf_counter.
    """

    data: Any
    look: Look
    space: Space
    fixed: dict[str, Any]
    folder: Path
    study: Study
    display: Display
    trials: int | None
    budget: float
    share: float
    begun: float


def tune(
    data: Any,
    *,
    trials: int | None = None,
    budget: Any = AUTO,
    search: Sequence[str] = (),
    out: str | Path | None = None,
    display: Display | None = None,
    **settings: Any,
) -> Tuning:
    """Try settings, keep the best, and judge it on the test part.

    Every trial is a run that learns from the training part and is judged on validation; the first has the default
    recipe, the next ones are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011), and one that
    falls behind the median of the others is stopped. Begun again, a search goes on where it was cut short.

    Args:
        data, settings: as `train` takes them. A setting that is given is the same in all trials.
        trials: how many; 20 by default, or as many as `budget` allows.
        budget: time of the whole search. Without `epochs`, each trial takes an equal share of it, for `trials` or 20
            trials, and what is pruned leaves time for more. With `epochs`, each trial has so many, and none is begun
            that would not end in time. Without a budget, a trial is as long as a run of `train`.
        search: names of the settings to search; all that concern the network and the pictures by default.
        out: a folder with a run folder for each trial, runs/NAME-tune by default.

    Raises:
        SettingError: a name in `search` cannot be searched, or `trials` is below 1.
        RunError: the folder holds another search.
        TrainingError: no trial came to its end.
    """
    begun, told = time.perf_counter(), display or Silent()
    limit = _read_limits(trials, budget)
    share = limit / ((trials or _TRIALS) + 1) if limit and settings.get("epochs", AUTO) == AUTO else 0.0
    look = look_at_data(data, display=told, **settings, **({"budget": share} if share else {}))
    if look.dataset.source.labelling is not SINGLE:
        fix = "Compare runs of `linnaeus train` by their mAP."
        raise DataError("one label for each image, to choose by accuracy", got="several", fix=fix)
    given = list_open(settings)
    space = find_space(look, given, search)
    folder = Path(out) if out is not None else Path("runs") / f"{look.dataset.source.name}-tune"
    plan = _make_plan(look, space, settings, share)
    with (
        Interrupts() as interrupts,
        claim_folder(folder, plan, what="search"),
        open_study(folder / "trials.db", space, seed=look.settings.seed) as study,
    ):
        interrupts.patient = True
        fixed = settle(look, {name: settings[name] for name in given})
        most = trials if trials is not None or limit else _TRIALS
        going = Search(data=data, look=look, space=space, fixed=fixed, folder=folder, study=study, display=told,
                       trials=most, budget=limit, share=share, begun=begun)  # fmt: skip
        signal = _try_all(going, interrupts)
        return _finish(going, signal)


def show_space(data: Any, *, search: Sequence[str] = (), display: Display | None = None, **settings: Any) -> Space:
    """Return what `tune` would search, given the same."""
    settings.pop("budget", None)
    return find_space(look_at_data(data, display=display, **settings), list_open(settings), search)


def _read_limits(trials: int | None, budget: Any) -> float:
    """Return the seconds of a budget, 0 for no limit. Raises SettingError."""
    if trials is not None and trials < 1:
        raise SettingError("at least one trial", got=str(trials), fix="Set trials=20.")
    seconds = check_value("budget", budget)
    return 0.0 if seconds == AUTO else float(seconds)


def _make_plan(look: Look, space: Space, settings: dict[str, Any], share: float) -> dict[str, Any]:
    """Return as JSON values what must be the same for a search to go on."""
    return {
        "settings": {name: str(value) for name, value in sorted(settings.items())},
        "search": {dimension.name: str(dimension) for dimension in space},
        "length of a trial": share,
        "images": hashlib.sha256(look.dataset.prepared.digests.tobytes()).hexdigest(),
    }


def _try_all(search: Search, interrupts: Interrupts) -> int:
    """Carry out one trial after the other. Returns the number of the signal that cut it short, or 0."""
    search.display.say(f"Searching {', '.join(dimension.name for dimension in search.space)} in {search.folder}")
    while _goes_on(search) and not interrupts.caught:
        trial = search.study.next_trial()
        try:
            signal = _carry_out(search, trial)
        except Interrupted as stop:
            signal = stop.number
        if signal:
            return signal
    return interrupts.caught


def _goes_on(search: Search) -> bool:
    """Whether a trial was cut short, or there may be another and there is time for it."""
    begun = search.study.trials()
    if not begun or any(trial.state == TrialState.RUNNING for trial in begun):
        return True
    if search.trials is not None and len(begun) >= search.trials:
        return False
    whole = [trial.user_attrs["seconds"] for trial in begun if trial.state == TrialState.COMPLETE]
    needed = search.share or (sum(whole) / len(whole) if whole else 0.0)
    spent = sum(trial.user_attrs["seconds"] for trial in begun)
    return not search.budget or spent + _MARGIN * needed <= search.budget


def _carry_out(search: Search, trial: optuna.Trial) -> int:
    """Run a trial, or what was left of it, and keep what came of it. Returns the signal that cut it short, or 0."""
    started, place = time.perf_counter(), search.folder / f"trial-{trial.number}"
    failed = ""
    try:
        signal = _run(search, trial, place)
    except (SettingError, ModelError, TrainingError) as error:
        if trial.number == 0 and not isinstance(error, TrainingError):
            raise  # not the search is at fault but what was given
        signal, failed = 0, str(error)
    if not signal:
        _close(search, trial, place, failed=failed, seconds=time.perf_counter() - started)
    return signal


def _run(search: Search, trial: optuna.Trial, place: Path) -> int:
    """Train a trial, unless that was done before. Returns the number of the signal that interrupted it, or 0."""
    begun = (place / "run.json").is_file()
    if begun and RunFolder(path=place).facts().get("finished"):
        return 0
    with search.display.progress(f"trial {trial.number}") as advance:
        watch = Oversight(parts=("val",), stop=lambda epochs: _watch(search, trial, epochs, advance))
        if begun:
            return train(search.data, resume=place, oversight=watch).signal
        settings = (
            make_settings(search.space, trial.params, search.look, search.fixed) if trial.number else search.fixed
        )
        return train(search.data, out=place, oversight=watch, **settings).signal


def _watch(search: Search, trial: optuna.Trial, epochs: Sequence[EpochResult], advance: Advance) -> bool:
    """Keep what the epochs of a trial came to. Returns whether it falls behind."""
    values: dict[int, float] = {}
    for step, epoch in zip(_steps(search, epochs), epochs):
        values.setdefault(step, epoch.val_accuracy)
    search.study.report(trial, values)
    advance(max(values, default=0), STEPS)
    return search.study.falls_behind(trial)


def _steps(search: Search, epochs: Sequence[EpochResult]) -> list[int]:
    """Return how much of a trial was done after each epoch, 0 to STEPS, by the clock where that limits it."""
    settings = search.look.settings
    if not settings.budget:
        return [min(STEPS, STEPS * epoch.epoch // settings.epochs) for epoch in epochs]
    seconds = [sum(epoch.seconds for epoch in epochs[: i + 1]) for i in range(len(epochs))]
    return [min(STEPS, int(STEPS * spent / settings.budget)) for spent in seconds]


def _close(search: Search, trial: optuna.Trial, place: Path, *, failed: str, seconds: float) -> None:
    """Tell the study, and the user, what came of a trial."""
    report = _read_report(place)
    why = failed or _PRUNED.get(report.get("stopped_early", ""), "")
    scores = report.get("scores", {}).get("val", {})
    facts = {"seconds": seconds, "pruned": why, "accuracy": scores.get("accuracy"), "loss": scores.get("loss")}
    if why:
        search.study.prune(trial, facts)
    else:
        search.study.complete(trial, scores["accuracy"], facts)
    attempts = list_attempts(search)
    _tell(search.display, attempts)


def _read_report(place: Path) -> dict[str, Any]:
    """Return the report of a trial; one that failed before it began to learn has none."""
    try:
        return read_report(place)
    except LinnaeusError:
        return {}


def _tell(display: Display, attempts: Sequence[Attempt]) -> None:
    """Tell the last trial: how it did, and what it has other than the first."""
    last, best = attempts[-1], choose_winner(attempts)
    changed = {name: value for name, value in last.settings.items() if value != attempts[0].settings[name]}
    values = " ".join(f"{name}={_write(value)}" for name, value in changed.items()) or "the default recipe"
    reached = "-" if last.accuracy is None else f"{100 * last.accuracy:.2f} %"
    mark = "*" if best is not None and best.number == last.number else " "
    end = f"pruned: {last.pruned}; " if last.pruned else ""
    display.say(f"trial {last.number:>3} {mark} validation {reached:>8} in {last.seconds:5.1f} s  {end}{values}")


def list_attempts(search: Search) -> list[Attempt]:
    """Return all trials that were closed, in order."""
    return [
        Attempt(
            number=trial.number,
            settings=_show(search, trial.params),
            pruned=trial.user_attrs["pruned"],
            accuracy=trial.user_attrs["accuracy"],
            loss=trial.user_attrs["loss"],
            seconds=trial.user_attrs["seconds"],
            curve=[(step / STEPS, value) for step, value in sorted(trial.intermediate_values.items())],
        )
        for trial in search.study.trials()
        if trial.state != TrialState.RUNNING
    ]


def _show(search: Search, params: dict[str, Any]) -> dict[str, Any]:
    """Return the searched settings of a trial as a run has them."""
    made = make_settings(search.space, params, search.look, search.fixed)
    return {dimension.name: made[dimension.name] for dimension in search.space}


def _finish(search: Search, signal: int) -> Tuning:
    """Choose the winner, judge it, and write everything. Raises TrainingError where no trial came to its end."""
    attempts = list_attempts(search)
    winner = choose_winner(attempts)
    if winner is None and not signal:
        got = f"{len(attempts)} that did not: {attempts[-1].pruned}"
        raise TrainingError("a trial that comes to its end", got=got, fix="Look at trial-0, or give it more time.")
    found = Tuning(
        folder=str(search.folder), bundle="", report="", trials=attempts, winner=winner, scores={}, tested=(),
        importance=search.study.weigh(), command=_repeat(search, winner), signal=signal,
    )  # fmt: skip
    return deliver_winner(found, search.look, display=search.display)


def _repeat(search: Search, winner: Attempt | None) -> str:
    """Return the command that trains the winner again, as it was trained."""
    if winner is None:
        return ""
    data = str(search.data) if isinstance(search.data, str | Path) else "DATA"
    values = {**search.fixed, **(winner.settings if winner.number else {})}
    return shlex.join(("linnaeus", "train", data, *(f"{name}={_write(value)}" for name, value in values.items())))


def _write(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
