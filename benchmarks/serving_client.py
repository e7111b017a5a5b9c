"""Ask a server of pictures, as many clients at once. Knows nothing of linnaeus.

python serving_client.py PORT FOLDER --clients 16 --seconds 5 [--rate 300]

Without a rate each client asks again as soon as it was answered (closed loop); with one, requests begin at so many a
second in all, whether earlier ones were answered or not (open loop). Prints one JSON object: for each status, how many
answers there were and the seconds each took.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from pathlib import Path


class Client:
    """Connections to one server, and what came of the requests on them."""

    def __init__(self, port: int, pictures: list[bytes]) -> None:
        self._port = port
        self._requests = itertools.cycle([
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            for data in pictures
        ])  # fmt: skip
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.seconds: dict[str, list[float]] = {}

    async def ask(self) -> None:
        """Send one request and note its status and time."""
        start = time.perf_counter()
        try:
            status = await self._exchange()
        except (OSError, asyncio.IncompleteReadError, IndexError):
            status = "failed"
        self.seconds.setdefault(status, []).append(time.perf_counter() - start)

    async def _exchange(self) -> str:
        pair = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = pair
        writer.write(next(self._requests))
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        self._idle.append(pair)
        return head.split()[1].decode()


async def closed_loop(client: Client, clients: int, seconds: float) -> None:
    """Let clients ask one request after the other."""
    end = time.perf_counter() + seconds

    async def one() -> None:
        while time.perf_counter() < end:
            await client.ask()

    await asyncio.gather(*(one() for _ in range(clients)))


async def open_loop(client: Client, rate: float, seconds: float) -> None:
    """Begin requests at a fixed rate."""
    start, running = time.perf_counter(), set()
    for i in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + i / rate - time.perf_counter()))
        task = asyncio.create_task(client.ask())
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


def main() -> None:
    """Ask, and print what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float)
    options = parser.parse_args()
    client = Client(options.port, [path.read_bytes() for path in sorted(options.folder.rglob("*.jpg"))])
    start = time.perf_counter()
    if options.rate is None:
        asyncio.run(closed_loop(client, options.clients, options.seconds))
    else:
        asyncio.run(open_loop(client, options.rate, options.seconds))
    print(json.dumps({"wall": time.perf_counter() - start, "seconds": client.seconds}))


if __name__ == "__main__":
    main()
