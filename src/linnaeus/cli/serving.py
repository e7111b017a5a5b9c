"""The command that answers over HTTP: serve."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from linnaeus.cli.root import commands


@commands.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need a token.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="How many processes answer.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Whoever asks must send what is in it: Authorization: Bearer ...",
)
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME", help="A further name under which clients may call."
)
def serve(
    bundles: tuple[str, ...], host: str, port: int, workers: int, token_file: Path | None, hosts: tuple[str, ...]
) -> None:
    """Answer over HTTP with each BUNDLE (or run folder); NAME=BUNDLE gives it a name.

    \b
    curl --data-binary @cat.jpg http://127.0.0.1:8000/classify

    A bundle that is exchanged on the disk is exchanged in the service, without a failed request, once it has proved to
    be good. SIGTERM and Ctrl-C finish what was accepted and end with exit code 0.
    """  # noqa: D301  (click wants the character itself)
    from linnaeus.serving.supervisor import serve as run_service
    from linnaeus.serving.terms import Terms, name_bundles

    token = os.path.abspath(token_file) if token_file is not None else None
    named = name_bundles(bundles)
    sys.exit(run_service(Terms(bundles=named, host=host, port=port, workers=workers, token_file=token, hosts=hosts)))
