"""The command line: one command per verb, no logic. Heavy parts are imported by the command that needs them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from linnaeus.config import RULES, describe, parse_pairs
from linnaeus.errors import LinnaeusError, SettingError, explain_missing

_STARTED = time.perf_counter()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="linnaeus")
def commands() -> None:
    """Name what is in a picture: train, judge and use an image classifier.

    \b
    linnaeus train FOLDER                a folder with a folder of pictures for each class
    linnaeus predict RUN PICTURE.jpg     what is in it
    """  # noqa: D301  (click wants the character itself)


def _settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags that are used most; every setting can be given as key=value."""
    for name in reversed(("model", "epochs", "budget", "seed")):
        function = click.option(f"--{name}", metavar=name.upper(), help=describe(name))(function)
    return function


@commands.command()
@click.argument("data", required=False)
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@_settings_options
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder, new or empty. Default: runs/NAME-1, ..."
)
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with an interrupted run, with its settings.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
def train(
    data: str | None, pairs: tuple[str, ...], out: Path | None, resume: Path | None, as_json: bool, **flags: Any
) -> None:
    """Train a classifier on DATA and write a run folder with its bundle and report.

    DATA is a folder with a folder of pictures for each class (split into train, val and test or not), a CSV or
    Parquet table of paths and labels, an .npz file, or a named set: digits, mnist, fashion_mnist, cifar10, cifar100.

    Every setting can be given as KEY=VALUE; `linnaeus settings` lists them.
    """
    if data is not None and "=" in data and not os.path.exists(data):
        pairs, data = (data, *pairs), None
    _train(data, _settings(pairs, flags), out=out, resume=resume, as_json=as_json)


def _settings(pairs: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of key=value pairs and of flags. Raises SettingError for one that is given twice."""
    settings: dict[str, Any] = dict(parse_pairs(pairs))
    given = {name: value for name, value in flags.items() if value is not None}
    if twice := settings.keys() & given.keys():
        raise SettingError("each setting once", got=f"two values for {', '.join(twice)}", fix="Leave one of them out.")
    return settings | given


@commands.command()
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder, new or empty. Default: runs/digits-1, ..."
)
@click.option("--seed", default="0", metavar="SEED", help=describe("seed"))
def demo(out: Path | None, seed: str) -> None:
    """Train on 1,797 scanned handwritten digits that need no download: the whole way in under a minute."""
    _train("digits", {"seed": seed}, out=out, resume=None, as_json=False)


def _train(data: str | None, settings: dict[str, Any], *, out: Path | None, resume: Path | None, as_json: bool) -> None:
    from linnaeus.display import Terminal
    from linnaeus.runs import train as run_training

    result = run_training(data, out=out, resume=resume, display=Terminal(), started=_STARTED, **settings)
    if not result.folder:  # a process that does not lead
        return
    if as_json:
        scores = {part: scores.to_dict() for part, scores in result.scores.items()}
        _print_json({"folder": result.folder, "bundle": result.bundle, "report": result.report, "scores": scores})
    else:
        _tell_result(result)
    if result.signal:
        sys.exit(128 + result.signal)


def _tell_result(result: Any) -> None:
    folder = shlex.quote(result.folder)
    click.echo(err=True)
    for part, scores in result.scores.items():
        accuracy, f1 = scores.accuracy.percent(), scores.macro_f1.percent()
        click.echo(f"{part}: {scores.n:,} images, accuracy {accuracy}, macro F1 {f1}, with 95 % intervals", err=True)
    if result.stopped_early == "interrupted":
        click.echo(f"Interrupted. To go on: linnaeus train --resume {folder}", err=True)
    click.echo(f"Report:  {result.report}", err=True)
    click.echo(f"Bundle:  {result.bundle}", err=True)
    click.echo(f"Next:    linnaeus predict {folder} PICTURE.jpg", err=True)


@commands.command()
@click.argument("data")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@_settings_options
@click.option("--folds", default=5, show_default=True, type=click.IntRange(min=2), help="K, the number of folds.")
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(min=1), help="How often all is repeated.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of all folds. Default: runs/NAME-crossval.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
def crossval(
    data: str, pairs: tuple[str, ...], folds: int, repeats: int, out: Path | None, as_json: bool, **flags: Any
) -> None:
    """Train and judge K times, so that every image of DATA is judged by a classifier that has not seen it.

    Takes DATA and settings as `train` does; a budget is that of each fold. Begun again, it goes on where it stopped.
    """
    from linnaeus.crossval import cross_validate
    from linnaeus.display import Terminal

    settings = _settings(pairs, flags)
    found = cross_validate(data, folds=folds, repeats=repeats, out=out, display=Terminal(), **settings)
    if as_json:
        _print_json(found.to_dict())
        return
    for fold in found.folds:
        click.echo(f"fold {fold.number}: {fold.scores.n:,} images, accuracy {fold.scores.accuracy.percent()}")
    click.echo(f"mean of {len(found.folds)} folds: {found.accuracy.percent()}, spread {100 * found.spread:.1f} points")
    click.echo(f"all {found.whole.n:,} images, each by a classifier that had not seen it: "
               f"accuracy {found.whole.accuracy.percent()}, macro F1 {found.whole.macro_f1.percent()}")  # fmt: skip
    click.echo(f"Answers: {Path(found.folder) / 'predictions.csv'}")


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
    _print_json(facts) if as_json else _tell_data(facts)


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
        _print_json({"split": judgement.part, **judgement.scores.to_dict()})
        return
    scores = judgement.scores
    click.echo(f"{judgement.part}: {scores.n:,} images")
    for name, value in (("accuracy", scores.accuracy), ("macro F1", scores.macro_f1), ("loss", scores.loss)):
        click.echo(f"  {name:<10} {value if name == 'loss' else value.percent()}")
    width = max(len(name) for name in scores.per_class)
    click.echo(f"\n  {'class':<{width}}  precision  recall      f1  support")
    for name, row in scores.per_class.items():
        click.echo(f"  {name:<{width}}  {row.precision:9.4f}  {row.recall:6.4f}  {row.f1:6.4f}  {row.support:7,}")


@commands.command()
@click.argument("bundle")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="How many classes to name.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--csv", "as_csv", is_flag=True, help="Print one CSV line per image and class.")
def predict(bundle: str, images: tuple[str, ...], top: int, as_json: bool, as_csv: bool) -> None:
    """Name what is in each IMAGE: files, folders, glob patterns, or - for one image on standard input.

    An image that cannot be read is named on standard error, and the exit code is then 2.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv cannot be given together.")
    from linnaeus.predictor import Predictor, expand_paths
    from linnaeus.results import BadImage

    bad: list[BadImage] = []
    predictor = Predictor(bundle)
    if images == ("-",):
        batches = iter([predictor.predict(sys.stdin.buffer.read())])
    else:
        batches = predictor.stream(expand_paths(images), on_bad=bad.append)
    rows = ((name, best) for batch in batches for name, best in zip(batch.names, batch.top(top)))
    (_print_csv if as_csv else _print_answers if not as_json else _print_answers_json)(rows)
    for image in bad:
        click.echo(f"unreadable: {image.path}: {image.reason}", err=True)
    if bad:
        sys.exit(2)


Rows = Any  # an iterable of (name, [(label, probability), ...])


def _print_csv(rows: Rows) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("image", "rank", "label", "probability"))
    for name, best in rows:
        writer.writerows((name, rank, label, f"{p:.6f}") for rank, (label, p) in enumerate(best, start=1))


def _print_answers(rows: Rows) -> None:
    for name, best in rows:
        click.echo(f"{name}: " + ", ".join(f"{label} {100 * p:.1f} %" for label, p in best))


def _print_answers_json(rows: Rows) -> None:
    _print_json([
        {"image": name, "label": best[0][0], "top": [{"label": label, "probability": p} for label, p in best]}
        for name, best in rows
    ])  # fmt: skip


@commands.command()
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def models(pattern: str, as_json: bool) -> None:
    """List the networks whose name matches PATTERN, such as "resnet*" or "timm:vit_tiny*"."""
    from linnaeus.models.registry import list_models

    entries = list_models(pattern)
    if as_json:
        _print_json([{"name": e.name, "about": e.about, "weights": e.weights, "licence": e.licence} for e in entries])
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


@commands.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Tell what a RUN found, and where its page lies."""
    from linnaeus.reporting.page import tell_report
    from linnaeus.runfolder import read_report

    click.echo(tell_report(read_report(run)))
    click.echo(f"\nPage: {run / 'report.html'}")


def _print_json(document: Any) -> None:
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: exit code 0, 2 for a user's mistake, 1 for our bug, 128 + n for signal n."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what the terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _run(arguments)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except LinnaeusError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        number = getattr(error, "number", signal.SIGINT)
        click.echo("Stopped before there was anything to keep.", err=True)
        sys.exit(128 + int(number))
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


@contextlib.contextmanager
def _hints() -> Iterator[None]:
    """Tell who writes a setting as a flag how it is written."""
    try:
        yield
    except click.NoSuchOption as error:
        name = error.option_name.lstrip("-").replace("-", "_")
        if name not in RULES:
            raise
        raise click.UsageError(f"No such option {error.option_name!r}. Write {name}=VALUE.", error.ctx) from None


def _run(arguments: Sequence[str] | None) -> None:
    """Run a command without click's own main, which makes other errors and exit codes of signals and broken pipes."""
    if "_LINNAEUS_COMPLETE" in os.environ:  # the shell asks what the tabulator key may complete
        commands(prog_name="linnaeus")
    try:
        with (
            _hints(),
            commands.make_context("linnaeus", list(sys.argv[1:] if arguments is None else arguments)) as context,
        ):
            commands.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except ModuleNotFoundError as error:
        raise explain_missing(error) from None
