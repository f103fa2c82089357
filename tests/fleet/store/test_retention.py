"""What is old enough to be deleted, over each database, and what never is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from fleet.clock import VirtualClock
from fleet.registry import NewDevice
from fleet.store import (
    Audit,
    Events,
    Member,
    Registry,
    Retention,
    SqlStore,
    Stages,
    WeightsVersion,
)
from fleet.store.tables import metadata
from tests.fleet.store.test_registry import heard

DAY = 86_400.0


def digest(campaign: str, version: int) -> str:
    return hashlib.sha256(f"{campaign}/{version}".encode()).hexdigest()


def weights(campaign: str, version: int) -> WeightsVersion:
    return WeightsVersion(version, digest(campaign, version), b"blob", b"master")


class World:
    """A store and its clock, a day a step."""

    def __init__(self, store: SqlStore, clock: VirtualClock) -> None:
        self.store, self.clock = store, clock
        self.retention = Retention(store)
        self.registry = Registry(store)

    def begins(self, campaign: str) -> None:
        self.store.create_campaign(campaign, "{}", {}, weights(campaign, 0))

    def round(self, campaign: str, number: int, kind: str = "train", devices: int = 3) -> None:
        """A round with reports; one that trains makes a version."""
        before = self.store.latest_weights(campaign)
        plan = {"assignments": [], "weights": before.sha256}
        self.store.begin_round(campaign, "", number, kind, plan)
        made = weights(campaign, before.version + 1) if kind == "train" else None
        reports = [{"device": f"d{one}", "train_samples": 4} for one in range(devices)]
        self.store.finish_round(campaign, "", number, "done", {"accepted": 3}, reports, made)

    def ends(self, campaign: str) -> None:
        self.store.end_campaign(campaign, "", "finished")

    def days(self, number: float) -> None:
        self.clock.sleep(number * DAY)

    def ago(self, days: float) -> float:
        return self.clock.wall() - days * DAY

    def versions(self, campaign: str) -> list[int]:
        return [
            number
            for number in range(20)
            if self.store.weights_with(campaign, digest(campaign, number)) is not None
        ]

    def reports(self, campaign: str, number: int) -> int:
        return len(self.store.reports(campaign, number))

    def rows(self) -> dict[str, list[Any]]:
        with self.store.reading() as connection:
            return {
                name: [tuple(row) for row in connection.execute(sa.select(table))]
                for name, table in metadata.tables.items()
            }


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def world(
    request: pytest.FixtureRequest, new_database: Callable[[str], str | None]
) -> Iterator[World]:
    clock = VirtualClock()
    store = SqlStore(new_database(request.param), clock)
    yield World(store, clock)
    store.close()


# ---- reports -----------------------------------------------------------------------------


def test_reports_go_by_their_rounds_end_and_their_rounds_stay(world: World) -> None:
    world.begins("c")
    for number in range(3):
        world.round("c", number)
        world.days(10)
    world.ends("c")
    before = world.store.rounds("c")
    assert world.retention.delete_reports(world.ago(15), 100) == 6
    assert [world.reports("c", number) for number in range(3)] == [0, 0, 3]
    assert world.store.rounds("c") == before
    assert [one["round"] for one in world.registry.history("d0")] == [2]
    assert world.retention.delete_reports(world.ago(15), 100) == 0


def test_a_campaign_that_goes_on_keeps_its_reports_however_old(world: World) -> None:
    for campaign in ("ended", "waits"):
        world.begins(campaign)
        world.round(campaign, 0)
    world.ends("ended")
    world.days(400)
    assert world.retention.delete_reports(world.ago(30), 100) == 3
    assert (world.reports("ended", 0), world.reports("waits", 0)) == (0, 3)


def test_a_batch_of_reports_is_no_larger_than_asked_for_and_all_go_in_the_end(
    world: World,
) -> None:
    world.begins("c")
    for number in range(3):
        world.round("c", number, devices=7)
    world.ends("c")
    world.days(100)
    sizes = []
    while sizes[-1:] != [0]:
        sizes.append(world.retention.delete_reports(world.ago(30), 5))
    assert sum(sizes) == 21
    assert sizes == [5, 5, 5, 5, 1, 0]


# ---- events ------------------------------------------------------------------------------


def test_events_go_from_the_oldest_on_and_numbers_are_never_given_again(world: World) -> None:
    events = Events(world.store)
    for number in range(6):
        events.add("round", "c", {"round": number})
        world.days(1)
    assert world.retention.delete_events(world.ago(3.5), 2) == 2
    assert world.retention.delete_events(world.ago(3.5), 2) == 1
    assert world.retention.delete_events(world.ago(3.5), 2) == 0
    assert [one.data["round"] for one in events.after(0)] == [3, 4, 5]
    world.days(100)
    assert world.retention.delete_events(world.ago(3.5), 100) == 2
    last = events.last()
    events.add("round", "c", {"round": 6})
    assert [one.data["round"] for one in events.after(last)] == [6]
    assert events.last() == last + 1


# ---- weights -----------------------------------------------------------------------------


def test_steps_of_training_go_and_the_first_and_the_last_stay(world: World) -> None:
    world.begins("c")
    for number in range(6):
        world.round("c", number)
    world.ends("c")
    world.days(100)
    assert world.retention.delete_weights(world.ago(30), 3) == 3
    assert world.versions("c") == [0, 4, 5, 6]
    assert world.retention.delete_weights(world.ago(30), 3) == 2
    assert world.retention.delete_weights(world.ago(30), 3) == 0
    assert world.versions("c") == [0, 6]
    assert world.store.latest_weights("c").master == b"master"


def test_a_campaign_that_goes_on_or_ended_lately_keeps_all(world: World) -> None:
    for campaign in ("waits", "lately", "back"):
        world.begins(campaign)
        world.round(campaign, 0)
        world.round(campaign, 1)
    world.ends("back")
    world.days(100)
    world.round("lately", 2)
    world.ends("lately")
    world.store.reopen("back")
    assert world.retention.delete_weights(world.ago(30), 100) == 0
    world.ends("back")
    assert world.retention.delete_weights(world.ago(30), 100) == 1
    assert world.versions("back") == [0, 2]


def test_what_was_released_or_a_device_has_or_had_stays(world: World) -> None:
    world.begins("c")
    world.round("c", 0)
    world.round("c", 1)
    world.round("c", 2, "release")  # version 2
    for number in range(3, 8):
        world.round("c", number)
    world.ends("c")
    world.registry.add([NewDevice(device=one, site="barn") for one in ("a", "b", "new")])
    world.registry.observe(
        {
            "a": heard(current=digest("c", 3)),
            "b": heard(candidate=digest("c", 4), current=digest("c", 0)),
        }
    )
    world.begins("other")
    Stages(world.store).save_members("other", [Member("a", 0, digest("c", 5))])
    world.days(100)
    assert world.retention.delete_weights(world.ago(30), 100) == 2
    assert world.versions("c") == [0, 2, 3, 4, 5, 7]


def test_where_it_is_not_known_what_was_released_all_stays(world: World) -> None:
    world.begins("c")
    for number in range(3):
        world.round("c", number)
    own = {"assignments": [{"device": "d0", "weights": digest("c", 1)}]}
    world.store.begin_round("c", "", 3, "release", own)
    world.store.finish_round("c", "", 3, "done", {}, [], None)
    world.ends("c")
    world.days(100)
    assert world.retention.delete_weights(world.ago(30), 100) == 0


# ---- everything else ---------------------------------------------------------------------


def test_nothing_else_is_deleted_however_old(world: World) -> None:
    world.begins("c")
    for number in range(4):
        world.round("c", number)
    world.ends("c")
    Audit(world.store).add("ann", "admin", "campaigns.start", "campaign:c", None, None, "")
    Events(world.store).add("state", "c", {})
    world.registry.add([NewDevice(device="d0", site="barn")])
    before = world.rows()
    world.days(10_000)
    for delete in (
        world.retention.delete_reports,
        world.retention.delete_events,
        world.retention.delete_weights,
    ):
        delete(world.ago(1), 1000)
    after = world.rows()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"reports", "weights"}  # the newest event stays
    assert before["audit"] == after["audit"] != []
