"""uvicorn's connection with the deadlines that it lacks: no client may keep one open by doing nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from linnaeus.serving.guard import SECURITY_HEADERS
from linnaeus.serving.terms import Limits


class Connection(H11Protocol):
    """An HTTP/1.1 connection that is cut when the client owes us something for too long.

    Owed are: the head of a request, from the opening of the connection or the last answer on; the rest of a body that
    was answered before it had come; and the taking of an answer. The body of a request that is being read has a
    deadline in `Intake`.
    """

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection, unless there are too many."""
        self._deadline: asyncio.TimerHandle | None = None
        self._unread = False
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forgive()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, and see what is still owed."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on after an answer, and see what is owed then."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Wait for a client that does not take its answer, but not for ever."""
        super().pause_writing()
        self._unread = True
        self._watch()

    def resume_writing(self) -> None:
        """Go on: the client took something of its answer."""
        super().resume_writing()
        self._unread = False
        self._watch()

    def shutdown(self) -> None:
        """Finish what was begun, and take a request that may be under way on a connection that is idle now."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            return
        self._forgive()
        self._deadline = self.loop.call_later(self.limits.linger, self._cut)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as everything else is answered."""
        headers = [*SECURITY_HEADERS.items(), ("content-type", "application/json"), ("connection", "close")]
        body = b'{"error": "Expected a request in HTTP/1.1."}'
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = [(name.encode(), value.encode()) for name, value in headers]
            events: list[Any] = [h11.Response(status_code=400, headers=head), h11.Data(data=body), h11.EndOfMessage()]
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _owes(self) -> bool:
        if self._unread or self.conn.their_state is h11.IDLE:
            return True
        answered = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        return answered and self.conn.their_state is h11.SEND_BODY

    def _watch(self) -> None:
        """Start the clock when the client begins to owe something, and stop it when it no longer does."""
        if not self._owes():
            self._forgive()
        elif self._deadline is None:
            seconds = self.limits.write if self._unread else self.limits.header
            self._deadline = self.loop.call_later(seconds, self._cut)

    def _forgive(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _cut(self) -> None:
        self._deadline = None
        self.transport.abort()


def connection_within(limits: Limits) -> type[Connection]:
    """Return the class of connections with these limits, which uvicorn makes an object of for each."""
    return type("Connection", (Connection,), {"limits": limits})
