"""Campaigns that wait: for people, for their hours, and for devices that failed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fleet.campaign import Operation
from fleet.errors import StoreError
from fleet.store import Events, Stages
from tests.fleet.coordinator.direct_transport import DirectTransport, PowerCutError
from tests.fleet.coordinator.staged_fleet import (
    ALL,
    CANARY,
    FAILURES,
    SCORES,
    StagedFleet,
)

EVERYBODY = {"name": "all", "share": 1.0}
Act = Callable[[], object]


def at_request(transport: DirectTransport, number: int, act: Act) -> None:
    """Something happens before this request is sent."""

    def listen(gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if len(transport.sent) == number:
            act()

    transport.listens = listen


def states(fleet: StagedFleet, name: str) -> list[str]:
    return [one.data["state"] for one in Events(fleet.store).after(0, name) if one.kind == "state"]


def refuses(fleet: StagedFleet, name: str, what: str, who: str, why: str) -> None:
    with pytest.raises(StoreError, match=why):
        Stages(fleet.store).decide(name, what, who)


# ---- decisions ---------------------------------------------------------------------------


def test_nothing_begins_before_somebody_else_than_the_author_has_approved_it(
    fleet: StagedFleet,
) -> None:
    name = fleet.campaign(CANARY, {**ALL, "approval": True}, approval=True)
    refuses(fleet, name, "begin:0", "bob", "waits for nothing")
    transport = fleet.transport()

    def look() -> None:
        assert transport.sent == []
        assert fleet.store.campaign(name).state == "waiting"
        refuses(fleet, name, "begin:1", "bob", "waits for begin:0")
        refuses(fleet, name, "begin:0", "ann", "somebody else")
        Stages(fleet.store).decide(name, "begin:0", "bob")

    def look_again() -> None:
        assert [kind for kind, _ in fleet.rounds(name)][-1] == "release"
        assert fleet.store.campaign(name).waiting == "begin:1"
        assert "approval of stage all" in fleet.reason(name)
        Stages(fleet.store).decide(name, "begin:1", "eve")

    fleet.clock.call_later(300.0, look)
    fleet.clock.call_later(3000.0, look_again)
    assert fleet.drive(name, transport) == "finished"
    decided = {what: one.who for what, one in Stages(fleet.store).decisions(name).items()}
    assert decided == {"begin:0": "bob", "begin:1": "eve"}
    assert states(fleet, name) == ["waiting", "running", "waiting", "running", "finished"]


def test_a_first_stage_is_not_approved_twice(fleet: StagedFleet) -> None:
    name = fleet.campaign({**EVERYBODY, "approval": True}, approval=True)
    fleet.is_approved(name)
    assert fleet.drive(name) == "finished"
    assert list(Stages(fleet.store).decisions(name)) == ["begin:0"]


def test_a_stage_whose_gates_can_not_tell_waits_where_that_is_wanted(fleet: StagedFleet) -> None:
    fleet.held_out = 1
    name = fleet.campaign({**ALL, "on_too_little_evidence": "pause"})
    released: list[bool] = []
    fleet.clock.call_later(
        900.0, lambda: released.append("release" in [kind for kind, _ in fleet.rounds(name)])
    )
    fleet.clock.call_later(1000.0, lambda: fleet.is_approved(name, "ann"))
    assert fleet.drive(name) == "finished"
    assert released == [False]
    assert fleet.rounds(name)[-1] == ("release", 16)


def test_who_lets_failing_devices_pass_has_not_let_bad_scores_pass(fleet: StagedFleet) -> None:
    for one in fleet.gateways.values():
        one.silent = {entry["device"] for entry in one.devices[:4]}
    fleet.unlike_base = 0.2
    gates = [FAILURES, SCORES]
    name = fleet.campaign({**ALL, "gates": gates, "on_failure": "pause"}, rounds=2)
    fleet.is_approved(name)
    assert fleet.drive(name) == "finished"
    assert list(Stages(fleet.store).decisions(name)) == ["gate:0", "gate:0:training"]


@pytest.mark.parametrize(("wish", "state"), [("stop", "cancelled"), ("roll-back", "rolled-back")])
def test_a_campaign_that_waits_for_a_decision_does_what_is_asked_for(
    fleet: StagedFleet, wish: str, state: str
) -> None:
    before = fleet.current()
    name = fleet.campaign({**CANARY}, {**ALL, "approval": True})
    fleet.clock.call_later(3000.0, lambda: fleet.store.ask(name, wish))
    assert fleet.drive(name) == state
    assert fleet.rounds(name)[3] == ("release", 4)
    assert (fleet.current() == before) is (wish == "roll-back")
    assert fleet.store.campaign(name).waiting == ""


# ---- wishes ------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 4.0])
@pytest.mark.parametrize(("wish", "state"), [("stop", "cancelled"), ("roll-back", "rolled-back")])
def test_a_wish_before_any_request_is_heeded_and_leaves_no_round_running(
    fleet: StagedFleet, wish: str, state: str, seconds: float
) -> None:
    before = fleet.current()
    for one in fleet.gateways.values():
        one.round_seconds = seconds
    whole = fleet.transport(pull=1.5)
    assert fleet.drive(fleet.campaign(CANARY, ALL), whole) == "finished"
    for number in range(0, len(whole.sent), 5 if seconds else 2):
        for one in fleet.gateways.values():
            for entry in one.devices:
                entry["current"] = before[entry["device"]]
        name = fleet.campaign(CANARY, ALL)
        transport = fleet.transport(pull=1.5)
        at_request(transport, number, lambda name=name: fleet.store.ask(name, wish))  # type: ignore[misc]
        assert fleet.drive(name, transport) == state
        assert all(one.state != "running" for one in fleet.store.rounds(name))
        assert not [
            key
            for one in fleet.gateways.values()
            for key in one.rounds
            if key[0] == name and one._state(key) == "running"
        ]
        if wish == "roll-back":
            assert fleet.current() == before


@pytest.mark.parametrize("number", [0, 5, 17])
def test_a_paused_campaign_ends_its_round_and_begins_none_until_it_may(
    fleet: StagedFleet, number: int
) -> None:
    name = fleet.campaign(CANARY, ALL)
    transport = fleet.transport(pull=20.0)
    at_request(transport, number, lambda: fleet.store.ask(name, "pause"))
    sent: list[int] = []

    def look() -> None:
        assert fleet.store.campaign(name).state == "paused"
        assert all(one.state == "done" for one in fleet.store.rounds(name))
        sent.append(len(transport.sent))

    fleet.clock.call_later(1000.0, look)
    fleet.clock.call_later(9000.0, look)
    fleet.clock.call_later(9001.0, lambda: fleet.store.ask(name, ""))
    assert fleet.drive(name, transport) == "finished"
    assert sent[0] == sent[1]
    assert states(fleet, name) == ["paused", "running", "finished"]


def test_a_driver_killed_in_a_pause_that_ends_meanwhile_runs_again_and_says_so(
    fleet: StagedFleet,
) -> None:
    name = fleet.campaign(EVERYBODY)
    fleet.store.ask(name, "pause")

    def die() -> None:
        raise PowerCutError

    fleet.clock.call_later(60.0, die)
    with pytest.raises(PowerCutError):
        fleet.drive(name)
    assert fleet.store.campaign(name).state == "paused"
    fleet.store.ask(name, "")
    transport = fleet.transport()
    at_request(transport, 0, lambda: seen.append(fleet.store.campaign(name).state))
    seen: list[str] = []
    assert fleet.drive(name, transport) == "finished"
    assert seen == ["running"]


@pytest.mark.parametrize(("wish", "state"), [("", "cancelled"), ("roll-back", "rolled-back")])
def test_a_driver_killed_after_it_cancelled_a_round_does_not_go_on_behind_it(
    fleet: StagedFleet, wish: str, state: str
) -> None:
    name = fleet.campaign({**ALL, "gates": [FAILURES, SCORES]})
    with pytest.raises(PowerCutError):
        fleet.drive(name, fleet.transport(dies_at=6))
    assert fleet.store.round(name, 1).state == "running"
    fleet.store.finish_round(name, "", 1, "cancelled", {}, [], None)
    fleet.store.ask(name, wish)
    assert fleet.drive(name) == state
    assert len(fleet.store.rounds(name)) == 2


# ---- windows -----------------------------------------------------------------------------


def test_rounds_begin_only_in_their_window_and_one_that_runs_may_end_behind_it(
    fleet: StagedFleet,
) -> None:
    # It is 22:13 UTC.
    for one in fleet.gateways.values():
        one.round_seconds = 1800.0
    name = fleet.campaign(
        EVERYBODY,
        windows=[{"start": "01:00", "end": "02:00", "timezone": "Europe/Berlin"}],
        deadline_seconds=3000,
    )
    seen: list[str] = []
    fleet.clock.call_later(600.0, lambda: seen.append(fleet.reason(name)))
    assert fleet.drive(name, fleet.transport(pull=50.0)) == "finished"
    assert seen == ["waits for its window"]
    begun = [fleet.store.round_times(name, number)[0] % 86400 / 3600 for number in (0, 1, 2)]
    assert all(0.0 <= hour < 1.0 for hour in begun)
    first, _, last = (fleet.store.round_times(name, number)[0] for number in (0, 1, 2))
    assert last - first > 80_000


# ---- devices that failed -----------------------------------------------------------------


def test_a_device_that_never_reports_is_asked_so_often_and_then_no_more(
    fleet: StagedFleet,
) -> None:
    fleet.gateways["g1"].silent = {"g1-0"}
    fleet.gateways["g2"].declining = {"g2-3": "score dropped"}
    name = fleet.campaign(
        EVERYBODY,
        rounds=6,
        score_first=False,
        retry={"attempts": 3},
        retries={"score dropped": {"attempts": 1}},
    )
    assert fleet.drive(name) == "finished"
    asked = fleet.asked(name)
    assert [number for number, devices in asked.items() if "g1-0" in devices] == [1, 2, 3]
    assert [number for number, devices in asked.items() if "g2-3" in devices] == [1]
    assert fleet.store.round(name, 1).result["failed"] == {
        "g1-0": "no-report",
        "g2-3": "score dropped",
    }
    skipped = fleet.store.round(name, 4).plan["skipped"]
    assert skipped["g1-0"] == "failed 3 times in a row: no-report"
    assert skipped["g2-3"] == "failed 1 times in a row: score dropped"


def test_devices_of_a_gateway_that_was_lost_have_not_failed(fleet: StagedFleet) -> None:
    stage = {"name": "all", "share": 1.0, "gates": [{"gate": "failures", "most": 0.3}]}
    name = fleet.campaign(
        stage,
        rounds=6,
        deadline_seconds=60,
        gateway_grace_seconds=0,
        retry={"attempts": 2, "backoff_seconds": 9000},
    )
    transport = fleet.transport()

    def listen(gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if operation is Operation.START and gateway == "g1":
            is_away = fields["round"] in (1, 2, 3)
            (transport.silent.add if is_away else transport.silent.discard)("g2")

    transport.listens = listen
    assert fleet.drive(name, transport) == "finished"
    assert [len(devices) for devices in fleet.asked(name).values()] == [16] * 9
    result = fleet.store.round(name, 2).result
    assert result["lost"] == {"g2": "away"}
    assert result["failed"] == {f"g2-{number}": "gateway-lost" for number in range(8)}


def test_a_device_that_fails_is_asked_again_after_a_time_that_doubles(
    fleet: StagedFleet,
) -> None:
    for one in fleet.gateways.values():
        one.round_seconds = 20.0
    fleet.gateways["g1"].silent = {"g1-0"}
    name = fleet.campaign(
        EVERYBODY,
        rounds=25,
        score_first=False,
        last_round="none",
        retry={"attempts": 9, "backoff_seconds": 60},
    )
    assert fleet.drive(name) == "finished"
    times = [
        fleet.store.round_times(name, number)
        for number, devices in fleet.asked(name).items()
        if "g1-0" in devices
    ]
    waits = [began - float(ended or 0.0) for (_, ended), (began, _) in itertools.pairwise(times)]
    assert len(waits) == 3
    assert all(60 * 2**index <= wait < 60 * 2**index + 60 for index, wait in enumerate(waits))


def test_a_device_that_reports_again_is_forgiven(fleet: StagedFleet) -> None:
    name = fleet.campaign(EVERYBODY, rounds=8, score_first=False)
    transport = fleet.transport()

    def listen(gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if operation is Operation.START:
            is_silent = fields["round"] % 3 != 0
            fleet.gateways["g1"].silent = {"g1-0"} if is_silent else set()

    transport.listens = listen
    assert fleet.drive(name, transport) == "finished"
    assert all("g1-0" in devices for devices in fleet.asked(name).values())


def test_a_stage_whose_devices_all_failed_waits_until_they_may_be_asked_again(
    fleet: StagedFleet,
) -> None:
    name = fleet.campaign(
        {"name": "one", "devices": 1},
        EVERYBODY,
        retry={"backoff_seconds": 900},
        wait_for_devices_seconds=30,
    )
    transport = fleet.transport(pull=5.0)

    def listen(gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if operation is Operation.START:
            here = fleet.gateways[gateway]
            here.silent = {one["device"] for one in here.devices} if not fields["round"] else set()

    transport.listens = listen
    assert fleet.drive(name, transport) == "finished"
    ended = fleet.store.round_times(name, 0)[1]
    assert ended is not None
    assert 900 <= fleet.store.round_times(name, 1)[0] - ended < 930


def test_a_clock_that_is_put_back_lets_no_device_wait_longer(fleet: StagedFleet) -> None:
    name = fleet.campaign(
        {"name": "one", "devices": 1}, retry={"backoff_seconds": 900}, wait_for_devices_seconds=30
    )
    transport = fleet.transport(pull=5.0)

    def listen(gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if operation is Operation.START:
            here = fleet.gateways[gateway]
            here.silent = {one["device"] for one in here.devices} if not fields["round"] else set()
            if not fields["round"]:
                later = 60.0 + fields["deadline_seconds"]
                fleet.clock.call_later(later, lambda: fleet.clock.step_wall(-86_400))

    transport.listens = listen
    began = fleet.clock.monotonic()
    assert fleet.drive(name, transport) == "finished"
    assert fleet.clock.monotonic() - began < 86_400


def test_a_stage_whose_devices_have_all_failed_for_good_ends_the_campaign(
    fleet: StagedFleet,
) -> None:
    for one in fleet.gateways.values():
        one.silent = {entry["device"] for entry in one.devices}
    name = fleet.campaign({"name": "one", "devices": 1}, EVERYBODY, retry={"attempts": 2})
    assert fleet.drive(name) == "failed"
    assert "failed 2 times in a row: no-report" in fleet.reason(name)


# ---- kills -------------------------------------------------------------------------------


def remembered(fleet: StagedFleet, name: str) -> dict[str, Any]:
    """All that is kept of a campaign but its times."""
    stages = Stages(fleet.store)
    rounds = fleet.store.rounds(name)
    return {
        "end": (fleet.store.campaign(name).state, fleet.reason(name)),
        "rounds": [(one.kind, one.state, one.plan, one.result) for one in rounds],
        "weights": fleet.store.latest_weights(name),
        "members": stages.members(name),
        "judged": {
            number: (one.outcome, one.verdicts) for number, one in stages.judged(name).items()
        },
        "decided": list(stages.decisions(name)),
        "gates": [one.data for one in Events(fleet.store).after(0, name) if one.kind == "gate"],
        "devices": fleet.current(),
    }


def gated(folder: Path) -> tuple[StagedFleet, str]:
    """A campaign whose canary can't tell alone, and whose last stage fails for one board."""
    folder.mkdir(exist_ok=True)
    fleet = StagedFleet(folder)
    one = {**CANARY, "share": None, "devices": 1, "on_too_little_evidence": "pause"}
    everybody = {**ALL, "gates": [{**SCORES, "by": "board"}, FAILURES]}
    name = fleet.campaign(one, everybody, approval=True)

    def score(device: str, number: int, weights: str) -> tuple[int, int]:
        found = fleet.store.weights_with(name, weights)
        is_worse = found is not None and found.version == 2 and device[-1] in "1357"
        return 1000, 300 if is_worse else 900

    for gateway in fleet.gateways.values():
        gateway.score = score
    fleet.is_approved(name)
    return fleet, name


def test_a_staged_campaign_killed_before_any_request_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fleet, name = gated(Path("w"))
    transport = fleet.transport()
    before = fleet.current()
    assert fleet.drive(name, transport) == "rolled-back"
    assert fleet.current() == before
    whole = remembered(fleet, name)
    fleet.close()
    assert [kind for kind, *_ in whole["rounds"]][-2:] == ["score-last", "roll-back"]
    assert whole["decided"] == ["begin:0", "gate:0"]
    assert [one["outcome"] for one in whole["gates"]] == ["too little evidence", "fail"]
    assert "of board b" in whole["end"][1]
    for cut in range(len(transport.sent)):
        fleet, name = gated(Path(f"{cut}"))
        with pytest.raises(PowerCutError):
            fleet.drive(name, fleet.transport(dies_at=cut))
        fleet.drive(name)
        assert remembered(fleet, name) == whole
        fleet.close()
