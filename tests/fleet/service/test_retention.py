"""When the leading service deletes what is old."""

from __future__ import annotations

import pytest

from fleet.clock import VirtualClock
from fleet.coordinator.settings import RetentionSettings
from fleet.errors import StoreAwayError
from fleet.service.retention import DAY, LOOK_SECONDS, ROWS, Cleaner
from fleet.store import Audit, Events, Idempotency, Retention, SqlStore


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def store(clock: VirtualClock) -> SqlStore:
    return SqlStore(clock=clock)


def steps(cleaner: Cleaner, clock: VirtualClock, count: int = 20) -> None:
    for _ in range(count):
        clock.sleep(0.5)
        cleaner.step()


def fill(store: SqlStore, clock: VirtualClock) -> None:
    events = Events(store)
    with store.writing():
        for number in range(2 * ROWS + 500):
            events.add("round", "c", {"round": number})
    Audit(store).add("ann", "admin", "campaigns.start", "campaign:c", None, None, "")
    clock.sleep(10 * DAY)
    events.add("state", "c", {})


def test_what_nothing_is_said_of_is_kept_for_ever(store: SqlStore, clock: VirtualClock) -> None:
    fill(store, clock)
    clock.sleep(10_000 * DAY)
    cleaner = Cleaner(store, RetentionSettings(), clock)
    steps(cleaner, clock)
    assert cleaner.deleted == {"reports": 0, "events": 0, "weights": 0}
    assert Events(store).after(0, limit=1)[0].number == 1


def test_batches_come_one_after_the_other_until_nothing_is_old(
    store: SqlStore, clock: VirtualClock
) -> None:
    fill(store, clock)
    cleaner = Cleaner(store, RetentionSettings(events_days=9, reports_days=9), clock)
    seen = []
    for _ in range(20):
        steps(cleaner, clock, 1)
        seen.append(cleaner.deleted["events"])
    assert sorted(set(seen)) == [0, ROWS, 2 * ROWS, 2 * ROWS + 500]
    assert len(Events(store).after(0)) == 1
    # An hour later it looks again.
    clock.sleep(9 * DAY)
    Events(store).add("state", "c", {})
    steps(cleaner, clock)
    assert cleaner.deleted["events"] == 2 * ROWS + 501
    assert [one.action for one in Audit(store).page()] == ["campaigns.start"]


def test_a_store_that_is_away_is_tried_again_and_stops_nobody(
    store: SqlStore, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, clock)
    tries = []

    def away(*_: object) -> int:
        tries.append(clock.monotonic())
        raise StoreAwayError("the database is away")

    with monkeypatch.context() as patched:
        patched.setattr(Retention, "delete_events", away)
        cleaner = Cleaner(store, RetentionSettings(events_days=9), clock)
        steps(cleaner, clock)
        clock.sleep(LOOK_SECONDS)
        steps(cleaner, clock)
    assert len(tries) == 2
    cleaner = Cleaner(store, RetentionSettings(events_days=9), clock)
    steps(cleaner, clock)
    assert cleaner.deleted["events"] == 2 * ROWS + 500


def test_keys_of_requests_are_forgotten_after_a_week(store: SqlStore, clock: VirtualClock) -> None:
    keys = Idempotency(store)
    keys.begin("ann", "old", "x")
    keys.finish("ann", "old", 200, "answer")
    clock.sleep(6 * DAY)
    cleaner = Cleaner(store, RetentionSettings(), clock)
    steps(cleaner, clock)
    assert keys.begin("ann", "old", "x") is not None
    clock.sleep(2 * DAY)
    steps(cleaner, clock)
    assert keys.begin("ann", "old", "x") is None
