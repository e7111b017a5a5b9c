"""The entrance: runs a command, and turns whatever ends it into an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence

import click

from linnaeus.cli import combining, judging, serving, training, using  # noqa: F401  (imported for the commands that they add)
from linnaeus.cli.root import commands
from linnaeus.config import RULES
from linnaeus.errors import LinnaeusError, explain_missing


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
