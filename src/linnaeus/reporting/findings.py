"""What a run's results mean, in plain words, and what to type next. Pure functions over the report's values."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Five points are the distance between 90 and 95 %: an interval that is wider cannot tell them apart.
WIDEST_INTERVAL = 0.05
IMBALANCE = 5.0
FEW_IMAGES = 20

_PARTS = {"test": "test", "val": "validation"}
_ENDS = {"stopped": "it fell behind the other trials of a search."}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is wrong, what it means, and the command that helps. Plain text, not yet escaped."""

    title: str
    text: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The scores that count: the part they come from ("test", "val" or "" for none) and their values."""

    part: str
    scores: Mapping[str, Any]


def choose_verdict(report: Mapping[str, Any]) -> Verdict:
    """Return the test scores, or the validation scores where nothing was held back to test."""
    found = report.get("scores") or {}
    for part in ("test", "val"):
        if found.get(part) and found[part].get("n"):
            return Verdict(part=part, scores=found[part])
    return Verdict(part="", scores={})


def interval_of(scores: Mapping[str, Any], name: str) -> tuple[float, float]:
    """Return the ends of a score's interval, or the score twice where it has none."""
    low, high = scores.get(f"{name}_interval") or (scores[name], scores[name])
    return float(low), float(high)


def has_several_labels(scores: Mapping[str, Any]) -> bool:
    """Whether these are scores of pictures that may have several labels: accuracy is then that of whole sets."""
    return "mean_ap" in scores


def explain_score(verdict: Verdict) -> str:
    """Say what the accuracy and its interval mean for new pictures."""
    if not verdict.part:
        return "No picture was judged, so nothing can be said about how good this model is."
    scores, n = verdict.scores, int(verdict.scores["n"])
    accuracy, (low, high) = float(scores["accuracy"]), interval_of(scores, "accuracy")
    base = _readable_base(accuracy, low, high)
    part = _PARTS[verdict.part]
    right = "wholly right, no label missing and none too many" if has_several_labels(scores) else "right"
    return (
        f"Of {base:,} new pictures like these it gets about {round(accuracy * base):,} {right}; with {count(n, part)}"
        f" the true figure lies between {round(low * base):,} and {round(high * base):,}, in 95 of 100 such tests."
    )


def _readable_base(accuracy: float, low: float, high: float) -> int:
    """Return 100, or the next power of ten at which the score is not "all" or "none" and the interval has two ends."""
    for base in (100, 1000, 10_000):
        is_blunt = 0 < accuracy < 1 and round(accuracy * base) in (0, base)
        if not is_blunt and round(low * base) < round(high * base):
            return base
    return 100_000


def explain_training(report: Mapping[str, Any]) -> str:
    """Say how many weights learned, of how many, and how long that took; "" where the report does not tell."""
    model, settings = report.get("model") or {}, report.get("settings") or {}
    trained, of = model.get("trained_parameters"), model.get("parameters")
    if not trained or not of:
        return ""
    some = f"{in_words(trained)} of {in_words(of)} parameters ({100 * trained / of:.3g} %)"
    how = f" by finetune={settings['finetune']}" if settings.get("finetune", "full") != "full" else ""
    seconds = ((report.get("timing") or {}).get("stages") or {}).get("training")
    took = f", in {seconds:,.0f} s of training" if seconds is not None else ""
    return f"{some if trained < of else f'All {in_words(of)} parameters'} learned{how}{took}."


def in_words(n: int) -> str:
    """Return a large number as people say it: "3.38 million"."""
    for size, word in ((10**9, " billion"), (10**6, " million"), (10**3, " thousand")):
        if n >= size:
            return f"{n / size:.3g}{word}"
    return str(n)


def find_cautions(report: Mapping[str, Any], verdict: Verdict) -> list[str]:
    """Return why the score should be read with care: a small test part, no test part, training cut short."""
    cautions = []
    if verdict.part:
        cautions += _caution_of_size(verdict)
    if verdict.part == "val":
        kept = any((((report.get("data") or {}).get("counts") or {}).get("test") or {}).values())
        chosen = "the best epoch was chosen" + " and the thresholds were set" * has_several_labels(verdict.scores)
        cautions.append(
            f"{'The test part was not judged' if kept else 'There is no test part'}. This score comes from the "
            f"validation part, by which {chosen}: expect a little less on new pictures."
        )
    if ended := report.get("stopped_early"):
        cautions.append(f"Training stopped early: {_ENDS.get(ended, ended)}")
    return cautions


def _caution_of_size(verdict: Verdict) -> list[str]:
    low, high = interval_of(verdict.scores, "accuracy")
    if high - low <= WIDEST_INTERVAL:
        return []
    # The normal approximation around the middle of the interval: n that makes it five points wide.
    middle = (low + high) / 2
    needed = math.ceil(1.96**2 * middle * (1 - middle) / (WIDEST_INTERVAL / 2) ** 2 / 10) * 10
    few = f"{count(verdict.scores['n'])} {'is' if verdict.scores['n'] == 1 else 'are'} too few to tell 90 from 95 %"
    of = " of whole sets" * has_several_labels(verdict.scores)
    return [
        f"{few}: the interval{of} is {100 * (high - low):.0f} points wide. About {needed:,} would make it 5 points."
    ]


def find_problems(report: Mapping[str, Any], *, most: int = 3) -> list[Problem]:
    """Return the worst problems, the weakest class first and at least one of the data's where there is one.

    Args:
        report: the report's values; every part may be missing.
        most: how many problems to return.
    """
    verdict = choose_verdict(report)
    model = [*_no_better_than_guessing(report, verdict), *_weakest_class(report, verdict), *_confusion(report, verdict)]
    data = [*_identical(report), *_imbalance(report), *_bad_images(report)]
    return [*model[: most - 1], *data[:1], *model[most - 1 :], *data[1:]][:most]


def top_confusions(scores: Mapping[str, Any], *, most: int | None = 25) -> list[tuple[str, str, int, int]]:
    """Return (truth, prediction, times, images of the truth) of the mistakes, most frequent first; None for all."""
    classes, rows = scores.get("classes") or [], scores.get("confusion") or []
    mistakes = (
        (-n, i, j) for i, row in enumerate(rows) for j, n in enumerate(row) if n and i != j and max(i, j) < len(classes)
    )
    return [(classes[i], classes[j], -n, sum(rows[i])) for n, i, j in sorted(mistakes)[:most]]


def count(n: int, kind: str = "") -> str:
    """Return a number of pictures in words: "1 picture", "2,000 test pictures"."""
    return f"{n:,} {kind + ' ' if kind else ''}picture{'' if n == 1 else 's'}"


def _train(report: Mapping[str, Any], *extra: str) -> str:
    settings = report.get("settings") or {}
    several = (f"{name}={settings[name]}" for name in ("label_separator", "label_columns") if settings.get(name))
    return " ".join(["linnaeus train", _data_name(report), *map(shlex.quote, several), *extra])


def _evaluate(report: Mapping[str, Any], part: str) -> str:
    run = shlex.quote(str(report.get("folder") or "RUN"))
    return f"linnaeus evaluate {run} {_data_name(report)} --split {part}"


def _data_name(report: Mapping[str, Any]) -> str:
    data = report.get("data") or {}
    return shlex.quote(str(data.get("path") or data.get("name") or "DATA"))


def _no_better_than_guessing(report: Mapping[str, Any], verdict: Verdict) -> list[Problem]:
    supports = {name: c["support"] for name, c in (verdict.scores.get("per_class") or {}).items()}
    if len(supports) < 2:
        return []
    if has_several_labels(verdict.scores):
        known = [n for n in supports.values() if n]
        share = sum(known) / max(1, len(known) * verdict.scores["n"])
        guess, key = "Pictures in any order would have a mAP of", "mean_ap"
    else:
        largest = max(supports, key=lambda name: supports[name])
        share = supports[largest] / max(1, sum(supports.values()))
        guess, key = f"Always answering “{largest}” would be right for", "accuracy"
    if interval_of(verdict.scores, key)[0] > share:
        return []
    settings = report.get("settings") or {}
    length = next((name for name in ("budget", "epochs") if settings.get(name)), None)
    more = [f"{length}={2 * settings[length]:g}"] if length else []
    text = f"{guess} {100 * share:.0f} %{'' if key == 'mean_ap' else ' of these pictures'}. Train longer."
    return [Problem(title="No better than guessing", text=text, command=_train(report, *more))]


def _weakest_name(scores: Mapping[str, Any]) -> str | None:
    """Return the class with the lowest recall, the larger one of two, or None where every class is always found."""
    judged = [(c["recall"], -c["support"], name) for name, c in (scores.get("per_class") or {}).items() if c["support"]]
    recall, _, name = min(judged, default=(1.0, 0, ""))
    return name if recall < 1 else None


def _weakest_class(report: Mapping[str, Any], verdict: Verdict) -> list[Problem]:
    name = _weakest_name(verdict.scores)
    if name is None:
        return []
    recall, support = (verdict.scores["per_class"][name][key] for key in ("recall", "support"))
    text = (
        f"{round(recall * support):,} of its {count(support, _PARTS[verdict.part])} recognised ({100 * recall:.0f} %)."
    )
    mistaken = [c for c in top_confusions(verdict.scores, most=None) if c[0] == name]
    if mistaken:
        text += f" Mostly mistaken for “{mistaken[0][1]}” ({_times(mistaken[0][2])})."
    if support < FEW_IMAGES:
        text += " With so few pictures this may be chance."
    text += " Add pictures of it that differ from those you have, then train again."
    return [Problem(title=f"Weakest class: {name}", text=text, command=_train(report))]


def _confusion(report: Mapping[str, Any], verdict: Verdict) -> list[Problem]:
    """Return the most frequent confusion, without those of the weakest class, which tells of its own."""
    confusions = top_confusions(verdict.scores, most=None)
    others = [c for c in confusions if c[0] != _weakest_name(verdict.scores)]
    if not others or others[0][2] < 2:
        return []
    truth, predicted, times, support = others[0]
    rank = "the most frequent mistake" + ("" if others[0] == confusions[0] else " among the other classes")
    text = (
        f"“{truth}” was called “{predicted}” {_times(times)}, in {100 * times / support:.0f} % of its pictures: {rank}."
        " If it is as bad on the training pictures, look for wrong labels, and whether a person can tell them apart."
    )
    return [Problem(title=f"Confused: {truth} with {predicted}", text=text, command=_evaluate(report, "train"))]


def _times(n: int) -> str:
    return {1: "once", 2: "twice"}.get(n, f"{n:,} times")


def _identical(report: Mapping[str, Any]) -> list[Problem]:
    n = (report.get("data") or {}).get("identical_across_parts") or 0
    if not n:
        return []
    verb = "has" if n == 1 else "have"
    text = (
        f"{count(n)} {verb} identical copies, or others of their group, in another part, so the score flatters. "
        "Keep one copy of each, then train again."
    )
    return [Problem(title="Identical pictures across parts", text=text, command=_train(report))]


def _imbalance(report: Mapping[str, Any]) -> list[Problem]:
    counts: Mapping[str, int] = ((report.get("data") or {}).get("counts") or {}).get("train") or {}
    if len(counts) < 2 or max(counts.values()) < IMBALANCE * min(counts.values()):
        return []
    large, small = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    text = (
        f"“{large}” has {count(counts[large], 'training')}, “{small}” has {counts[small]:,}. "
        f"The model sees too little of the small one: add pictures of “{small}”, then train again."
    )
    return [Problem(title="Classes of very unequal size", text=text, command=_train(report))]


def _bad_images(report: Mapping[str, Any]) -> list[Problem]:
    bad: Sequence[Mapping[str, Any]] = (report.get("data") or {}).get("bad_images") or []
    if not bad:
        return []
    named = f"“{bad[0].get('path', '')}”" + ("" if len(bad) == 1 else " and others")
    text = f"{count(len(bad))} could not be read and took no part. Mend or remove {named}, then train again."
    return [Problem(title="Unreadable pictures", text=text, command=_train(report))]
