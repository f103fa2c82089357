"""Before and after every operation: tokens, limits, idempotency keys, errors as answers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

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
from fleet.service import mistakes
from fleet.service.base import MOST_ON_A_PAGE
from fleet.service.operations import Actor, Operations
from fleet.store import Idempotency, Token, without_secrets

DeviceName = Annotated[str, Path(pattern=f"^{fields.NAME_PATTERN.pattern}$")]
CampaignId = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
Number = Annotated[int, Path(ge=0, lt=1 << 31)]
Limit = Annotated[int, Query(ge=1, le=MOST_ON_A_PAGE)]
FilterText = Annotated[str, Query(max_length=MOST_CHARACTERS)]
MOST_REASON_CHARACTERS = 500
Why = Annotated[
    str,
    Header(
        alias="X-Reason",
        description="Why; the audit log keeps it.",
        # Starlette reads a header's bytes as one character each: `_reason` counts those of UTF-8.
        json_schema_extra={"maxLength": MOST_REASON_CHARACTERS},
    ),
]


MOST_BODY_BYTES = 96 << 20


class TokenError(Exception):
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


def failure(status: int, error: str, kind: str, **headers: str) -> JSONResponse:
    """An answer that isn't a success."""
    # What was sent may hold halves of characters, which nothing can be told in.
    told = error.encode(errors="replace").decode()
    return JSONResponse({"error": told, "kind": kind}, status, headers=headers)


class Limiter:
    """So many requests a minute for each token, as a bucket that fills steadily."""

    def __init__(self, per_minute: int) -> None:
        """Full at first."""
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


class IdempotentRoute(APIRoute):
    """Who asks is checked first. A write that comes again with its `Idempotency-Key` isn't done
    again: its answer is."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """The route's handler, around which a key is looked up and kept."""
        handle = super().get_route_handler()

        async def once(request: Request) -> Response:
            # Before anything of a body is read: that may be much.
            actor = await run_in_threadpool(_who, request)
            key = request.headers.get("Idempotency-Key")
            if not key or request.method == "GET":
                return await handle(request)
            if len(key) > 200:
                return failure(422, "Idempotency-Key: longer than 200 characters", "ValueError")
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
                answer = told(error)
                if answer is None:
                    await run_in_threadpool(idempotency.drop, actor.who, key)
                    raise
                content = _without_secrets(bytes(answer.body))
                with contextlib.suppress(ConflictError):  # another's answer stays
                    await run_in_threadpool(
                        idempotency.finish, actor.who, key, answer.status_code, content
                    )
                return answer
            if not kept:  # nothing was changed, so it may be asked again
                await run_in_threadpool(idempotency.drop, actor.who, key)
            return response

        return once


def _without_secrets(body: bytes | str) -> str:
    """An answer as it is kept: secrets are told once, and stored nowhere."""
    return json.dumps(without_secrets(json.loads(body))) if body else ""


def told(error: Exception) -> JSONResponse | None:
    """An error as an answer; None where it is a defect, or may be gone the next time."""
    if isinstance(error, FleetError) and not isinstance(error, StoreAwayError):
        return failure(status_of(error), str(error), type(error).__name__)
    if isinstance(error, RequestValidationError):
        return failure(422, mistakes.told(error.errors()), "ValidationError")
    return None


_bearer = HTTPBearer(auto_error=False, description="A token of `tinyfleet tokens issue`.")


def _who(request: Request) -> Actor:
    """Whose token a request carries; raises where it is nobody's, or asks too often."""
    known: Actor | None = getattr(request.state, "actor", None)
    if known is not None:
        return known
    token = _token(request)
    limiter: Limiter = request.app.state.limiter
    wait = limiter.wait_seconds(token.token)
    if wait:
        raise HTTPException(429, headers={"Retry-After": str(math.ceil(wait))})
    actor = Actor(token.who, token.role, _reason(request))
    request.state.actor = actor
    return actor


def still_asking(request: Request) -> Actor:
    """The same as it is now, for what takes long: tokens expire, and are revoked."""
    token = _token(request)
    return Actor(token.who, token.role, _reason(request))


def _token(request: Request) -> Token:
    header = request.headers.get("Authorization", "")
    kind, _, text = header.partition(" ")
    if kind.lower() != "bearer" or not text:
        raise TokenError("there is no token: send the header Authorization: Bearer TOKEN")
    operations: Operations = request.app.state.operations
    try:
        return operations.tokens.check(text.strip())
    except AccessError as error:
        raise TokenError(str(error)) from None


def _reason(request: Request) -> str:
    """Headers are bytes, which Starlette reads as Latin-1; people write UTF-8."""
    text = request.headers.get("X-Reason", "").encode("latin-1").decode(errors="replace")
    if len(text) > MOST_REASON_CHARACTERS:
        mistake = f"a reason has {MOST_REASON_CHARACTERS} characters at most"
        raise RequestValidationError([{"loc": ("header", "X-Reason"), "msg": mistake}])
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
