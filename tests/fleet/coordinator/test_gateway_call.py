"""What a ClientApp does, against a socket that keeps to the specification."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from fleet.coordinator.gateway_call import handle
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.plain_gateway import PlainGateway

CAMPAIGN = "0123456789abcdef"


@pytest.fixture
def gateway() -> Iterator[PlainGateway]:
    with tempfile.TemporaryDirectory(prefix="tf") as folder:
        entry = small_model.device_entry("d1", "a")
        one = PlainGateway("g1", Path(folder) / "g.sock", [entry], round_seconds=0.3)
        yield one
        one.close()


def ask(gateway: PlainGateway, operation: str, wait: float, **fields: Any) -> dict[str, Any]:
    payload = cbor2.dumps({"fields": fields, "wait_seconds": wait})
    config = {"gateway": "g1", "socket": str(gateway.socket_path)}
    reply: dict[str, Any] = cbor2.loads(handle(operation, payload, config))
    return reply


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


def test_start_answers_at_once_when_it_is_not_to_wait(gateway: PlainGateway) -> None:
    reply = ask(gateway, "start", 0.0, **start_fields())
    assert reply["ok"]
    assert reply["start"] == {"state": "running"}
    assert "collect" not in reply
    assert gateway.requests == ["start"]


def test_start_that_waits_brings_the_sums_and_the_devices_for_the_next_round(
    gateway: PlainGateway,
) -> None:
    reply = ask(gateway, "start", 5.0, **start_fields())
    assert reply["start"] == {"state": "running"}
    assert reply["collect"]["state"] == "closed"
    assert reply["collect"]["accepted"] == 1
    assert [one["device"] for one in reply["hello"]["devices"]] == ["d1"]
    assert gateway.requests == ["start", "collect", "hello"]


def test_all_pages_of_reports_come_in_one_reply_where_that_is_asked_for(
    gateway: PlainGateway,
) -> None:
    gateway.page = 1
    fields = start_fields()
    fields["tasks"][0]["devices"] = {f"d{number}": [1, 9] for number in range(3)}
    payload = cbor2.dumps({"fields": fields, "wait_seconds": 5.0, "all_pages": True})
    config = {"gateway": "g1", "socket": str(gateway.socket_path)}
    whole = cbor2.loads(handle("start", payload, config))["collect"]
    assert [one["device"] for one in whole["reports"]] == ["d0", "d1", "d2"]
    assert whole["sums"]
    first = ask(gateway, "collect", 0.0, campaign=CAMPAIGN, round=1)["collect"]
    assert [one["device"] for one in first["reports"]] == ["d0"]
    assert first["more"]
    assert "sums" not in first


def test_collect_of_a_round_that_nobody_started_says_so(gateway: PlainGateway) -> None:
    reply = ask(gateway, "collect", 5.0, campaign=CAMPAIGN, round=9)
    assert reply["collect"]["state"] == "unknown"


def test_cancel_ends_a_running_round(gateway: PlainGateway) -> None:
    gateway.round_seconds = 60.0
    ask(gateway, "start", 0.0, **start_fields())
    reply = ask(gateway, "cancel", 0.0, campaign=CAMPAIGN, round=1)
    assert reply["cancel"]["state"] == "cancelled"


def test_a_refusal_comes_back_as_the_gateways_own_words(gateway: PlainGateway) -> None:
    ask(gateway, "start", 0.0, **start_fields())
    reply = ask(gateway, "start", 0.0, **{**start_fields(), "epochs": 2})
    assert not reply["ok"]
    assert "another content" in reply["error"]


def test_a_gateway_that_is_not_there_is_an_answer_and_no_traceback() -> None:
    config = {"gateway": "g1", "socket": "/nowhere/g.sock"}
    reply = cbor2.loads(handle("hello", b"", config))
    assert not reply["ok"]
    assert "/nowhere/g.sock" in reply["error"]
    reply = cbor2.loads(handle("hello", b"", {}))
    assert "node-config" in reply["error"]
