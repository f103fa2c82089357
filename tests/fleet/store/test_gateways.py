"""Gateways and logins over each database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from fleet.clock import VirtualClock
from fleet.errors import NotKnownError, RegistryError
from fleet.registry import NewDevice
from fleet.store import GatewayRecord, Gateways, Login, Logins, Registry, SqlStore
from fleet.store.gateways import DEVICE, GATEWAY
from tests.fleet.store.test_registry import heard


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[SqlStore]:
    one = SqlStore(new_database(request.param), VirtualClock())
    yield one
    one.close()


def test_a_gateway_is_added_once_and_known_by_its_site(store: SqlStore) -> None:
    gateways = Gateways(store)
    gateways.add("g2", "barn")
    gateways.add("g1", "field")
    with pytest.raises(RegistryError, match="g2 is in the registry already"):
        gateways.add("g2", "field")
    assert gateways.list() == (
        GatewayRecord("g1", "field", 1_700_000_000.0),
        GatewayRecord("g2", "barn", 1_700_000_000.0),
    )
    assert (gateways.site_of("g2"), gateways.site_of("g9")) == ("barn", None)


def test_a_retired_gateway_keeps_its_record_until_it_is_brought_back(store: SqlStore) -> None:
    gateways = Gateways(store)
    gateways.add("g", "barn")
    gateways.seen("g")
    gateways.note_problem("g", "speaks Latin")
    gateways.retire("g")
    gone = GatewayRecord("g", "barn", 1_700_000_000.0, True, 1_700_000_000.0)
    assert (gateways.get("g"), gateways.retired()) == (gone, {"g"})
    store.clock.sleep(9.0)
    gateways.seen_though_retired("g")
    before = gateways.get("g")
    assert (before.last_seen, before.problem[:33]) == (
        1_700_000_009.0,
        "it is retired and still dials in:",
    )
    assert gateways.add("g", "field") == before
    assert gateways.list() == (GatewayRecord("g", "field", 1_700_000_009.0),)
    assert gateways.retired() == frozenset()
    with pytest.raises(RegistryError, match="g is in the registry already"):
        gateways.add("g", "field")
    with pytest.raises(NotKnownError, match="no gateway other"):
        gateways.retire("other")


def test_what_only_a_retired_gateway_has_heard_is_not_heard(store: SqlStore) -> None:
    gateways, registry = Gateways(store), Registry(store)
    registry.add([NewDevice(device=one, site="barn") for one in ("cow", "hen")])
    registry.observe({"cow": heard(gateway="g1"), "hen": heard(gateway="g2")})
    gateways.add("g1", "barn")
    gateways.forget_devices("g1")  # it isn't retired
    assert registry.get("cow").observed is not None
    gateways.retire("g1")
    assert registry.get("cow").observed is None
    assert registry.get("hen").observed is not None
    assert registry.presence() == {("barn", "unknown"): 1, ("barn", "yes"): 1}


def test_a_problem_stays_until_what_a_gateway_says_makes_sense_again(store: SqlStore) -> None:
    gateways = Gateways(store)
    gateways.add("g", "barn")
    gateways.note_problem("g", "speaks Latin")
    assert [(one.last_seen, one.problem) for one in gateways.list()] == [(None, "speaks Latin")]
    gateways.seen("g")
    assert [(one.last_seen, one.problem) for one in gateways.list()] == [(1_700_000_000.0, "")]


def test_one_that_nobody_added_is_not_made_by_being_heard_of(store: SqlStore) -> None:
    gateways = Gateways(store)
    gateways.seen("stranger")
    gateways.note_problem("stranger", "odd")
    assert gateways.list() == ()
    assert gateways.sites() == {}


def test_gateways_tell_whose_site_they_are_at(store: SqlStore) -> None:
    gateways = Gateways(store)
    for name, site in (("north", "barn"), ("south", "barn"), ("far", "field")):
        gateways.add(name, site)
    assert gateways.sites() == {"north": "barn", "south": "barn", "far": "field"}


def test_a_site_hears_of_each_change_once_and_of_nobody_elses(store: SqlStore) -> None:
    logins = Logins(store)
    logins.grant("cow", "barn", DEVICE, "h1")
    logins.grant("hen", "field", DEVICE, "h2")
    logins.grant("gate", "barn", GATEWAY, "h3")
    first = logins.changes("barn", 0)
    assert first == (Login("cow", "device", "h1", 1), Login("gate", "gateway", "h3", 3))
    assert logins.changes("barn", first[-1].revision) == ()
    logins.grant("cow", "barn", DEVICE, "new")
    logins.revoke("gate")
    assert logins.changes("barn", 3) == (
        Login("cow", "device", "new", 4),
        Login("gate", "gateway", None, 5),
    )
    logins.revoke("nobody")
    assert logins.changes("barn", 5) == ()


def test_pages_of_changes_hold_all_of_them_in_order(store: SqlStore) -> None:
    logins = Logins(store)
    names = [f"d{number:04}" for number in range(2300)]
    logins.grant_all({name: f"hash of {name}" for name in names}, "barn", DEVICE)
    logins.revoke("d0007")
    found: list[Login] = []
    while page := logins.changes("barn", found[-1].revision if found else 0):
        found += page
    assert [one.name for one in found] == [one for one in names if one != "d0007"] + ["d0007"]
    assert len({one.revision for one in found}) == len(names)
    assert found[-1].hash is None


def test_a_site_hears_of_whoever_was_added_after_the_newest_change_was_erased(
    store: SqlStore,
) -> None:
    logins, registry = Logins(store), Registry(store)
    registry.add([NewDevice(device="cow", site="barn")])
    logins.grant("cow", "barn", DEVICE, "h1")
    logins.revoke("cow")
    heard = logins.changes("barn", 0)[-1].revision
    registry.erase("cow")
    logins.grant("hen", "barn", DEVICE, "h2")
    assert [one.name for one in logins.changes("barn", heard)] == ["hen"]
    assert [one.name for one in logins.changes("barn", 0)] == ["cow", "hen"]


def test_whoever_moves_to_another_site_is_taken_away_where_they_were(store: SqlStore) -> None:
    logins = Logins(store)
    logins.grant("cow", "barn", DEVICE, "h1")
    logins.grant("cow", "field", DEVICE, "h2")
    assert logins.changes("barn", 0) == (Login("cow", "device", None, 2),)
    assert logins.changes("field", 0) == (Login("cow", "device", "h2", 3),)
    # A password that is new at the same site is no move.
    logins.grant("cow", "field", DEVICE, "h3")
    assert logins.changes("barn", 2) == ()
    # And back.
    logins.grant("cow", "barn", DEVICE, "h4")
    assert logins.changes("barn", 2) == (Login("cow", "device", "h4", 6),)
    assert logins.changes("field", 4) == (Login("cow", "device", None, 5),)


def test_a_device_that_was_erased_and_added_elsewhere_is_still_taken_away_where_it_was(
    store: SqlStore,
) -> None:
    logins, registry = Logins(store), Registry(store)
    registry.add([NewDevice(device="cow", site="barn")])
    logins.grant("cow", "barn", DEVICE, "h1")
    heard = logins.changes("barn", 0)[-1].revision
    # The barn's gateway is away meanwhile.
    logins.revoke("cow")
    registry.erase("cow")
    registry.add([NewDevice(device="cow", site="field")])
    logins.grant("cow", "field", DEVICE, "h2")
    assert [(one.name, one.hash) for one in logins.changes("barn", heard)] == [("cow", None)]
    logins.revoke("cow")
    assert [one.hash for one in logins.changes("field", 0)] == [None]


def test_many_that_move_at_once_are_all_taken_away_page_by_page(store: SqlStore) -> None:
    logins = Logins(store)
    names = [f"d{number:04}" for number in range(1200)]
    logins.grant_all(dict.fromkeys(names, "h"), "barn", DEVICE)
    logins.grant_all(dict.fromkeys(names, "h"), "field", DEVICE)
    for site, hash in (("barn", None), ("field", "h")):
        found: list[Login] = []
        while page := logins.changes(site, found[-1].revision if found else 0):
            found += page
        assert [(one.name, one.hash) for one in found] == [(one, hash) for one in names]


def test_revisions_hide_no_change_however_many_are_made_at_once(store: SqlStore) -> None:
    logins, writers, each = Logins(store), 4, 8
    followed: set[str] = set()

    def write(writer: int) -> None:
        for number in range(each):
            logins.grant(f"d{writer}-{number}", "barn", DEVICE, "h")

    threads = [threading.Thread(target=write, args=(one,)) for one in range(writers)]
    for thread in threads:
        thread.start()
    since = 0
    while True:
        is_last = not any(one.is_alive() for one in threads)
        for one in logins.changes("barn", since):
            followed.add(one.name)
            since = one.revision
        if is_last:
            break
    assert len(followed) == writers * each
