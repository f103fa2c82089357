"""Members, verdicts and decisions over each database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from fleet.clock import VirtualClock
from fleet.errors import StoreError
from fleet.store import Decision, Member, SqlStore, Stages, WeightsVersion
from fleet.store.stages import after_round
from tests.patience import wait_until

ONE, OTHER = "a" * 16, "b" * 16


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[SqlStore]:
    one = SqlStore(new_database(request.param), VirtualClock())
    for campaign in (ONE, OTHER):
        weights = WeightsVersion(0, "0" * 64, b"", b"")
        one.create_campaign(campaign, "{}", {}, weights, "ann")
    yield one
    one.close()


@pytest.fixture
def stages(store: SqlStore) -> Stages:
    return Stages(store)


def waits(store: SqlStore, what: str) -> None:
    store.set_state(ONE, "", "waiting", "why", what)


def test_members_come_back_as_they_were_saved_and_the_last_word_counts(stages: Stages) -> None:
    many = {
        f"d{number:04}": Member(f"d{number:04}", number % 3, "c" * 64) for number in range(2100)
    }
    stages.save_members(ONE, many.values())
    assert stages.members(ONE) == many
    changed = Member("d0001", 2, "c" * 64, 3, "no-report", 1_700_000_123.5)
    stages.save_members(ONE, [changed, Member("new", 0, "e" * 64)])
    assert stages.members(ONE)["d0001"] == changed
    assert len(stages.members(ONE)) == 2101
    assert stages.members(OTHER) == {}
    stages.save_members(ONE, [])


def test_the_last_verdicts_of_a_stage_are_kept(stages: Stages) -> None:
    stages.save_judged(ONE, 1, "fail", [{"outcome": "fail", "low": None, "reason": "ä"}])
    stages.save_judged(ONE, 0, "pass", [])
    stages.save_judged(ONE, 1, "pass", [{"outcome": "pass"}, {"outcome": "pass"}])
    judged = stages.judged(ONE)
    assert list(judged) == [0, 1]
    assert (judged[1].outcome, len(judged[1].verdicts)) == ("pass", 2)
    assert judged[1].judged == 1_700_000_000.0
    assert stages.judged(OTHER) == {}


def test_only_what_is_waited_for_can_be_decided(store: SqlStore, stages: Stages) -> None:
    for what in ("gate:0", ""):
        with pytest.raises(StoreError, match="waits for nothing"):
            stages.decide(ONE, what, "bob")
    waits(store, "gate:1")
    with pytest.raises(StoreError, match="waits for gate:1, not for gate:0"):
        stages.decide(ONE, "gate:0", "bob")
    with pytest.raises(StoreError, match="no campaign"):
        stages.decide("f" * 16, "gate:1", "bob")
    stages.decide(ONE, "gate:1", "bob")
    assert stages.decisions(ONE) == {"gate:1": Decision("gate:1", "bob", 1_700_000_000.0)}
    assert stages.decisions(OTHER) == {}


def test_an_author_approves_nothing_of_their_own_but_may_judge_a_gate(
    store: SqlStore, stages: Stages
) -> None:
    waits(store, "begin:0")
    with pytest.raises(StoreError, match="made by ann: somebody else has to approve it"):
        stages.decide(ONE, "begin:0", "ann")
    stages.decide(ONE, "begin:0", "bob")
    waits(store, "gate:0")
    stages.decide(ONE, "gate:0", "ann")


def test_a_campaign_that_has_ended_waits_for_nobody(store: SqlStore, stages: Stages) -> None:
    waits(store, "gate:0")
    store.end_campaign(ONE, "", "cancelled")
    with pytest.raises(StoreError, match="waits for nothing"):
        stages.decide(ONE, "gate:0", "bob")


def test_a_decision_waits_for_whoever_changes_the_campaign(
    new_database: Callable[[str], str | None],
) -> None:
    url = new_database("postgres")
    first, second = (SqlStore(url, VirtualClock()) for _ in range(2))
    first.create_campaign(ONE, "{}", {}, WeightsVersion(0, "0" * 64, b"", b""), "ann")
    waits(first, "gate:0")
    said: list[Exception | None] = []

    def decide() -> None:
        try:
            Stages(second).decide(ONE, "gate:0", "bob")
            said.append(None)
        except StoreError as error:
            said.append(error)

    thread = threading.Thread(target=decide)
    waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")

    def is_waiting() -> bool:
        with second.reading() as connection:
            return bool(connection.execute(waiting).scalar())

    with first.writing():
        first.end_campaign(ONE, "", "cancelled")
        thread.start()
        wait_until(lambda: is_waiting() or not thread.is_alive(), "it to wait")
    thread.join()
    assert [str(one) for one in said] == [
        f"campaign {ONE} waits for nothing, not for gate:0",
    ]
    first.close()
    second.close()


def test_a_campaign_that_has_ended_is_reopened_also_where_some_could_not_be_reached_before(
    store: SqlStore,
) -> None:
    with pytest.raises(StoreError, match="is pending"):
        store.reopen(ONE)
    store.ask(ONE, "stop")
    store.end_campaign(ONE, "", "cancelled")
    store.reopen(ONE)
    record = store.campaign(ONE)
    assert (record.state, record.wish) == ("rolling-back", "")
    with pytest.raises(StoreError, match="is rolling-back"):
        store.reopen(ONE)
    store.end_campaign(ONE, "", "rolled-back")
    store.reopen(ONE)
    assert store.campaign(ONE).state == "rolling-back"


DEVICES = st.sampled_from(["a", "b", "c", "d", "e"])


@given(
    st.dictionaries(DEVICES, st.integers(0, 5)),
    st.sets(DEVICES),
    st.sets(DEVICES),
    st.sets(DEVICES),
)
def test_after_a_round_those_that_reported_have_no_failures_and_others_one_more(
    failures: dict[str, int], asked: set[str], reported: set[str], failed: set[str]
) -> None:
    known = {
        name: Member(name, 0, "c", count, "x" if count else "") for name, count in failures.items()
    }
    changed = {
        one.device: one
        for one in after_round(known, asked, reported, dict.fromkeys(failed, ("why", 7.0)))
    }
    for name, before in known.items():
        after = changed.get(name, before)
        if name not in asked or name not in reported | failed:
            assert after is before
        elif name in reported:
            assert after == Member(name, 0, "c")
        else:
            assert after == Member(name, 0, "c", before.failures + 1, "why", 7.0)
    assert changed.keys() <= known.keys()
