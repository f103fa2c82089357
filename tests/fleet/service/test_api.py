"""The API over HTTP: who is let in, what is done once, what is told when the store is away."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request

from fleet.errors import ConflictError, ServiceError, StoreAwayError
from fleet.service import routes
from fleet.service.operations import Operations
from fleet.service.requests import MOST_REASON_CHARACTERS
from fleet.service.schema import DeviceToAdd
from fleet.store import Events, Idempotency, Tokens
from tests.fleet.service.conftest import DAY, Site, campaign

KEY = {"Idempotency-Key": "once"}
NEW_TOKEN = {"who": "bob", "role": "viewer"}


# ---- who is let in -----------------------------------------------------------------------


def _revoked(site: Site) -> str:
    token, text = Tokens(site.store).issue("bob", "admin", DAY)
    Tokens(site.store).revoke(token.token)
    return text


def _expired(site: Site) -> str:
    _, text = Tokens(site.store).issue("bob", "admin", 1e-6)
    return text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda site: "", "there is no token: send the header"),
        (lambda site: "tf_nonsense", "that is no token"),
        (lambda site: f"tf_{'0' * 16}_{'5' * 64}", "nobody has issued this token"),
        (_expired, "has expired"),
        (_revoked, "was revoked"),
    ],
)
def test_a_token_that_is_no_good_is_refused_and_never_repeated(
    site: Site, make: Callable[[Site], str], message: str
) -> None:
    text = make(site)
    for method, path in (("GET", "/v1/devices"), ("POST", "/v1/devices/d0/rotate")):
        headers = {"Authorization": f"Bearer {text}", **KEY} if text else KEY
        answer = site.http.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["kind"]) == (401, "AccessError")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert message in answer.json()["error"]
        assert "nonsense" not in answer.text
        assert text.rpartition("_")[2] == "" or text.rpartition("_")[2] not in answer.text


@pytest.mark.parametrize("headers", [{}, KEY])
def test_nothing_of_a_body_is_read_before_it_is_known_who_asks(
    site: Site, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(_: Request) -> bytes:
        raise AssertionError("it was read")

    monkeypatch.setattr(Request, "body", read)
    answer = site.http.post("/v1/devices", content="[" * 100, headers=headers)
    assert (answer.status_code, answer.json()["kind"]) == (401, "AccessError")


def test_whoever_asks_too_often_waits_and_others_do_not(new_site: Callable[..., Site]) -> None:
    site = new_site(requests_per_minute=2)
    answers = [site.ask("viewer", "GET", "/v1/whoami") for _ in range(3)]
    assert [one.status_code for one in answers] == [200, 200, 429]
    assert answers[2].json() == {"error": "too many requests", "kind": "HTTPException"}
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 30
    assert site.ask("operator", "GET", "/v1/whoami").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/devices", 405),
        ("GET", "/v1/devices/d9", 404),
        ("DELETE", "/v1/tokens/0", 404),
        ("DELETE", "/v1/webhooks/0", 404),
    ],
)
def test_what_there_is_not_is_told_like_every_failure(
    site: Site, method: str, path: str, status: int
) -> None:
    answer = site.ask("admin", method, path)
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "kind"}
    if status == 405:
        assert answer.headers["Allow"] == "GET, POST"


def test_a_body_that_is_too_long_or_says_no_length_is_not_read(site: Site) -> None:
    headers = {"Content-Length": str((96 << 20) + 1)}
    assert site.ask("admin", "POST", "/v1/devices", headers=headers).status_code == 413
    chunks = site.ask("admin", "POST", "/v1/devices", content=iter([b"{}"]))
    assert chunks.status_code == 411


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_texts_and_numbers_that_no_database_keeps_are_refused(
    new_site: Callable[..., Site], kind: str
) -> None:
    site = new_site(kind)
    plan = "/v1/campaigns-plan"
    many = "9" * 30
    for method, path, body in (
        ("PATCH", "/v1/devices/d0/labels", r'{"labels": {"line": "\u0000"}}'),
        ("PATCH", "/v1/devices/d0/labels", r'{"labels": {"line": "\ud800"}}'),
        ("PATCH", "/v1/devices/d0/labels", r'{"labels": {"\ud800": "x"}}'),
        ("PATCH", "/v1/devices/d0/labels", b'{"labels": {"line": "\xff"}}'),
        ("POST", "/v1/models/small/versions", '{"weights": "?"}'),
        ("POST", "/v1/models/small/versions", f'{{"weights": "AAAA", "parent": {many}}}'),
        ("POST", plan, f'{{"campaign": {{"name": "x", "model": "small", "version": {many}}}}}'),
        ("POST", plan, '{"campaign": {"name": "x", "model": "small", "cohort_size": 1e999}}'),
        ("POST", plan, f'{{"campaign": {{"name": "x", "model": "small", "rounds": {many}}}}}'),
        ("POST", plan, '{"campaign": {"name": "x", "gateway_grace_seconds": Infinity}}'),
        ("POST", plan, "[" * 100_000),
        ("GET", f"/v1/devices?filter=lease=={many}", ""),
        ("GET", r'/v1/devices?filter=site=="\u0000"', ""),
        ("GET", r'/v1/devices?filter=site=="\ud800"', ""),
        ("GET", "/v1/devices?after=%00", ""),
        ("GET", "/v1/audit?object=%00", ""),
    ):
        answer = site.ask("admin", method, path, content=body or None)
        assert answer.status_code == 422, (path, body, answer.text)
        assert answer.json().keys() == {"error", "kind"}
    no_number = site.ask("admin", "GET", "/v1/events?follow=false", headers={"Last-Event-ID": "2e"})
    assert no_number.status_code == 422


@pytest.mark.parametrize("letter", ["x", "ж", "\N{HONEYBEE}"])
def test_a_reason_has_so_many_letters_whatever_the_bytes_of_one(site: Site, letter: str) -> None:
    why = letter * MOST_REASON_CHARACTERS
    assert site.client(why=why).label_device("d0", {"line": "c"}).labels == {"line": "c"}
    assert site.operations.audit.newest(1)[0].why == why
    with pytest.raises(ServiceError, match="X-Reason: a reason has 500 characters at most"):
        site.client(why=why + letter).label_device("d0", {"line": "d"})
    assert site.client().device("d0").labels == {"line": "c"}


# ---- what is done once -------------------------------------------------------------------


def test_a_request_that_comes_again_is_done_once_and_answered_alike(site: Site) -> None:
    first = site.ask("admin", "POST", "/v1/tokens", json=NEW_TOKEN, headers=KEY)
    again = site.ask("admin", "POST", "/v1/tokens", json=NEW_TOKEN, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert "Idempotent-Replay" not in first.headers
    assert again.headers["Idempotent-Replay"] == "true"
    secrets = {"token": "(secret)", "secret": "(secret)"}
    assert again.json() == {**first.json(), **secrets}
    assert [one.who for one in Tokens(site.store).list()].count("bob") == 1
    other = site.ask("admin", "POST", "/v1/tokens", json={**NEW_TOKEN, "who": "eve"}, headers=KEY)
    assert (other.status_code, other.json()["kind"]) == (409, "ConflictError")
    assert "eve" not in {one.who for one in Tokens(site.store).list()}


def test_a_refusal_is_remembered_like_an_answer(site: Site) -> None:
    for replayed in (None, "true"):
        answer = site.ask("viewer", "POST", "/v1/tokens", json=NEW_TOKEN, headers=KEY)
        assert (answer.status_code, answer.headers.get("Idempotent-Replay")) == (403, replayed)


def test_nothing_of_a_secret_is_in_the_database(
    new_site: Callable[..., Site], tmp_path: Path
) -> None:
    site = new_site("sqlite")
    body = {"devices": [{"device": "new", "site": "home", "password": "letmein-letmein"}]}
    site.ask("admin", "POST", "/v1/devices", json=body, headers={"Idempotency-Key": "1"})
    told = [
        site.ask("admin", "POST", path, json=body, headers={"Idempotency-Key": path}).json()
        for path, body in (
            ("/v1/devices/d0/rotate", {}),
            ("/v1/gateways", {"gateway": "gw2", "site": "home"}),
            ("/v1/tokens", NEW_TOKEN),
        )
    ]
    secrets = ["letmein-letmein", told[0]["password"], told[1]["password"], told[2]["secret"][-64:]]
    secrets += [*site.passwords.values(), *(text[-64:] for text in site.tokens.values())]
    site.ask("admin", "GET", "/v1/devices", headers={"X-Reason": site.tokens["admin"]})
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("store*"))
    assert b"letmein" not in kept
    assert b"gw2" in kept, "the database isn't what was read"
    assert [one for one in secrets if one.encode() in kept] == []


# ---- what fails in between ---------------------------------------------------------------


class StatementError(Exception):
    """Stands for a database that goes away."""


@contextlib.contextmanager
def failing(site: Site, at: int) -> Iterator[Callable[[], int]]:
    """The store is away from its statement number `at` on; gives how many there were."""
    count = 0

    def before(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal count
        count += 1
        if count > at:
            raise sa.exc.OperationalError(statement, {}, StatementError("away"))

    engine = site.store._engine
    sa.event.listen(engine, "before_cursor_execute", before)
    try:
        yield lambda: count
    finally:
        sa.event.remove(engine, "before_cursor_execute", before)


WRITES: dict[str, tuple[str, str, Any]] = {
    "devices.add": (
        "POST",
        "/v1/devices",
        {"devices": [{"device": "n1", "site": "home"}, {"device": "n2", "site": "yard"}]},
    ),
    "devices.retire": ("POST", "/v1/devices/d0/retire", {}),
    "devices.label": ("PATCH", "/v1/devices/d0/labels", {"labels": {"line": "c"}}),
    "gateways.add": ("POST", "/v1/gateways", {"gateway": "gw2", "site": "home"}),
    "gateways.retire": ("POST", "/v1/gateways/gw1/retire", {}),
    "tokens.issue": ("POST", "/v1/tokens", NEW_TOKEN),
    "campaigns.start": (
        "POST",
        "/v1/campaigns",
        {"campaign": {"name": "test", "model": "small", "rounds": 1}},
    ),
    "webhooks.add": ("POST", "/v1/webhooks", {"url": "http://h/", "events": ["gate"]}),
}


def _tables(site: Site) -> dict[str, list[Any]]:
    from fleet.store.tables import metadata

    with site.store.reading() as connection:
        return {
            name: [tuple(row) for row in connection.execute(sa.select(table))]
            for name, table in metadata.tables.items()
            if name != "idempotency"
        }


@pytest.mark.parametrize("action", WRITES)
def test_a_store_that_fails_at_any_step_leaves_all_of_a_change_or_nothing(
    site: Site, action: str
) -> None:
    method, path, body = WRITES[action]
    before = _tables(site)
    for step in range(200):
        headers = {"Idempotency-Key": f"key-{step}"}
        with failing(site, step) as count:
            answer = site.ask("admin", method, path, json=body, headers=headers)
        if answer.status_code < 300:
            assert count() <= step
            break
        assert answer.status_code == 503, answer.text
        assert answer.json()["kind"] == "StoreAwayError"
        assert _tables(site) == before, f"half of it is there after step {step}"
    after = _tables(site)
    assert after != before
    new = site.operations.audit.newest(len(after["audit"]) - len(before["audit"]))
    assert [one.action for one in new] == [action] * len(body.get("devices", "1"))
    again = site.ask("admin", method, path, json=body, headers=headers)
    assert (again.status_code, _tables(site)) == (answer.status_code, after)


def test_a_change_whose_answer_was_lost_is_not_done_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store goes away as soon as the change is done."""

    def away(*_: object) -> None:
        raise StoreAwayError("away")

    monkeypatch.setattr(Idempotency, "drop", away)
    wanted = {"campaign": {"name": "test", "model": "small"}}
    first = site.ask("admin", "POST", "/v1/campaigns", json=wanted, headers=KEY)
    again = site.ask("admin", "POST", "/v1/campaigns", json=wanted, headers=KEY)
    assert again.json() == first.json()
    assert len(site.client().campaigns().campaigns) == 1


def test_a_request_that_another_has_answered_meanwhile_is_undone(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Idempotency.begin

    def begun_twice(self: Idempotency, who: str, key: str, digest: str) -> Any:
        known = begin(self, who, key, digest)
        if known is None:
            self.finish(who, key, 201, '{"by": "the other"}')
        return known

    monkeypatch.setattr(Idempotency, "begin", begun_twice)
    answer = site.ask("admin", "POST", "/v1/tokens", json=NEW_TOKEN, headers=KEY)
    assert (answer.status_code, answer.json()["kind"]) == (409, "ConflictError")
    assert "bob" not in {one.who for one in Tokens(site.store).list()}
    again = site.ask("admin", "POST", "/v1/tokens", json=NEW_TOKEN, headers=KEY)
    assert (again.status_code, again.json()) == (201, {"by": "the other"})


# ---- lists and streams -------------------------------------------------------------------


def test_pages_have_everything_once_while_devices_are_added(site: Site) -> None:
    client = site.client()
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = client.devices(after=after, limit=2)
        seen += [one.device for one in page.devices]
        after = page.next
        if len(seen) == 2:
            client.add_devices([DeviceToAdd(device=name, site="home") for name in ("a0", "d0-x")])
            client.add_devices([DeviceToAdd(device="d9", site="home")])
    assert seen == sorted(set(seen))
    assert {f"d{number}" for number in range(6)} | {"d9"} <= set(seen)
    newest = [client.start_campaign(campaign(name=f"c{number}")) for number in range(5)][::-1]
    first = client.campaigns(limit=2)
    client.start_campaign(campaign(name="late"))
    rest = client.campaigns(after=first.next or "", limit=10)
    assert [one.campaign for one in (*first.campaigns, *rest.campaigns)] == [
        one.campaign for one in newest
    ]
    audit = client.audit(limit=4)
    numbers = [one.number for one in audit.audit]
    numbers += [one.number for one in client.audit(after=audit.next or 0, limit=1000).audit]
    assert numbers == list(range(1, len(numbers) + 1))


def test_an_export_has_a_line_for_each_device(site: Site) -> None:
    answer = site.ask("viewer", "GET", "/v1/devices-export", params={"filter": 'labels.line=="a"'})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(one)["device"] for one in answer.text.splitlines()] == ["d0", "d2", "d4"]
    wrong = site.ask("viewer", "GET", "/v1/devices-export", params={"filter": "what"})
    assert wrong.status_code == 422


def test_events_are_told_from_behind_a_number_and_of_one_campaign(site: Site) -> None:
    of, other = "a" * 16, "b" * 16
    for number in range(3):
        Events(site.store).add("state", (of, other)[number % 2], {"at": number})
    told = list(site.client().events(after=0, follow=False))
    assert [(one.number, one.campaign, one.data["at"]) for one in told] == [
        (1, of, 0),
        (2, other, 1),
        (3, of, 2),
    ]
    assert [one.number for one in site.client().events(of, after=1, follow=False)] == [3]
    assert list(site.client().events(follow=False)) == []
    headers = {"Last-Event-ID": "2"}
    answer = site.ask("viewer", "GET", "/v1/events?after=0&follow=false", headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert [line for line in answer.text.splitlines() if line.startswith("id:")] == ["id: 3"]


def test_a_stream_ends_when_the_service_stops(site: Site) -> None:
    site.app.state.stopping.set()
    Events(site.store).add("state", "", {})
    assert [one.number for one in site.client().events(after=0)] == [1]


def _ends_within_turns(
    site: Site, monkeypatch: pytest.MonkeyPatch, end: Callable[[], None], flow: bool
) -> int:
    """Turns of a stream, in whose second one something happens that is to end it."""
    look, turns = Operations.events_after, 0

    def turn(ops: Operations, *arguments: Any) -> Any:
        nonlocal turns
        turns += 1
        if turns == 2:
            end()
        if turns == 10:
            site.app.state.stopping.set()
        if flow or turns == 10:
            Events(site.store).add("state", "", {})
        return look(ops, *arguments)

    monkeypatch.setattr(Operations, "events_after", turn)
    monkeypatch.setattr(routes, "EVENT_LOOK_SECONDS", 0.0)
    list(site.client("viewer").events(after=0))
    return turns


@pytest.mark.parametrize("flow", [False, True])
def test_a_stream_ends_when_its_token_is_revoked_however_much_happens(
    site: Site, monkeypatch: pytest.MonkeyPatch, flow: bool
) -> None:
    token = Tokens(site.store).check(site.tokens["viewer"]).token
    revoke = functools.partial(Tokens(site.store).revoke, token)
    assert _ends_within_turns(site, monkeypatch, revoke, flow) == 2


def test_a_stream_of_much_that_happens_ends_when_the_service_stops(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _ends_within_turns(site, monkeypatch, site.app.state.stopping.set, flow=True) == 2


# ---- health ------------------------------------------------------------------------------


def _figures(site: Site) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = site.http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(answer.text)
        for one in family.samples
    }


def test_figures_are_those_of_the_fleet(site: Site) -> None:
    site.client().start_campaign(campaign())
    site.ask("admin", "GET", "/v1/devices/d9")
    site.ask("admin", "BREW", "/v1/nothing")
    found = _figures(site)
    assert found["tinyfleet_store_up", ()] == 1
    assert found["tinyfleet_devices", (("online", "yes"), ("site", "home"))] == 4
    assert found["tinyfleet_devices", (("online", "unknown"), ("site", "home"))] == 2
    assert found["tinyfleet_campaigns", (("state", "pending"),)] == 1
    age = found["tinyfleet_gateway_age_seconds", (("gateway", "gw1"), ("site", "home"))]
    assert age == math.inf
    asked = (("method", "GET"), ("path", "/v1/devices/{device}"), ("status", "404"))
    assert found["tinyfleet_api_requests_total", asked] == 1
    brewed = (("method", "other"), ("path", "unknown"), ("status", "404"))
    assert found["tinyfleet_api_requests_total", brewed] == 1


def test_what_was_deleted_because_it_was_old_is_counted(new_site: Callable[..., Site]) -> None:
    site = new_site(deleted=lambda: {"events": 12, "reports": 0})
    found = _figures(site)
    assert found["tinyfleet_deleted_total", (("kind", "events"),)] == 12
    assert found["tinyfleet_deleted_total", (("kind", "reports"),)] == 0


def test_a_retired_gateway_is_no_figure_and_is_not_waited_for(site: Site) -> None:
    site.client().retire_gateway("gw1")
    assert not [name for name, _ in _figures(site) if name == "tinyfleet_gateway_age_seconds"]
    assert site.client().ready().gateways == {}


def test_a_store_that_is_away_is_told_as_what_it_is(site: Site) -> None:
    with failing(site, 0):
        assert site.http.get("/healthz").text == "ok\n"
        assert _figures(site)["tinyfleet_store_up", ()] == 0
        ready = site.http.get("/readyz")
        answer = site.ask("admin", "GET", "/v1/devices")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    assert "can't be used as a campaign store" in ready.json()["problems"][0]
    assert (answer.status_code, answer.json()["kind"]) == (503, "StoreAwayError")
    assert "\n" not in answer.json()["error"]
    assert site.http.get("/readyz").json() == {
        "ready": True,
        "leader": True,
        "gateways": {"gw1": None},
        "problems": [],
    }


def test_a_service_is_not_ready_while_something_keeps_it_from_its_work(
    new_site: Callable[..., Site],
) -> None:
    site = new_site(problems=lambda: ["no SuperLink"], is_leader=lambda: False)
    ready = site.client().ready()
    assert (ready.ready, ready.leader, ready.problems) == (False, False, ["no SuperLink"])


# ---- the audit log -----------------------------------------------------------------------


def test_every_change_says_who_made_it_and_why(site: Site) -> None:
    client = site.client(why="für Ännes\nTest")
    client.label_device("d0", {"line": None, "room": "1"})
    client.retire_device("d0")
    client.erase_device("d0")
    entries = client.audit(object="device:d0", limit=100).audit[1:]
    assert [(one.action, one.before, one.after) for one in entries] == [
        ("devices.label", {"line": "a"}, {"room": "1"}),
        ("devices.retire", {"retired": False}, {"retired": True}),
        ("devices.erase", {"site": "home"}, None),
    ]
    said = {(one.who, one.role, one.why) for one in entries}
    assert said == {("admin-ann", "admin", "für Ännes Test")}
    with pytest.raises(ConflictError, match="is in the registry already"):
        client.add_devices([DeviceToAdd(device="d1", site="home")])
    assert client.audit(limit=1000).audit[-1].action == "devices.erase"
