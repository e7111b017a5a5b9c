"""Commands that make one bundle of others: ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from linnaeus.cli.root import commands, print_json


@commands.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new bundle's folder, new or empty.")
@click.option("--data", help="What the members were trained on: their common test images judge the ensemble.")
@click.option("--how", default="mean", show_default=True, help="mean, weighted, greedy or soup.")
@click.option("--tta", default="none", show_default=True, help="Views that answer: none, flip, shifts or flip_shifts.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
def ensemble(bundles: tuple[str, ...], out: Path, data: str | None, how: str, tta: str, as_json: bool) -> None:
    """Make one bundle of several BUNDLEs (or run folders) with the same classes, or of one with several views.

    mean averages their probabilities; weighted fits the weights and greedy picks members, both on the images that are
    validation in every member; soup averages the weights of members of one architecture into one network.
    """
    from linnaeus.display import Terminal
    from linnaeus.ensembles.assembly import ensemble as combine

    found = combine(bundles, out=out, data=data, how=how, tta=tta, display=Terminal())
    print_json(found.to_dict()) if as_json else _tell(found)


def _tell(found: Any) -> None:
    rows = [(member.name, f"{member.weight:.3f}", member.scores) for member in found.members]
    rows.append(("ensemble", "", found.scores))
    width = max(len("member"), *(len(name) for name, _, _ in rows))
    parts = list(found.scores)
    click.echo(f"{'member':<{width}}  weight" + "".join(f"  {part + ' accuracy':>26}" for part in parts))
    for name, weight, scores in rows:
        told = "".join(f"  {scores[part].accuracy.percent():>26}" for part in parts)
        click.echo(f"{name:<{width}}  {weight:>6}{told}")
    if found.networks > 1:
        click.echo(f"Each answer takes {found.networks} networks' time.")
    click.echo(f"Bundle: {found.folder}")
