"""The page of a search for settings: one HTML page that needs nothing else, made from tune.json alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from linnaeus.reporting.charts import bar_cell, curve_chart, interval_bar, line_chart, percent, table, text
from linnaeus.reporting.findings import Verdict, choose_verdict, explain_score, find_cautions, interval_of
from linnaeus.reporting.style import render_document

_COMMAND_LIMIT = 2000


def render_search(found: Mapping[str, Any]) -> str:
    """Return the page of a search from the JSON values of its tune.json: it loads nothing and runs no script."""
    title = f"{found['name']}: the best of {_count(len(found['trials']), 'trial')}"
    return render_document(text(title), _first_screen(found, title), list(_sections(found)))


def _sections(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield (
        "Train it again",
        f'<ul class="commands"><li><code>{text(found["command"], limit=_COMMAND_LIMIT)}</code></li></ul>',
    )
    yield "The search", _progress(found["trials"])
    yield "What mattered", _importance(found)
    yield "Trials", _trials(found)


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _winner(found: Mapping[str, Any]) -> Mapping[str, Any]:
    winner: Mapping[str, Any] = next(trial for trial in found["trials"] if trial["number"] == found["winner"])
    return winner


def _first_screen(found: Mapping[str, Any], title: str) -> str:
    verdict = choose_verdict(found)
    when = text(str(found["created"]).replace("T", " ")[:16])
    cautions = "".join(f'<p class="caution">{text(line, limit=500)}</p>' for line in _cautions(found, verdict))
    return (
        f'<header><p class="kicker">linnaeus search · {when}</p><h1>{text(title)}</h1>'
        f'<p class="lead">{_lead(found)}</p></header>'
        f'<div class="verdict">{_score_card(verdict)}<div><p>{text(explain_score(verdict), limit=500)}</p>'
        f"{_facts(found)}</div></div>{cautions}"
    )


def _lead(found: Mapping[str, Any]) -> str:
    winner, first = _winner(found), found["trials"][0]
    if winner["number"] == first["number"]:
        return "No trial did better on validation than the default recipe, trial 0."
    words = f"Trial {winner['number']} did best on validation: {percent(winner['accuracy'])}"
    reached = f", where the default recipe, trial 0, reached {percent(first['accuracy'])}"
    return text(words + (reached if first["accuracy"] is not None else "") + ".", limit=500)


def _score_card(verdict: Verdict) -> str:
    accuracy, (low, high) = verdict.scores["accuracy"], interval_of(verdict.scores, "accuracy")
    part = {"test": "Test", "val": "Validation"}[verdict.part]
    return (
        f'<div><div class="kicker">{part} accuracy of the winner</div><div class="big">{percent(accuracy)}</div>'
        f"{interval_bar(accuracy, low, high)}</div>"
    )


def _facts(found: Mapping[str, Any]) -> str:
    trials = found["trials"]
    facts = [
        ("Trials", f"{len(trials):,}, of them {sum(bool(t['pruned']) for t in trials):,} stopped before their end"),
        ("Time of all trials", f"{sum(t['seconds'] for t in trials):,.0f} s"),
    ]
    return (
        f'<dl class="facts">{"".join(f"<div><dt>{k}</dt><dd>{text(v, limit=500)}</dd></div>" for k, v in facts)}</dl>'
    )


def _cautions(found: Mapping[str, Any], verdict: Verdict) -> Iterator[str]:
    """Yield why the figures should be read with care."""
    if verdict.part == "test":
        yield (
            "The winner was chosen on validation alone, so its validation score flatters; the test part was kept from "
            "all trials, and only the winner was judged on it."
        )
        yield from find_cautions({}, verdict)
    if found["interrupted"]:
        yield "The search was interrupted: the winner is the best so far and was not judged on the test part."
    elif verdict.part == "val":
        yield "There is no test part. This score comes from validation, by which the winner was chosen: it flatters."
    if len(found["tested"]) > 1:
        several = ", ".join(map(str, found["tested"]))
        yield f"The search went on after a winner was judged on test: trials {several} were. Each look costs trust."


def _progress(trials: Sequence[Mapping[str, Any]]) -> str:
    """Draw the accuracy of each trial with the best so far, and all validation curves."""
    reached = [None if trial["pruned"] else trial["accuracy"] for trial in trials]
    best = list(itertools.accumulate((-1.0 if value is None else value for value in reached), max))
    so_far = [value if value >= 0 else None for value in best]
    first = reached.index(max((v for v in reached if v is not None), default=None))
    shown = {"whole trials": reached, "best so far": so_far}
    curves = [(trial["curve"], "best" if i == first else "pruned" if trial["pruned"] else "whole")
              for i, trial in enumerate(trials)]  # fmt: skip
    return (
        f'<div class="charts">{line_chart("Validation accuracy by trial", shown, best=first, top=1.0, along="trial")}'
        f"{curve_chart('Validation accuracy within the trials', curves)}</div>"
        '<p class="quiet">Trials count from 1 on the left and from 0 elsewhere. On the right, the share of a trial '
        "that was done; a line that ends early was stopped.</p>"
    )


def _importance(found: Mapping[str, Any]) -> str:
    shares = found["importance"]
    if not shares:
        return "<p>Too few trials came to their end, or all came to the same, to tell what mattered.</p>"
    rows = [[text(name), bar_cell(share, percent(share))] for name, share in shares.items()]
    lead = (
        "Which share of the differences in validation accuracy between the trials that came to their end each setting "
        "explains, by functional ANOVA on a random forest (Hutter et al. 2014). Of few trials it is a hint."
    )
    return f"<p>{lead}</p>" + table(["Setting", "Share"], rows, label="What mattered")


def _trials(found: Mapping[str, Any]) -> str:
    names = list(found["trials"][0]["settings"])
    ranked = sorted(found["trials"], key=lambda t: (bool(t["pruned"]), -(t["accuracy"] or 0.0), t["loss"] or 0.0))
    rows = [
        [
            f'<a href="trial-{t["number"]}/report.html">{t["number"]}</a>' + (" ★" * (t["number"] == found["winner"])),
            text(percent(t["accuracy"])),
            f"{t['seconds']:.1f} s",
            *(text(t["settings"][name]) for name in names),
            text(t["pruned"], limit=300),
        ]
        for t in ranked
    ]
    head = ["Trial", "Validation accuracy", "Time", *names, "Stopped because"]
    return table(head, rows, label="Trials")
