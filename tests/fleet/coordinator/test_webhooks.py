"""Deliveries to real receivers on loopback, over each database; time is virtual."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.clock import VirtualClock
from fleet.coordinator.webhooks import Deliveries, Post, http_post, signature, verify
from fleet.ports import free_port
from fleet.store import Events, SqlStore, Webhooks
from tests.conftest import examples
from tests.fleet.store.conftest import new_database as new_database
from tests.fleet.store.conftest import postgres_server as postgres_server
from tests.patience import PATIENCE_SECONDS, wait_until

NOW = 1_700_000_000.0
CAMPAIGN = "6d813993f32a44cf"
PAUSED = {"state": "paused", "reason": "paused by the operator", "waiting": ""}
PASSED = {"stage": "half", "outcome": "pass", "reasons": ["0 of 12 devices failed"]}
ROOT = Path(__file__).resolve().parents[3]


def patient_post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    return http_post(url, body, headers, PATIENCE_SECONDS)


def impatient_post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    return http_post(url, body, headers, 0.5)


class Site:
    """A fleet's events with what sends them."""

    def __init__(self, database: str | None, post: Post = patient_post) -> None:
        self.clock = VirtualClock()
        self.store = SqlStore(database, self.clock)
        self.events = Events(self.store)
        self.webhooks = Webhooks(self.store)
        self.deliveries = Deliveries(self.store, self.clock, post)

    def happens(self, count: int, kind: str = "state") -> None:
        for number in range(count):
            self.events.add(kind, CAMPAIGN, {"n": number})


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def site(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[Site]:
    site = Site(new_database(request.param))
    yield site
    site.store.close()


@pytest.fixture
def alone() -> Iterator[Site]:
    """A site over memory, where the database matters nothing."""
    site = Site(None)
    yield site
    site.store.close()


@pytest.fixture
def impatient() -> Iterator[Site]:
    """The same, whose attempts end after half a second."""
    site = Site(None, impatient_post)
    yield site
    site.store.close()


class Receiver:
    """An HTTP server that keeps what it gets, and answers with `status`."""

    def __init__(self, port: int = 0, status: int = 204) -> None:
        self.status = status
        self.got: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers.items()), body))
                self.send_response(receiver.status)
                self.send_header("Location", f"{receiver.url}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def numbers(self) -> list[int]:
        return [json.loads(body)["number"] for _, body in self.got]

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    """Starts receivers, and stops them in the end."""
    running: list[Receiver] = []

    def start(**options: Any) -> Receiver:
        running.append(Receiver(**options))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a receiver that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


# ---- what arrives ------------------------------------------------------------------------


def test_each_event_is_one_signed_post_in_order(
    site: Site, receivers: Callable[..., Receiver]
) -> None:
    receiver = receivers()
    _, secret = site.webhooks.add(receiver.url + "/hook?a=b")
    site.events.add("state", CAMPAIGN, {**PAUSED, "loss": float("nan")})
    site.events.add("gate", "", {})
    assert site.deliveries.step() == 2
    assert site.deliveries.step() == 0
    assert [json.loads(body) for _, body in receiver.got] == [
        {
            "number": 1,
            "at": NOW,
            "kind": "state",
            "campaign": CAMPAIGN,
            "data": {**PAUSED, "loss": None},
        },
        {"number": 2, "at": NOW, "kind": "gate", "campaign": "", "data": {}},
    ]
    headers, body = receiver.got[0]
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Tinyfleet-Event"] == "state"
    assert headers["X-Tinyfleet-Delivery"] == "1"
    assert headers["X-Tinyfleet-Timestamp"] == "1700000000"
    by_hand = hmac.new(secret.encode(), b"1700000000." + body, hashlib.sha256).hexdigest()
    assert headers["X-Tinyfleet-Signature"] == f"sha256={by_hand}"
    assert verify(secret, headers, body, NOW)


def test_a_webhook_gets_the_kinds_that_it_was_added_for(
    site: Site, receivers: Callable[..., Receiver]
) -> None:
    gates, everything = receivers(), receivers()
    site.webhooks.add(gates.url, ["gate", "state"])
    site.webhooks.add(everything.url)
    for kind in ("round", "gate", "round", "state", "round"):
        site.happens(1, kind)
    assert site.deliveries.step() == 2 + 5
    assert gates.numbers == [2, 4]
    assert everything.numbers == [1, 2, 3, 4, 5]
    assert [one.cursor for one in site.webhooks.list()] == [5, 5]
    site.happens(150, "round")
    site.happens(1, "gate")
    site.deliveries.step()
    assert gates.numbers == [2, 4, 156]


def test_a_receiver_that_was_down_gets_everything_once_in_order(
    site: Site, receivers: Callable[..., Receiver]
) -> None:
    port = free_port()
    site.webhooks.add(f"http://127.0.0.1:{port}")
    site.happens(3)
    assert site.deliveries.step() == 0
    (down,) = site.webhooks.list()
    assert (down.failures, down.cursor, down.not_before) == (1, 0, NOW + 5)
    assert "it can't be reached (ConnectError" in down.problem
    receiver = receivers(port=port)
    assert site.deliveries.step() == 0  # it isn't time yet
    site.clock.sleep(5)
    site.happens(2)
    assert site.deliveries.step() == 5
    assert receiver.numbers == [1, 2, 3, 4, 5]
    (up,) = site.webhooks.list()
    assert (up.failures, up.cursor, up.not_before, up.problem) == (0, 5, 0.0, "")


def test_a_receiver_that_fails_on_an_event_gets_it_again_and_none_behind_it(
    site: Site, receivers: Callable[..., Receiver]
) -> None:
    receiver = receivers()
    _, secret = site.webhooks.add(receiver.url)
    site.happens(1)
    site.deliveries.step()
    receiver.status = 500
    site.happens(2)
    site.deliveries.step()
    assert receiver.numbers == [1, 2]
    assert site.webhooks.list()[0].problem == "it answers 500"
    receiver.status = 200
    site.clock.sleep(5)
    site.deliveries.step()
    assert receiver.numbers == [1, 2, 2, 3]
    times = [headers["X-Tinyfleet-Timestamp"] for headers, _ in receiver.got]
    assert times == ["1700000000", "1700000000", "1700000005", "1700000005"]
    assert all(verify(secret, headers, body, NOW + 5) for headers, body in receiver.got)


def test_who_fails_is_asked_again_ever_more_seldom_up_to_an_hour(
    site: Site, receivers: Callable[..., Receiver]
) -> None:
    receiver = receivers(status=404)
    site.webhooks.add(receiver.url)
    site.happens(1)
    waits = []
    for _ in range(14):
        site.deliveries.step()
        (one,) = site.webhooks.list()
        waits.append(one.not_before - site.clock.wall())
        site.clock.sleep(waits[-1])
    assert waits == [5.0 * 2**doublings for doublings in range(10)] + [3600.0] * 4
    assert len(receiver.got) == 14


# ---- receivers that mean no good ---------------------------------------------------------


def test_a_secure_address_that_never_shakes_hands_is_not_waited_for(
    impatient: Site, silent: str
) -> None:
    impatient.webhooks.add(silent.replace("http:", "https:"))
    impatient.happens(1)
    assert impatient.deliveries.step() == 0
    assert "it doesn't answer within" in impatient.webhooks.list()[0].problem


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(
    alone: Site, receivers: Callable[..., Receiver], status: int
) -> None:
    receiver = receivers(status=status)
    alone.webhooks.add(receiver.url)
    alone.happens(1)
    Deliveries(alone.store, alone.clock).step()
    assert len(receiver.got) == 1
    (one,) = alone.webhooks.list()
    assert one.problem.startswith(f"it answers {status}; redirects aren't followed")
    assert one.cursor == 0


def test_receivers_that_hang_keep_no_other_from_its_events(
    site: Site, receivers: Callable[..., Receiver], silent: str
) -> None:
    def post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
        chosen = impatient_post if url.startswith(silent) else patient_post
        return chosen(url, body, headers)

    receiver = receivers()
    for path in "abcde":
        site.webhooks.add(f"{silent}/{path}")
    site.webhooks.add(receiver.url)
    site.happens(3)
    assert Deliveries(site.store, site.clock, post).step() == 3
    assert receiver.numbers == [1, 2, 3]
    hanging = [one for one in site.webhooks.list() if one.url.startswith(silent)]
    assert {(one.failures, one.cursor, one.not_before) for one in hanging} == {(1, 0, NOW + 5)}
    assert "it doesn't answer within" in hanging[0].problem


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_receiver_that_lets_bytes_drip_is_not_waited_for(impatient: Site, start: bytes) -> None:
    stopped = threading.Event()

    def drip() -> None:
        with server.accept()[0] as connection:
            connection.sendall(start)
            while not stopped.wait(0.05):
                try:
                    connection.sendall(b"H" if not start else b"x")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as server:
        dripping = threading.Thread(target=drip)
        dripping.start()
        impatient.webhooks.add(f"http://127.0.0.1:{server.getsockname()[1]}")
        impatient.happens(1)
        assert impatient.deliveries.step() == 0
        stopped.set()
        dripping.join()
    assert impatient.webhooks.list()[0].failures == 1


def test_a_name_that_nobody_resolves_is_not_waited_for(
    impatient: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def resolve(*_: object, **__: object) -> object:
        assert answered.wait(PATIENCE_SECONDS)
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    impatient.webhooks.add("http://nowhere.example")
    impatient.happens(1)
    assert impatient.deliveries.step() == 0
    assert not answered.is_set()
    answered.set()
    assert "it doesn't answer within" in impatient.webhooks.list()[0].problem


def test_an_answer_that_is_no_http_or_never_ends_does_no_harm(alone: Site) -> None:
    def answer() -> None:
        with server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(b"\0\xff\r\n\r\n" * 1000)
        with server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx")
            connection.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=answer)
        answering.start()
        alone.webhooks.add(f"http://127.0.0.1:{server.getsockname()[1]}")
        alone.happens(1)
        assert alone.deliveries.step() == 0
        (one,) = alone.webhooks.list()
        assert one.problem.isprintable()
        assert len(one.problem) <= 300
        alone.clock.sleep(5)
        assert alone.deliveries.step() == 1
        answering.join()


def test_an_address_that_only_fails_when_it_is_used_keeps_no_other_waiting(
    alone: Site, receivers: Callable[..., Receiver]
) -> None:
    receiver = receivers()
    alone.webhooks.add("http://a..b/")
    alone.webhooks.add(receiver.url)
    alone.happens(2)
    assert alone.deliveries.step() == 2
    assert receiver.numbers == [1, 2]


def test_a_slow_receiver_gets_a_turn_and_goes_on_in_the_next_step(alone: Site) -> None:
    """Each delivery takes it two seconds: it has three in a turn."""
    got: list[int] = []

    def post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
        got.append(json.loads(body)["number"])
        alone.clock.sleep(2)
        return 200

    alone.webhooks.add("http://slow")
    alone.happens(5)
    deliveries = Deliveries(alone.store, alone.clock, post)
    assert [deliveries.step() for _ in range(3)] == [3, 2, 0]
    assert got == [1, 2, 3, 4, 5]


def test_a_webhook_that_is_removed_meanwhile_gets_nothing_more(alone: Site) -> None:
    def post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
        alone.webhooks.remove(added.webhook)
        return 200

    added, _ = alone.webhooks.add("http://going")
    alone.happens(5)
    assert Deliveries(alone.store, alone.clock, post).step() == 1
    assert alone.webhooks.list() == ()


def test_events_arrive_again_where_the_sender_died_before_its_note(
    site: Site, receivers: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = receivers()
    site.webhooks.add(receiver.url)
    site.happens(2)
    with monkeypatch.context() as dying:
        dying.setattr(Webhooks, "delivered", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            site.deliveries.step()
    assert site.deliveries.step() == 2
    assert receiver.numbers == [1, 1, 2]


# ---- what receivers check ----------------------------------------------------------------

SECRET = "ab" * 32


def signed(body: bytes, at: float = NOW) -> dict[str, str]:
    timestamp = str(int(at))
    return {
        "X-Tinyfleet-Timestamp": timestamp,
        "X-Tinyfleet-Signature": signature(SECRET, timestamp, body),
    }


@given(st.binary(min_size=1), st.data())
@examples(60)
def test_a_tampered_body_is_refused(body: bytes, data: st.DataObject) -> None:
    headers = signed(body)
    assert verify(SECRET, headers, body, NOW)
    assert verify(SECRET, {name.lower(): value for name, value in headers.items()}, body, NOW)
    at = data.draw(st.integers(0, len(body) - 1))
    flipped = bytes([body[at] ^ data.draw(st.integers(1, 255))])
    assert not verify(SECRET, headers, body[:at] + flipped + body[at + 1 :], NOW)
    assert not verify(SECRET, headers, body + b"\n", NOW)
    assert not verify(SECRET[::-1], headers, body, NOW)


def test_what_was_sent_long_ago_or_says_another_time_is_refused() -> None:
    headers = signed(b"{}")
    for now, genuine in ((-301, False), (-300, True), (300, True), (301, False)):
        assert verify(SECRET, headers, b"{}", NOW + now) == genuine
    later = {**headers, "X-Tinyfleet-Timestamp": str(int(NOW) + 1000)}
    assert not verify(SECRET, later, b"{}", NOW + 1000)
    assert verify(SECRET, headers, b"{}", NOW + 1000, tolerance=2000)
    assert not verify(SECRET, headers, b"{}", float("nan"))


@given(
    st.dictionaries(
        st.sampled_from(["X-Tinyfleet-Timestamp", "X-Tinyfleet-Signature", "x-tinyfleet-event"]),
        st.one_of(st.text(), st.just("1700000000"), st.just("\ud800"), st.just("²")),
    )
)
@examples(60)
def test_headers_that_nobody_signed_are_refused_without_an_error(headers: dict[str, str]) -> None:
    assert verify(SECRET, headers, b"{}", NOW) is False


def test_the_receiver_of_the_documentation_takes_events_once_and_refuses_forged_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/howto/webhooks.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(import hashlib\n.*?)```", page, re.DOTALL)
    (tmp_path / "receiver.py").write_text(program, encoding="utf-8")
    store = SqlStore()  # the receiver goes by the machine's clock
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    _, secret = Webhooks(store).add(url)
    receiver = subprocess.Popen(
        [sys.executable, tmp_path / "receiver.py"],
        env={**os.environ, "WEBHOOK_SECRET": secret, "PORT": str(port)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_until(lambda: answers(port) or receiver.poll() is not None, "the receiver to listen")
        Events(store).add("state", CAMPAIGN, PAUSED)
        Events(store).add("gate", CAMPAIGN, PASSED)
        sent: list[tuple[bytes, dict[str, str]]] = []

        def post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
            sent.append((body, dict(headers)))
            return patient_post(url, body, headers)

        assert Deliveries(store, store.clock, post).step() == 2
        body, headers = sent[0]
        assert patient_post(url, body, headers) == 204
        assert patient_post(url, body.replace(b"paused", b"failed"), headers) == 403
        old = str(int(store.clock.wall()) - 1000)
        resigned = {"X-Tinyfleet-Signature": signature(secret, old, body)}
        stale = {**headers, "X-Tinyfleet-Timestamp": old, **resigned}
        assert patient_post(url, body, stale) == 403
        assert patient_post(url, body, {}) == 403
    finally:
        receiver.terminate()
        said, _ = receiver.communicate()
        store.close()
    assert said == f"state {CAMPAIGN} {PAUSED}\ngate {CAMPAIGN} {PASSED}\n"


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
