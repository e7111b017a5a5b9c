"""K-fold cross-validation: every image is judged once, by a classifier that has not seen it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.model_selection import StratifiedGroupKFold

from linnaeus.answers import FILE, format_answers
from linnaeus.data.preparation import Dataset
from linnaeus.data.sources import Source
from linnaeus.data.splits import group_identical
from linnaeus.display import Display, Silent
from linnaeus.ensembles.assembly import Draft, assemble
from linnaeus.ensembles.members import common_parts, open_members
from linnaeus.errors import DataError
from linnaeus.evaluation.metrics import score
from linnaeus.judging import Judgement, judge_images, list_answers
from linnaeus.labelling import SINGLE
from linnaeus.looking import look_at_data
from linnaeus.predictor import Predictor
from linnaeus.results import SPLITS, Interval, Scores
from linnaeus.runfolder import RunFolder, claim_folder
from linnaeus.runs import train
from linnaeus.storage import write_file


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold: its number in all repeats, and how it did on the images that it had not seen."""

    number: int
    judgement: Judgement

    @property
    def scores(self) -> Scores:
        """Scores on those images."""
        return self.judgement.scores


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """What came of all folds.

    Attributes:
        folder: where everything lies. accuracy: mean over the folds with a 95 % interval of that mean. spread: standard
            deviation over the folds. whole: scores of the answers for all images, each averaged over the repeats.
    """

    folder: str
    folds: Sequence[Fold]
    accuracy: Interval
    spread: float
    whole: Scores

    def to_dict(self) -> dict[str, Any]:
        """Return the results as JSON values."""
        return {
            "folder": self.folder,
            "accuracy": self.accuracy.value,
            "accuracy_interval": [self.accuracy.low, self.accuracy.high],
            "spread": self.spread,
            "folds": [{"fold": fold.number, **fold.scores.to_dict()} for fold in self.folds],
            "out_of_fold": self.whole.to_dict(),
        }


def cross_validate(
    data: Any,
    *,
    folds: int = 5,
    repeats: int = 1,
    out: str | Path | None = None,
    display: Display | None = None,
    **settings: Any,
) -> CrossValidation:
    """Train and judge once for each fold, and gather the answers for every image.

    Args:
        data, settings: as `train` takes them; a split of the data is passed over, all their images are dealt anew.
        folds: K, at least 2. Each class is spread evenly over the folds; images that are identical or belong to one
            group never stand in different ones (Kohavi 1995). repeats: of the whole, each dealt otherwise.
        out: a folder with a run folder for each fold and the bundle of all, runs/NAME-crossval by default. What is
            finished there is taken as it is, and what was cut short goes on.

    Raises:
        DataError: a class has fewer images than there are folds, or images have several labels each.
        RunError: the folder holds another cross-validation.
    """
    told = display or Silent()
    look = look_at_data(data, display=told, **settings)
    if look.dataset.source.labelling is not SINGLE:
        fix = "Use `linnaeus train` with several seeds."
        raise DataError("one label for each image, to be dealt into folds by", got="several", fix=fix)
    folder = Path(out) if out is not None else Path("runs") / f"{look.dataset.source.name}-crossval"
    plan = {"folds": folds, "repeats": repeats, "settings": {k: str(v) for k, v in sorted(settings.items())},
            "images": hashlib.sha256(look.dataset.prepared.digests.tobytes()).hexdigest()}  # fmt: skip
    with claim_folder(folder, plan, what="cross-validation"):
        if look.dataset.prepared.bad:
            told.say(f"  note: {len(look.dataset.prepared.bad)} unreadable images are left out")
        results = []
        for number, held_out in enumerate(_deal(look.dataset, folds, repeats, look.settings.seed), start=1):
            told.say(f"\nFold {number} of {folds * repeats}")
            place = folder / f"fold-{number}"
            run = _train_fold(look.dataset.source, held_out, place, told, settings)
            results.append(_judge_fold(number, run, look.dataset, held_out))
            told.say(f"Fold {number}: accuracy {results[-1].scores.accuracy.percent()}")
        return _finish(folder, results, folds, look.dataset, display=told)


def _finish(
    folder: Path, results: Sequence[Fold], folds: int, dataset: Dataset, *, display: Display
) -> CrossValidation:
    """Gather what came of all folds, and write it."""
    accuracy, spread = corrected_interval([fold.scores.accuracy.value for fold in results], folds)
    whole = _gather(results, dataset)
    found = CrossValidation(folder=str(folder), folds=results, accuracy=accuracy, spread=spread, whole=whole)
    write_file(folder / "crossval.json", json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n")
    answers = [answer for fold in results for answer in list_answers(dataset, fold.judgement)]
    write_file(folder / FILE, format_answers(answers, dataset.source.classes, part="fold"))
    _combine(found, dataset.source, display)
    return found


def _combine(found: CrossValidation, source: Source, display: Display) -> None:
    """Write the mean of all folds' classifiers as a bundle.

    No image of the data is new to all of them, so it has no scores of its own: the facts hold those of the members,
    each on the fold that it had not seen.
    """
    folder = Path(found.folder)
    paths = [folder / f"fold-{fold.number}" for fold in found.folds]
    members = open_members(paths, replace(source, split=None), display)
    facts = {"out_of_fold": found.to_dict() | {"folder": folder.name}}
    dataset = replace(members[0].dataset, split=common_parts(members))
    draft = Draft(members=members, dataset=dataset, folder=folder / "bundle", facts=facts, parts=())
    assemble(draft, np.full(len(members), 1 / len(members)), display)
    display.say(f"Bundle: {draft.folder}, the mean of {len(members)} classifiers and as many times as slow as one")


def _deal(dataset: Dataset, folds: int, repeats: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield the indices that judge each fold. Raises DataError for a class that is smaller than K."""
    good, source = dataset.prepared.good, dataset.source
    labels = source.labels[good]
    counts = np.bincount(labels, minlength=len(source.classes))
    if small := [f"{name} ({n})" for name, n in zip(source.classes, counts) if n < folds]:
        got = f"fewer in {', '.join(small)}"
        raise DataError(f"at least {folds} images of each class for {folds} folds", got=got, fix="Lower --folds.")
    own = source.groups[good] if source.groups is not None else None
    groups = group_identical([row.tobytes() for row in dataset.prepared.digests[good]], own)
    for repeat in range(repeats):
        dealer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + repeat)
        for _, held_out in dealer.split(good, labels, groups):
            yield good[held_out]


def _train_fold(
    source: Source, held_out: NDArray[np.int64], place: Path, display: Display, settings: dict[str, Any]
) -> Path:
    """Train on all images but some, unless this was done before. Returns the run's folder."""
    split = np.zeros(len(source), np.int8)
    split[held_out] = SPLITS.index("test")
    mine = replace(source, split=split)
    begun = (place / "run.json").is_file()
    if not (begun and RunFolder(path=place).facts().get("finished")):
        train(mine, resume=place, display=display) if begun else train(mine, out=place, display=display, **settings)
    return place


def _judge_fold(number: int, run: Path, dataset: Dataset, held_out: NDArray[np.int64]) -> Fold:
    judged = judge_images(Predictor(run), dataset, held_out, part=str(number), display=Silent())
    return Fold(number=number, judgement=judged)


def _gather(folds: Sequence[Fold], dataset: Dataset) -> Scores:
    """Score the mean of the answers that each image got."""
    total = np.zeros((len(dataset.source), len(dataset.source.classes)), np.float64)
    for fold in folds:
        total[fold.judgement.indices] += fold.judgement.probabilities
    seen = np.flatnonzero(total.any(axis=1))
    mean = total[seen] / total[seen].sum(axis=1, keepdims=True)
    return score(mean, dataset.source.labels[seen], dataset.source.classes)


def corrected_interval(values: Sequence[float], folds: int) -> tuple[Interval, float]:
    """Return the mean of some folds' scores with a 95 % interval, and their standard deviation.

    Training sets of folds overlap, so that their scores vary less than those of independent trainings would: the
    variance is multiplied by 1 / n + test / train instead of 1 / n, for n folds in all (Nadeau and Bengio 2003).
    """
    n, mean = len(values), float(np.mean(values))
    spread = float(np.std(values, ddof=1)) if n > 1 else math.nan
    half = float(student.ppf(0.975, n - 1)) * spread * math.sqrt(1 / n + 1 / (folds - 1))
    return Interval(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half)), spread
