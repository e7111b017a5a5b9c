"""The root of all commands, and what they share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from linnaeus.config import describe, parse_pairs
from linnaeus.errors import SettingError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="linnaeus")
def commands() -> None:
    """Name what is in a picture: train, judge and use an image classifier.

    \b
    linnaeus train FOLDER                a folder with a folder of pictures for each class
    linnaeus predict RUN PICTURE.jpg     what is in it
    """  # noqa: D301  (click wants the character itself)


def settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags that are used most; every setting can be given as key=value."""
    for name in reversed(("model", "epochs", "budget", "seed")):
        function = click.option(f"--{name}", metavar=name.upper(), help=describe(name))(function)
    return function


def read_settings(pairs: tuple[str, ...], flags: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of key=value pairs and of flags. Raises SettingError for one that is given twice."""
    settings: dict[str, Any] = dict(parse_pairs(pairs))
    given = {name: value for name, value in flags.items() if value is not None}
    if twice := settings.keys() & given.keys():
        raise SettingError("each setting once", got=f"two values for {', '.join(twice)}", fix="Leave one of them out.")
    return settings | given


def print_json(document: Any) -> None:
    """Print a document of JSON values."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))
