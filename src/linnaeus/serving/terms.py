"""On which terms a service runs: what it serves, where, to whom, and within which limits."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linnaeus.errors import SettingError

_MIB = 2**20
_SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask for, and how long things may take. Sizes in bytes, times in seconds.

    Attributes:
        body: of one request. bodies: of all requests that a worker is reading at one time.
        images: in one request. queue: images that are being decoded, waiting or computed in a worker.
        batch: most images in one run of the network. window: longest wait of an image for company in its batch.
        longest_wait: requests are refused while those before them will take longer than this.
        header, body_start, write: a client that needs longer to send a request's head, or to take an answer, is cut
            off; for a body it has `body_start` and a second more for each `body_rate` bytes that came.
        connections: open at one time in a worker.
        linger: after SIGTERM new requests are still taken for so long, while /readyz already says no.
        grace: after that, requests that were accepted are finished for at most so long.
        watch: between two looks at the bundles' files.
    """

    body: int = 10 * _MIB
    bodies: int = 64 * _MIB
    images: int = 32
    queue: int = 128
    batch: int = 2
    window: float = 0.002
    longest_wait: float = 5.0
    header: float = 5.0
    body_start: float = 15.0
    body_rate: int = 64 * 1024
    write: float = 15.0
    connections: int = 1000
    linger: float = 1.0
    grace: float = 20.0
    watch: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What `linnaeus serve` was told. `bundles` are absolute paths by the name under which each is served.

    `hosts` are names under which clients may reach the service, besides localhost and addresses in figures.
    """

    bundles: Mapping[str, str]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    token_file: str | None = None
    hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def to_json(self) -> str:
        """Return the terms as a text that `from_json` reads, for another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Terms:
        """Return the terms that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(**values | {"hosts": tuple(values["hosts"]), "limits": Limits(**values["limits"])})

    def read_token(self) -> bytes | None:
        """Return the token that clients must send, or None where none is asked for. Raises SettingError."""
        if self.token_file is None:
            return None
        try:
            token = Path(self.token_file).read_bytes().strip()
        except OSError as error:
            raise SettingError("a file with a token", got=str(error), fix="Check --token-file.") from None
        if len(token) < _SHORTEST_TOKEN or not re.fullmatch(rb"[\x21-\x7e]+", token):
            raise SettingError(
                f"a token of {_SHORTEST_TOKEN} or more printable characters without spaces in {self.token_file}",
                got=f"{len(token)} bytes",
                fix="Make one with: python -c 'import secrets; print(secrets.token_urlsafe())'",
            )
        return token


def check_terms(terms: Terms) -> None:
    """Refuse terms under which strangers could use the service unasked. Raises SettingError."""
    if terms.token_file is None and not is_loopback(terms.host):
        raise SettingError(
            f"a token for an address that others can reach ({terms.host})",
            got="none",
            fix="Give --token-file FILE, or leave --host at 127.0.0.1.",
        )
    terms.read_token()


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def name_bundles(arguments: Sequence[str]) -> dict[str, str]:
    """Return absolute paths by name for arguments PATH or NAME=PATH. Raises SettingError.

    A run or a bundle is called after its folder; the folder `bundle` within a run after the run.
    """
    named: dict[str, str] = {}
    for argument in arguments:
        name, path = _split(argument)
        if name in named or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise SettingError(
                "a different name of letters, figures, dots, dashes and underscores for each bundle",
                got=repr(name),
                fix=f"Write NAME={path}",
            )
        named[name] = path
    return named


def _split(argument: str) -> tuple[str, str]:
    name, equals, path = argument.partition("=")
    if equals and not os.path.exists(argument):
        return name, os.path.abspath(path)
    whole = Path(os.path.abspath(argument))
    return (whole.parent.name if whole.name == "bundle" else whole.name), str(whole)
