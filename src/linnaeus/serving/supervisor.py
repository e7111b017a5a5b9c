"""The process that keeps the others alive: holds the socket, starts workers, replaces those that die, ends them all.

It loads neither the network nor the web framework, so that hardly anything can bring it down. The socket is its own:
while a worker is replaced, new connections wait for the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from linnaeus.errors import MissingExtraError, SettingError
from linnaeus.serving.terms import Terms, check_terms

_SILENCE = 30.0  # seconds without a sign of life after which a worker is taken for dead
_OPENING = 300.0  # the same for one that is not ready yet
_QUICK = 5.0  # a worker that lived for less is not replaced at once
_LONGEST_DELAY = 10.0
_BACKLOG = 2048
_NEEDED = ("starlette", "uvicorn", "h11", "python_multipart", "prometheus_client")
_log = logging.getLogger("linnaeus.serving")


@dataclass(kw_only=True, eq=False)
class _Worker:
    """A process, our end of its channel, when it was started and last heard of, and whether it ever was ready."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    started: float
    heard: float
    ready: bool = False


def serve(terms: Terms) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code: 0 if every accepted request was answered.

    Raises SettingError for terms that are not allowed or an address that is not free, MissingExtraError.
    """
    for package in _NEEDED:  # only the workers import them
        if find_spec(package) is None:
            raise MissingExtraError(package, extra="serve")
    check_terms(terms)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with _listen(terms) as listener, tempfile.TemporaryDirectory(prefix="linnaeus-serve-") as metrics:
        return _Supervisor(terms, listener, Path(metrics)).run()


def _listen(terms: Terms) -> socket.socket:
    family = socket.AF_INET6 if ":" in terms.host else socket.AF_INET
    try:
        return socket.create_server((terms.host, terms.port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        got = f"{terms.host}:{terms.port}: {error}"
        raise SettingError("an address that is free", got=got, fix="Choose another --port or --host.") from None


class _Supervisor:
    def __init__(self, terms: Terms, listener: socket.socket, metrics: Path) -> None:
        self._terms, self._listener, self._metrics = terms, listener, metrics
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._announced = False
        self._stopping = 0  # how many signals came
        self._deadline = 0.0
        self._code = 0
        self._quick = 0  # workers in a row that died soon
        self._next = 0.0  # when another may be started

    def run(self) -> int:
        """Start, watch and end workers; return the exit code."""
        with self._signals():
            self._start()
            while self._workers or not self._stopping:
                self._fill()
                for key, _ in self._selector.select(0.2):
                    if isinstance(key.data, _Worker):
                        self._hear(key.data)
                    else:
                        self._wakeup.recv(64)
                self._end_silent()
        return self._code

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Count SIGTERM and SIGINT, and wake up for them."""
        self._wakeup, bell = socket.socketpair()
        bell.setblocking(False)
        before = signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        self._selector.register(self._wakeup, selectors.EVENT_READ, None)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            for worker in self._workers:
                worker.process.kill()
            for each in (self._wakeup, bell, self._selector):
                each.close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        descriptors = (self._listener.fileno(), theirs.fileno())
        command = [sys.executable, "-m", "linnaeus.serving.worker", self._terms.to_json(), *map(str, descriptors)]
        # prometheus-client finds the folder by this name
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(self._metrics)}
        process = subprocess.Popen(command, pass_fds=descriptors, env=environment, stdin=subprocess.DEVNULL)  # noqa: S603
        theirs.close()
        now = time.monotonic()
        worker = _Worker(process=process, channel=ours, started=now, heard=now)
        self._workers.append(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _fill(self) -> None:
        """Start what is missing: first one alone, which finds what is wrong, then the others."""
        alone = len(self._workers) == 1 and not self._workers[0].ready
        if self._stopping or alone:
            return
        while len(self._workers) < self._terms.workers and time.monotonic() >= self._next:
            self._start()

    def _hear(self, worker: _Worker) -> None:
        with contextlib.suppress(OSError):
            if worker.channel.recv(64):
                worker.heard = time.monotonic()
                self._welcome(worker)
                return
        self._bury(worker)

    def _welcome(self, worker: _Worker) -> None:
        worker.ready = True
        if not self._announced and sum(each.ready for each in self._workers) == self._terms.workers:
            self._announced = True
            _log.info("Serving %s on %s", ", ".join(self._terms.bundles), _address(self._listener))

    def _bury(self, worker: _Worker) -> None:
        """Forget a worker that has ended, and decide what follows from how it did."""
        self._selector.unregister(worker.channel)
        worker.channel.close()
        self._workers.remove(worker)
        code = worker.process.wait()
        for file in self._metrics.glob(f"gauge_live*_{worker.process.pid}.db"):
            file.unlink()
        if self._stopping:
            self._code = self._code or int(code != 0 and worker.ready)
        elif not self._announced and not worker.ready:
            self._give_up(code)
        else:
            self._replace(worker, code)

    def _give_up(self, code: int) -> None:
        """End: the first worker could not even begin, and it has said why unless it was killed."""
        if code < 0:
            _log.error("The bundles could not be opened: the process ended by signal %d", -code)
        self._code = code if code > 0 else 1
        self._stop(signal.SIGTERM, None)

    def _replace(self, worker: _Worker, code: int) -> None:
        lived = time.monotonic() - worker.started
        self._quick = self._quick + 1 if lived < _QUICK else 0
        delay = min(_LONGEST_DELAY, 0.1 * 2**self._quick) if self._quick > 1 else 0.0
        self._next = time.monotonic() + delay
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        _log.warning("Worker %d ended by %s and is replaced", worker.process.pid, ending)

    def _stop(self, number: int, _: object) -> None:
        """Ask all workers to finish; on a second signal, end them."""
        self._stopping += 1
        limits = self._terms.limits
        self._deadline = time.monotonic() + limits.linger + limits.grace + 1
        if self._stopping > 1:
            self._code = 128 + number
        for worker in self._workers:
            worker.process.send_signal(signal.SIGTERM if self._stopping == 1 else signal.SIGKILL)

    def _end_silent(self) -> None:
        """Kill workers that have said nothing for too long, or that do not come to an end."""
        now = time.monotonic()
        for worker in self._workers:
            patience = _SILENCE if worker.ready else _OPENING
            if now - worker.heard > patience or (self._stopping and now > self._deadline):
                worker.process.kill()


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
