"""The routes: which address is answered by what. Reading, judging and answering are done elsewhere."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linnaeus.errors import ImageError, LinnaeusError
from linnaeus.serving import page, protocol
from linnaeus.serving.batcher import OverloadedError
from linnaeus.serving.guard import SECURITY_HEADERS, Guard, Refusal
from linnaeus.serving.intake import Intake, IntakeError, read_uploads
from linnaeus.serving.metrics import Metrics
from linnaeus.serving.service import Answer, Service, UnknownFormatError, Upload
from linnaeus.serving.shelf import OpenModel

# Without a token: what tells no more than that it is there, and the page, which asks its user for the token.
OPEN_PATHS = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", *page.PATHS)
_log = logging.getLogger("linnaeus.serving")


def create_app(service: Service, guard: Guard) -> ASGIApp:
    """Return the ASGI application of a service."""
    routes = [*_Routes(service).table(), *page.page_routes()]
    return Door(Starlette(routes=routes, exception_handlers=_handlers(service.metrics)), guard=guard, service=service)


class _Routes:
    """One method for each route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._intake = Intake(service.limits)
        self._openapi = files("linnaeus.serving").joinpath("openapi.json").read_bytes()

    def table(self) -> list[Route]:
        """Return all routes."""
        model = "/v2/models/{name}"
        one = f"{model}/versions/{{version}}"
        return [
            Route("/classify", self.classify, methods=["POST"]),
            Route("/models", self.models),
            Route("/healthz", self.live),
            Route("/readyz", self.ready),
            Route("/metrics", self.tell_metrics),
            Route("/openapi.json", self.openapi),
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            *(Route(path, self.model) for path in (model, one)),
            *(Route(f"{path}/ready", self.model_ready) for path in (model, one)),
            *(Route(f"{path}/infer", self.infer, methods=["POST"]) for path in (model, one)),
        ]

    async def classify(self, request: Request) -> Response:
        """Name what is in the pictures of the body."""
        start = time.perf_counter()
        model = self._find(request.query_params.get("model"))
        top = _read_top(request.query_params.get("top", "5"))
        self._service.batcher.check_room()
        async with self._intake.body(request) as body:
            uploads = await read_uploads(request, body, most=self._service.limits.images)
            reading = time.perf_counter() - start
            answer = await self._service.classify(model, uploads)
        seconds = {"read": reading, **answer.seconds, "total": time.perf_counter() - start}
        return _json(_describe(answer, top, seconds))

    async def infer(self, request: Request) -> Response:
        """Answer an inference request of the Open Inference Protocol."""
        model = self._find(request.path_params["name"], request.path_params.get("version"))
        self._service.batcher.check_room()
        async with self._intake.body(request) as body:
            length = request.headers.get(protocol.HEADER_LENGTH)
            question = protocol.read_question(body, length, most=self._service.limits.images)
            uploads = [Upload(name=f"image {i}", picture=picture) for i, picture in enumerate(question.images)]
            answer = await self._service.classify(model, uploads)
        said, head = protocol.write_answer(question, answer.predictions, model=model.name, version=model.version)
        if head is None:
            return Response(said, media_type="application/json")
        return Response(said, media_type="application/octet-stream", headers={protocol.HEADER_LENGTH: str(head)})

    async def models(self, request: Request) -> Response:
        """List the models with their classes."""
        found = [{"name": each.name, "version": each.version, "classes": each.classes} for each in self._service.shelf]
        return _json({"models": found})

    async def live(self, request: Request) -> Response:
        """Tell whether the network still answers."""
        return _state(self._service.alive, "live")

    async def ready(self, request: Request) -> Response:
        """Tell whether new requests are welcome here."""
        return _state(self._service.alive and not self._service.draining, "ready")

    async def server(self, request: Request) -> Response:
        """Tell what serves here."""
        return _json({"name": "linnaeus", "version": version("linnaeus"), "extensions": protocol.EXTENSIONS})

    async def model(self, request: Request) -> Response:
        """Tell what a model takes and gives."""
        model = self._find(request.path_params["name"], request.path_params.get("version"))
        return _json(protocol.describe_model(model.name, model.version, model.classes))

    async def model_ready(self, request: Request) -> Response:
        """Tell whether a model answers."""
        self._find(request.path_params["name"], request.path_params.get("version"))
        return await self.ready(request)

    async def tell_metrics(self, request: Request) -> Response:
        """Tell Prometheus how it goes."""
        return Response(self._service.metrics.render(), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """Describe all this for programs."""
        return Response(self._openapi, media_type="application/json")

    def _find(self, name: str | None, version: str | None = None) -> OpenModel:
        model = self._service.shelf.find(name)
        if model is None:
            known = ", ".join(each.name for each in self._service.shelf)
            raise IntakeError(404, f"Expected a model that is served: {known}.")
        if version is not None and version != model.version:
            raise IntakeError(404, f"Expected version {model.version} of {model.name}.")
        return model


def _read_top(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text) > 0):
        raise IntakeError(400, "Expected a whole number from 1 on for top.")
    return int(text)


def _describe(answer: Answer, top: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    found = answer.predictions
    several = found.thresholds is not None
    rows = zip(found.names, found.labels, found.confidences.tolist(), found.top(top))
    return {
        "model": answer.model.name,
        "version": answer.model.version,
        "predictions": [
            {
                "name": name,
                **({"labels": list(labels)} if several else {"label": labels}),
                "probability": confidence,
                "top": [{"label": label, "probability": probability} for label, probability in best],
            }
            for name, labels, confidence, best in rows
        ],
        "milliseconds": {stage: round(1000 * value, 3) for stage, value in seconds.items()},
    }


def _json(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(document, allow_nan=False).encode()
    return Response(body, status, headers=dict(headers or {}), media_type="application/json")


def _state(holds: bool, name: str) -> Response:
    return _json({name: holds}, 200 if holds else 503)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": message}, status, headers)


Handler = Callable[[Request, Any], Awaitable[Response]]


def _handlers(metrics: Metrics) -> Mapping[Any, Handler]:
    """Return what is answered for each kind of error."""

    def answer(make: Callable[[Any], Response]) -> Handler:
        async def handle(request: Request, error: Any) -> Response:
            return make(error)

        return handle

    def refuse(error: OverloadedError) -> Response:
        metrics.refused()
        seconds = str(error.retry_after)
        return _error(503, f"Too much to do. Try again in {seconds} s.", {"retry-after": seconds})

    return {
        OverloadedError: answer(refuse),
        IntakeError: answer(lambda error: _error(error.status, str(error))),
        protocol.ProtocolError: answer(lambda error: _error(400, str(error))),
        UnknownFormatError: answer(lambda error: _error(415, str(error))),
        ImageError: answer(lambda error: _error(422, str(error))),
        LinnaeusError: answer(lambda error: _error(503, str(error), {"retry-after": "1"})),
        MemoryError: answer(lambda _: _error(503, "Too little memory. Try again.", {"retry-after": "1"})),
        ClientDisconnect: answer(lambda _: _error(400, "The client has gone.")),
        HTTPException: answer(lambda error: _error(error.status_code, f"{error.detail}.", error.headers)),
        Exception: answer(lambda _: _error(500, "The service has made a mistake. Its log says more.")),
    }


class Door:
    """Lets in whom the guard lets in, puts the security headers on every answer, and counts them."""

    def __init__(self, app: ASGIApp, *, guard: Guard, service: Service) -> None:
        self._app, self._guard, self._service = app, guard, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        start, statuses = time.perf_counter(), [500]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses[0] = message["status"]
                message["headers"] = self._complete(message["headers"])
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._guard.refusal(scope["method"], scope["path"], headers)
        try:
            await (_refuse(refusal) if refusal else self._app)(scope, receive, send_guarded)
        finally:
            endpoint = scope.get("endpoint")
            route = endpoint.__name__ if endpoint else "none"
            self._service.metrics.requested(route, statuses[0], time.perf_counter() - start)

    def _complete(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        given = {name for name, _ in headers}
        more = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
        if self._service.draining:
            more.append((b"connection", b"close"))
        return headers + [(name, value) for name, value in more if name not in given]


def _refuse(refusal: Refusal) -> Response:
    return _error(refusal.status, refusal.message, refusal.headers)
