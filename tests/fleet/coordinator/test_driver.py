"""The driver over gateways in this process: resuming, losing a gateway, running empty."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleet.campaign import CampaignConfig, Operation
from fleet.campaign.config import Stage
from fleet.campaign.gates import ScoreGate
from fleet.coordinator.creation import new_campaign
from fleet.errors import CampaignError
from fleet.store import SqlStore
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.direct_transport import DirectTransport, PowerCutError, drive
from tests.fleet.coordinator.oracle import assert_every_delta_counted_once
from tests.fleet.coordinator.plain_gateway import PlainGateway


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


def campaign(store: SqlStore, **fields: object) -> str:
    settings = {"rounds": 3, "cohort_share": 0.5, "min_devices": 8, **fields}
    config = CampaignConfig.model_validate({"name": "test", **settings})
    return new_campaign(store, config, small_model.manifest_texts("a", "b"), small_model.blob())


def test_a_driver_killed_before_any_request_is_resumed_with_nothing_doubled(
    gateways: dict[str, PlainGateway],
) -> None:
    store = SqlStore()
    whole = campaign(store)
    transport = DirectTransport(gateways)
    assert drive(store, whole, transport) == "finished"
    assert_every_delta_counted_once(store, whole)
    expected = store.latest_weights(whole).master
    for cut in range(len(transport.sent)):
        resumed = SqlStore()
        name = campaign(resumed)
        with pytest.raises(PowerCutError):
            drive(resumed, name, DirectTransport(gateways, dies_at=cut))
        assert drive(resumed, name, DirectTransport(gateways)) == "finished"
        assert resumed.latest_weights(name).master == expected
        plans = [one.plan for one in resumed.rounds(name)]
        assert plans == [one.plan for one in store.rounds(whole)]


def test_reports_that_come_in_pages_are_all_in_the_round(
    gateways: dict[str, PlainGateway],
) -> None:
    for one in gateways.values():
        one.page = 1
    store = SqlStore()
    name = campaign(store, rounds=2, cohort_share=1.0)
    assert drive(store, name, DirectTransport(gateways)) == "finished"
    assert_every_delta_counted_once(store, name)
    assert len(store.reports(name, 1)) == 8
    assert store.round(name, 1).result["coded_bytes"] == 8 * 100


@pytest.mark.parametrize("spread", [0, 10])
def test_who_was_held_back_has_not_failed_where_its_gateway_has_what_it_wanted(
    gateways: dict[str, PlainGateway], spread: float
) -> None:
    store = SqlStore()
    pace = {"spread_seconds": spread}
    name = campaign(store, rounds=1, over_selection=1.0, score_first=False, pace=pace)
    for one in gateways.values():
        one.stops_at_target = True
    gateways["g2"].silent = {f"g2-{number}" for number in range(4)}
    assert drive(store, name, DirectTransport(gateways)) == "finished"
    result = store.round(name, 1).result
    assert (result["accepted"], result["wanted"], len(result["missing"])) == (2, 4, 6)
    silent = [one for one in result["missing"] if one.startswith("g2-") or not spread]
    assert result["failed"] == dict.fromkeys(silent, "no-report")


def test_a_gateway_that_stays_away_is_lost_and_named_and_the_round_counts(
    gateways: dict[str, PlainGateway],
) -> None:
    store = SqlStore()
    name = campaign(store, rounds=1, deadline_seconds=1, gateway_grace_seconds=0, cohort_share=1.0)
    transport = DirectTransport(gateways)
    transport.silent.add("g2")
    assert drive(store, name, transport) == "finished"
    result = store.round(name, 1).result
    assert result["lost"] == {"g2": "away"}
    assert result["accepted"] == 4
    assert store.latest_weights(name).version == 1


def test_a_campaign_without_enough_devices_fails_and_says_who_is_there(
    gateways: dict[str, PlainGateway],
) -> None:
    store = SqlStore()
    name = campaign(store, min_devices=9, wait_for_devices_seconds=5)
    assert drive(store, name, DirectTransport(gateways)) == "failed"
    assert "8 of at least 9 devices" in store.campaign(name).reason
    assert store.rounds(name) == ()


def test_rounds_in_which_nothing_is_accepted_end_the_campaign(
    gateways: dict[str, PlainGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = {"accepted": 0, "sums": {}, "reports": [], "declined": {"score dropped": 4}}
    monkeypatch.setattr(PlainGateway, "_close", lambda self, key: dict(empty))
    store = SqlStore()
    name = campaign(store, rounds=9, max_empty_rounds=2)
    assert drive(store, name, DirectTransport(gateways)) == "failed"
    assert "no delta was accepted in 2 rounds" in store.campaign(name).reason
    assert "score dropped" in store.campaign(name).reason
    assert store.latest_weights(name).version == 0


def test_deltas_that_come_after_the_end_of_a_round_are_in_its_result(
    gateways: dict[str, PlainGateway],
) -> None:
    store = SqlStore()
    name = campaign(store)
    transport = DirectTransport(gateways)
    late = {"round": 1, "state": "closed", "late": 2, "duplicate": 1, "refused": {"crc": 1}}
    foreign = {**late, "campaign": "ff" * 8, "late": 50}
    transport.rounds = {
        "g1": [{**late, "campaign": name}, foreign],
        "g2": [{**late, "campaign": name, "late": 3}],
    }
    assert drive(store, name, transport) == "finished"
    result = store.round(name, 1).result
    assert (result["late"], result["duplicate"], result["refused"]) == (5, 2, {"crc": 2})
    assert store.round(name, 2).result["late"] == 0


def test_a_stop_before_a_round_begins_no_round(gateways: dict[str, PlainGateway]) -> None:
    store = SqlStore()
    name = campaign(store)
    store.ask(name, "stop")
    transport = DirectTransport(gateways)
    assert drive(store, name, transport) == "cancelled"
    assert store.rounds(name) == ()
    assert transport.sent == []


def test_a_round_keeps_why_a_delta_was_not_counted_in_and_who_sent_none(
    gateways: dict[str, PlainGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    close = PlainGateway._close
    spoilt = {"device": "g1-0", "kind": "crc", "detail": "the CRC-32 doesn't match", "at": 1.0}

    def close_without_one(self: PlainGateway, key: tuple[str, int]) -> dict[str, Any]:
        answer = close(self, key)
        if self.name == "g1":
            answer["reports"] = [one for one in answer["reports"] if one["device"] != "g1-0"]
            answer["accepted"] = len(answer["reports"])
            answer["explanations"] = [spoilt]
        return answer

    monkeypatch.setattr(PlainGateway, "_close", close_without_one)
    store = SqlStore()
    name = campaign(store, rounds=1, cohort_share=1.0)
    assert drive(store, name, DirectTransport(gateways)) == "finished"
    result = store.round(name, 1).result
    assert result["missing"] == ["g1-0"]
    assert result["explanations"] == [{**spoilt, "gateway": "g1"}]
    reports = store.reports(name, 1)
    assert {one["plan_reason"] for one in reports} == {"no larger plan"}


def test_a_stop_after_a_crash_cancels_the_round_that_the_crash_left_running(
    gateways: dict[str, PlainGateway],
) -> None:
    store = SqlStore()
    name = campaign(store)
    for one in gateways.values():
        one.round_seconds = 3600.0
    with pytest.raises(PowerCutError):
        drive(store, name, DirectTransport(gateways, dies_at=4))
    assert [one.state for one in store.rounds(name)] == ["running"]
    store.ask(name, "stop")
    transport = DirectTransport(gateways)
    assert drive(store, name, transport) == "cancelled"
    assert [one.state for one in store.rounds(name)] == ["cancelled"]
    assert sorted(transport.sent) == [("g1", Operation.CANCEL), ("g2", Operation.CANCEL)]
    assert {known["state"] for one in gateways.values() for known in one.rounds.values()} == {
        "cancelled"
    }


def test_a_stop_while_a_gateway_is_away_ends_after_the_grace_and_not_at_the_deadline(
    gateways: dict[str, PlainGateway],
) -> None:
    store = SqlStore()
    name = campaign(store, deadline_seconds=600_000, gateway_grace_seconds=50)
    gateways["g2"].round_seconds = 1e9
    with pytest.raises(PowerCutError):
        drive(store, name, DirectTransport(gateways, dies_at=4))
    store.ask(name, "stop")
    transport = DirectTransport(gateways)
    transport.silent.add("g2")
    assert drive(store, name, transport) == "cancelled"
    assert transport.clock.monotonic() < 70


ODD = [
    ("hello", {"devices": [{"device": "g2-0"}]}, "devices.0.board"),
    ("hello", {"devices": "all"}, "devices"),
    ("hello", {"gateway": "g9"}, "says that it is g9"),
    ("hello", {"version": 2}, "speaks version 2"),
    ("start", {"state": "perhaps"}, "state"),
    ("collect", {"accepted": "many"}, "accepted"),
    ("collect", {"accepted": 3}, "3 deltas accepted, 4 reported"),
    ("collect", {"sums": {"ab" * 32: []}}, "sums plan abababababababab"),
    ("collect", {"sums": {"ab": []}}, "sums"),
]


@pytest.mark.parametrize(("part", "lie", "why"), ODD, ids=[why for *_, why in ODD])
def test_an_odd_gateway_is_left_out_with_its_reason_and_the_campaign_goes_on(
    gateways: dict[str, PlainGateway], part: str, lie: dict[str, Any], why: str
) -> None:
    store = SqlStore()
    name = campaign(store, rounds=2, cohort_share=1.0, min_devices=4)
    transport = DirectTransport(gateways)
    transport.lies["g2", part] = lie
    assert drive(store, name, transport) == "finished"
    assert why in store.quarantined(name)["g2"]
    assert store.latest_weights(name).version == 2
    last = store.round(name, 2)
    assert {one["gateway"] for one in last.plan["assignments"]} == {"g1"}
    lost = [one.result["lost"] for one in store.rounds(name) if one.result["lost"]]
    assert all(set(one) == {"g2"} and why in one["g2"] for one in lost)


def spoil(parts: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    return [{**parts[0], **changes}, *parts[1:]]


SPOILT = {
    "more weight than its devices have": lambda fold: spoil(fold, weight=10**9),
    "more devices than were asked": lambda fold: spoil(fold, devices=99),
    "values of another length": lambda fold: spoil(fold, values=fold[0]["values"][8:]),
    "a value beyond what devices can send": lambda fold: spoil(
        fold, values=np.full(len(fold[0]["values"]) // 8, 2**62, "<i8").tobytes()
    ),
    "values without weight": lambda fold: spoil(fold, weight=0),
    "another fold": lambda fold: fold * 2,
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_sum_that_its_devices_can_not_have_sent_puts_its_gateway_in_quarantine(
    gateways: dict[str, PlainGateway], monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    close = PlainGateway._close

    def close_wrong(self: PlainGateway, key: tuple[str, int]) -> dict[str, Any]:
        answer = close(self, key)
        if self.name == "g2":
            answer["sums"] = {plan: SPOILT[spoilt](fold) for plan, fold in answer["sums"].items()}
        return answer

    monkeypatch.setattr(PlainGateway, "_close", close_wrong)
    store = SqlStore()
    name = campaign(store, rounds=1, cohort_share=1.0, score_first=False, last_round="none")
    assert drive(store, name, DirectTransport(gateways)) == "finished"
    assert list(store.quarantined(name)) == ["g2"]
    result = store.round(name, 1).result
    assert result["accepted"] == 4
    assert list(result["lost"]) == ["g2"]
    assert result["missing"] == [f"g2-{index}" for index in range(4)]


def test_a_campaign_of_odd_gateways_only_fails_and_says_why_they_are_out(
    gateways: dict[str, PlainGateway],
) -> None:
    store = SqlStore()
    name = campaign(store)
    transport = DirectTransport(gateways)
    for gateway in gateways:
        transport.lies[gateway, "hello"] = {"devices": None}
        transport._greet(gateway)
    transport._replies = transport._replies[2:]
    assert drive(store, name, transport) == "failed"
    assert "gateway g1: gateway g1: devices" in store.campaign(name).reason


def test_two_campaigns_never_task_one_device_and_a_later_one_has_a_higher_lease(
    gateways: dict[str, PlainGateway],
) -> None:
    store = SqlStore()
    first, second = campaign(store), campaign(store, min_devices=1, wait_for_devices_seconds=5)
    for one in gateways.values():
        one.round_seconds = 3600.0
    with pytest.raises(PowerCutError):
        drive(store, first, DirectTransport(gateways, dies_at=4))
    assert drive(store, second, DirectTransport(gateways)) == "failed"
    assert "leased by another campaign" in store.campaign(second).reason
    store.end_campaign(first, "", "cancelled")
    for one in gateways.values():
        one.round_seconds = 0.0
    third = campaign(store)
    assert drive(store, third, DirectTransport(gateways)) == "finished"
    leases = [
        {one["device"]: one["lease"] for one in store.rounds(name)[0].plan["assignments"]}
        for name in (first, third)
    ]
    assert all(leases[1][device] == number + 1 for device, number in leases[0].items())


def test_the_last_round_tells_devices_to_release_what_was_trained(
    gateways: dict[str, PlainGateway],
) -> None:
    store = SqlStore()
    assert drive(store, campaign(store, rounds=1), DirectTransport(gateways)) == "finished"
    (rounds,) = [one.rounds for name, one in gateways.items() if name == "g1"]
    actions = [known["request"]["action"] for _, known in sorted(rounds.items())]
    assert actions == ["score", "train", "release"]


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "server-momentum", "momentum": 0.5},
        {"rule": "fedavg", "learning_rate": 0.5},
    ],
)
def test_a_resumed_campaign_goes_on_with_what_its_rule_remembers(
    gateways: dict[str, PlainGateway], rule: dict[str, object]
) -> None:
    store = SqlStore()
    whole = campaign(store, aggregation=rule)
    transport = DirectTransport(gateways)
    assert drive(store, whole, transport) == "finished"
    cut = campaign(store, aggregation=rule)
    with pytest.raises(PowerCutError):
        drive(store, cut, DirectTransport(gateways, dies_at=len(transport.sent) // 2))
    assert drive(store, cut, DirectTransport(gateways)) == "finished"
    assert store.latest_weights(cut) == store.latest_weights(whole)
    remembers = rule["rule"] == "server-momentum"
    assert bool(store.latest_weights(cut).rule_state) is remembers


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
            SqlStore(),
            CampaignConfig(name="x"),
            {board: texts[board] for board in order},
            small_model.blob(),
        )


def test_bundles_of_different_models_make_no_campaign() -> None:
    texts = small_model.manifest_texts("a", "b")
    texts["b"] = texts["b"].replace("d" * 64, "e" * 64)
    with pytest.raises(CampaignError, match=r"different models \(e{16}… and d{16}…\).*one model"):
        new_campaign(SqlStore(), CampaignConfig(name="x"), texts, small_model.blob())
    texts = small_model.manifest_texts("a", "b")
    texts["b"] = texts["b"].replace('"limit": 127', '"limit": 126')
    with pytest.raises(CampaignError, match="different tensors"):
        new_campaign(SqlStore(), CampaignConfig(name="x"), texts, small_model.blob())
    with pytest.raises(CampaignError, match="compile all bundles from one model"):
        new_campaign(
            SqlStore(),
            CampaignConfig(name="x"),
            small_model.manifest_texts("a"),
            small_model.blob() + b"\0",
        )
    with pytest.raises(CampaignError, match="no bundle has a plan huge"):
        new_campaign(
            SqlStore(),
            CampaignConfig(name="x", plans=("huge",)),
            small_model.manifest_texts("a"),
            small_model.blob(),
        )
    reconstructing = small_model.manifest("a")
    reconstructing["model"]["loss"] = "mse"
    scored = Stage(name="all", share=1.0, gates=(ScoreGate(),))
    with pytest.raises(CampaignError, match=r"gate score of stage all looks at accuracy.*loss mse"):
        new_campaign(
            SqlStore(),
            CampaignConfig(name="x", stages=(scored,)),
            {"a": json.dumps(reconstructing)},
            small_model.blob(),
        )
    inferring = small_model.manifest("a")
    for plan in inferring["plans"]:
        plan |= {"segments": [], "delta_values": 0}
    with pytest.raises(CampaignError, match=r"only infer.*--loss none.*kind evaluate"):
        new_campaign(
            SqlStore(),
            CampaignConfig(name="x"),
            {"a": json.dumps(inferring)},
            small_model.blob(),
        )


def test_new_campaigns_begin_with_the_bundles_weights() -> None:
    store = SqlStore()
    version = store.latest_weights(campaign(store))
    assert version.blob == small_model.blob()
    assert np.frombuffer(version.master, "<f8").size == small_model.manifest("a")["coordinates"]
