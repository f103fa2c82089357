"""Copies of whole stores, and stores that go on from a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from fleet.clock import VirtualClock
from fleet.errors import ConflictError, StoreError
from fleet.registry import NewDevice
from fleet.store import (
    Audit,
    Events,
    Gateways,
    Logins,
    Models,
    Part,
    Registry,
    SqlStore,
    SupersededError,
    Term,
    Tokens,
    WeightsVersion,
    copy_store,
    restore_store,
)
from fleet.store.tables import metadata
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.staged_fleet import MANIFESTS

V0 = WeightsVersion(0, "00" * 32, bytes(range(256)), b"master-0", b"state")
HASH = "$7$101$AAAAAAAAAAAAAAAA$" + "A" * 85 + "A=="
PAIRS = (("sqlite", "postgres"), ("postgres", "sqlite"))


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(
    request: pytest.FixtureRequest, new_database: Callable[[str], str]
) -> Iterator[tuple[SqlStore, SqlStore]]:
    """A store that has a bit of everything, and an empty one."""
    clock = VirtualClock()
    source, target = (SqlStore(new_database(one), clock) for one in request.param)
    fill(source)
    yield source, target
    source.close()
    target.close()


def fill(store: SqlStore) -> None:
    store.create_campaign("c1", '{"name": "é"}', {"bundle": "{}"}, V0, author="ada")
    store.claim("c1", "d1")
    store.take_leases("c1", "d1", {"cow-1": 0, "cow-2": 6})
    store.begin_round("c1", "d1", 1, "train", {"assignments": [], "weights": "00"})
    reports = [{"device": "cow-1", "loss_before": 1.5, "correct_after": 3}]
    store.finish_round("c1", "d1", 1, "done", {"accepted": 1}, reports, replace(V0, version=1))
    store.make_version("c1", "d1", replace(V0, version=2), [Part(1, "gw", 0, 4)])
    store.begin_round("c1", "d1", 2, "train", {"assignments": []})
    Registry(store).add([NewDevice(device="cow-1", site="barn", labels={"room": "a", "n": "ü"})])
    Gateways(store).add("gw", "barn")
    Logins(store).grant_all({"cow-1": HASH, "cow-2": HASH}, "barn", "device")
    Tokens(store).issue("ada", "admin", 1000.0)
    Audit(store).add("ada", "admin", "devices.add", "device:cow-1", None, {"site": "barn"}, "new")
    Events(store).add("state", "c1", {"state": "running"})
    Term(store, "driver", "here").take()
    Models(store).import_bundle("barn", MANIFESTS["a"], small_model.blob(), "ann")


def content(store: SqlStore) -> dict[str, list[Any]]:
    with store.reading() as connection:
        return {
            table.name: [
                tuple(row)
                for row in connection.execute(sa.select(table).order_by(*table.primary_key))
            ]
            for table in metadata.sorted_tables
        }


Pair = tuple[SqlStore, SqlStore]


def test_a_copy_has_every_row_of_every_table_whatever_the_databases(pair: Pair) -> None:
    source, target = pair
    told: list[tuple[int, int]] = []
    rows = copy_store(source, target, lambda what, done, of: told.append((done, of)))
    before = content(source)
    assert content(target) == before
    filled = {name for name, of in before.items() if of}
    assert filled > {"campaigns", "leases", "rounds", "reports", "weights", "parts", "registry"}
    assert told[-1] == (rows, rows) == (sum(map(len, before.values())),) * 2


def test_a_copy_is_of_one_instant_and_keeps_no_writer_waiting(pair: Pair) -> None:
    source, target = pair
    before = content(source)

    def write_meanwhile(what: str, done: int, of: int) -> None:
        source.claim("c1", "d2")
        Events(source).add("state", "c1", {"after": done})
        source.take_leases("c1", "d2", {f"late-{done}": 0})

    copy_store(source, target, write_meanwhile)
    assert content(target) == before
    assert content(source) != before


def test_nothing_is_written_over_and_nothing_is_left_of_a_copy_that_fails(pair: Pair) -> None:
    source, target = pair

    def fail(what: str, done: int, of: int) -> None:
        if done == of:
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError):
        restore_store(source, target, 0.0, fail)
    assert not any(content(target).values())
    restore_store(source, target, 0.0)
    with pytest.raises(ConflictError, match="isn't empty, it has"):
        restore_store(source, target, 0.0)


def test_what_others_remember_goes_on_above_all_that_was_given_since(pair: Pair) -> None:
    source, target = pair
    clock = source.clock
    assert isinstance(clock, VirtualClock)
    copied = content(source)
    # What went on after the backup, and is lost.
    source.create_campaign("c2", "{}", {}, V0)
    source.end_campaign("c1", "", "failed")
    lost = source.take_leases("c2", "", {"cow-1": 0, "cow-9": 0})
    Logins(source).revoke("cow-1")
    Events(source).add("state", "c1", {})
    last = Events(source).last(), Logins(source).changes("barn", 0)[-1].revision
    term = Term(source, "driver", "there")
    term.take()
    source.close()
    backup = SqlStore(None, clock)
    with backup.writing() as connection:
        for table in metadata.sorted_tables:
            if rows := copied[table.name]:
                connection.execute(
                    sa.insert(table), [dict(zip(table.c.keys(), row, strict=True)) for row in rows]
                )

    clock.sleep(100.0)
    restore_store(backup, target, clock.wall() - 50.0)

    assert target.campaign("c1").state == "running"
    with pytest.raises(SupersededError):
        target.begin_round("c1", "d1", 3, "train", {})  # who drove it then may be alive
    target.claim("c1", "d3")
    again = target.take_leases("c1", "d3", {"cow-1": 0, "cow-2": 0, "cow-9": 0})
    assert again["cow-1"].number > lost["cow-1"].number
    assert again["cow-9"].number > lost["cow-9"].number
    assert again == target.take_leases("c1", "d3", {"cow-1": 0, "cow-2": 0, "cow-9": 0})
    assert Term(target, "driver", "").seen()[::2] > (term.number, "")
    Logins(target).grant_all({"cow-7": HASH}, "barn", "device")
    Events(target).add("state", "c1", {})
    assert Logins(target).changes("barn", last[1])[0].name == "cow-7"
    kinds = [one.kind for one in Events(target).after(last[0])]
    assert kinds == ["restored", "state"]
    entry = Audit(target).newest(1)[0]
    assert (entry.action, entry.after) == ("store.restore", {"backed_up": clock.wall() - 50.0})
    Audit(target).add("ada", "admin", "x", "y", None, None, "")
    assert Audit(target).newest(1)[0].number == entry.number + 1


def test_a_second_restore_of_the_same_backup_begins_above_the_first(pair: Pair) -> None:
    source, target = pair
    clock = source.clock
    assert isinstance(clock, VirtualClock)
    given = []
    first = SqlStore(None, clock)
    for store in (first, target):
        clock.sleep(60.0)
        restore_store(source, store, 0.0)
        store.claim("c1", "d4")
        for _ in range(3):
            # Of each life a campaign of its own has the device next.
            number = store.take_leases("c1", "d4", {"cow-1": 0})["cow-1"].number
            given.append(store.take_leases("c1", "d4", {"cow-1": number + 1})["cow-1"].number)
        Logins(store).grant_all(
            dict.fromkeys((f"cow-{n}" for n in range(200)), HASH), "x", "device"
        )
        given.append(store.round_offset())
    assert min(given[4:]) > max(given[:4])
    revisions = [Logins(one).changes("x", 0, 1000) for one in (first, target)]
    assert revisions[1][0].revision > revisions[0][-1].revision
    first.close()


def test_a_round_that_began_before_a_restore_keeps_its_number_and_a_new_one_has_another(
    pair: Pair,
) -> None:
    source, target = pair
    restore_store(source, target, 0.0)
    target.claim("c1", "d5")
    offset = target.round_offset()
    target.begin_round("c1", "d5", 3, "train", {"offset": offset})
    assert target.knows_round("c1", 2)
    assert not target.knows_round("c1", 3)
    assert target.knows_round("c1", 3 + offset)
    assert not target.knows_round("c2", 2)
    target.finish_round("c1", "d5", 3, "done", {}, [], None)
    assert target.raise_counters("c1", "d5", 3 + offset, {"late": 2})
    assert not target.raise_counters("c1", "d5", 3, {"late": 9})
    assert target.round("c1", 3).result == {"late": 2}


def test_a_clock_that_leads_beyond_what_the_wire_can_say_is_refused(pair: Pair) -> None:
    source, target = pair
    with pytest.raises(StoreError, match="in the far future"):
        restore_store(source, target, 2.0**32)
    assert not any(content(target).values())
