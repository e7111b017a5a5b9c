"""Commands that learn: train, demo, crossval, tune."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import click

from linnaeus.cli.root import commands, print_json, read_settings, settings_options
from linnaeus.config import describe

_STARTED = time.perf_counter()


@commands.command()
@click.argument("data", required=False)
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@settings_options
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder, new or empty. Default: runs/NAME-1, ..."
)
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with an interrupted run, with its settings.")
@click.option("--find-lr", is_flag=True, help="Only try which learning rates suit, and draw the curve.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
def train(data: str | None, pairs: tuple[str, ...], resume: Path | None, find_lr: bool, **flags: Any) -> None:
    """Train a classifier on DATA and write a run folder with its bundle and report.

    DATA is a folder with a folder of pictures for each class (split into train, val and test or not), a CSV or
    Parquet table of paths and labels, an .npz file, or a named set: digits, mnist, fashion_mnist, cifar10, cifar100.

    A picture has one label, or any number: label_separator=";" reads several from a cell of a table, and so do columns
    of lists in Parquet, and label_columns=a,b,c, columns of 0 and 1.

    Every setting can be given as KEY=VALUE; `linnaeus settings` lists them.
    """
    if data is not None and "=" in data and not os.path.exists(data):
        pairs, data = (data, *pairs), None
    out, as_json = flags.pop("out"), flags.pop("as_json")
    settings = read_settings(pairs, flags)
    if not find_lr:
        _train(data, settings, out=out, resume=resume, as_json=as_json)
    elif resume is not None:
        raise click.UsageError("--find-lr and --resume cannot be given together.")
    else:
        _find_lr(data, settings, out=out, as_json=as_json)


def _find_lr(data: str | None, settings: dict[str, Any], *, out: Path | None, as_json: bool) -> None:
    from linnaeus.display import Terminal
    from linnaeus.runs import find_lr

    found, page = find_lr(data, out=out, display=Terminal(), **settings)
    facts = found.to_dict()
    if as_json:
        print_json({"page": str(page), **facts})
        return
    if facts["steepest"] is None:
        click.echo("The loss did not fall at any learning rate.")
    else:
        click.echo(f"The loss fell fastest at lr={found.steepest:.2g}.")
        click.echo(f"A tenth of the rate with the lowest loss is lr={found.tenth:.2g}.")
        told = " ".join(shlex.quote(f"{name}={value}") for name, value in settings.items() if name != "lr")
        click.echo(f"Next:  linnaeus train {shlex.quote(data or '')} {told}{' ' * bool(told)}lr={found.steepest:.2g}")
    click.echo(f"Curve: {page}")


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
        print_json({"folder": result.folder, "bundle": result.bundle, "report": result.report, "scores": scores})
    else:
        _tell_result(result)
    if result.signal:
        sys.exit(128 + result.signal)


def _tell_result(result: Any) -> None:
    folder = shlex.quote(result.folder)
    click.echo(err=True)
    for part, scores in result.scores.items():
        found = ", ".join(f"{name} {value.percent()}" for name, value in scores.headlines.items() if "loss" not in name)
        click.echo(f"{part}: {scores.n:,} images, {found}, with 95 % intervals", err=True)
    if result.stopped_early == "interrupted":
        click.echo(f"Interrupted. To go on: linnaeus train --resume {folder}", err=True)
    click.echo(f"Report:  {result.report}", err=True)
    click.echo(f"Bundle:  {result.bundle}", err=True)
    click.echo(f"Next:    linnaeus predict {folder} PICTURE.jpg", err=True)


@commands.command()
@click.argument("data")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@settings_options
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

    settings = read_settings(pairs, flags)
    found = cross_validate(data, folds=folds, repeats=repeats, out=out, display=Terminal(), **settings)
    if as_json:
        print_json(found.to_dict())
        return
    for fold in found.folds:
        click.echo(f"fold {fold.number}: {fold.scores.n:,} images, accuracy {fold.scores.accuracy.percent()}")
    click.echo(f"mean of {len(found.folds)} folds: {found.accuracy.percent()}, spread {100 * found.spread:.1f} points")
    click.echo(f"all {found.whole.n:,} images, each by a classifier that had not seen it: "
               f"accuracy {found.whole.accuracy.percent()}, macro F1 {found.whole.macro_f1.percent()}")  # fmt: skip
    click.echo(f"Answers: {Path(found.folder) / 'predictions.csv'}")


@commands.command()
@click.argument("data")
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...")
@settings_options
@click.option("--trials", type=click.IntRange(min=1), help="How many. Default: 20, or as many as --budget allows.")
@click.option("--search", default="", metavar="NAME[,NAME]", help="Settings to search. Default: all that matter here.")
@click.option("--space", is_flag=True, help="Only tell what would be searched.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of all trials. Default: runs/NAME-tune.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
def tune(data: str, pairs: tuple[str, ...], search: str, space: bool, as_json: bool, **flags: Any) -> None:
    """Try settings on DATA, keep what does best on validation, and judge it once on the test part.

    Takes DATA and settings as `train` does; a setting that is given is not searched. A budget is that of the whole
    search: each trial takes an equal share of it, or as many epochs as are given. Begun again, it goes on where it
    stopped.
    """
    from linnaeus.display import Terminal
    from linnaeus.tuning import tuner

    trials, out = flags.pop("trials"), flags.pop("out")
    settings = read_settings(pairs, flags)
    names = [name.strip() for name in search.split(",") if name.strip()]
    if space:
        _tell_space(tuner.show_space(data, search=names, display=Terminal(), **settings))
        return
    found = tuner.tune(data, trials=trials, search=names, out=out, display=Terminal(), **settings)
    print_json(found.to_dict()) if as_json else _tell_search(found)
    if found.signal:
        sys.exit(128 + found.signal)


def _tell_space(space: Any) -> None:
    for dimension in space:
        click.echo(f"{dimension.name:<18} {dimension}  (begins with {dimension.default})")


def _tell_search(found: Any) -> None:
    if found.signal:
        click.echo("Interrupted. To go on, type the same again.", err=True)
    if found.winner is None:
        return
    click.echo(f"Trial {found.winner.number} did best on validation.")
    for part, scores in found.scores.items():
        accuracy, f1 = scores.accuracy.percent(), scores.macro_f1.percent()
        click.echo(f"{part}: {scores.n:,} images, accuracy {accuracy}, macro F1 {f1}, with 95 % intervals")
    click.echo(f"Again:   {found.command}")
    click.echo(f"Page:    {found.report}")
    click.echo(f"Bundle:  {found.bundle}")
