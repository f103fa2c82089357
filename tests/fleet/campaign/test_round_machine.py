from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.campaign import Operation, RoundMachine
from fleet.campaign.answers import CollectAnswer, Report, StartAnswer
from tests.conftest import examples

CLOSED = CollectAnswer(state="closed", accepted=3, sums={})
RUNNING = StartAnswer(state="running")


def report(device: str) -> Report:
    return Report(
        device=device,
        plan="ab" * 32,
        train_samples=4,
        held_out=2,
        correct_before=1,
        correct_after=2,
        coded_bytes=10,
        payload_bytes=20,
        seconds=1.0,
    )


def machine(*gateways: str) -> RoundMachine:
    return RoundMachine(gateways or ("g",), 0.0, deadline_seconds=100, grace_seconds=50)


def test_a_gateway_is_started_then_collected_until_it_closes() -> None:
    one = machine()
    assert one.requests(0) == [("g", Operation.START)]
    assert one.requests(1) == []
    one.started("g", RUNNING, 2)
    assert one.requests(2) == [("g", Operation.COLLECT)]
    one.collected("g", CollectAnswer(state="running", accepted=2), 3)
    assert one.accepted == {"g": 2}
    assert one.requests(3) == [("g", Operation.COLLECT)]
    one.collected("g", CLOSED, 4)
    assert one.finished
    assert one.outcome().answers == {"g": CLOSED}


def test_closed_without_sums_is_collected_first() -> None:
    one = machine()
    one.requests(0)
    one.started("g", StartAnswer(state="closed"), 1)
    assert not one.finished
    assert one.requests(1) == [("g", Operation.COLLECT)]


def test_a_gateway_that_forgot_the_round_is_started_again() -> None:
    one = machine()
    one.requests(0)
    one.started("g", RUNNING, 1)
    one.requests(1)
    one.collected(
        "g", CollectAnswer(state="running", accepted=1, reports=[report("a")], cursor=1), 1
    )
    one.requests(1)
    one.collected("g", CollectAnswer(state="unknown"), 2)
    assert one.cursor("g") == 0
    assert one.requests(2) == []
    assert one.requests(10) == [("g", Operation.START)]


def test_failures_back_off_and_the_request_is_repeated() -> None:
    one = machine()
    waits, now = [], 0.0
    for _ in range(5):
        before = now
        while not one.requests(now):
            now += 0.5
        waits.append(now - before)
        one.failed("g", "no answer", now)
    assert waits == [0.0, 2.0, 4.0, 8.0, 10.0]
    assert not one.finished


def test_a_silent_gateway_is_lost_after_deadline_and_grace_and_the_others_count() -> None:
    one = machine("g1", "g2")
    one.requests(0)
    one.collected("g1", CLOSED, 5)
    one.failed("g2", "SuperNode is away", 5)
    one.requests(149)
    assert not one.finished
    one.requests(150)
    assert one.finished
    assert one.outcome().lost == {"g2": "SuperNode is away"}
    assert set(one.outcome().answers) == {"g1"}


def test_stop_cancels_what_still_runs() -> None:
    one = machine("g1", "g2")
    one.requests(0)
    one.collected("g1", CLOSED, 1)
    one.started("g2", RUNNING, 1)
    one.stop(1)
    assert one.requests(1) == [("g2", Operation.CANCEL)]
    one.cancelled("g2", StartAnswer(state="cancelled"), 2)
    assert one.finished
    assert one.outcome().cancelled


def test_a_stopped_round_waits_for_a_silent_gateway_no_longer_than_the_grace() -> None:
    one = RoundMachine(("g",), 0.0, deadline_seconds=7 * 24 * 3600, grace_seconds=50)
    one.requests(0)
    one.failed("g", "away", 1)
    one.stop(10)
    one.stop(30)
    one.requests(59)
    assert not one.finished
    one.failed("g", "away", 59)
    one.requests(60)
    assert one.finished
    assert one.outcome().cancelled, "a round that was stopped isn't aggregated in part"


def test_a_round_that_is_over_can_not_be_stopped_any_more() -> None:
    one = machine("g1", "g2")
    one.requests(0)
    one.collected("g1", CLOSED, 1)
    one.requests(150)
    one.stop(151)
    assert not one.outcome().cancelled


@examples(200)
@given(st.data())
def test_any_sequence_of_events_ends_in_time_with_one_request_under_way(data: Any) -> None:
    gateways = ("g1", "g2", "g3")
    one = machine(*gateways)
    under_way: set[str] = set()
    now = 0.0
    states = ["running", "unknown", "closed", "cancelled"]
    answers = st.sampled_from(
        [
            *(StartAnswer.model_validate({"state": state}) for state in states),
            *(CollectAnswer.model_validate({"state": state}) for state in states),
            CLOSED,
            None,
        ]
    )
    while not one.finished:
        assert now <= 160
        for name, _ in one.requests(now):
            assert name not in under_way
            under_way.add(name)
        for name in sorted(under_way):
            if data.draw(st.booleans()):
                under_way.discard(name)
                answer = data.draw(answers)
                if answer is None:
                    one.failed(name, "lost", now)
                elif isinstance(answer, StartAnswer):
                    one.started(name, answer, now)
                else:
                    one.collected(name, answer, now)
        now += 10
    outcome = one.outcome()
    assert not set(outcome.answers) & set(outcome.lost)


def test_reports_come_in_pages_and_the_round_is_closed_with_the_last() -> None:
    one = machine()
    one.requests(0)
    one.started("g", RUNNING, 1)
    page = {"state": "closed", "accepted": 3, "sums": {}}
    for number, names in enumerate(("ab", "c"), 1):
        assert not one.finished
        assert one.requests(number) == [("g", Operation.COLLECT)]
        reports = [report(name) for name in names]
        answer = CollectAnswer(
            **page, reports=reports, cursor=one.cursor("g") + len(names), more=number == 1
        )
        one.collected("g", answer, number)
    assert one.finished
    assert [entry.device for entry in one.outcome().answers["g"].reports] == ["a", "b", "c"]


def test_a_report_that_two_pages_tell_counts_once() -> None:
    one = machine()
    one.requests(0)
    page = {"state": "closed", "accepted": 3, "sums": {}}
    for number, names in enumerate(("ab", "abc"), 1):
        reports = [report(name) for name in names]
        answer = CollectAnswer(**page, reports=reports, cursor=len(names), more=number == 1)
        one.collected("g", answer, number)
    closed = one.answer("g")
    assert closed is not None
    assert [entry.device for entry in closed.reports] == ["a", "b", "c"]


def test_devices_that_got_no_task_are_named_with_the_reason() -> None:
    one = machine("g1", "g2")
    one.requests(0)
    one.started("g1", StartAnswer(state="running", devices={"a": "busy"}), 1)
    one.started("g2", StartAnswer(state="running", devices={"b": "older-lease"}), 1)
    assert one.outcome().not_started == {"a": "busy", "b": "older-lease"}


@pytest.mark.parametrize("closed_before", [False, True])
def test_a_gateway_that_cannot_be_used_is_lost_and_the_round_ends_without_it(
    closed_before: bool,
) -> None:
    one = machine("g1", "g2")
    one.requests(0)
    one.collected("g1", CLOSED, 1)
    if closed_before:
        one.collected("g2", CLOSED, 1)
        one.reject("g2", "its sum doesn't fit")
    else:
        one.give_up("g2", "its sum doesn't fit")
        one.give_up("g1", "this one had closed")
    assert one.finished
    assert one.outcome().lost == {"g2": "its sum doesn't fit"}
    assert set(one.outcome().answers) == {"g1"}
    assert not one.outcome().cancelled
