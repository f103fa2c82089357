"""The client where the service is busy, away for a moment, or not there."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest

from fleet.errors import ServiceError
from fleet.service import client as module
from fleet.service.client import MOST_RETRIES, Client

WHO = {"who": "ann", "role": "viewer", "fleet": "barn", "version": "1"}


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    # Of this module only: whatever else waits in this process goes on waiting.
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waits.append))
    return waits


def client(answer: Callable[[int], httpx.Response]) -> tuple[Client, list[httpx.Request]]:
    """One whose request number n, from 0, is answered so."""
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer(len(asked) - 1)

    return Client("http://h", "t", transport=httpx.MockTransport(handle)), asked


def test_a_request_that_came_too_early_is_sent_again_when_the_service_says(
    waited: list[float],
) -> None:
    busy = httpx.Response(429, headers={"Retry-After": "3"}, json={"error": "too many", "kind": ""})
    one, asked = client(lambda n: busy if n < 2 else httpx.Response(200, json=WHO))
    assert one.whoami().who == "ann"
    assert (len(asked), waited) == (3, [3.0, 3.0])


def test_a_write_that_is_sent_again_has_the_same_key(waited: list[float]) -> None:
    away = httpx.Response(503, json={"error": "the database is away", "kind": "StoreAwayError"})
    one, asked = client(lambda n: away if n == 0 else httpx.Response(204))
    one.erase_device("d0")
    keys = {request.headers["Idempotency-Key"] for request in asked}
    assert (len(asked), len(keys), waited) == (2, 1, [0.5])


def test_a_reason_goes_with_writes_and_with_nothing_else() -> None:
    asked: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json=WHO)

    one = Client(
        "http://h", "t", why="\N{HONEYBEE}\n it was  time", transport=httpx.MockTransport(handle)
    )
    one.whoami()
    one.erase_device("d0")
    assert "X-Reason" not in asked[0].headers
    reasons = dict(asked[1].headers.raw)
    assert reasons[b"X-Reason"] == "\N{HONEYBEE} it was time".encode()


def test_a_service_that_stays_busy_is_given_up_with_its_own_words(waited: list[float]) -> None:
    busy = httpx.Response(429, headers={"Retry-After": "nonsense"}, json={"error": "too many"})
    one, asked = client(lambda n: busy)
    with pytest.raises(ServiceError, match="too many"):
        one.whoami()
    assert len(asked) == 1 + MOST_RETRIES
    assert waited == [1.0] * MOST_RETRIES


def test_a_refusal_is_told_at_once(waited: list[float]) -> None:
    one, asked = client(lambda n: httpx.Response(422, json={"error": "no", "kind": ""}))
    with pytest.raises(ServiceError, match="no"):
        one.whoami()
    assert (len(asked), waited) == (1, [])
