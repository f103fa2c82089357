"""An unmasker over HTTP answers as it does in its own process, to whoever has the token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cbor2
import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from fleet.errors import MaskRefusedError, UnmaskerError
from fleet.protocol.mask_requests import REFUSALS, UnmaskerFacts
from fleet.security.tokens import new_token, secret_hash
from fleet.unmasker import LocalUnmasker, RemoteUnmasker, UnmaskerStore
from fleet.unmasker.service import make_app
from tests.fleet.unmasker.herd import FLEET, PRIVATE, PUBLIC, Cow, asked, blank

COWS = [Cow(f"cow-{number}") for number in range(5)]
TOKEN = new_token()


@dataclass
class Service:
    unmasker: LocalUnmasker
    http: TestClient

    def client(self, token: str = TOKEN) -> closing[RemoteUnmasker]:
        return closing(RemoteUnmasker("http://unmasker", token, transport=self.http._transport))

    def post(self, body: bytes, **headers: str) -> httpx.Response:
        given = {"Authorization": f"Bearer {TOKEN}", **headers}
        return self.http.post("/v1/masks", content=body, headers=given)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    store = UnmaskerStore(tmp_path / "unmasker.sqlite")
    store.enrol([cow.enrolment() for cow in COWS], FLEET, 0.0)
    store.set_token(secret_hash(TOKEN), 0.0)
    unmasker = LocalUnmasker(PRIVATE, FLEET, store, 3)
    with TestClient(make_app(unmasker)) as http:
        yield Service(unmasker, http)


def test_over_http_it_answers_and_refuses_as_in_its_own_process(service: Service) -> None:
    with service.client() as client:
        assert client.facts() == UnmaskerFacts(PUBLIC, FLEET, 3, 5)
        request, _ = asked(COWS[:4], blank(), PUBLIC)
        assert np.array_equal(client.masks(request), service.unmasker.masks(request))
        fewer, _ = asked(COWS[:3], blank(), PUBLIC)
        with pytest.raises(MaskRefusedError) as refused:
            client.masks(fewer)
    assert (refused.value.kind, refused.value.devices) == ("overlap", ("cow-0", "cow-1", "cow-2"))
    assert "cow-0, cow-1, cow-2" in str(refused.value)


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {TOKEN}"}]
)
def test_without_the_token_nothing_is_told(service: Service, header: dict[str, str]) -> None:
    body = asked(COWS, blank(), PUBLIC)[0].encode()
    for answer in (
        service.http.post("/v1/masks", content=body, headers=header),
        service.http.get("/v1/key", headers=header),
    ):
        assert (answer.status_code, answer.content) == (401, b"")
    assert service.unmasker.store.sets() == []
    with service.client(new_token()) as client, pytest.raises(UnmaskerError, match="the token"):
        client.facts()


def test_a_new_token_ends_the_one_before_at_the_next_request(service: Service) -> None:
    fresh = new_token()
    service.unmasker.store.set_token(secret_hash(fresh), 1.0)
    with service.client() as client, pytest.raises(UnmaskerError, match="doesn't know the token"):
        client.facts()
    with service.client(fresh) as client:
        client.facts()


def test_no_text_of_a_token_is_on_disk(service: Service, tmp_path: Path) -> None:
    with service.client() as client:
        client.facts()
    for path in tmp_path.iterdir():
        assert TOKEN.rpartition("_")[2].encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\xa0", b"\x80", b"not CBOR", cbor2.dumps({"campaign": bytes(8)})),
        *(cbor2.dumps([1]), b"\xbf\xff", b"\xd8\x1c\xa0"),
        # Bytes after it.
        asked(COWS, blank(), PUBLIC)[0].encode() + b"\0",
    ],
)
def test_what_is_no_request_is_malformed_and_counted(service: Service, body: bytes) -> None:
    answer = service.post(body)
    assert answer.status_code == 400
    assert cbor2.loads(answer.content)["error"] == "malformed"
    assert service.unmasker.store.refusals() == {"malformed": 1}


def test_bodies_that_are_too_long_or_dont_say_how_long_arent_read(service: Service) -> None:
    assert service.post(bytes((64 << 10) + 1)).status_code == 413
    chunked = service.http.post(
        "/v1/masks", content=iter([b"a"]), headers={"Authorization": f"Bearer {TOKEN}"}
    )
    assert chunked.status_code == 411
    assert service.unmasker.store.refusals() == {}


def test_a_store_that_cant_be_used_is_no_refusal_so_it_is_asked_again(service: Service) -> None:
    request, _ = asked(COWS, blank(), PUBLIC)
    service.unmasker.store.close()
    with service.client() as client, pytest.raises(UnmaskerError, match="status 503"):
        client.masks(request)
    assert service.http.get("/healthz").status_code == 503


def test_answers_that_are_none_are_told_from_refusals() -> None:
    request, _ = asked(COWS, blank(), PUBLIC)
    for answer in (
        httpx.Response(200, content=cbor2.dumps({"masks": bytes(3)})),
        httpx.Response(200, content=b"\xff"),
        httpx.Response(409, content=b"a proxy's page"),
        httpx.Response(409, content=cbor2.dumps({"error": "x", "detail": "", "devices": []})),
    ):
        transport = httpx.MockTransport(lambda _, answer=answer: answer)
        with closing(RemoteUnmasker("http://u", TOKEN, transport=transport)) as client:
            for ask in (lambda client=client: client.masks(request), client.facts):
                with pytest.raises(UnmaskerError):
                    ask()


def test_an_answer_without_end_is_left_after_the_largest_that_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fleet.unmasker.client.MOST_ANSWER_BYTES", 1000)
    sent = []

    def endless() -> Iterator[bytes]:
        while True:
            sent.append(100)
            yield bytes(100)

    transport = httpx.MockTransport(lambda _: httpx.Response(200, content=endless()))
    with (
        closing(RemoteUnmasker("http://u", TOKEN, transport=transport)) as client,
        pytest.raises(UnmaskerError, match="more than 1000 bytes"),
    ):
        client.facts()
    assert sum(sent) == 1100


def test_prometheus_is_told_of_sets_and_refusals_without_names(service: Service) -> None:
    service.post(asked(COWS[:4], blank(), PUBLIC)[0].encode())
    service.post(asked(COWS[1:], blank(), PUBLIC)[0].encode())
    text = service.http.get("/metrics").text
    assert "tinyfleet_unmasker_sets_total 1.0" in text
    assert "tinyfleet_unmasker_devices 5.0" in text
    for kind in REFUSALS:
        wanted = f'tinyfleet_unmasker_refused_total{{kind="{kind}"}} {float(kind == "overlap")}'
        assert wanted in text
    assert "cow" not in text
    assert service.http.get("/healthz").text == "ok\n"
