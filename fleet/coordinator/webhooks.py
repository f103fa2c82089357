"""Sends events to webhooks: signed, in order, and again until they have arrived.

The other end may be down, slow or hostile: each webhook has its own pace, no answer is read beyond
its status, no redirect is followed, and nobody is waited for longer than `ATTEMPT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Protocol

import httpx

from fleet.clock import Clock
from fleet.store import Event, Events, SqlStore, Webhook, Webhooks

logger = logging.getLogger(__name__)

ATTEMPT_SECONDS = 5.0
"""For one delivery, from the look-up of the name to the answer's status."""

FIRST_WAIT_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 3600.0

AT_ONCE = 8
"""So many webhooks get their events at the same time."""

EVENTS_A_TURN = 100
TURN_SECONDS = 5.0
"""A webhook that is slow but works gets no more events in a step after this."""

Post = Callable[[str, bytes, Mapping[str, str]], int]
"""Sends a body with headers to an address and gives the answer's status; raises what it likes."""


class Headers(Protocol):
    """Headers as anybody's server gives them: a dict, or `http.server`'s `self.headers`."""

    def items(self) -> Iterable[tuple[str, str]]:
        """Names, in any case, with values."""


class Deliveries:
    """Delivers a store's events to its webhooks. One at a time acts for a fleet (`Term`)."""

    def __init__(self, store: SqlStore, clock: Clock, post: Post | None = None) -> None:
        """Nothing is sent yet."""
        self._webhooks = Webhooks(store)
        self._events = Events(store)
        self._clock = clock
        self._post = post or http_post

    def step(self) -> int:
        """Give each webhook that is due its next events; returns how many arrived.

        It takes about ten seconds at most where no more than `AT_ONCE` are slow or hang.
        """
        due = self._webhooks.due(self._clock.wall())
        if not due:
            return 0
        with ThreadPoolExecutor(min(AT_ONCE, len(due)), "webhook") as pool:
            return sum(pool.map(lambda one: self._turn(*one), due))

    def _turn(self, webhook: Webhook, secret: str) -> int:
        """One webhook's next events, until one doesn't arrive or its turn is over."""
        end = self._clock.monotonic() + TURN_SECONDS
        # Read first: what happens meanwhile is behind it.
        last = self._events.last()
        page = self._events.after(webhook.cursor, limit=EVENTS_A_TURN, kinds=webhook.events)
        failures = webhook.failures
        for arrived, event in enumerate(page):
            problem = self._attempt(webhook, secret, event)
            if problem:
                self._back_off(webhook, problem, failures)
                return arrived
            failures = 0
            if not self._webhooks.delivered(webhook.webhook, event.number):
                return arrived + 1
            if self._clock.monotonic() >= end:
                return arrived + 1
        if len(page) < EVENTS_A_TURN and (not page or page[-1].number < last):
            # What else there is up to here is of other kinds.
            self._webhooks.delivered(webhook.webhook, last)
        return len(page)

    def _attempt(self, webhook: Webhook, secret: str, event: Event) -> str:
        """Send one event; returns what went wrong, or nothing."""
        body = body_of(event)
        timestamp = str(int(self._clock.wall()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "tinyfleet",
            "X-Tinyfleet-Event": event.kind,
            "X-Tinyfleet-Delivery": str(event.number),
            "X-Tinyfleet-Timestamp": timestamp,
            "X-Tinyfleet-Signature": signature(secret, timestamp, body),
        }
        try:
            status = self._post(webhook.url, body, headers)
        except TimeoutError:
            return f"it doesn't answer within {ATTEMPT_SECONDS:.0f} s"
        except Exception as error:
            # Whatever it is, it is this receiver's trouble, and no other's.
            said = f"it can't be reached ({type(error).__name__}: {error})"
            return "".join(one if one.isprintable() else "?" for one in said)[:300]
        if 200 <= status < 300:
            return ""
        if 300 <= status < 400:
            return f"it answers {status}; redirects aren't followed: add it by its new address"
        return f"it answers {status}"

    def _back_off(self, webhook: Webhook, problem: str, failures: int) -> None:
        # Far more doublings than it takes to the longest wait, and than a float can have.
        wait = min(FIRST_WAIT_SECONDS * 2 ** min(failures, 30), LONGEST_WAIT_SECONDS)
        logger.warning("webhook %s: %s; again in %.0f s", webhook.webhook, problem, wait)
        self._webhooks.failed(webhook.webhook, problem, self._clock.wall() + wait)


def body_of(event: Event) -> bytes:
    """An event as receivers get it."""
    return json.dumps(
        {
            "number": event.number,
            "at": event.at,
            "kind": event.kind,
            "campaign": event.campaign,
            "data": dict(event.data),
        }
    ).encode()


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """What `X-Tinyfleet-Signature` says."""
    signed = f"{timestamp}.".encode() + body
    return "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


def verify(
    secret: str, headers: Headers, body: bytes, now: float, tolerance: float = 300.0
) -> bool:
    """Whether a delivery is from somebody who has the secret, and was sent just now.

    For receivers: `body` is what came, byte for byte, and `now` the Unix time there. An old
    delivery is refused since whoever has recorded one could send it again.
    """
    said = {name.lower(): value for name, value in headers.items()}
    timestamp = said.get("x-tinyfleet-timestamp", "")
    if not re.fullmatch(r"[0-9]{1,12}", timestamp):
        return False
    if not abs(now - int(timestamp)) <= tolerance:
        return False
    expected = signature(secret, timestamp, body).encode()
    given = said.get("x-tinyfleet-signature", "").encode(errors="replace")
    return hmac.compare_digest(expected, given)


def http_post(
    url: str, body: bytes, headers: Mapping[str, str], seconds: float = ATTEMPT_SECONDS
) -> int:
    """POST over HTTP; gives the answer's status, or raises `TimeoutError` after `seconds`.

    A time-out of a socket would begin again with each byte that a receiver lets drip.
    """
    # Not asyncio.run, whose end waits for a look-up of a name that was given up.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(_http_post(url, body, headers, seconds))
    finally:
        loop.close()


@cache
def _authorities() -> ssl.SSLContext:
    # Reading them takes longer than all the rest of a delivery.
    return httpx.create_ssl_context()


async def _http_post(url: str, body: bytes, headers: Mapping[str, str], seconds: float) -> int:
    async with (
        asyncio.timeout(seconds),
        httpx.AsyncClient(verify=_authorities(), follow_redirects=False, timeout=None) as client,
        # Nobody reads what it answers, however long that is.
        client.stream("POST", url, content=body, headers=dict(headers)) as answer,
    ):
        return answer.status_code
