"""What a client sends, taken in within limits of size and time, and split into pictures."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from linnaeus.serving.batcher import OverloadedError
from linnaeus.serving.service import Upload
from linnaeus.serving.terms import Limits

_RETRY = 1  # seconds: bodies that fill the memory now are decoded or given up soon


class IntakeError(Exception):
    """A request that cannot be taken in. `status` is the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Intake:
    """Reads the bodies of requests; knows how much all of them hold in memory at one time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Give a request's body for as long as the block needs it. Raises IntakeError, OverloadedError.

        What is too large is refused as soon as it is known: by the header, or at the first byte too many.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise IntakeError(415, "Expected a body that is not compressed. Send it as it is.")
        declared = request.headers.get("content-length", "0")
        if int(declared) > self._limits.body:  # h11 lets figures pass only
            raise self._too_large()
        received = bytearray()
        try:
            await self._receive(request, received)
            yield bytes(received)
        finally:
            self._held -= len(received)

    async def _receive(self, request: Request, received: bytearray) -> None:
        try:
            async with asyncio.timeout(self._limits.body_start) as clock:
                start = asyncio.get_running_loop().time() + self._limits.body_start
                async for chunk in request.stream():
                    self._take(received, chunk)
                    clock.reschedule(start + len(received) / self._limits.body_rate)
        except TimeoutError:
            raise IntakeError(408, "Expected the whole body in time. Send it faster, or a smaller picture.") from None

    def _take(self, received: bytearray, chunk: bytes) -> None:
        if len(received) + len(chunk) > self._limits.body:
            raise self._too_large()
        if self._held + len(chunk) > self._limits.bodies:
            raise OverloadedError(_RETRY)
        received += chunk
        self._held += len(chunk)

    def _too_large(self) -> IntakeError:
        return IntakeError(413, f"Expected a body of at most {self._limits.body:,} bytes. Send fewer or smaller files.")


class _InMemory(MultiPartParser):
    spool_max_size = 2**62  # the body is in memory already: no part of it shall go to the disk


async def read_uploads(request: Request, body: bytes, *, most: int) -> list[Upload]:
    """Return the pictures of a body: the body itself, or the files of a multipart form. Raises IntakeError."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        uploads = await _read_form(request, body, most)
    else:
        uploads = [Upload(name="image", picture=body)] if body else []
    if not uploads:
        raise IntakeError(400, "Expected a picture in the body, or files in a multipart form. Got nothing.")
    return uploads


async def _read_form(request: Request, body: bytes, most: int) -> list[Upload]:
    async def whole() -> AsyncIterator[bytes]:
        yield body

    try:
        form = await _InMemory(request.headers, whole(), max_files=most, max_fields=most).parse()  # type: ignore[arg-type]
    except (MultiPartException, ValueError, KeyError, TypeError) as error:
        raise IntakeError(400, f"Expected a multipart form of at most {most} files. Got: {error}") from None
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    return [Upload(name=file.filename or f"image {i}", picture=await file.read()) for i, file in enumerate(files)]
