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
@click.option("--small", is_flag=True, help="Only networks for small machines, some of timm's among them.")
@click.option("--measure", is_flag=True, help="Measure the milliseconds that one picture takes on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def models(pattern: str, small: bool, measure: bool, as_json: bool) -> None:
    """List networks, what they weigh and how much they compute.

    PATTERN is such as "resnet*", "timm:vit_tiny*" or "torchvision:*". Of more than 30 networks of other libraries only
    the names are listed.

    Multiply-adds are those of one colour picture of the side shown in convolutions, linear layers and attention.
    Networks for more than 64 pixels are counted with 1,000 classes, the others with 10. Measured is one picture
    through ONNX Runtime, as deployed, with all cores: the median of 15 runs.
    """
    from linnaeus.catalogue import choose_networks, describe_networks
    from linnaeus.display import Terminal

    display = Terminal()
    rows = describe_networks(choose_networks(pattern, small=small), measure=measure, display=display)
    print_json(rows) if as_json else _tell_models(rows, measure=measure)


def _tell_models(rows: list[dict[str, Any]], *, measure: bool) -> None:
    width = max([24, *(len(row["name"]) for row in rows)])
    columns = {"parameters": "parameters", "multiply_adds": "multiply-adds", "size": "pixels"}
    columns |= {"milliseconds": "ms"} if measure else {}
    click.echo(f"{'name':<{width}} " + "".join(f"{title:>15}" for title in columns.values()) + "  about")
    for row in rows:
        numbers = "".join(f"{_number(row[name]):>15}" for name in columns)
        weights = f"; weights: {row['weights']} ({row['licence']})" if row["weights"] else ""
        small = "; for small machines" if row["small"] else ""
        click.echo(f"{row['name']:<{width}} {numbers}  {row['about']}{small}{weights}")


def _number(value: float | None) -> str:
    """Return a number as people read it: 1,234 or 1.234; a hyphen where it is not known."""
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}"


@commands.command()
def settings() -> None:
    """List every setting with its default, what it does and what it accepts."""
    from linnaeus.config import Settings

    for name, default in Settings().to_dict().items():
        click.echo(f"{name:<18} {default!s:<8} {describe(name)}")
