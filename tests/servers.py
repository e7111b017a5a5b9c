"""What the tests of the service share: real servers on 127.0.0.1, and what clients say to them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commands import SOURCES
from linnaeus.serving.terms import Limits, Terms
from pictures import encode, scene

PROGRAM = "import sys; from linnaeus.serving.supervisor import serve; from linnaeus.serving.terms import Terms; " \
          "sys.exit(serve(Terms.from_json(sys.argv[1])))"  # fmt: skip
HEAVY = encode(np.zeros((6000, 6000), np.uint8), "PNG")  # few bytes, and a third of a second to decode


_PATIENCE = 120.0  # seconds after which a test that waits has failed


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, which is JSON."""
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running service."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int

    def said(self) -> str:
        """Return all that it told so far."""
        return self.log.read_text()

    def connect(self) -> http.client.HTTPConnection:
        """Return a new connection, which opens with the first request."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send one request on a connection of its own; header names are written with underscores."""
        with contextlib.closing(self.connect()) as connection:
            return ask(connection, method, path, body, **headers)

    def get(self, path: str, **headers: str) -> Reply:
        """Send a GET request."""
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        """Send a POST request."""
        return self.ask("POST", path, body, **headers)

    def metric(self, line: str) -> float:
        """Return the value of a line of /metrics, 0 if it is not there."""
        text = self.get("/metrics").body.decode()
        match = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(match[1]) if match else 0.0

    def workers(self) -> list[int]:
        """Return the numbers of its workers' processes."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    """Send a request on a connection and return the whole answer."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given, encode_chunked=isinstance(body, Iterator))
    answer = connection.getresponse()
    found = {name.lower(): value for name, value in answer.getheaders()}
    return Reply(status=answer.status, headers=found, body=answer.read())


@contextlib.contextmanager
def serving(
    folder: Path, bundles: Mapping[str, Path], *, limits: Limits | None = None, **terms: Any
) -> Iterator[Server]:
    """Run a service on a free port until the block ends; it must have ended well by itself, or end well then."""
    paths = {name: str(path) for name, path in bundles.items()}
    told = Terms(bundles=paths, port=0, limits=limits or Limits(linger=0.2), **terms)
    log = folder / "said"
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, told.to_json()], env=environment, stderr=stream)
    try:
        wait_until(lambda: b" INFO Serving " in log.read_bytes() or process.poll() is not None)
        found = re.search(r"http://\S+:(\d+)", log.read_text())
        assert found is not None, log.read_text()
        yield Server(process=process, log=log, port=int(found[1]))
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until(met: Callable[[], bool]) -> None:
    """Wait until a condition is met."""
    end = time.monotonic() + _PATIENCE
    while not met():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def form(files: Mapping[str, bytes], *, field: str = "file") -> tuple[bytes, str]:
    """Return the body of a multipart form of files by name, and its content type."""
    parts = [
        f'--edge\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files.items()
    ]
    return b"".join(parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def picture(seed: int = 0, kind: str = "PNG") -> bytes:
    """Return a file with a picture that belongs to the seed."""
    return encode(scene(20, 20, seed=seed), kind)


def seconds_of(function: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.monotonic()
    function()
    return time.monotonic() - start


def is_running(pid: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


on_linux = os.path.isdir("/proc/self/task")
