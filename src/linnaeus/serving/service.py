"""From pictures as they came to answers: decode on threads, compute in batches, and tell how long each step took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linnaeus.decoding import HEAD_BYTES, Picture, picture_format
from linnaeus.errors import ImageError
from linnaeus.predictor import decide
from linnaeus.results import Predictions
from linnaeus.serving.batcher import Admission, Batcher, Done, Pace
from linnaeus.serving.metrics import Metrics
from linnaeus.serving.shelf import OpenModel, Shelf
from linnaeus.serving.terms import Limits

Pixels = NDArray[np.uint8]
Row = NDArray[np.float32]
STUCK_SECONDS = 60.0  # after which a batch is taken for one that never ends


class UnknownFormatError(ImageError):
    """A file whose first bytes are those of no format that is read."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A picture that a client sent, and what it is called."""

    name: str
    picture: Picture


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says of pictures, with the seconds of each step; those of the slowest picture where they differ."""

    model: OpenModel
    predictions: Predictions
    seconds: dict[str, float]


class Service:
    """Classifies pictures with the models of a shelf, on so many threads, and decodes on as many, at least two.

    All but `close` is to be used from one event loop.
    """

    def __init__(self, shelf: Shelf, *, limits: Limits, metrics: Metrics, threads: int) -> None:
        self.shelf, self.limits, self.metrics = shelf, limits, metrics
        self.draining = False
        pace = Pace(
            lanes=threads,
            size=limits.batch,
            window=limits.window,
            capacity=limits.queue,
            longest_wait=limits.longest_wait,
        )
        self.batcher: Batcher[OpenModel, Pixels, Row] = Batcher(_compute, pace=pace)
        self._decoders = ThreadPoolExecutor(max(2, threads), "decode")

    @property
    def alive(self) -> bool:
        """Whether the network still comes to an end."""
        return self.batcher.running_for() < STUCK_SECONDS

    async def classify(self, model: OpenModel, uploads: Sequence[Upload]) -> Answer:
        """Answer for pictures. Raises ImageError, naming all that cannot be read, or OverloadedError."""
        for upload in uploads:
            _check_format(upload)
        try:
            with self.batcher.admit(len(uploads)) as admission:
                self.metrics.holds(self.batcher.admitted)
                decoded, decoding = await self._decode(model, uploads)
                done = await _submit(admission, model, decoded)
        finally:
            self.metrics.holds(self.batcher.admitted)
        probabilities = np.stack([each.result for each in done])
        predictions = decide(model.predictor.bundle, probabilities, [upload.name for upload in uploads])
        seconds = {
            "decode": decoding,
            "wait": max(each.waited for each in done),
            "compute": max(each.computed for each in done),
        }
        self.metrics.answered(model.name, seconds, [each.together for each in done])
        return Answer(model=model, predictions=predictions, seconds=seconds)

    async def _decode(self, model: OpenModel, uploads: Sequence[Upload]) -> tuple[list[Pixels], float]:
        """Return the pictures as the network wants them, and the seconds that took."""
        start, loop = time.perf_counter(), asyncio.get_running_loop()
        work = (loop.run_in_executor(self._decoders, model.prepare, upload.picture) for upload in uploads)
        found = await asyncio.gather(*work, return_exceptions=True)
        bad = [(upload.name, error) for upload, error in zip(uploads, found) if isinstance(error, BaseException)]
        for _, error in bad:
            if not isinstance(error, ImageError):
                raise error
        if bad:
            got = "; ".join(f"{name}: {getattr(error, 'got', '')}" for name, error in bad)
            raise ImageError("whole pictures", got=got, fix="Save them anew from their originals.")
        return [pixels for pixels in found if not isinstance(pixels, BaseException)], time.perf_counter() - start

    def close(self) -> None:
        """Let the threads end."""
        self._decoders.shutdown(wait=False)
        self.batcher.close()


def _compute(model: OpenModel, pictures: list[Pixels]) -> Sequence[Row]:
    return list(model.compute(pictures))


async def _submit(
    admission: Admission[OpenModel, Pixels, Row], model: OpenModel, pictures: Sequence[Pixels]
) -> list[Done[Row]]:
    if len(pictures) == 1:
        return [await admission.submit(model, pictures[0])]
    return await asyncio.gather(*(admission.submit(model, picture) for picture in pictures))


def _check_format(upload: Upload) -> None:
    if isinstance(upload.picture, bytes) and picture_format(upload.picture[:HEAD_BYTES]) is None:
        got = f"{upload.name}, which is none of these"
        raise UnknownFormatError("a picture as JPEG, PNG, WebP, GIF, BMP or TIFF", got=got, fix="Send one of these.")
