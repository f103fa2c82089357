"""Events over each database: whoever follows them misses none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from fleet.clock import VirtualClock
from fleet.store import Event, Events, SqlStore
from fleet.store.tables import events as table


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[SqlStore]:
    one = SqlStore(new_database(request.param), VirtualClock())
    yield one
    one.close()


def test_events_come_back_in_order_of_their_numbers_and_by_campaign(store: SqlStore) -> None:
    events = Events(store)
    assert events.last() == 0
    events.add("state", "a", {"state": "running", "why": 'ä"\\'})
    events.add("gate", "b", {"reasons": ["x"]})
    events.add("state", "a", {"state": "finished"})
    every = events.after(0)
    assert every[0] == Event(1, 1_700_000_000.0, "state", "a", {"state": "running", "why": 'ä"\\'})
    assert [one.campaign for one in every] == ["a", "b", "a"]
    assert events.after(0, "a") == (every[0], every[2])
    assert events.after(every[0].number, "a") == (every[2],)
    assert events.last() == every[2].number
    assert events.after(events.last()) == ()


def test_pages_hold_every_event_once(store: SqlStore) -> None:
    events = Events(store)
    for number in range(25):
        events.add("round", "a", {"round": number})
    found: list[Event] = []
    while page := events.after(found[-1].number if found else 0, limit=10):
        assert len(page) <= 10
        found += page
    assert [one.data["round"] for one in found] == list(range(25))


def test_whoever_follows_misses_none_however_many_are_added_at_once(store: SqlStore) -> None:
    events, writers, each = Events(store), 4, 8

    def write(writer: int) -> None:
        for number in range(each):
            events.add("round", f"c{writer}", {"round": number})

    threads = [threading.Thread(target=write, args=(one,)) for one in range(writers)]
    for thread in threads:
        thread.start()
    found: list[Event] = []
    while True:
        is_last = not any(one.is_alive() for one in threads)
        found += events.after(found[-1].number if found else 0)
        if is_last:
            break
    assert len(found) == writers * each


def test_no_event_is_seen_before_one_with_a_lower_number(
    new_database: Callable[[str], str | None],
) -> None:
    """The lower number of two is given by a transaction that is slow to end."""
    url = new_database("postgres")
    # What a thread reads within its own transaction is its own.
    store, others = (SqlStore(url, VirtualClock()) for _ in range(2))
    events = Events(others)
    values = {"at": 0.0, "kind": "slow", "campaign": "a", "data": "{}"}
    with store.writing() as connection:
        connection.execute(sa.insert(table), values)
        other = threading.Thread(target=events.add, args=("quick", "a", {}))
        other.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        while not connection.execute(sa.text(waiting)).scalar():
            assert other.is_alive()
        assert events.after(0) == ()
    other.join()
    assert [one.kind for one in events.after(0)] == ["slow", "quick"]
    store.close()
    others.close()
