"""What a ClientApp does, against a socket that keeps to the specification."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from fleet.coordinator.gateway_call import handle
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.arriving_gateway import ArrivingGateway
from tests.fleet.coordinator.plain_gateway import PlainGateway

CAMPAIGN = "0123456789abcdef"


@pytest.fixture
def gateway() -> Iterator[PlainGateway]:
    with tempfile.TemporaryDirectory(prefix="tf") as folder:
        entry = small_model.device_entry("d1", "a")
        one = PlainGateway("g1", Path(folder) / "g.sock", [entry], round_seconds=0.3)
        yield one
        one.close()


def ask(gateway: PlainGateway, **request: Any) -> dict[str, Any]:
    config = {"gateway": "g1", "socket": str(gateway.socket_path)}
    reply: dict[str, Any] = cbor2.loads(handle(cbor2.dumps(request), config))
    assert reply["ok"], reply
    return reply


def answers(reply: dict[str, Any]) -> list[tuple[str, str, int, dict[str, Any]]]:
    return [(one["op"], one["campaign"], one["round"], one["answer"]) for one in reply["answers"]]


def start_fields() -> dict[str, Any]:
    manifest = small_model.manifest("a")
    plan = manifest["plans"][0]
    weights = manifest["weights"]["sha256"]
    return {
        "campaign": CAMPAIGN,
        "round": 1,
        "action": "train",
        "blobs": [{"sha256": weights, "data": small_model.blob()}],
        "tasks": [{"plan": plan["id"], "weights": weights, "devices": {"d1": [1, 9]}}],
        "plans": {plan["id"]: {"values": plan["delta_values"]}},
        "epochs": 1,
    }


def test_a_start_answers_at_once_when_it_is_not_to_wait(gateway: PlainGateway) -> None:
    reply = ask(gateway, starts=[start_fields()])
    assert answers(reply) == [("start", CAMPAIGN, 1, {"state": "running"})]
    assert [one["device"] for one in reply["hello"]["devices"]] == ["d1"]
    assert gateway.requests == ["start", "hello"]


def test_where_spans_belong_is_told_first_and_a_daemon_of_before_does_without(
    gateway: PlainGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    def keeps(request: dict[str, Any]) -> dict[str, Any]:
        told.append(request)
        return {"is_kept": True}

    def refuses(request: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no operation 'trace'; there are hello, start, collect")

    trace = {"campaign": CAMPAIGN, "round": 1, "traceparent": "00-…-01"}
    for answer in (keeps, refuses):
        monkeypatch.setattr(gateway, "_trace", answer, raising=False)
        gateway.requests.clear()
        reply = ask(gateway, starts=[start_fields()], traces=[trace])
        assert [one[0] for one in answers(reply)] == ["start"]
        assert gateway.requests == ["trace", "start", "hello"]
    assert told == [trace]


def test_a_start_that_waits_brings_the_sums_and_the_devices_for_the_next_round(
    gateway: PlainGateway,
) -> None:
    reply = ask(gateway, starts=[start_fields()], wait_seconds=5.0)
    (started, collected) = answers(reply)
    assert started[3] == {"state": "running"}
    assert collected[0] == "collect"
    assert (collected[3]["state"], collected[3]["accepted"]) == ("closed", 1)
    assert [one["device"] for one in reply["hello"]["devices"]] == ["d1"]
    assert gateway.requests == ["start", "watch", "collect", "hello"]


def test_one_message_serves_several_campaigns_and_comes_back_when_the_first_round_ends(
    gateway: PlainGateway,
) -> None:
    other = "ee" * 8
    gateway.round_seconds = 60.0
    ask(gateway, starts=[start_fields()])
    end_first = threading.Timer(0.5, lambda: gateway.rounds[CAMPAIGN, 1].update(state="closed"))
    end_first.start()
    began = time.monotonic()
    reply = ask(
        gateway,
        starts=[{**start_fields(), "campaign": other}],
        rounds=[{"campaign": CAMPAIGN, "round": 1}],
        cancels=[{"campaign": "dd" * 8, "round": 4}],
        wait_seconds=30.0,
    )
    assert time.monotonic() - began < 20
    told = {(op, campaign): answer["state"] for op, campaign, _, answer in answers(reply)}
    assert told == {
        ("cancel", "dd" * 8): "unknown",
        ("start", other): "running",
        ("collect", CAMPAIGN): "closed",
        ("collect", other): "running",
    }


def test_all_pages_of_reports_come_in_one_reply_where_that_is_asked_for(
    gateway: PlainGateway,
) -> None:
    gateway.page = 1
    fields = start_fields()
    fields["tasks"][0]["devices"] = {f"d{number}": [1, 9] for number in range(3)}
    whole = answers(ask(gateway, starts=[fields], wait_seconds=5.0, all_pages=True))[-1][3]
    assert [one["device"] for one in whole["reports"]] == ["d0", "d1", "d2"]
    assert whole["sums"]
    reply = ask(gateway, rounds=[{"campaign": CAMPAIGN, "round": 1}])
    first = answers(reply)[0][3]
    assert [one["device"] for one in first["reports"]] == ["d0"]
    assert first["more"]
    assert "sums" not in first


def test_a_collect_of_a_round_that_nobody_started_says_so(gateway: PlainGateway) -> None:
    reply = ask(gateway, rounds=[{"campaign": CAMPAIGN, "round": 9}], wait_seconds=5.0)
    assert answers(reply)[0][3]["state"] == "unknown"


def test_a_cancel_ends_a_running_round(gateway: PlainGateway) -> None:
    gateway.round_seconds = 60.0
    ask(gateway, starts=[start_fields()])
    reply = ask(gateway, cancels=[{"campaign": CAMPAIGN, "round": 1}])
    assert answers(reply)[0][3]["state"] == "cancelled"


def test_a_refusal_is_the_answer_to_its_request_alone_in_the_gateways_own_words(
    gateway: PlainGateway,
) -> None:
    ask(gateway, starts=[start_fields()])
    reply = ask(
        gateway,
        starts=[{**start_fields(), "epochs": 2}, {**start_fields(), "campaign": "ee" * 8}],
    )
    refused, taken = reply["answers"]
    assert "another content" in refused["error"]
    assert taken["answer"] == {"state": "running"}


def test_a_gateway_that_is_not_there_is_an_answer_and_no_traceback() -> None:
    config = {"gateway": "g1", "socket": "/nowhere/g.sock"}
    reply = cbor2.loads(handle(b"", config))
    assert not reply["ok"]
    assert "/nowhere/g.sock" in reply["error"]
    reply = cbor2.loads(handle(b"", {}))
    assert "node-config" in reply["error"]


def test_all_pages_of_devices_come_in_one_reply(
    gateway: PlainGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [small_model.device_entry(f"d{number}", "a") for number in range(12)]
    plain = gateway._hello

    def page(request: dict[str, Any]) -> dict[str, Any]:
        at = request["cursor"]
        some = {"devices": entries[at : at + 1], "cursor": at + 1, "more": at + 1 < len(entries)}
        return {**plain(request), **some}

    monkeypatch.setattr(gateway, "_hello", page)
    first = ask(gateway)["hello"]
    assert [one["device"] for one in first["devices"]] == [f"d{number}" for number in range(10)]
    assert (first["more"], first["cursor"]) == (True, 10)
    rest = ask(gateway, hello_cursor=first["cursor"])["hello"]
    assert [one["device"] for one in rest["devices"]] == ["d10", "d11"]
    assert not rest["more"]


def test_rounds_that_end_within_a_moment_are_told_of_in_one_reply(gateway: PlainGateway) -> None:
    gateway.round_seconds = 600.0
    first, other = start_fields(), {**start_fields(), "campaign": "ee" * 8}
    ask(gateway, starts=[first, other])
    rounds = [{"campaign": one["campaign"], "round": 1} for one in (first, other)]

    def ends(one: dict[str, Any]) -> None:
        gateway.rounds[one["campaign"], 1].update(state="closed")

    def told(linger: float) -> list[str]:
        reply = ask(gateway, rounds=rounds, wait_seconds=60.0, linger_seconds=linger)
        return [answer["state"] for *_, answer in answers(reply)]

    ends(first)
    assert told(0.0) == ["closed", "running"]
    later = threading.Timer(0.5, ends, [other])
    later.start()
    assert told(60.0) == ["closed", "closed"]
    later.join()


def test_a_page_that_is_refused_fails_its_round_and_not_the_whole_message(
    gateway: PlainGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.page = 1
    fields = start_fields()
    fields["tasks"][0]["devices"] = {f"d{number}": [1, 9] for number in range(3)}
    ask(gateway, starts=[fields], wait_seconds=5.0)
    collect = PlainGateway._collect

    def refuse_the_second(self: PlainGateway, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("cursor"):
            raise ValueError("the database is locked")
        return collect(self, request)

    monkeypatch.setattr(PlainGateway, "_collect", refuse_the_second)
    other = {**start_fields(), "campaign": "ee" * 8}
    reply = ask(
        gateway, starts=[other], rounds=[{"campaign": CAMPAIGN, "round": 1}], all_pages=True
    )
    started, refused = reply["answers"]
    assert started["answer"] == {"state": "running"}
    assert (refused["campaign"], refused["error"]) == (CAMPAIGN, "the database is locked")


def test_a_message_comes_back_when_enough_deltas_have_arrived_and_a_part_is_told_at_once() -> None:
    with tempfile.TemporaryDirectory(prefix="tf") as folder:
        entries = [small_model.device_entry(f"d{number}", "a") for number in (1, 2, 3)]
        seconds = {"d1": 0.2, "d2": 0.4, "d3": 1e6}
        gateway = ArrivingGateway("g1", Path(folder) / "g.sock", entries, seconds)
        fields = start_fields()
        fields["tasks"][0]["devices"] = {one: [1, 99] for one in seconds}
        ask(gateway, starts=[{**fields, "fold": {"name": "arrivals"}, "deadline_seconds": 1e6}])
        named = {"campaign": CAMPAIGN, "round": 1}
        reply = ask(gateway, rounds=[{**named, "arrivals": 2}], wait_seconds=600.0)
        ((_, _, _, standing),) = answers(reply)
        assert (standing["state"], standing["accepted"]) == ("running", 2)
        assert "sums" not in standing
        reply = ask(gateway, rounds=[{**named, "cursor": 1, "part": 0}])
        ((_, _, _, taken),) = answers(reply)
        assert [one["device"] for one in taken["reports"]] == ["d2"]
        assert (taken["part"], taken["through"]) == (0, 2)
        assert [fold[0]["devices"] for fold in taken["sums"].values()] == [2]
        gateway.close()
