"""The ledger over each database: written with a round's plan, once, and never taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from fleet.clock import VirtualClock
from fleet.store import (
    Ledger,
    Retention,
    Spent,
    SqlStore,
    SupersededError,
    WeightsVersion,
    copy_store,
    restore_store,
    sqlite_url,
)
from fleet.store.ledger import Gap

V0 = WeightsVersion(0, "0" * 64, b"", b"")
CONFIG = '{"name": "one"}'


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[SqlStore]:
    one = SqlStore(new_database(request.param), VirtualClock())
    for name in ("c1", "c2"):
        one.create_campaign(name, CONFIG, {}, V0)
        one.claim(name, "d1")
    yield one
    one.close()


def plan(devices: Sequence[str], rho: float) -> Mapping[str, Any]:
    return {"assignments": [{"device": one} for one in devices], "privacy": {"rho": rho}}


def test_a_round_is_charged_once_whoever_begins_it_again(store: SqlStore) -> None:
    store.begin_round("c1", "d1", 1, "train", plan(["a", "b"], 0.25))
    store.begin_round("c1", "d1", 1, "train", plan(["a", "b", "c"], 9.0))
    store.claim("c1", "d2")
    store.begin_round("c1", "d2", 1, "train", plan(["a", "b"], 0.25))
    assert Ledger(store).spent(["a", "b", "c"]) == {"a": 0.25, "b": 0.25}


def test_neither_the_end_of_a_round_nor_its_age_gives_anything_back(store: SqlStore) -> None:
    store.begin_round("c1", "d1", 1, "train", plan(["a"], 0.25))
    store.finish_round("c1", "d1", 1, "cancelled", {}, [], None)
    store.begin_round("c1", "d1", 2, "train", plan(["a"], 0.5))
    store.finish_round("c1", "d1", 2, "done", {"accepted": 0}, [], None)
    store.end_campaign("c1", "d1", "failed")
    retention = Retention(store)
    for delete in (retention.delete_reports, retention.delete_events, retention.delete_weights):
        delete(1e12, 100)
    assert Ledger(store).spent(["a"]) == {"a": 0.75}


def test_a_driver_that_was_superseded_spends_nothing(store: SqlStore) -> None:
    store.claim("c1", "d2")
    with pytest.raises(SupersededError):
        store.begin_round("c1", "d1", 1, "train", plan(["a"], 0.25))
    assert Ledger(store).spent(["a"]) == {}
    assert Ledger(store).devices() == ()


def test_rounds_without_noise_spend_nothing(store: SqlStore) -> None:
    store.begin_round("c1", "d1", 1, "score", {"assignments": [{"device": "a"}], "privacy": None})
    store.begin_round("c1", "d1", 2, "train", {"assignments": [{"device": "a"}]})
    assert Ledger(store).spent(["a"]) == {}


def test_what_was_spent_is_told_by_device_and_campaign_page_by_page(store: SqlStore) -> None:
    names = [f"n{number}" for number in range(7)]
    store.begin_round("c2", "d1", 1, "train", plan(names[:3], 0.5))
    store.begin_round("c1", "d1", 1, "train", plan(names, 0.125))
    store.begin_round("c1", "d1", 2, "train", plan(names[:1], 0.125))
    ledger = Ledger(store)
    assert ledger.devices(limit=4) == tuple(names[:4])
    assert ledger.devices(after="n3") == tuple(names[4:])
    assert ledger.devices(campaign="c2") == tuple(names[:3])
    assert ledger.devices(device="n5") == ("n5",)
    now = store.clock.wall()
    assert ledger.of_devices(["n0", "n6"]) == (
        Spent("n0", "c1", CONFIG, 2, 0.25, now),
        Spent("n0", "c2", CONFIG, 1, 0.5, now),
        Spent("n6", "c1", CONFIG, 1, 0.125, now),
    )
    many = [f"{number:05}" for number in range(1201)]
    store.begin_round("c2", "d1", 2, "train", plan(many, 1.0))
    assert sum(ledger.spent(many).values()) == 1201


def test_a_copy_has_the_ledger_and_a_restored_store_says_what_it_may_lack(
    store: SqlStore, tmp_path: Any
) -> None:
    store.begin_round("c1", "d1", 1, "train", plan(["a"], 0.25))
    copy = SqlStore(sqlite_url(tmp_path / "copy"), VirtualClock())
    copy_store(store, copy)
    assert Ledger(copy).spent(["a"]) == {"a": 0.25}
    assert Ledger(copy).gaps() == ()
    clock = VirtualClock()
    restored = SqlStore(sqlite_url(tmp_path / "restored"), clock)
    restore_store(copy, restored, backed_up=5.0)
    assert Ledger(restored).spent(["a"]) == {"a": 0.25}
    assert Ledger(restored).gaps() == (Gap(5.0, clock.wall()),)
    for one in (copy, restored):
        one.close()
