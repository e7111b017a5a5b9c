"""One process of the service: opens the bundles, answers on the shared socket, and leaves when it is told to.

It speaks with the supervisor through a channel: a byte each second says that it is well, the first that it is ready.
When the channel ends, the supervisor has gone, and so does the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from linnaeus.errors import LinnaeusError
from linnaeus.serving.app import OPEN_PATHS, create_app
from linnaeus.serving.connection import connection_within
from linnaeus.serving.guard import Guard
from linnaeus.serving.metrics import Metrics
from linnaeus.serving.service import Service
from linnaeus.serving.shelf import OpenModel, Shelf
from linnaeus.serving.terms import Terms

BEAT = 1.0  # seconds between two signs of life
_log = logging.getLogger("linnaeus.serving")


def work(terms: Terms, listener: socket.socket, channel: socket.socket) -> None:
    """Serve until SIGTERM, SIGINT or the end of the supervisor. Raises BundleError."""
    metrics = Metrics()
    threads = max(1, _available_cores() // terms.workers)

    def note_change(old: OpenModel, new: OpenModel | None) -> None:
        metrics.changed(old.name, taken=new is not None)
        if new is not None:
            metrics.serves(old.name, old.version, now=False)
            metrics.serves(new.name, new.version, now=True)

    shelf = Shelf(terms.bundles, on_change=note_change)
    for model in shelf:
        metrics.serves(model.name, model.version, now=True)
    service = Service(shelf, limits=terms.limits, metrics=metrics, threads=threads)
    app = create_app(service, Guard(terms, open_paths=OPEN_PATHS))
    asyncio.run(_serve(_Server(_configure(app, terms)), service, listener, channel))


def _available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which end the process by the signal they were given."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the worker."""
        yield


def _configure(app: object, terms: Terms) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=connection_within(terms.limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(terms.limits.header)),
        timeout_graceful_shutdown=terms.limits.grace,  # type: ignore[arg-type]
    )


async def _serve(server: _Server, service: Service, listener: socket.socket, channel: socket.socket) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    channel.setblocking(False)
    loop.add_reader(channel, _hear, channel, stop)
    tasks = [
        asyncio.create_task(_beat(server, channel)),
        asyncio.create_task(_watch(service)),
        asyncio.create_task(_drain(server, service, stop)),
    ]
    await server.serve(sockets=[listener])
    for task in tasks:
        task.cancel()
    loop.remove_reader(channel)
    service.close()


def _hear(channel: socket.socket, stop: asyncio.Event) -> None:
    """Stop when the supervisor has gone."""
    with contextlib.suppress(BlockingIOError):
        if not channel.recv(1):
            stop.set()


async def _beat(server: uvicorn.Server, channel: socket.socket) -> None:
    """Tell the supervisor each second that this process is well, once it is ready."""
    while not server.started:
        await asyncio.sleep(0.005)
    while True:
        with contextlib.suppress(OSError):  # it has gone, or is so busy that it has read none of the last
            channel.send(b".")
        await asyncio.sleep(BEAT)


async def _watch(service: Service) -> None:
    """Look at the bundles' files again and again."""
    while True:
        await asyncio.sleep(service.limits.watch)
        try:
            await asyncio.to_thread(service.shelf.refresh)
        except Exception:  # whatever happens to a new bundle, the old one goes on answering
            _log.exception("A new bundle could not be looked at")


async def _drain(server: uvicorn.Server, service: Service, stop: asyncio.Event) -> None:
    """When told to stop: say so, take what still comes for a moment, then let uvicorn finish what it has."""
    await stop.wait()
    service.draining = True
    end = asyncio.get_running_loop().time() + service.limits.linger
    while server.server_state.connections and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(0.02)
    server.should_exit = True


def main() -> None:
    """Do what `python -m linnaeus.serving.worker TERMS LISTENER CHANNEL` asks, the last two being descriptors."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for name in ("uvicorn.error", "python_multipart"):  # they warn of what any client may send
        logging.getLogger(name).setLevel(logging.ERROR)
    terms, listener, channel = sys.argv[1:]
    try:
        work(Terms.from_json(terms), socket.socket(fileno=int(listener)), socket.socket(fileno=int(channel)))
    except LinnaeusError as error:  # the supervisor ends with this code if nobody was served yet
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
