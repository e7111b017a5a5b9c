"""Who may ask what: the name that a client called us by, the page that a request comes from, the token."""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from linnaeus.serving.terms import Terms

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

# On every answer, unless the answer brings its own.
SECURITY_HEADERS: Mapping[str, str] = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a request is not let in: an HTTP status, a sentence, and headers that belong to it."""

    status: int
    message: str
    headers: Mapping[str, str]


class Guard:
    """Decides by the head of a request alone. `open_paths` need no token."""

    def __init__(self, terms: Terms, *, open_paths: Collection[str]) -> None:
        self._token = terms.read_token()
        self._open = frozenset(open_paths)
        self._hosts = {"localhost", terms.host.lower(), socket.gethostname().lower(), *map(str.lower, terms.hosts)}

    def refusal(self, method: str, path: str, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a request is refused, or None. `headers` are by names in lower case."""
        host = headers.get("host", "")
        if not self._is_ours(host):
            return Refusal(status=421, message="Expected a Host that is served here. See --allow-host.", headers={})
        if method not in SAFE_METHODS and not _same_origin(headers.get("origin"), host):
            return Refusal(status=403, message="Expected no request from another site's page.", headers={})
        if self._token is not None and path not in self._open and not self._knows(headers.get("authorization", "")):
            return Refusal(
                status=401,
                message="Expected the header Authorization: Bearer TOKEN.",
                headers={"www-authenticate": "Bearer"},
            )
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names us, or an address in figures, which no foreign name can be made to lead to."""
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d+)?", host)
        if match is None:
            return False
        name = match[1].lower()
        return name in self._hosts or _is_address(name.strip("[]"))

    def _knows(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        known = self._token or b""
        return hmac.compare_digest(token.strip().encode("latin-1", "replace"), known) and scheme.lower() == "bearer"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _same_origin(origin: str | None, host: str) -> bool:
    """Whether a request comes from no page, or from one of ours. The scheme may differ behind a proxy."""
    return origin is None or origin.partition("://")[2].lower() == host.lower()
