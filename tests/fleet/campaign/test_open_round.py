"""A round whose parts are taken while it runs: what gateways may say at odd moments."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.campaign import OpenRound, Operation, Taken
from fleet.campaign.answers import CollectAnswer, StartAnswer

PLAN = "ab" * 32


def report(number: int) -> dict[str, Any]:
    return {
        "device": f"d{number}",
        "plan": PLAN,
        "train_samples": 3,
        "held_out": 2,
        "correct_before": 1,
        "correct_after": 1,
        "coded_bytes": 9,
        "payload_bytes": 9,
        "seconds": 1.0,
    }


def standing(accepted: int, after: int = 0, state: str = "running", **more: Any) -> CollectAnswer:
    reports = [report(number) for number in range(after, accepted)]
    answer = {"state": state, "accepted": accepted, "reports": reports, "cursor": accepted}
    return CollectAnswer.parse("g", {**answer, **more})


def told(part: int, through: int, after: int, accepted: int, state: str = "running") -> Any:
    fold = {"values": bytes(8), "weight": 1, "devices": 1}
    return standing(accepted, after, state, part=part, through=through, sums={PLAN: [fold]})


@pytest.fixture
def machine() -> OpenRound:
    made = OpenRound(["g"], 0.0, 100.0, 50.0)
    assert made.requests(0.0) == [("g", Operation.START)]
    made.started("g", StartAnswer(state="running"), 1.0)
    assert made.requests(1.0) == [("g", Operation.COLLECT)]
    return made


def take(machine: OpenRound, now: float) -> None:
    assert machine.is_free("g", now)
    machine.take("g", now)
    assert machine.requests(now) == [("g", Operation.COLLECT)]
    assert machine.is_asked("g")


def test_a_part_has_the_reports_of_its_own_deltas_and_what_came_since_waits(
    machine: OpenRound,
) -> None:
    assert machine.keeps("g", "d0")
    machine.collected("g", standing(2), 2.0)
    assert (machine.untaken("g"), machine.part("g")) == (2, None)
    assert (machine.keeps("g", "d0"), machine.keeps("g", "d2")) == (False, True)
    take(machine, 2.0)
    assert machine.part("g") == 0
    machine.collected("g", told(0, through=3, after=2, accepted=4), 3.0)
    part = machine.taken("g")
    assert part is not None
    assert (part.accepted, [one.device for one in part.reports]) == (3, ["d0", "d1", "d2"])
    assert machine.untaken("g") == 1
    machine.keep("g")
    assert machine.taken("g") is None
    take(machine, 4.0)
    assert machine.part("g") == 1


def test_a_round_that_was_resumed_goes_on_with_the_next_part() -> None:
    machine = OpenRound(["g"], 0.0, 100.0, 50.0, taken={"g": Taken(2, 5)})
    machine.requests(0.0)
    machine.started("g", StartAnswer(state="running"), 1.0)
    machine.requests(1.0)
    machine.collected("g", standing(7), 2.0)
    assert machine.untaken("g") == 2
    take(machine, 2.0)
    assert machine.part("g") == 2


def test_an_answer_to_a_driver_before_this_one_is_not_taken_for_the_whole(
    machine: OpenRound,
) -> None:
    machine.collected("g", standing(5, after=3), 2.0)
    assert machine.untaken("g") == 0
    assert machine.requests(2.0) == [("g", Operation.COLLECT)]
    assert machine.cursor("g") == 0
    machine.collected("g", standing(5), 3.0)
    assert machine.untaken("g") == 5


def test_a_round_ends_where_its_last_part_was_taken_however_late_that_is(
    machine: OpenRound,
) -> None:
    machine.collected("g", standing(2, state="closed"), 2.0)
    assert not machine.runs
    assert machine.requests(1000.0) == []
    assert not machine.finished
    take(machine, 1000.0)
    machine.collected("g", told(0, 2, 2, 2, "closed"), 1001.0)
    assert not machine.finished
    machine.keep("g")
    assert machine.finished
    (answer,) = machine.outcome().answers.values()
    assert [one.device for one in answer.reports] == ["d0", "d1"]


def test_a_part_that_can_not_be_had_now_is_asked_for_later(machine: OpenRound) -> None:
    machine.collected("g", standing(2), 2.0)
    take(machine, 2.0)
    machine.failed("g", "no answer", 3.0)
    assert not machine.is_asked("g")
    assert machine.taken("g") is None
    assert machine.untaken("g") == 2
    assert not machine.is_free("g", 3.0)
    take(machine, 30.0)
    assert machine.part("g") == 0


def test_who_was_stopped_is_asked_once_more_how_it_stood(machine: OpenRound) -> None:
    machine.collected("g", standing(1), 2.0)
    machine.stop(2.0)
    assert machine.requests(2.0) == [("g", Operation.CANCEL)]
    machine.cancelled("g", StartAnswer(state="cancelled"), 3.0)
    assert machine.requests(3.0) == [("g", Operation.COLLECT)]
    machine.collected("g", standing(2, 1, "cancelled"), 4.0)
    assert machine.finished
    (answer,) = machine.outcome().answers.values()
    assert (answer.state, answer.accepted, len(answer.reports)) == ("cancelled", 2, 2)


def test_what_was_cancelled_by_somebody_else_gives_no_part_and_is_not_asked_for_ever(
    machine: OpenRound,
) -> None:
    machine.collected("g", standing(2), 2.0)
    take(machine, 2.0)
    machine.collected("g", standing(2, 2, "cancelled"), 3.0)
    assert machine.finished
    assert machine.taken("g") is None


@pytest.mark.parametrize("is_stopping", [False, True])
def test_a_gateway_that_has_forgotten_a_round_does_not_begin_it_again(
    machine: OpenRound, is_stopping: bool
) -> None:
    if is_stopping:
        machine.stop(2.0)
    else:
        machine.collected("g", standing(2), 2.0)
        take(machine, 2.0)
        machine.collected("g", told(0, 2, 2, 2), 3.0)
        machine.keep("g")
    machine.collected("g", standing(0, state="unknown"), 4.0)
    assert machine.finished
    assert "forgotten" in machine.outcome().lost["g"]


def test_a_gateway_that_forgot_before_a_part_was_taken_begins_again(machine: OpenRound) -> None:
    machine.collected("g", standing(2), 2.0)
    take(machine, 2.0)
    machine.collected("g", standing(0, state="unknown"), 3.0)
    assert machine.requests(10.0) == [("g", Operation.START)]
    assert machine.untaken("g") == 0


def test_answers_without_the_part_that_was_asked_for_end_the_gateways_round(
    machine: OpenRound,
) -> None:
    machine.collected("g", standing(2), 2.0)
    take(machine, 2.0)
    for now, odd in ((3.0, told(1, 2, 2, 2)), (4.0, standing(2, after=2)), (5.0, standing(2))):
        assert not machine.finished
        machine.collected("g", odd, now)
        machine.requests(now)
    assert "told no sums" in machine.outcome().lost["g"]


def test_one_answer_without_the_part_is_asked_for_again(machine: OpenRound) -> None:
    machine.collected("g", standing(2), 2.0)
    take(machine, 2.0)
    machine.collected("g", standing(2, after=2), 3.0)
    assert machine.requests(3.0) == [("g", Operation.COLLECT)]
    assert machine.part("g") == 0
    machine.collected("g", told(0, 2, 2, 2), 4.0)
    assert machine.taken("g") is not None


def test_a_gateway_that_is_given_up_keeps_no_part_waiting(machine: OpenRound) -> None:
    machine.collected("g", standing(2), 2.0)
    take(machine, 2.0)
    machine.failed("g", "no answer", 10.0)
    take(machine, 60.0)
    assert machine.requests(149.0) == []
    assert machine.is_asked("g")
    assert machine.requests(200.0) == []
    assert machine.finished
    assert not machine.is_asked("g")
    assert machine.taken("g") is None
