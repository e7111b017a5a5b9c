"""The report of a run: one HTML page that needs nothing else, made from results alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from linnaeus.reporting.charts import bar_cell, confusion_table, interval_bar, line_chart, percent, table, text
from linnaeus.reporting.findings import (
    Verdict,
    choose_verdict,
    count,
    explain_score,
    explain_training,
    find_cautions,
    find_problems,
    has_several_labels,
    in_words,
    interval_of,
    top_confusions,
)
from linnaeus.reporting.style import render_document

MATRIX_LIMIT = 30
PICTURE_BYTES = 1_500_000
PICTURES_PER_ROW = 12
LIST_LIMIT = 50
PROSE_LIMIT = 500

_NO_PICTURES: Mapping[str, bytes] = MappingProxyType({})
_PARTS = {"train": "training", "val": "validation", "test": "test"}
_SIGNATURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png"}


def render_report(report: Mapping[str, Any], pictures: Mapping[str, bytes] = _NO_PICTURES) -> str:
    """Return the report of a run as one HTML page under 5 MB that loads nothing and runs no script.

    Args:
        report: the JSON values of the run, as its report.json holds them; whatever a run did not reach may be missing.
        pictures: JPEG or PNG bytes by the keys that report["examples"] names. Those beyond 1.5 MB in all, missing
            or of another format are shown as an empty frame.
    """
    return render_document(_title(report), _first_screen(report), list(_sections(report, pictures)))


def tell_report(report: Mapping[str, Any]) -> str:
    """Return the first screen of a run's report as plain text: score, cautions, problems and what to type next."""
    verdict = choose_verdict(report)
    lines = [str(report.get("title") or "Training report"), explain_score(verdict), *find_cautions(report, verdict)]
    for problem in find_problems(report):
        lines += ["", f"{problem.title}: {problem.text}", f"    {problem.command}"]
    lines += ["", *(f"Next: {command}" for command in report.get("next") or ())]
    # A name may hold control characters, which a terminal would obey.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines).rstrip()


def _sections(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Iterator[tuple[str, str]]:
    verdict = choose_verdict(report)
    yield "What to do next", _commands(report)
    yield "How it was made", _choices(report)
    yield "Learning curves", _curves(report)
    yield "Confusions", _confusions(verdict)
    yield "Classes", _classes(verdict)
    yield "Pictures", _examples(report, pictures)
    yield "Data", _data(report)
    yield "Deployed model", _deployed(report)
    yield "Settings and versions", _settings(report)


def _part(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = report.get(name) or {}
    return found


def _paragraphs(lines: Sequence[str], kind: str = "") -> str:
    return "".join(f'<p class="{kind}">{text(line, limit=PROSE_LIMIT)}</p>' for line in lines if line)


# -- the first screen


def _title(report: Mapping[str, Any]) -> str:
    return text(report.get("title") or "Training report")


def _first_screen(report: Mapping[str, Any]) -> str:
    verdict = choose_verdict(report)
    cautions = _paragraphs(find_cautions(report, verdict), "caution")
    when = text(str(report.get("created") or "").replace("T", " ")[:16])
    return (
        f'<header><p class="kicker">linnaeus report{f" · {when}" if when else ""}</p><h1>{_title(report)}</h1>'
        f'<p class="lead">{_what_was_trained(report)}</p></header>'
        f'<div class="verdict">{_score_card(verdict)}<div>{_paragraphs([explain_score(verdict)])}'
        f"{_facts(report, verdict)}</div></div>{cautions}{_problems(report, verdict)}"
    )


def _what_was_trained(report: Mapping[str, Any]) -> str:
    model, data = _part(report, "model"), _part(report, "data")
    if not data.get("classes"):
        return ""
    verb = "learned" if report.get("epochs") or report.get("scores") else "was to learn"
    size = f" ({in_words(model['parameters'])} parameters)" if model.get("parameters") else ""
    n = _images(data, "train")
    start = f", starting from {text(model['base_weights'])}" if model.get("base_weights") else ""
    how = f" {text(told)}" if (told := explain_training(report)) else ""
    return (
        f"{text(model.get('name') or 'A model')}{size} {verb} to tell {len(data['classes']):,} classes apart from "
        f"{count(n)} of {text(data.get('name') or 'an unnamed data set')}{start}.{how}"
    )


def _images(data: Mapping[str, Any], part: str) -> int:
    """Return how many pictures a part has; where they have one label each, the counts of the classes say it, too."""
    known = _part(data, "images").get(part)
    return int(sum(_part(_part(data, "counts"), part).values()) if known is None else known)


def _score_card(verdict: Verdict) -> str:
    if not verdict.part:
        return '<div><div class="kicker">Accuracy</div><div class="big">–</div></div>'
    name, key = ("mAP", "mean_ap") if has_several_labels(verdict.scores) else ("accuracy", "accuracy")
    score, (low, high) = verdict.scores[key], interval_of(verdict.scores, key)
    return (
        f'<div><div class="kicker">{_PARTS[verdict.part].capitalize()} {name}</div>'
        f'<div class="big">{percent(score)}</div>{interval_bar(score, low, high)}</div>'
    )


def _facts(report: Mapping[str, Any], verdict: Verdict) -> str:
    facts = []
    if verdict.part:
        several = {"Micro F1": "micro_f1", "Exact match": "accuracy", "Hamming loss": "hamming_loss"}
        shown = {"Macro F1": "macro_f1", **(several if has_several_labels(verdict.scores) else {})}
        facts += [(name, _with_interval(verdict.scores, key)) for name, key in shown.items()]
        facts.append(("Loss", f"{verdict.scores['loss']:.3f}"))
    if seconds := _part(report, "timing").get("total_seconds"):
        facts.append(("Time", _duration(seconds)))
    if size := _part(report, "model").get("onnx_bytes"):
        facts.append(("Model file", _bytes(size)))
    return f'<dl class="facts">{"".join(f"<div><dt>{k}</dt><dd>{text(v)}</dd></div>" for k, v in facts)}</dl>'


def _with_interval(scores: Mapping[str, Any], key: str) -> str:
    low, high = interval_of(scores, key)
    return f"{percent(scores[key])} ({100 * low:.1f} to {100 * high:.1f})"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _bytes(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"


def _problems(report: Mapping[str, Any], verdict: Verdict) -> str:
    found = find_problems(report)
    if not found:
        return _paragraphs(["Nothing stands out as wrong."]) if verdict.part else ""
    items = "".join(
        f"<li><h3>{text(p.title)}</h3><p>{text(p.text, limit=PROSE_LIMIT)}</p>"
        f"<code>{text(p.command, limit=PROSE_LIMIT)}</code></li>"
        for p in found
    )
    return (
        f'<h3>{"The worst problem" if len(found) == 1 else "The worst problems"}</h3><ul class="problems">{items}</ul>'
    )


# -- the sections, in the order of the page


def _commands(report: Mapping[str, Any]) -> str:
    lines = "".join(f"<li><code>{text(line, limit=PROSE_LIMIT)}</code></li>" for line in report.get("next") or ())
    return f'<ul class="commands">{lines}</ul>' if lines else ""


def _choices(report: Mapping[str, Any]) -> str:
    rows = [
        [text(c.get("name", "")), text(c.get("value", "")), text(c.get("why", ""), limit=PROSE_LIMIT)]
        for c in report.get("choices") or ()
    ]
    if not rows:
        return ""
    lead = _paragraphs(["What was chosen by itself, and why. Each can be given on the command line instead."])
    return lead + table(["Setting", "Value", "Why"], rows, label="Choices")


def _curves(report: Mapping[str, Any]) -> str:
    epochs: Sequence[Mapping[str, Any]] = report.get("epochs") or ()
    if not epochs:
        return ""
    best = next((i for i in reversed(range(len(epochs))) if epochs[i].get("best")), None)
    right = "Exact matches, from a probability of 0.5 on" if _ranks(epochs) else "Accuracy"
    charts = "".join(
        line_chart(
            title,
            {"training": [e.get(f"train_{key}") for e in epochs], "validation": [e.get(f"val_{key}") for e in epochs]},
            best=best,
            top=top,
        )
        for title, key, top in (("Loss", "loss", None), (right, "accuracy", 1.0), ("mAP", "mean_ap", 1.0))
    )
    return f'<div class="charts">{charts}</div>{_paragraphs([_epoch_words(epochs, best)], "quiet")}'


def _ranks(epochs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether epochs were judged by mean average precision, as of pictures with several labels."""
    return any(epoch.get("val_mean_ap") is not None for epoch in epochs)


def _epoch_words(epochs: Sequence[Mapping[str, Any]], best: int | None) -> str:
    words = "1 epoch." if len(epochs) == 1 else f"{len(epochs):,} epochs."
    stages = list(dict.fromkeys(str(e.get("stage")) for e in epochs if e.get("stage")))
    if len(stages) > 1:
        words += f" Stages in order: {', '.join(stages)}."
    if best is not None:
        name, key = ("mAP", "val_mean_ap") if _ranks(epochs) else ("accuracy", "val_accuracy")
        kept = "head alone" if epochs[best].get("stage") == "head" else f"model of epoch {epochs[best].get('epoch')}"
        words += f" The {kept} was kept: validation {name} {percent(epochs[best].get(key))}."
    return words + " Training pictures are altered at random while learning, so their curve may lie below the other."


def _confusions(verdict: Verdict) -> str:
    classes, confusion = verdict.scores.get("classes") or [], verdict.scores.get("confusion") or []
    if not confusion:
        return ""
    pairs = [[text(a), text(b), f"{n:,}", percent(n / total)] for a, b, n, total in top_confusions(verdict.scores)]
    head = ["Truth", "Taken for", "Times", "Share of the class"]
    if len(classes) > MATRIX_LIMIT:
        lead = f"The most frequent mistakes; a matrix of {len(classes):,} classes would not be readable."
        return _paragraphs([lead]) + table(head, pairs, label="Most confused pairs")
    lead = f"Counts of {_PARTS[verdict.part]} pictures. Green is right; the stronger the orange, the worse the mistake."
    return _paragraphs([lead]) + confusion_table(classes, confusion)


def _classes(verdict: Verdict) -> str:
    found = sorted((verdict.scores.get("per_class") or {}).items(), key=lambda item: (item[1]["f1"], item[0]))
    if not found:
        return ""
    shown = {"Precision": "precision", "Recall": "recall", "F1": "f1"}
    lead = "In percent, weakest first. Precision: how often the name is right when given. Recall: how many are found."
    if has_several_labels(verdict.scores):
        shown |= {"Average precision": "average_precision", "Threshold": "threshold"}
        lead += " Average precision: of the order by probability. Threshold: the probability from which on it is given."
    rows = [
        [
            text(name),
            *(bar_cell(c[key] or 0.0, "–" if c[key] is None else f"{100 * c[key]:.1f}") for key in shown.values()),
            f"{c['support']:,}",
        ]
        for name, c in found
    ]
    head = ["Class", *shown, "Pictures"]
    return _paragraphs([lead]) + table(head, rows, label="Scores per class", kind="classes")


def _examples(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    groups = {
        "wrong": "Wrong, and most sure of it",
        "unsure": "Least sure",
        "sure": "Right, and most sure of it",
    }
    found = {key: list(_part(report, "examples").get(key) or ())[:PICTURES_PER_ROW] for key in groups}
    wanted = [e.get("picture") for examples in found.values() for e in examples]
    sources = _embed(wanted, pictures)
    return "".join(
        f'<h3>{groups[key]}</h3><ul class="pictures">{"".join(_example(e, sources) for e in examples)}</ul>'
        for key, examples in found.items()
        if examples
    )


def _embed(keys: Sequence[Any], pictures: Mapping[str, bytes]) -> dict[Any, str]:
    """Return data addresses of the pictures wanted, as many as fit into the page."""
    sources, room = {}, PICTURE_BYTES
    for key in dict.fromkeys(keys):
        data = pictures.get(key, b"")
        kind = next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), "")
        if kind and len(data) <= room:
            room -= len(data)
            sources[key] = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return sources


def _example(example: Mapping[str, Any], sources: Mapping[Any, str]) -> str:
    truth, predicted, name = (text(example.get(key, "")) for key in ("truth", "predicted", "name"))
    is_right = example.get("truth") == example.get("predicted")
    source = sources.get(example.get("picture"))
    image = f'<img src="{source}" alt="{name}">' if source else '<div class="none"></div>'
    words = f"<b>{predicted}</b> {percent(example.get('probability'))}" + ("" if is_right else f"<br>is {truth}")
    return f'<li class="{"right" if is_right else "wrong"}" title="{name}">{image}<p>{words}</p></li>'


def _data(report: Mapping[str, Any]) -> str:
    data = _part(report, "data")
    counts = {part: values for part, values in _part(data, "counts").items() if values}
    notes = _paragraphs([str(note) for note in data.get("notes") or ()][:LIST_LIMIT])
    return _counts(data, counts) + notes + _bad_images(data.get("bad_images") or ())


def _counts(data: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]]) -> str:
    if not counts:
        return ""
    rows = [
        [text(name), *(bar_cell(v.get(name, 0) / max(1, *v.values()), f"{v.get(name, 0):,}") for v in counts.values())]
        for name in data.get("classes") or ()
    ]
    rows.insert(0, ["all pictures", *(f'<td class="bar">{_images(data, part):,}</td>' for part in counts)])
    head = ["Class", *(_PARTS.get(part, part).capitalize() for part in counts)]
    return table(head, rows, label="Pictures per class and part", kind="classes")


def _bad_images(bad: Sequence[Mapping[str, Any]]) -> str:
    if not bad:
        return ""
    rows = [[text(b.get("path", "")), text(b.get("reason", ""), limit=PROSE_LIMIT)] for b in bad[:LIST_LIMIT]]
    more = [f"… and {len(bad) - LIST_LIMIT:,} more."] if len(bad) > LIST_LIMIT else []
    return (
        f"<h3>{count(len(bad))} could not be read</h3>"
        + table(["File", "Reason"], rows, label="Unreadable pictures")
        + _paragraphs(more, "quiet")
    )


def _deployed(report: Mapping[str, Any]) -> str:
    model = _part(report, "model")
    lines = [_agreement_words(_part(report, "agreement"))]
    if model.get("base_weights"):
        lines.append(f"It was trained from these published weights: {model['base_weights']}.")
    if model.get("licence"):
        lines.append(f"Licence of the base weights: {model['licence']}.")
    if report.get("folder"):
        lines.append(f"Everything about this run lies in {report['folder']}.")
    return _paragraphs(lines)


def _agreement_words(agreement: Mapping[str, Any]) -> str:
    if not agreement:
        return ""
    labels = (
        "and give every picture the same name"
        if agreement["same_labels"]
        else "but do not give every picture the same name"
    )
    return (
        f"On {count(agreement['images'])} the deployed ONNX model and the PyTorch model differ by at most "
        f"{agreement['largest_difference']:.1e} (tolerance {agreement['tolerance']:.0e}), {labels}."
    )


def _settings(report: Mapping[str, Any]) -> str:
    seconds = _part(_part(report, "timing"), "stages")
    tables = [
        ("Setting", "Value", _part(report, "settings")),
        ("Package", "Version", _part(report, "versions")),
        ("Stage", "Time", {name: _duration(value) for name, value in seconds.items()}),
    ]
    drawn = "".join(
        f"<div>{table([head, value], [[text(k), text(v)] for k, v in values.items()], label=f'{head}s')}</div>"
        for head, value, values in tables
        if values
    )
    return f'<div class="pairs">{drawn}</div>' if drawn else ""
