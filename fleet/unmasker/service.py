"""The unmasker's HTTP service: masking.md, "Unmasker"."""

from __future__ import annotations

import hmac
import logging
import signal
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from fleet.errors import FleetError, MaskRefusedError, ProtocolError
from fleet.protocol.mask_requests import (
    BROKEN_SEAL,
    CONTENT_TYPE,
    MALFORMED,
    MOST_REQUEST_BYTES,
    OVERLAP,
    TOO_FEW,
    UNKNOWN_DEVICE,
    MaskRequest,
    encode_masks,
    encode_refusal,
)
from fleet.security.listening import ListenSettings
from fleet.security.serving import Server
from fleet.security.tokens import secret_hash
from fleet.unmasker.metrics import METRICS_TYPE, UnmaskerMetrics
from fleet.unmasker.unmasker import LocalUnmasker

logger = logging.getLogger(__name__)

_STATUS = {MALFORMED: 400, TOO_FEW: 403, UNKNOWN_DEVICE: 404, OVERLAP: 409, BROKEN_SEAL: 422}


def make_app(unmasker: LocalUnmasker) -> FastAPI:
    """The service of an unmasker; its store has the hash of the token that may ask."""
    app = FastAPI(title="tinyfleet unmasker", openapi_url=None)
    metrics = UnmaskerMetrics(unmasker)

    @app.middleware("http")
    async def guarded(
        request: Request, go_on: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        if not request.url.path.startswith("/v1/"):
            return await go_on(request)
        try:
            if not await run_in_threadpool(_may_ask, unmasker, request):
                return Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})
            length = request.headers.get("content-length", "0")
            if "transfer-encoding" in request.headers:
                return Response(status_code=411)
            if not length.isdecimal() or int(length[:20]) > MOST_REQUEST_BYTES:
                return Response(status_code=413)
            return await go_on(request)
        except FleetError as error:  # its store can't be used: it may be asked again
            logger.error("%s", error)
            return Response(status_code=503)

    @app.post("/v1/masks")
    async def masks(request: Request) -> Response:
        """The sum of the masks of a set."""
        return await run_in_threadpool(_answer, unmasker, await request.body())

    @app.get("/v1/key")
    def key() -> Response:
        """Who the unmasker is."""
        return Response(unmasker.facts().encode(), media_type=CONTENT_TYPE)

    @app.get("/healthz")
    def healthz() -> Response:
        """Whether its store can be read."""
        try:
            unmasker.store.count_sets()
        except FleetError as error:
            return PlainTextResponse(f"{error}\n", 503)
        return PlainTextResponse("ok\n")

    @app.get("/metrics")
    def prometheus() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type=METRICS_TYPE)

    return app


def _may_ask(unmasker: LocalUnmasker, request: Request) -> bool:
    kind, _, text = request.headers.get("Authorization", "").partition(" ")
    known = unmasker.store.token_hash()
    given = secret_hash(text.strip())
    return kind.lower() == "bearer" and bool(known) and hmac.compare_digest(known, given)


def _answer(unmasker: LocalUnmasker, body: bytes) -> Response:
    try:
        request = _decoded(unmasker, body)
        told = encode_masks(unmasker.masks(request), request.parameters.bits)
    except MaskRefusedError as error:
        logger.warning("%s", error)
        return Response(encode_refusal(error), _STATUS[error.kind], media_type=CONTENT_TYPE)
    about = {"campaign": request.campaign.hex(), "round": request.round}
    logger.info("masks of %d devices are told", len(request.members), extra=about)
    return Response(told, media_type=CONTENT_TYPE)


def _decoded(unmasker: LocalUnmasker, body: bytes) -> MaskRequest:
    try:
        return MaskRequest.decode(body)
    except ProtocolError as error:
        unmasker.store.count_refusal(MALFORMED)
        raise MaskRefusedError(MALFORMED, str(error)) from None


def serve(
    unmasker: LocalUnmasker, listen: ListenSettings, ready: Callable[[], None] = lambda: None
) -> None:
    """Answer until SIGTERM or SIGINT; ``ready`` is called when it does."""
    # That it was told to stop isn't to be an error.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        Server(make_app(unmasker), listen, ready).run()
    finally:
        unmasker.store.close()
