"""Whose answers count in a masked round, over each database: kept once, by who drives it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fleet.clock import VirtualClock
from fleet.errors import UnknownCampaignError
from fleet.store import SqlStore, SupersededError, WeightsVersion
from fleet.store.answers import keep_answering


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
def test_the_first_driver_that_asks_keeps_who_counts_unless_it_was_superseded(
    new_database: Callable[[str], str | None], kind: str
) -> None:
    store = SqlStore(new_database(kind), VirtualClock())
    store.create_campaign("c1", '{"name": "one"}', {}, WeightsVersion(0, "0" * 64, b"", b""))
    store.claim("c1", "old")
    store.begin_round("c1", "old", 1, "train", {"masks": {"gateways": None}})
    store.claim("c1", "new")
    with pytest.raises(SupersededError):
        keep_answering(store, "c1", "old", 1, ["north"])
    assert store.round("c1", 1).plan["masks"]["gateways"] is None
    assert keep_answering(store, "c1", "new", 1, ["south", "north"]) == ("north", "south")
    assert keep_answering(store, "c1", "new", 1, ["west"]) == ("north", "south")
    with pytest.raises(UnknownCampaignError, match="has no round 2"):
        keep_answering(store, "c1", "new", 2, [])
    store.close()
