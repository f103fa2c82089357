"""Campaigns in stages: who is asked, what gates do, and that devices go back to what they had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fleet.campaign import Operation
from fleet.coordinator.driver import CampaignDriver
from fleet.coordinator.transport import Reply
from fleet.registry import NewDevice
from fleet.store import Events, Registry, SqlStore, Stages
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.direct_transport import DirectTransport, PowerCutError
from tests.fleet.coordinator.plain_gateway import PlainGateway
from tests.fleet.coordinator.staged_fleet import (
    ALL,
    CANARY,
    FAILURES,
    SCORES,
    StagedFleet,
    digest,
    variant,
)


def poison(fleet: StagedFleet, name: str, from_version: int = 1) -> None:
    """All versions of the campaign's weights from this one on score badly."""

    def score(device: str, number: int, weights: str) -> tuple[int, int]:
        found = fleet.store.weights_with(name, weights)
        return 1000, 300 if found is not None and found.version >= from_version else 900

    for one in fleet.gateways.values():
        one.score = score


# ---- stages ------------------------------------------------------------------------------


def test_each_round_asks_exactly_the_devices_of_its_stage_and_those_before(
    fleet: StagedFleet,
) -> None:
    name = fleet.campaign()
    assert fleet.drive(name) == "finished"
    of_a_stage = ["score-first", "train", "score-last", "release"]
    assert fleet.rounds(name) == [(kind, size) for size in (4, 8, 16) for kind in of_a_stage]
    members = Stages(fleet.store).members(name)
    for number, devices in fleet.asked(name).items():
        stage = fleet.plan(name, number).stage
        assert devices == {one.device for one in members.values() if one.stage <= stage}
    latest = fleet.store.latest_weights(name).sha256
    assert set(fleet.current().values()) == {latest}


def test_a_stage_is_spread_over_gateways_and_boards(fleet: StagedFleet) -> None:
    name = fleet.campaign()
    fleet.drive(name)
    canaries = [
        (one.gateway, fleet.entry(one.device)["board"]) for one in fleet.plan(name, 0).assignments
    ]
    assert sorted(canaries) == [("g1", "a"), ("g1", "b"), ("g2", "a"), ("g2", "b")]


def test_a_round_says_which_weights_its_devices_began_with(fleet: StagedFleet) -> None:
    name = fleet.campaign()
    fleet.drive(name)
    for one in fleet.store.rounds(name):
        assert one.result["weights_before"] == one.plan["weights"]
    # The second stage scores the base too, though the first has trained.
    assert fleet.plan(name, 4).weights == fleet.plan(name, 0).weights


def test_a_device_that_joins_is_dealt_in_and_one_that_leaves_the_target_is_not_asked(
    fleet: StagedFleet,
) -> None:
    name = fleet.campaign(target="battery_percent >= 50")
    transport = fleet.transport()
    begun: list[int] = []

    def listen(gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if operation is not Operation.START or fields["round"] in begun:
            return
        begun.append(fields["round"])
        if fields["round"] == 2:
            (leaver,) = [one for one in fleet.asked(name)[0] if one.startswith("g1-")][:1]
            fleet.entry(leaver)["battery_percent"] = 40
            fleet.gateways["g2"].devices += [
                small_model.device_entry(f"new-{index}", "a") for index in range(8)
            ]

    transport.listens = listen
    assert fleet.drive(name, transport) == "finished"
    asked = fleet.asked(name)
    (leaver,) = asked[2] - asked[3]
    assert leaver.startswith("g1-")
    assert all(leaver not in asked[number] for number in range(4, 12))
    new = {f"new-{index}" for index in range(8)}
    assert asked[11] == {one for one in fleet.current() if one != leaver}
    # Those that came stand in the first stages too, so that these keep their share.
    assert not asked[2] & new
    assert len(asked[3]) == 6
    assert len(asked[4]) == 12


def test_a_driver_that_begins_again_keeps_everybody_in_their_stages(fleet: StagedFleet) -> None:
    name = fleet.campaign(
        {"name": "one", "devices": 1},
        rounds=3,
        min_devices=8,
        deadline_seconds=5,
        gateway_grace_seconds=5,
        wait_for_devices_seconds=20,
    )
    with pytest.raises(PowerCutError):
        fleet.drive(name, fleet.transport(dies_at=2))
    (device,) = fleet.asked(name)[0]
    # Its gateway isn't there when the driver begins again.
    transport = fleet.transport()
    transport.silent.add(device[:2])
    transport.forget(device[:2])
    assert fleet.drive(name, transport) == "failed"
    assert set(Stages(fleet.store).members(name)) == {device}


def test_a_device_that_moved_is_known_by_where_it_is_now(fleet: StagedFleet) -> None:
    moved = dict(fleet.entry("g1-0"))
    fleet.entry("g1-0").update(online=False)
    fleet.gateways["g2"].devices.append(moved)
    fleet.gateways["g3"] = fleet.gateways.pop("g1")
    fleet.gateways["g3"].name = "g3"
    name = fleet.campaign({"name": "all", "share": 1.0}, min_devices=16)
    assert fleet.drive(name) == "finished"
    (mine,) = [one for one in fleet.plan(name, 1).assignments if one.device == "g1-0"]
    assert mine.gateway == "g2"


# ---- gates -------------------------------------------------------------------------------


def test_a_gate_that_fails_in_the_first_stage_rolls_back_and_nothing_was_released(
    fleet: StagedFleet,
) -> None:
    before = fleet.current()
    name = fleet.campaign()
    poison(fleet, name)
    assert fleet.drive(name) == "rolled-back"
    assert fleet.rounds(name) == [("score-first", 4), ("train", 4), ("score-last", 4)]
    assert fleet.current() == before
    assert "stage canary: a gate failed: mean change of accuracy" in fleet.reason(name)
    (judged,) = Stages(fleet.store).judged(name).values()
    assert (judged.stage, judged.outcome) == (0, "fail")
    (event,) = [one for one in Events(fleet.store).after(0, name) if one.kind == "gate"]
    assert (event.data["stage"], event.data["outcome"]) == ("canary", "fail")


@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_a_gate_that_fails_in_the_second_stage_brings_each_device_back_to_what_it_had(
    fleet: StagedFleet, seconds: float
) -> None:
    for one in fleet.gateways.values():
        one.round_seconds = seconds
    before = fleet.current()
    assert len(set(before.values())) == 3
    name = fleet.campaign()
    poison(fleet, name, from_version=2)
    assert fleet.drive(name) == "rolled-back"
    assert fleet.rounds(name)[3:] == [
        ("release", 4),
        ("score-first", 8),
        ("train", 8),
        ("score-last", 8),
        ("roll-back", 4),
    ]
    assert fleet.current() == before
    assert "couldn't be reached" not in fleet.reason(name)


def test_only_devices_that_have_the_campaigns_weights_go_back(fleet: StagedFleet) -> None:
    name = fleet.campaign()
    poison(fleet, name, from_version=2)
    transport = fleet.transport()

    def listen(gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if operation is Operation.START and fields["round"] == 4:
            # Somebody flashes one with something else meanwhile.
            fleet.entry(min(fleet.asked(name)[3]))["current"] = "ef" * 32

    transport.listens = listen
    assert fleet.drive(name, transport) == "rolled-back"
    assert fleet.rounds(name)[-1] == ("roll-back", 3)
    assert fleet.current()[min(fleet.asked(name)[3])] == "ef" * 32


def test_devices_that_cannot_be_reached_to_go_back_are_named(fleet: StagedFleet) -> None:
    name = fleet.campaign(deadline_seconds=5, gateway_grace_seconds=5)
    poison(fleet, name, from_version=2)
    transport = fleet.transport()

    def listen(gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if operation is Operation.START and fields["action"] == "release" and fields["round"] > 3:
            transport.silent.add("g1")

    transport.listens = listen
    assert fleet.drive(name, transport) == "rolled-back"
    left = sorted(one for one in fleet.asked(name)[3] if one.startswith("g1-"))
    assert f"2 devices couldn't be reached to go back: {', '.join(left)}" in fleet.reason(name)
    assert [kind for kind, _ in fleet.rounds(name)].count("roll-back") == 3


def test_too_little_evidence_ends_without_a_release(fleet: StagedFleet) -> None:
    before, fleet.held_out = fleet.current(), 3
    name = fleet.campaign()
    assert fleet.drive(name) == "undecided"
    assert "stage canary: too little evidence" in fleet.reason(name)
    assert [kind for kind, _ in fleet.rounds(name)] == ["score-first", "train", "score-last"]
    assert fleet.current() == before


def widening(**fields: Any) -> dict[str, Any]:
    return {**CANARY, "devices": 1, "share": None, "on_too_little_evidence": "widen", **fields}


@pytest.mark.parametrize("soak", [0.0, 60.0])
def test_where_one_device_can_not_tell_the_next_stage_decides(
    fleet: StagedFleet, soak: float
) -> None:
    name = fleet.campaign(widening(soak_seconds=soak), ALL)
    assert fleet.drive(name) == "finished"
    assert [kind for kind, size in fleet.rounds(name) if size == 1] == [
        "score-first",
        "train",
        "score-last",
    ]
    assert fleet.rounds(name)[-1] == ("release", 16)
    outcomes = [one.outcome for one in Stages(fleet.store).judged(name).values()]
    assert outcomes == ["too little evidence", "pass"]


def test_the_last_stage_has_no_wider_one_to_decide(fleet: StagedFleet) -> None:
    name = fleet.campaign(widening())
    assert fleet.drive(name) == "undecided"


def test_a_training_round_in_which_too_many_fail_stops_at_once(fleet: StagedFleet) -> None:
    name = fleet.campaign({**CANARY, "gates": [FAILURES]}, rounds=5)
    for one in fleet.gateways.values():
        one.silent = {entry["device"] for entry in one.devices}
    assert fleet.drive(name) == "rolled-back"
    assert fleet.rounds(name) == [("score-first", 4), ("train", 4)]
    assert "4 of 4 devices failed (no-report 4)" in fleet.reason(name)


def test_training_that_leads_away_ends_rounds_before_its_stage(fleet: StagedFleet) -> None:
    before = fleet.current()
    fleet.unlike_base = 0.5
    name = fleet.campaign({**CANARY, "gates": [{"gate": "drift"}]}, rounds=9)
    assert fleet.drive(name) == "rolled-back"
    # What the first round made is scored by the devices of the second.
    assert fleet.rounds(name) == [("score-first", 4), ("train", 4), ("train", 4)]
    assert "drift: mean change of accuracy: -40.0 points" in fleet.reason(name)
    assert fleet.current() == before


def test_a_drift_alarm_that_never_goes_off_lets_a_stage_pass(fleet: StagedFleet) -> None:
    fleet.unlike_base = 0.88
    name = fleet.campaign({**CANARY, "gates": [{"gate": "drift"}]}, rounds=4)
    assert fleet.drive(name) == "finished"
    assert [kind for kind, _ in fleet.rounds(name)].count("train") == 4


def test_stragglers_that_nobody_waited_for_are_no_failures(fleet: StagedFleet) -> None:
    for one in fleet.gateways.values():
        one.stops_at_target = True
    lenient = {**ALL, "gates": [{**FAILURES, "most": 0.3}]}
    name = fleet.campaign(lenient, cohort_share=0.25, over_selection=3.0, rounds=3)
    assert fleet.drive(name) == "finished"
    trained = fleet.store.round(name, 1).result
    assert (trained["asked"], trained["accepted"]) == (16, 4)
    assert not any(one.failures for one in Stages(fleet.store).members(name).values())


def test_more_declined_than_were_asked_is_no_number_that_stops_a_driver(
    fleet: StagedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = PlainGateway._close

    def boast(self: PlainGateway, key: tuple[str, int]) -> dict[str, Any]:
        return {**close(self, key), "declined": {"flash": 10**9}}

    monkeypatch.setattr(PlainGateway, "_close", boast)
    name = fleet.campaign({**ALL, "gates": [{**FAILURES, "most": 0.3}]})
    assert fleet.drive(name) == "finished"


def test_more_right_answers_than_samples_put_a_gateway_in_quarantine(fleet: StagedFleet) -> None:
    name = fleet.campaign()
    fleet.gateways["g2"].score = lambda device, number, weights: (10, 60_000)
    fleet.drive(name)
    assert "more right answers" in fleet.store.quarantined(name)["g2"]


def test_groups_are_judged_apart_by_what_the_registry_and_the_plan_say(fleet: StagedFleet) -> None:
    registry = Registry(fleet.store)
    registry.add(
        NewDevice(device=one, site="s", labels={"room": "ns"[one.startswith("g1")]})
        for one in fleet.current()
    )
    gates = [{**SCORES, "by": "board"}, {**SCORES, "by": "room"}]
    name = fleet.campaign({**ALL, "gates": gates})
    driver = CampaignDriver(
        fleet.store, name, fleet.transport(), clock=fleet.clock, registry=registry
    )
    assert driver.run() == "finished"
    verdicts = Stages(fleet.store).judged(name)[0].verdicts
    assert [[one["group"] for one in verdict["findings"]] for verdict in verdicts] == [
        ["a", "b"],
        ["n", "s"],
    ]


def test_a_soaked_stage_is_scored_once_more_after_its_time(fleet: StagedFleet) -> None:
    before = fleet.current()
    name = fleet.campaign({**ALL, "soak_seconds": 3600.0})
    fleet.clock.call_later(600.0, lambda: poison(fleet, name))
    assert fleet.drive(name) == "rolled-back"
    assert [kind for kind, _ in fleet.rounds(name)][-3:] == ["release", "score-again", "roll-back"]
    released = fleet.store.round_times(name, 3)[1]
    assert released is not None
    assert fleet.store.round_times(name, 4)[0] >= released + 3600
    assert fleet.current() == before


def test_a_clock_that_steps_changes_nothing_of_how_long_a_stage_soaks(fleet: StagedFleet) -> None:
    for step in (-86_400.0, 86_400.0):
        name = fleet.campaign({**ALL, "soak_seconds": 3600.0})
        began = fleet.clock.monotonic()
        fleet.clock.call_later(600.0, lambda by=step: fleet.clock.step_wall(by))
        assert fleet.drive(name) == "finished"
        assert 3600 <= fleet.clock.monotonic() - began < 3700


# ---- kinds -------------------------------------------------------------------------------


def test_an_evaluation_releases_nothing_and_says_whether_the_version_passes(
    fleet: StagedFleet,
) -> None:
    before = fleet.current()
    good = fleet.campaign(ALL, kind="evaluate", base="m:3")
    assert fleet.drive(good) == "finished"
    assert [kind for kind, _ in fleet.rounds(good)] == ["score-first", "score-last"]
    fleet.right[digest(variant(2))] = 0.1
    fleet.right[digest(variant(1))] = fleet.right[digest(variant(0))] = 0.9
    bad = fleet.campaign(ALL, kind="evaluate", base="m:3")
    assert fleet.drive(bad) == "failed"
    assert "a gate failed" in fleet.reason(bad)
    assert fleet.store.campaign(bad).made == ""
    assert fleet.current() == before


def test_a_rollout_compares_a_version_with_what_each_device_has(fleet: StagedFleet) -> None:
    before = fleet.current()
    name = fleet.campaign(CANARY, ALL, kind="rollout", base="m:2")
    assert fleet.drive(name) == "finished"
    assert [kind for kind, _ in fleet.rounds(name)] == ["score-first", "score-last", "release"] * 2
    for number in (0, 3):
        for one in fleet.plan(name, number).assignments:
            had = digest(variant(1)) if number == 3 and one.device in fleet.asked(name)[0] else ""
            assert one.weights == (had or before[one.device])
    assert set(fleet.current().values()) == {digest(variant(1))}
    assert fleet.store.campaign(name).made == ""


def test_releases_and_the_way_back_reach_devices_that_can_score_nothing(
    fleet: StagedFleet,
) -> None:
    before = fleet.current()
    blind = {"g1-0", "g2-5"}
    for device in blind:
        fleet.entry(device).update(train_samples=0, held_out_samples=0)
    name = fleet.campaign(ALL, kind="rollout", base="m:2")
    assert fleet.drive(name) == "finished"
    scored_first, scored, released = fleet.asked(name).values()
    assert scored_first == scored == released - blind
    assert blind <= released
    assert set(fleet.current().values()) == {digest(variant(1))}
    fleet.store.reopen(name)
    assert fleet.drive(name) == "rolled-back"
    assert fleet.current() == before


def test_a_device_with_weights_that_nobody_knows_is_left_out_of_a_comparison(
    fleet: StagedFleet,
) -> None:
    fleet.entry("g1-0")["current"] = "ef" * 32
    name = fleet.campaign(ALL, kind="rollout", base="m:2")
    assert fleet.drive(name) == "finished"
    assert "its weights efefefef" in fleet.store.round(name, 0).plan["skipped"]["g1-0"]
    assert set(fleet.current().values()) == {digest(variant(1))}


def test_what_a_campaign_trained_is_a_released_version_of_its_model(fleet: StagedFleet) -> None:
    name = fleet.campaign()
    assert fleet.drive(name) == "finished"
    assert fleet.store.campaign(name).made == "m:4"
    made = fleet.models.version("m")
    assert (made.version, made.parent, made.source, made.state) == (
        4,
        1,
        f"campaign {name}",
        "released",
    )
    assert fleet.models.blob("m", 4) == fleet.store.latest_weights(name).blob


def test_what_was_trained_and_not_released_is_a_candidate(fleet: StagedFleet) -> None:
    name = fleet.campaign(last_round="score")
    assert fleet.drive(name) == "finished"
    assert fleet.models.version("m", 4).state == "candidate"
    assert fleet.models.version("m").version == 3


def test_a_campaign_whose_model_is_gone_fails_and_says_so(fleet: StagedFleet) -> None:
    name = fleet.campaign({"name": "all", "share": 1.0})
    other = SqlStore(clock=fleet.clock)
    record = fleet.store.campaign(name)
    other.create_campaign(
        name, record.config, fleet.store.manifests(name), fleet.store.weights(name, 0), "", "gone:1"
    )
    driver = CampaignDriver(other, name, fleet.transport(), clock=fleet.clock)
    assert driver.run() == "failed"
    assert "no model gone" in other.campaign(name).reason


# ---- rolling back ------------------------------------------------------------------------


def test_a_finished_campaign_can_be_rolled_back(fleet: StagedFleet) -> None:
    before = fleet.current()
    name = fleet.campaign()
    assert fleet.drive(name) == "finished"
    assert fleet.current() != before
    fleet.store.reopen(name)
    assert fleet.drive(name) == "rolled-back"
    assert fleet.rounds(name)[-1] == ("roll-back", 16)
    assert fleet.current() == before


class LateTransport(DirectTransport):
    """Hears of its gateways only after a while, as one does that has just begun."""

    def gateways(self) -> frozenset[str]:
        return super().gateways() if self.clock.monotonic() >= self.begins else frozenset()

    def __init__(self, fleet: StagedFleet, seconds: float) -> None:
        super().__init__(fleet.gateways, clock=fleet.clock)
        self.begins = fleet.clock.monotonic() + seconds
        self._replies = []


def test_a_driver_that_has_just_begun_waits_for_those_that_are_to_go_back(
    fleet: StagedFleet,
) -> None:
    before = fleet.current()
    name = fleet.campaign()
    fleet.drive(name)
    fleet.store.reopen(name)
    assert fleet.drive(name, LateTransport(fleet, 60.0)) == "rolled-back"
    assert fleet.current() == before


def test_devices_that_nobody_hears_of_have_not_gone_back(fleet: StagedFleet) -> None:
    name = fleet.campaign()
    fleet.drive(name)
    fleet.store.reopen(name)
    assert fleet.drive(name, LateTransport(fleet, 1e6)) == "rolled-back"
    assert "16 devices couldn't be reached to go back" in fleet.reason(name)
    # They are asked once more where somebody wants that.
    fleet.store.reopen(name)
    assert fleet.drive(name) == "rolled-back"
    assert fleet.reason(name) == "asked for by the operator"


def test_devices_go_back_though_their_gateways_have_not_heard_what_was_released_to_them(
    fleet: StagedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fleet.current()
    name = fleet.campaign()
    assert fleet.drive(name) == "finished"
    for one in fleet.gateways.values():
        told = [{**entry, "current": before[entry["device"]]} for entry in one.devices]
        real = one._hello
        monkeypatch.setattr(
            one, "_hello", lambda request, real=real, told=told: {**real(request), "devices": told}
        )
    fleet.store.reopen(name)
    assert fleet.drive(name) == "rolled-back"
    assert fleet.current() == before
    assert fleet.rounds(name)[-1] == ("roll-back", 16)
    assert fleet.reason(name) == "asked for by the operator"


def test_devices_that_another_campaign_has_go_back_when_it_lets_them_go(
    fleet: StagedFleet,
) -> None:
    before = fleet.current()
    name, other = fleet.campaign(), fleet.campaign()
    assert fleet.drive(name) == "finished"
    fleet.store.claim(other, "another")
    fleet.store.take_leases(other, "another", dict.fromkeys(before, 0))
    fleet.store.reopen(name)
    fleet.clock.call_later(60.0, lambda: fleet.store.end_campaign(other, "", "cancelled"))
    assert fleet.drive(name) == "rolled-back"
    assert fleet.current() == before


def test_news_of_devices_that_take_seconds_are_waited_for_before_anybody_is_asked_twice(
    fleet: StagedFleet,
) -> None:
    class Slow(DirectTransport):
        """What gateways say is ten seconds on its way, as with a SuperNode that sleeps."""

        def receive(self) -> list[Reply]:
            replies = super().receive()
            if any(one.hello is not None for one in replies):
                self.clock.sleep(10.0)
            return replies

    name = fleet.campaign()
    assert fleet.drive(name) == "finished"
    fleet.store.reopen(name)
    assert fleet.drive(name, Slow(fleet.gateways, clock=fleet.clock)) == "rolled-back"
    assert [kind for kind, _ in fleet.rounds(name)].count("roll-back") == 1
