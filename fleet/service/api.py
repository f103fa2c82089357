"""The HTTP API: `Operations` as paths, with tokens, idempotency keys, limits and streams."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match

from fleet.errors import (
    AccessError,
    ConflictError,
    FleetError,
    NotKnownError,
    StoreAwayError,
    StoreError,
)
from fleet.protocol import fields
from fleet.registry.filters import MOST_CHARACTERS, is_storable
from fleet.service import schema
from fleet.service.metrics import Metrics
from fleet.service.operations import Actor, Operations
from fleet.store import Idempotency, without_secrets

logger = logging.getLogger(__name__)

EVENT_LOOK_SECONDS = 0.5
MOST_BODY_BYTES = 96 << 20

DeviceName = Annotated[str, Path(pattern=f"^{fields.NAME_PATTERN.pattern}$")]
CampaignId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
Number = Annotated[int, Path(ge=0, lt=1 << 31)]
Limit = Annotated[int, Query(ge=1, le=1000)]
FilterText = Annotated[str, Query(max_length=MOST_CHARACTERS)]
Why = Annotated[
    str, Header(alias="X-Reason", max_length=500, description="Why; the audit log keeps it.")
]


class _TokenError(Exception):
    """Who asks isn't known."""


def status_of(error: FleetError) -> int:
    """The HTTP status that an error is told with."""
    if isinstance(error, AccessError):
        return 403
    if isinstance(error, NotKnownError):
        return 404
    if isinstance(error, StoreAwayError):
        return 503
    if isinstance(error, ConflictError | StoreError):
        return 409
    return 422


def _failure(status: int, error: str, kind: str, **headers: str) -> JSONResponse:
    # What was sent may hold halves of characters, which nothing can be told in.
    told = error.encode(errors="replace").decode()
    return JSONResponse({"error": told, "kind": kind}, status, headers=headers)


class _Limiter:
    """So many requests a minute for each token, as a bucket that fills steadily."""

    def __init__(self, per_minute: int) -> None:
        self._rate = per_minute / 60.0
        self._size = float(per_minute)
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def wait_seconds(self, who: str) -> float:
        """Take one; 0, or after how long there is another."""
        with self._lock:
            now = time.monotonic()
            level, at = self._buckets.get(who, (self._size, now))
            level = min(self._size, level + (now - at) * self._rate)
            if level < 1.0:
                self._buckets[who] = (level, now)
                return (1.0 - level) / self._rate
            self._buckets[who] = (level - 1.0, now)
            return 0.0


class _IdempotentRoute(APIRoute):
    """A write that comes again with its `Idempotency-Key` isn't done again: its answer is."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()

        async def once(request: Request) -> Response:
            key = request.headers.get("Idempotency-Key")
            if not key or request.method == "GET":
                return await handle(request)
            if len(key) > 200:
                return _failure(422, "Idempotency-Key: longer than 200 characters", "ValueError")
            actor = await run_in_threadpool(_who, request)
            body = await request.body()
            text = f"{request.method} {request.url.path}\n".encode() + body
            digest = hashlib.sha256(text).hexdigest()
            idempotency: Idempotency = request.app.state.idempotency
            known = await run_in_threadpool(idempotency.begin, actor.who, key, digest)
            if known is not None:
                return Response(
                    known.body,
                    known.status,
                    media_type="application/json",
                    headers={"Idempotent-Replay": "true"},
                )
            kept = False

            def keep(answer: BaseModel | None) -> None:
                nonlocal kept
                content = "" if answer is None else answer.model_dump_json()
                status = self.status_code or 200
                idempotency.finish(actor.who, key, status, _without_secrets(content))
                kept = True

            # What is done and that it was answered are one transaction: nothing is done twice.
            request.state.actor = replace(actor, keep=keep)
            try:
                response = await handle(request)
            except Exception as error:
                told = _told(error)
                if told is None:
                    await run_in_threadpool(idempotency.drop, actor.who, key)
                    raise
                content = _without_secrets(bytes(told.body))
                await run_in_threadpool(
                    idempotency.finish, actor.who, key, told.status_code, content
                )
                return told
            if not kept:  # nothing was changed, so it may be asked again
                await run_in_threadpool(idempotency.drop, actor.who, key)
            return response

        return once


def _without_secrets(body: bytes | str) -> str:
    """An answer as it is kept: secrets are told once, and stored nowhere."""
    return json.dumps(without_secrets(json.loads(body))) if body else ""


def _told(error: Exception) -> JSONResponse | None:
    """An error as an answer; None where it is a defect, or may be gone the next time."""
    if isinstance(error, FleetError) and not isinstance(error, StoreAwayError):
        return _failure(status_of(error), str(error), type(error).__name__)
    if isinstance(error, RequestValidationError):
        return _failure(422, _first_mistake(error), "ValidationError")
    return None


def _first_mistake(error: RequestValidationError) -> str:
    lines = []
    for one in error.errors()[:20]:
        where = ".".join(str(part) for part in one["loc"] if part != "body") or "the body"
        lines.append(f"{where}: {str(one['msg']).removeprefix('Value error, ')}")
    return "\n".join(lines)


_bearer = HTTPBearer(auto_error=False, description="A token of `tinyfleet tokens issue`.")


def _who(request: Request) -> Actor:
    """Whose token a request carries; raises where it is nobody's, or asks too often."""
    known: Actor | None = getattr(request.state, "actor", None)
    if known is not None:
        return known
    header = request.headers.get("Authorization", "")
    kind, _, text = header.partition(" ")
    if kind.lower() != "bearer" or not text:
        raise _TokenError("there is no token: send the header Authorization: Bearer TOKEN")
    operations: Operations = request.app.state.operations
    try:
        token = operations.tokens.check(text.strip())
    except AccessError as error:
        raise _TokenError(str(error)) from None
    limiter: _Limiter = request.app.state.limiter
    wait = limiter.wait_seconds(token.token)
    if wait:
        raise HTTPException(429, headers={"Retry-After": str(math.ceil(wait))})
    actor = Actor(token.who, token.role, _reason(request))
    request.state.actor = actor
    return actor


def _reason(request: Request) -> str:
    """Headers are bytes, which Starlette reads as Latin-1; people write UTF-8."""
    text = request.headers.get("X-Reason", "").encode("latin-1").decode(errors="replace")
    return text if is_storable(text) else ""


def _actor(
    request: Request,
    token: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    why: Why = "",
) -> Actor:
    return _who(request)


Asking = Annotated[Actor, Depends(_actor)]


def _operations(request: Request) -> Operations:
    operations: Operations = request.app.state.operations
    return operations


Ops = Annotated[Operations, Depends(_operations)]

_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Failure, "description": what}
    for status, what in {
        401: "No token, or none that is good",
        403: "The token's role may not do this",
        404: "Nothing of this name is known",
        409: "It can't be done as things stand",
        411: "A body without its length",
        413: f"A body of more than {MOST_BODY_BYTES} bytes",
        422: "The request makes no sense",
        429: "Too many requests; Retry-After has seconds",
        503: "The database is away for a moment",
    }.items()
}

router = APIRouter(prefix="/v1", responses=_FAILURES, route_class=_IdempotentRoute)


@router.get("/whoami", tags=["accounts"])
def whoami(request: Request, actor: Asking, ops: Ops) -> schema.WhoAmI:
    """Whose token it is, and which fleet's service this is."""
    return schema.WhoAmI(
        who=actor.who, role=actor.role, fleet=ops.fleet, version=request.app.version
    )


# Devices


@router.post("/devices", status_code=201, tags=["devices"])
def add_devices(actor: Asking, ops: Ops, body: schema.DevicesToAdd) -> schema.Passwords:
    """Register devices, all or none; their passwords are told once."""
    return ops.add_devices(actor, body)


@router.get("/devices", tags=["devices"])
def list_devices(
    actor: Asking,
    ops: Ops,
    filter: FilterText = "",
    after: Annotated[str, Query(pattern="^[A-Za-z0-9_-]{0,32}$")] = "",
    limit: Limit = 100,
) -> schema.DevicePage:
    """A page of the devices that match a filter, in order of their names."""
    return ops.list_devices(actor, filter, after, limit)


@router.get("/devices-export", tags=["devices"], response_class=StreamingResponse)
def export_devices(actor: Asking, ops: Ops, filter: FilterText = "") -> StreamingResponse:
    """All devices that match, a JSON object a line; streamed."""

    def lines() -> Any:
        after: str | None = ""
        while after is not None:
            page = ops.list_devices(actor, filter, after, 1000)
            yield "".join(one.model_dump_json() + "\n" for one in page.devices)
            after = page.next

    first = ops.list_devices(actor, filter, "", 1)  # what is wrong is said before anything is sent
    del first
    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.get("/devices-preview", tags=["devices"])
def preview_devices(actor: Asking, ops: Ops, filter: FilterText = "") -> schema.DevicePreview:
    """How many devices a filter means, some of them, and why it doesn't mean the others."""
    return ops.preview_devices(actor, filter)


@router.get("/devices/{device}", tags=["devices"])
def get_device(actor: Asking, ops: Ops, device: DeviceName) -> schema.DeviceView:
    """One device."""
    return ops.device(actor, device)


@router.get("/devices/{device}/history", tags=["devices"])
def device_history(actor: Asking, ops: Ops, device: DeviceName) -> schema.History:
    """What a device has reported, newest first."""
    return ops.device_history(actor, device)


@router.patch("/devices/{device}/labels", tags=["devices"])
def label_device(
    actor: Asking, ops: Ops, device: DeviceName, body: schema.LabelChange
) -> schema.DeviceView:
    """Set labels, and take away those that are null."""
    return ops.label_device(actor, device, body)


@router.post("/devices/{device}/retire", tags=["devices"])
def retire_device(actor: Asking, ops: Ops, device: DeviceName) -> schema.DeviceView:
    """It takes part in nothing any more, and its broker lets it in no more."""
    return ops.retire_device(actor, device)


@router.post("/devices/{device}/rotate", tags=["devices"])
def rotate_device(actor: Asking, ops: Ops, device: DeviceName) -> schema.Password:
    """A new password, told once; the old one is no good from now on."""
    return ops.rotate_device(actor, device)


@router.delete("/devices/{device}", status_code=204, tags=["devices"])
def erase_device(actor: Asking, ops: Ops, device: DeviceName) -> Response:
    """Forget a retired device and all that it reported."""
    ops.erase_device(actor, device)
    return Response(status_code=204)


# Gateways


@router.get("/gateways", tags=["gateways"])
def list_gateways(actor: Asking, ops: Ops) -> schema.GatewayList:
    """All gateways."""
    return ops.list_gateways(actor)


@router.post("/gateways", status_code=201, tags=["gateways"])
def add_gateway(actor: Asking, ops: Ops, body: schema.GatewayToAdd) -> schema.Password:
    """Register a gateway; its password at the site's broker is told once."""
    return ops.add_gateway(actor, body)


# Models


@router.get("/models", tags=["models"])
def list_models(actor: Asking, ops: Ops) -> schema.ModelList:
    """All models with their versions."""
    return ops.list_models(actor)


@router.post("/models", status_code=201, tags=["models"])
def import_bundle(actor: Asking, ops: Ops, body: schema.BundleToImport) -> schema.VersionView:
    """Add a bundle, with its weights as a version where they are new."""
    return ops.import_bundle(actor, body)


@router.get("/models/{model}", tags=["models"])
def get_model(actor: Asking, ops: Ops, model: DeviceName) -> schema.ModelView:
    """One model."""
    return ops.model(actor, model)


@router.post("/models/{model}/versions", status_code=201, tags=["models"])
def add_version(
    actor: Asking, ops: Ops, model: DeviceName, body: schema.VersionToAdd
) -> schema.VersionView:
    """Weights that were made elsewhere, as a candidate."""
    return ops.add_version(actor, model, body)


@router.get("/models/{model}/versions/{version}/weights", tags=["models"], response_class=Response)
def version_weights(actor: Asking, ops: Ops, model: DeviceName, version: Number) -> Response:
    """A version's weights, as devices get them."""
    blob = ops.version_blob(actor, model, version)
    return Response(blob, media_type="application/octet-stream")


@router.post("/models/{model}/versions/{version}/release", tags=["models"])
def release_version(
    actor: Asking, ops: Ops, model: DeviceName, version: Number
) -> schema.VersionView:
    """Campaigns begin with it from now on, and may bring it to devices."""
    return ops.release(actor, model, version)


@router.post("/models/{model}/rollback", tags=["models"])
def rollback_model(actor: Asking, ops: Ops, model: DeviceName) -> schema.VersionView:
    """Withdraw the newest released version; the answer is the one that is newest then."""
    return ops.withdraw_newest(actor, model)


@router.get("/models/{model}/compare", tags=["models"])
def compare_versions(
    actor: Asking,
    ops: Ops,
    model: DeviceName,
    first: Annotated[int, Query(ge=1, lt=1 << 31)],
    second: Annotated[int, Query(ge=1, lt=1 << 31)],
) -> schema.Comparison:
    """Two versions: how they differ, and what the same devices scored with them."""
    return ops.compare(actor, model, first, second)


# Campaigns


@router.get("/campaigns", tags=["campaigns"])
def list_campaigns(
    actor: Asking,
    ops: Ops,
    after: Annotated[str, Query(pattern="^([0-9a-f]{16})?$")] = "",
    limit: Limit = 100,
) -> schema.CampaignList:
    """A page of campaigns, newest first."""
    return ops.list_campaigns(actor, after, limit)


@router.post("/campaigns", status_code=201, tags=["campaigns"])
def start_campaign(actor: Asking, ops: Ops, body: schema.CampaignToStart) -> schema.CampaignView:
    """Begin a campaign."""
    return ops.start_campaign(actor, body)


@router.post("/campaigns-plan", tags=["campaigns"])
def plan_campaign(actor: Asking, ops: Ops, body: schema.CampaignToStart) -> schema.CampaignPlan:
    """What a campaign would do, as things stand; nothing is done."""
    return ops.plan_campaign(actor, body)


@router.get("/campaigns/{campaign}", tags=["campaigns"])
def get_campaign(actor: Asking, ops: Ops, campaign: CampaignId) -> schema.CampaignDetail:
    """A campaign with its stages, gates and rounds."""
    return ops.campaign(actor, campaign)


@router.get("/campaigns/{campaign}/rounds/{round}", tags=["campaigns"])
def get_reports(actor: Asking, ops: Ops, campaign: CampaignId, round: Number) -> schema.Reports:
    """A round's result, and what devices measured in it."""
    return ops.reports(actor, campaign, round)


@router.post("/campaigns/{campaign}/actions", tags=["campaigns"])
def act_on_campaign(
    actor: Asking, ops: Ops, campaign: CampaignId, body: schema.Act
) -> schema.CampaignView:
    """Pause, resume, stop, roll back, or approve what it waits for."""
    return ops.act(actor, campaign, body.action)


# Accounts


@router.get("/tokens", tags=["accounts"])
def list_tokens(actor: Asking, ops: Ops) -> schema.TokenList:
    """All tokens, without their secrets."""
    return ops.list_tokens(actor)


@router.post("/tokens", status_code=201, tags=["accounts"])
def issue_token(actor: Asking, ops: Ops, body: schema.TokenToIssue) -> schema.NewToken:
    """A token for somebody; its secret is told once."""
    return ops.issue_token(actor, body)


@router.delete("/tokens/{token}", status_code=204, tags=["accounts"])
def revoke_token(
    actor: Asking, ops: Ops, token: Annotated[str, Path(pattern="^[0-9a-f]{1,32}$")]
) -> Response:
    """It is no good from now on."""
    ops.revoke_token(actor, token)
    return Response(status_code=204)


@router.get("/audit", tags=["accounts"])
def audit(
    actor: Asking,
    ops: Ops,
    after: Annotated[int, Query(ge=0, lt=1 << 62)] = 0,
    limit: Limit = 100,
    object: Annotated[str, Query(pattern="^[!-~]{0,200}$")] = "",
) -> schema.AuditPage:
    """Who did what, oldest first; of one object, such as campaign:ID, where given."""
    return ops.audit_page(actor, after, limit, object)


@router.get("/webhooks", tags=["webhooks"])
def list_webhooks(actor: Asking, ops: Ops) -> schema.WebhookList:
    """All webhooks, without their secrets."""
    return ops.list_webhooks(actor)


@router.post("/webhooks", status_code=201, tags=["webhooks"])
def add_webhook(actor: Asking, ops: Ops, body: schema.WebhookToAdd) -> schema.NewWebhook:
    """Send events of these kinds to an address; the secret that signs them is told once."""
    return ops.add_webhook(actor, body)


@router.delete("/webhooks/{webhook}", status_code=204, tags=["webhooks"])
def remove_webhook(
    actor: Asking, ops: Ops, webhook: Annotated[str, Path(pattern="^[0-9a-f]{1,32}$")]
) -> Response:
    """Send nothing there any more."""
    ops.remove_webhook(actor, webhook)
    return Response(status_code=204)


@router.get("/events", tags=["campaigns"], response_class=StreamingResponse)
async def stream_events(
    request: Request,
    actor: Asking,
    ops: Ops,
    campaign: Annotated[str, Query(pattern="^([0-9a-f]{16})?$")] = "",
    after: Annotated[int | None, Query(ge=0, lt=1 << 62)] = None,
    follow: bool = True,
    last_event_id: Annotated[str, Header(alias="Last-Event-ID", pattern="^[0-9]{0,18}$")] = "",
) -> StreamingResponse:
    """What happens, as server-sent events: from now on, or from behind a number.

    With `follow` false it ends when all that is there has been told.
    """
    if last_event_id:
        after = int(last_event_id)
    start = await run_in_threadpool(ops.events.last) if after is None else after

    async def events() -> AsyncIterator[str]:
        number, quiet = start, 0.0
        yield ": hello\n\n"
        while not await request.is_disconnected():
            found = await run_in_threadpool(ops.events.after, number, campaign)
            for one in found:
                number, quiet = one.number, 0.0
                data = schema.EventView(
                    number=one.number,
                    at=one.at,
                    kind=one.kind,
                    campaign=one.campaign,
                    data=one.data,
                )
                yield f"id: {one.number}\nevent: {one.kind}\ndata: {data.model_dump_json()}\n\n"
            if found:
                continue
            if not follow or request.app.state.stopping.is_set():
                return
            await asyncio.sleep(EVENT_LOOK_SECONDS)
            quiet += EVENT_LOOK_SECONDS
            if quiet >= 15.0:
                quiet = 0.0
                yield ": still there\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


_METHODS = frozenset({"GET", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS", "PUT"})


def _methods_of(request: Request) -> set[str]:
    """What can be done to a path; routes of one path don't know of each other."""
    found: set[str] = set()
    for method in _METHODS:
        scope = {**request.scope, "method": method}
        if any(one.matches(scope)[0] is Match.FULL for one in request.app.router.routes):
            found.add(method)
    return found


def make_app(
    operations: Operations,
    *,
    version: str,
    requests_per_minute: int = 1200,
    is_leader: Callable[[], bool] = lambda: True,
    problems: Callable[[], list[str]] = list,
) -> FastAPI:
    """The API over these operations.

    `is_leader`: whether this process drives the fleet; `problems`: what keeps it from its work.
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
    app.state.limiter = _Limiter(requests_per_minute)
    app.state.stopping = threading.Event()
    metrics = Metrics(operations)
    app.include_router(router)

    @app.exception_handler(FleetError)
    def refused(request: Request, error: FleetError) -> Response:
        if isinstance(error, StoreAwayError):
            logger.error("%s", error)
        return _failure(status_of(error), str(error), type(error).__name__)

    @app.exception_handler(_TokenError)
    def unknown(request: Request, error: _TokenError) -> Response:
        return _failure(401, str(error), "AccessError", **{"WWW-Authenticate": "Bearer"})

    @app.exception_handler(RequestValidationError)
    def nonsense(request: Request, error: RequestValidationError) -> Response:
        return _failure(422, _first_mistake(error), "ValidationError")

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
        return _failure(status, what, "HTTPException", **headers)

    @app.middleware("http")
    async def bounded(
        request: Request, go_on: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        length = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers:
            return _failure(411, "a request says its Content-Length", "ValueError")
        if not length.isdecimal() or int(length[:20]) > MOST_BODY_BYTES:
            return _failure(413, f"a request has {MOST_BODY_BYTES} bytes at most", "ValueError")
        began = time.monotonic()
        response = await go_on(request)
        route = request.scope.get("route")
        metrics.answered(
            request.method if request.method in _METHODS else "other",
            getattr(route, "path", "unknown"),
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
