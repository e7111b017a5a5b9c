"""Commands that use what there is: predict, and the lists of models and settings."""

from __future__ import annotations

import csv
import sys
from typing import Any

import click

from linnaeus.cli.root import commands, print_json
from linnaeus.config import describe


@commands.command()
@click.argument("bundle")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="How many classes to name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--csv", "as_csv", is_flag=True, help="Print one CSV line per image and class.")
def predict(bundle: str, images: tuple[str, ...], top: int, as_json: bool, as_csv: bool) -> None:
    """Name what is in each IMAGE: files, folders, glob patterns, or - for one image on standard input.

    Where an image may have several labels, all that it is given are named, and of the others those among the --top
    most probable. An image that cannot be read is named on standard error, and the exit code is then 2.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv cannot be given together.")
    from linnaeus.labelling import MULTI
    from linnaeus.predictor import Predictor, expand_paths
    from linnaeus.results import BadImage

    bad: list[BadImage] = []
    predictor = Predictor(bundle)
    if images == ("-",):
        batches = iter([predictor.predict(sys.stdin.buffer.read())])
    else:
        batches = predictor.stream(expand_paths(images), on_bad=bad.append)
    several = predictor.bundle.labelling is MULTI
    rows = (row for batch in batches for row in zip(batch.names, batch.labels, _best(batch, top)))
    (_print_csv if as_csv else _print_answers if not as_json else _print_answers_json)(rows, several)
    for image in bad:
        click.echo(f"unreadable: {image.path}: {image.reason}", err=True)
    if bad:
        sys.exit(2)


Rows = Any  # an iterable of (name, label or labels, [(label, probability), ...])


def _best(batch: Any, top: int) -> list[list[tuple[str, float]]]:
    """Return for each image its most probable labels, with all that it is given where these may be several."""
    if batch.thresholds is None:
        best: list[list[tuple[str, float]]] = batch.top(top)
        return best
    whole = batch.top(len(batch.classes))
    return [
        [(label, p) for rank, (label, p) in enumerate(row) if rank < top or label in given]
        for row, given in zip(whole, batch.labels)
    ]


def _print_csv(rows: Rows, several: bool) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", "rank", "label", "probability", *(["given"] if several else [])))
    for name, labels, best in rows:
        for rank, (label, p) in enumerate(best, start=1):
            writer.writerow((name, rank, label, f"{p:.6f}", *([int(label in labels)] if several else [])))


def _print_answers(rows: Rows, several: bool) -> None:
    for name, labels, best in rows:
        given = [pair for pair in best if pair[0] in labels] if several else best
        others = [pair for pair in best if pair not in given]
        click.echo(f"{name}: {_join(given) or 'none'}" + (f" (not {_join(others)})" if others else ""))


def _join(pairs: list[tuple[str, float]]) -> str:
    return ", ".join(f"{label} {100 * p:.1f} %" for label, p in pairs)


def _print_answers_json(rows: Rows, several: bool) -> None:
    print_json([
        {
            "image": name,
            **({"labels": list(labels)} if several else {"label": labels}),
            "top": [{"label": label, "probability": p} for label, p in best],
        }
        for name, labels, best in rows
    ])  # fmt: skip


@commands.command()
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def models(pattern: str, as_json: bool) -> None:
    """List the networks whose name matches PATTERN, such as "resnet*" or "timm:vit_tiny*"."""
    from linnaeus.models.registry import list_models

    entries = list_models(pattern)
    if as_json:
        print_json([{"name": e.name, "about": e.about, "weights": e.weights, "licence": e.licence} for e in entries])
        return
    for entry in entries:
        weights = f"; weights: {entry.weights} ({entry.licence})" if entry.weights else ""
        click.echo(f"{entry.name:<24} {entry.about}{weights}")


@commands.command()
def settings() -> None:
    """List every setting with its default, what it does and what it accepts."""
    from linnaeus.config import Settings

    for name, default in Settings().to_dict().items():
        click.echo(f"{name:<18} {default!s:<8} {describe(name)}")
