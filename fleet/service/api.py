"""The HTTP API of a service."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from fleet.errors import (
    FleetError,
    StoreAwayError,
)
from fleet.service import mistakes, schema
from fleet.service.metrics import Metrics
from fleet.service.operations import Operations
from fleet.service.requests import (
    MOST_BODY_BYTES,
    Limiter,
    TokenError,
    failure,
    status_of,
)
from fleet.service.routes import router
from fleet.store import Idempotency

logger = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS", "PUT"})


def _methods_of(request: Request) -> set[str]:
    """What can be done to a path; routes of one path don't know of each other."""
    found: set[str] = set()
    for method in _METHODS:
        scope = {**request.scope, "method": method}
        if any(one.matches(scope)[0] is Match.FULL for one in request.app.router.routes):
            found.add(method)
    return found


def _path_in_figures(request: Request) -> str:
    """Whose figures an answer counts among: a path of the API, the place of what is mounted beside
    it, or `unknown`."""
    route = request.scope.get("route")
    if route is not None:
        return str(route.path)
    # A mount moves the root behind its place, and keeps where it was.
    root = request.scope.get("root_path", "")
    return root.removeprefix(request.scope.get("app_root_path", root)) or "unknown"


def make_app(
    operations: Operations,
    *,
    version: str,
    requests_per_minute: int = 1200,
    is_leader: Callable[[], bool] = lambda: True,
    problems: Callable[[], list[str]] = list,
    deleted: Callable[[], Mapping[str, int]] = dict,
    folders: Mapping[str, Path] | None = None,
) -> FastAPI:
    """The API over these operations.

    `is_leader`: whether this process drives the fleet; `problems`: what keeps it from its work;
    `deleted`: how many rows of each kind it has deleted because they were old; `folders`: whose
    disks' room is told, by what they are for.
    """
    app = FastAPI(
        title="tinyfleet",
        version=version,
        description="Fleets of microcontrollers that learn together.",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # their assets come from elsewhere
        redoc_url=None,
    )
    app.state.operations = operations
    app.state.idempotency = Idempotency(operations.store)
    app.state.limiter = Limiter(requests_per_minute)
    app.state.stopping = threading.Event()
    metrics = Metrics(
        operations,
        is_leader=is_leader,
        is_ready=lambda: not problems(),
        deleted=deleted,
        folders=folders or {},
    )
    app.include_router(router)

    @app.exception_handler(FleetError)
    def refused(request: Request, error: FleetError) -> Response:
        if isinstance(error, StoreAwayError):
            logger.error("%s", error)
        return failure(status_of(error), str(error), type(error).__name__)

    @app.exception_handler(TokenError)
    def unknown(request: Request, error: TokenError) -> Response:
        return failure(401, str(error), "AccessError", **{"WWW-Authenticate": "Bearer"})

    @app.exception_handler(RequestValidationError)
    def nonsense(request: Request, error: RequestValidationError) -> Response:
        return failure(422, mistakes.told(error.errors()), "ValidationError")

    @app.exception_handler(HTTPException)
    def failed(request: Request, error: HTTPException) -> Response:
        what = {
            400: "the body can't be read: send JSON in UTF-8",
            404: f"there is no {request.url.path}; /v1/openapi.json has what there is",
            405: f"{request.method} can't be done to {request.url.path}",
            429: "too many requests",
        }.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods_of(request)))
        # Nonsense is nonsense, whoever notices first.
        status = 422 if error.status_code == 400 else error.status_code
        return failure(status, what, "HTTPException", **headers)

    @app.middleware("http")
    async def bounded(
        request: Request, go_on: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        length = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers:
            return failure(411, "a request says its Content-Length", "ValueError")
        if not length.isdecimal() or int(length[:20]) > MOST_BODY_BYTES:
            return failure(413, f"a request has {MOST_BODY_BYTES} bytes at most", "ValueError")
        began = time.monotonic()
        response = await go_on(request)
        metrics.answered(
            request.method if request.method in _METHODS else "other",
            _path_in_figures(request),
            response.status_code,
            time.monotonic() - began,
        )
        return response

    @app.get("/healthz", tags=["service"], response_class=PlainTextResponse)
    def healthz() -> str:
        """The process answers."""
        return "ok\n"

    @app.get("/readyz", tags=["service"], responses={503: {"model": schema.Ready}})
    def readyz() -> Response:
        """Whether the service can do its work: its database, its SuperLink, its gateways."""
        found = list(problems())
        now = operations.store.clock.wall()
        gateways: dict[str, float | None] = {}
        try:
            for one in operations.gateways.list():
                if one.retired:
                    continue
                age = None if one.last_seen is None else max(0.0, now - one.last_seen)
                gateways[one.gateway] = age
        except FleetError as error:
            found.append(str(error))
        ready = schema.Ready(ready=not found, leader=is_leader(), gateways=gateways, problems=found)
        return JSONResponse(json.loads(ready.model_dump_json()), 200 if not found else 503)

    @app.get("/metrics", tags=["service"], response_class=PlainTextResponse)
    def prometheus() -> Response:
        """Figures for Prometheus."""
        content, kind = metrics.text()
        return Response(content, media_type=kind)

    return app
