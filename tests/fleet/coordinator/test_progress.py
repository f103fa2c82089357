"""What onlookers hear of a round that runs."""

from __future__ import annotations

import json

from fleet.campaign.answers import CollectAnswer, Report, StartAnswer
from fleet.campaign.planning import Assignment, RoundKind, RoundPlan
from fleet.campaign.round_machine import RoundMachine
from fleet.coordinator.progress import progress_of

PLAN = "a" * 64


def a_plan(devices: int) -> RoundPlan:
    assignments = tuple(
        Assignment(f"d{n:04}", f"g{n % 2}", "b", PLAN, delay_seconds=float(devices - n))
        for n in range(devices)
    )
    targets = {"g0": devices // 2, "g1": devices // 2}
    return RoundPlan(1, RoundKind.TRAIN, 0, "w", devices, assignments, {}, targets)


def report(device: str) -> Report:
    return Report(
        device=device,
        plan=PLAN,
        train_samples=1,
        held_out=1,
        correct_before=0,
        correct_after=1,
        coded_bytes=10,
        payload_bytes=13,
        seconds=1.0,
    )


def test_those_that_were_asked_first_and_have_not_delivered_are_named() -> None:
    plan = a_plan(100)
    machine = RoundMachine(plan.gateways(), 0.0, 60.0, 60.0)
    machine.requests(0.0)
    machine.started("g0", StartAnswer(state="running", devices={"d0098": "busy"}), 0.0)
    machine.started("g1", StartAnswer(state="running"), 0.0)
    machine.requests(0.0)
    answer = CollectAnswer(
        state="running", accepted=2, late=1, declined={"no-samples": 3}, refused={"crc": 2},
        reports=[report("d0096"), report("d0094")],
    )  # fmt: skip
    machine.collected("g0", answer, 1.0)
    told = progress_of(plan, machine)
    assert [one["device"] for one in told["open"][:5]] == [
        "d0099", "d0097", "d0095", "d0093", "d0092",
    ]  # fmt: skip
    assert told["open"][0] == {"device": "d0099", "gateway": "g1", "task_after": 1.0}
    assert told["not_started"] == {"busy": 1}
    assert (told["declined"], told["refused"]) == ({"no-samples": 3}, {"crc": 2})
    assert (told["late"], told["bytes_up"]) == (1, 26)
    assert told["accepted_by"] == {"g0": 2, "g1": 0}
    assert len(told["open"]) == 20
    assert len(json.dumps(told)) < 3000


def test_a_gateway_that_was_given_up_has_nobody_open() -> None:
    plan = a_plan(10)
    machine = RoundMachine(plan.gateways(), 0.0, 60.0, 60.0)
    machine.give_up("g1", "gone")
    assert {one["gateway"] for one in progress_of(plan, machine)["open"]} == {"g0"}
