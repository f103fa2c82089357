"""The driver over gateways in this process: resuming, losing a gateway, running empty."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.campaign import CampaignConfig, Operation
from fleet.coordinator.driver import CampaignDriver, Pace, Reply, Transport, new_campaign
from fleet.errors import CampaignError
from fleet.store import MemoryStore
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.oracle import assert_every_delta_counted_once
from tests.fleet.coordinator.plain_gateway import PlainGateway


class PowerCutError(Exception):
    """Stands for SIGKILL to the driver."""


class DirectTransport(Transport):
    """Calls gateways' own handlers; dies before request number `dies_at`."""

    def __init__(self, gateways: Mapping[str, PlainGateway], dies_at: int | None = None) -> None:
        self._gateways = gateways
        self._dies_at = dies_at
        self.sent = 0
        self.silent: set[str] = set()
        self.rounds: dict[str, list[dict[str, Any]]] = {}
        self._replies = [Reply(name, {}, list(one.devices)) for name, one in gateways.items()]

    def gateways(self) -> frozenset[str]:
        return frozenset(self._gateways)

    def send(self, gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if self.sent == self._dies_at:
            raise PowerCutError
        self.sent += 1
        if gateway in self.silent:
            self._replies.append(Reply(gateway, {}, error="away"))
            return
        one = self._gateways[gateway]
        request = dict(fields)
        if operation is Operation.COLLECT:
            request["wait_seconds"] = 0.0
        answer = getattr(one, f"_{operation.value}")(request)
        devices = answer.pop("devices", None) if operation is Operation.HELLO else None
        self._replies.append(Reply(gateway, answer, devices, self.rounds.get(gateway)))

    def receive(self) -> list[Reply]:
        replies, self._replies = self._replies, []
        if not replies:
            time.sleep(0.001)
        return replies


@pytest.fixture
def gateways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, PlainGateway]]:
    monkeypatch.chdir(tmp_path)
    made = {}
    for name in ("g1", "g2"):
        devices = [
            small_model.device_entry(f"{name}-{index}", "ab"[index % 2]) for index in range(4)
        ]
        made[name] = PlainGateway(name, Path(f"{name}.sock"), devices, round_seconds=0.0)
    yield made
    for one in made.values():
        one.close()


def campaign(store: MemoryStore, **fields: object) -> str:
    settings = {"rounds": 3, "cohort_share": 0.5, "min_devices": 8, **fields}
    config = CampaignConfig.model_validate({"name": "test", **settings})
    return new_campaign(store, config, small_model.manifest_texts("a", "b"), small_model.blob())


PACE = Pace(stop_check=0.0, retry=0.01, hello=0.01)


def test_a_driver_killed_before_any_request_is_resumed_with_nothing_doubled(
    gateways: dict[str, PlainGateway],
) -> None:
    store = MemoryStore()
    whole = campaign(store)
    transport = DirectTransport(gateways)
    assert CampaignDriver(store, whole, transport, PACE).run() == "finished"
    assert_every_delta_counted_once(store, whole)
    for cut in range(transport.sent):
        name = campaign(store)
        with pytest.raises(PowerCutError):
            CampaignDriver(store, name, DirectTransport(gateways, dies_at=cut), PACE).run()
        assert CampaignDriver(store, name, DirectTransport(gateways), PACE).run() == "finished"
        assert store.latest_weights(name).master == store.latest_weights(whole).master
        plans = [one.plan for one in store.rounds(name)]
        assert plans == [one.plan for one in store.rounds(whole)]


def test_a_gateway_that_stays_away_is_lost_and_named_and_the_round_counts(
    gateways: dict[str, PlainGateway],
) -> None:
    store = MemoryStore()
    name = campaign(store, rounds=1, deadline_seconds=1, gateway_grace_seconds=0, cohort_share=1.0)
    transport = DirectTransport(gateways)
    transport.silent.add("g2")
    assert CampaignDriver(store, name, transport, PACE).run() == "finished"
    result = store.round(name, 1).result
    assert result["lost"] == {"g2": "away"}
    assert result["accepted"] == 4
    assert store.latest_weights(name).version == 1


def test_a_campaign_without_enough_devices_fails_and_says_who_is_there(
    gateways: dict[str, PlainGateway],
) -> None:
    store = MemoryStore()
    name = campaign(store, min_devices=9, wait_for_devices_seconds=0.1)
    assert CampaignDriver(store, name, DirectTransport(gateways), PACE).run() == "failed"
    assert "8 of at least 9 devices" in store.campaign(name).reason
    assert store.rounds(name) == ()


def test_rounds_in_which_nothing_is_accepted_end_the_campaign(
    gateways: dict[str, PlainGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {"accepted": 0, "sums": {}, "reports": [], "declined": {"score dropped": 4}}
    monkeypatch.setattr(PlainGateway, "_close", lambda self, key: dict(empty))
    store = MemoryStore()
    name = campaign(store, rounds=9, max_empty_rounds=2)
    assert CampaignDriver(store, name, DirectTransport(gateways), PACE).run() == "failed"
    assert "no delta was accepted in 2 rounds" in store.campaign(name).reason
    assert "score dropped" in store.campaign(name).reason
    assert store.latest_weights(name).version == 0


def test_deltas_that_come_after_the_end_of_a_round_are_in_its_result(
    gateways: dict[str, PlainGateway],
) -> None:
    store = MemoryStore()
    name = campaign(store)
    transport = DirectTransport(gateways)
    late = {"round": 1, "state": "closed", "late": 2, "duplicate": 1, "refused": {"crc": 1}}
    foreign = {**late, "campaign": "ff" * 8, "late": 50}
    transport.rounds = {
        "g1": [{**late, "campaign": name}, foreign],
        "g2": [{**late, "campaign": name, "late": 3}],
    }
    assert CampaignDriver(store, name, transport, PACE).run() == "finished"
    result = store.round(name, 1).result
    assert (result["late"], result["duplicate"], result["refused"]) == (5, 2, {"crc": 2})
    assert store.round(name, 2).result["late"] == 0


def test_a_stop_before_a_round_begins_no_round(gateways: dict[str, PlainGateway]) -> None:
    store = MemoryStore()
    name = campaign(store)
    store.request_stop(name)
    transport = DirectTransport(gateways)
    assert CampaignDriver(store, name, transport, PACE).run() == "cancelled"
    assert store.rounds(name) == ()
    assert transport.sent == 0


def test_a_round_keeps_why_a_delta_was_not_counted_in_and_who_sent_none(
    gateways: dict[str, PlainGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    close = PlainGateway._close
    spoilt = {"device": "g1-0", "kind": "crc", "detail": "the CRC-32 doesn't match", "at": 1.0}

    def close_without_one(self: PlainGateway, key: tuple[str, int]) -> dict[str, Any]:
        answer = close(self, key)
        if self.name == "g1":
            answer["reports"] = [one for one in answer["reports"] if one["device"] != "g1-0"]
            answer["explanations"] = [spoilt]
        return answer

    monkeypatch.setattr(PlainGateway, "_close", close_without_one)
    store = MemoryStore()
    name = campaign(store, rounds=1, cohort_share=1.0)
    assert CampaignDriver(store, name, DirectTransport(gateways), PACE).run() == "finished"
    result = store.round(name, 1).result
    assert result["missing"] == ["g1-0"]
    assert result["explanations"] == [{**spoilt, "gateway": "g1"}]
    reports = store.reports(name, 1)
    assert {one["plan_reason"] for one in reports} == {"no larger plan"}


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_bundles_that_publish_different_tensors_make_no_campaign(order: str) -> None:
    texts = small_model.manifest_texts("a", "b")
    fewer = json.loads(texts["b"])
    fewer["plans"] = fewer["plans"][:1]
    fewer["tensors"] = [one for one in fewer["tensors"] if one["name"] not in ("c1.w", "c2.w")]
    fewer["coordinates"] = sum(math.prod(one["shape"]) for one in fewer["tensors"])
    fewer["model"]["digest"] = "e" * 64
    texts["b"] = json.dumps(fewer)
    a, b = (small_model.manifest(board)["bundle_id"][:16] for board in "ab")
    expected = rf"{a} publishes c1\.w, c2\.w, which bundle {b} has frozen: .*--publish"
    with pytest.raises(CampaignError, match=expected):
        new_campaign(
            MemoryStore(),
            CampaignConfig(name="x"),
            {board: texts[board] for board in order},
            small_model.blob(),
        )


def test_bundles_of_different_models_make_no_campaign() -> None:
    texts = small_model.manifest_texts("a", "b")
    texts["b"] = texts["b"].replace("d" * 64, "e" * 64)
    with pytest.raises(CampaignError, match=r"different models \(e{16}… and d{16}…\).*one model"):
        new_campaign(MemoryStore(), CampaignConfig(name="x"), texts, small_model.blob())
    texts = small_model.manifest_texts("a", "b")
    texts["b"] = texts["b"].replace('"limit": 127', '"limit": 126')
    with pytest.raises(CampaignError, match="different tensors"):
        new_campaign(MemoryStore(), CampaignConfig(name="x"), texts, small_model.blob())
    with pytest.raises(CampaignError, match="compile all bundles from one model"):
        new_campaign(
            MemoryStore(),
            CampaignConfig(name="x"),
            small_model.manifest_texts("a"),
            small_model.blob() + b"\0",
        )
    with pytest.raises(CampaignError, match="no bundle has a plan huge"):
        new_campaign(
            MemoryStore(),
            CampaignConfig(name="x", plans=("huge",)),
            small_model.manifest_texts("a"),
            small_model.blob(),
        )


def test_new_campaigns_begin_with_the_bundles_weights() -> None:
    store = MemoryStore()
    version = store.latest_weights(campaign(store))
    assert version.blob == small_model.blob()
    assert np.frombuffer(version.master, "<f8").size == small_model.manifest("a")["coordinates"]
