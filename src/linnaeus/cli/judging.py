"""Commands that look and judge: data, evaluate, report, compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from linnaeus.cli.root import commands, print_json
from linnaeus.config import parse_pairs


@commands.command(name="data")
@click.argument("data")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--show-augmentations",
    "sheet",
    type=click.Path(path_type=Path),
    metavar="OUT.png",
    help="Write a picture of what the network will see.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as one JSON document.")
def look(data: str, pairs: tuple[str, ...], sheet: Path | None, as_json: bool) -> None:
    """Tell what is in DATA, and what `train` would choose for it; takes DATA and settings as `train` does."""
    from linnaeus.display import Terminal
    from linnaeus.looking import look_at_data, write_sheet

    found = look_at_data(data, display=Terminal(), **parse_pairs(pairs))
    if sheet is not None:
        write_sheet(found, sheet)
        click.echo(f"Sheet: {sheet}", err=True)
    facts = found.to_dict()
    print_json(facts) if as_json else _tell_data(facts)


def _tell_data(facts: dict[str, Any]) -> None:
    tone = "grey" if facts["grey"] else "colour"
    click.echo(f"{facts['name']}: {facts['images']:,} images of {len(facts['classes'])} classes, {tone}, "
               f"{facts['median_side']} pixels on the shorter side (median)")  # fmt: skip
    for note in facts["notes"]:
        click.echo(f"  note: {note}")
    for image in facts["unreadable"]:
        click.echo(f"  unreadable: {image['path']}: {image['reason']}")
    width = max(len("class"), *(len(name) for name in facts["classes"]))
    click.echo(f"\n  {'class':<{width}}  {'train':>8}  {'val':>8}  {'test':>8}")
    for name in facts["classes"]:
        click.echo(f"  {name:<{width}}  " + "  ".join(f"{counts[name]:8,}" for counts in facts["counts"].values()))


@commands.command()
@click.argument("bundle")
@click.argument("data")
@click.option("--split", default="auto", help="train, val, test or all. Default: test where there is one, else all.")
@click.option("--json", "as_json", is_flag=True, help="Print the scores as one JSON document.")
def evaluate(bundle: str, data: str, split: str, as_json: bool) -> None:
    """Score BUNDLE (or a run folder) on labelled DATA, class by class, with 95 % intervals."""
    from linnaeus.display import Terminal
    from linnaeus.judging import evaluate as judge

    judgement = judge(bundle, data, split=split, display=Terminal())
    if as_json:
        print_json({"split": judgement.part, **judgement.scores.to_dict()})
        return
    scores = judgement.scores
    click.echo(f"{judgement.part}: {scores.n:,} images")
    width = max(10, *map(len, scores.headlines))
    for name, value in scores.headlines.items():
        click.echo(f"  {name:<{width}} {value if name == 'loss' else value.percent()}")
    click.echo("\n" + "\n".join(_tell_classes(scores.per_class)))


def _tell_classes(per_class: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for the titles and one for each class."""
    width = max(len("class"), *map(len, per_class))
    more = {"average_precision": "AP", "threshold": "threshold"}
    several = any(hasattr(row, "threshold") for row in per_class.values())
    titles = "".join(f"  {title:>9}" for title in more.values()) if several else ""
    yield f"  {'class':<{width}}  precision  recall      f1  support{titles}"
    for name, row in per_class.items():
        values = "".join(f"  {getattr(row, key):9.4f}" for key in more) if several else ""
        yield (f"  {name:<{width}}  {row.precision:9.4f}  {row.recall:6.4f}  {row.f1:6.4f}  {row.support:7,}{values}")


@commands.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Tell what a RUN found, and where its page lies."""
    from linnaeus.reporting.page import tell_report
    from linnaeus.runfolder import read_report

    click.echo(tell_report(read_report(run)))
    click.echo(f"\nPage: {run / 'report.html'}")


@commands.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON document.")
def compare(runs: tuple[str, ...], as_json: bool) -> None:
    """Lay finished RUNs side by side, and tell whether the best is better by more than luck.

    By McNemar's test on the test images that both have judged, corrected by Holm's method for more than two runs.
    The time for a picture is measured here: the median of up to 30.
    """
    from linnaeus.comparison import compare as compare_runs

    found = compare_runs(*runs)
    print_json(found.to_dict()) if as_json else _tell_comparison(found)


def _tell_comparison(found: Any) -> None:
    head = ("run", "model", "accuracy", "macro F1", "parameters", "trained", "bundle", "a picture", "training")
    rows = [head, *(_entrant_cells(entrant) for entrant in found.entrants)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())
    click.echo(f"\nThe best on its test images: {found.best}. Beside it:")
    for duel in found.duels:
        click.echo(f"{duel.run}: {duel.verdict}")
        for name, n in _most_different(duel.classes):
            click.echo(f"  {name}: {n['other']:,} of {n['images']:,} right, the best {n['best']:,}")


def _entrant_cells(entrant: Any) -> tuple[str, ...]:
    scores = [_percent_of(entrant.scores, name) for name in ("accuracy", "macro_f1")]
    counts = ["-" if n is None else f"{n:,}" for n in (entrant.parameters, entrant.trained_parameters)]
    size, speed = f"{entrant.bundle_bytes / 1e6:.1f} MB", f"{entrant.milliseconds:.1f} ms"
    return entrant.run, entrant.model, *scores, *counts, size, speed, f"{entrant.training_seconds:.0f} s"


def _percent_of(scores: Any, name: str) -> str:
    if name not in scores:
        return "-"
    low, high = scores[f"{name}_interval"]
    return f"{100 * scores[name]:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _most_different(classes: Any, most: int = 5) -> list[tuple[str, Any]]:
    """Return the classes that gained or lost most, the largest change first; those alike in both are left out."""
    changed = [item for item in classes.items() if item[1]["best"] != item[1]["other"]]
    return sorted(changed, key=lambda item: -abs(item[1]["best"] - item[1]["other"]) / item[1]["images"])[:most]
