"""A campaign whose old weights were deleted can still be taken back."""

from __future__ import annotations

from fleet.store import Retention
from tests.fleet.coordinator.staged_fleet import ALL, CANARY, StagedFleet


def test_devices_go_back_after_all_that_was_old_enough_was_deleted(fleet: StagedFleet) -> None:
    before = fleet.current()
    name = fleet.campaign(CANARY, ALL, rounds=3)
    transport = fleet.transport()
    assert fleet.drive(name, transport) == "finished"
    # Two canaries were away when the others got the last version: they have the one before.
    middle = fleet.plan(name, 4).weights
    assert middle != fleet.store.latest_weights(name).sha256
    for device in sorted(fleet.asked(name)[4])[:2]:
        fleet.entry(device)["current"] = middle
    made = len(fleet.store.weight_digests(name))
    fleet.clock.sleep(400 * 86_400.0)
    retention = Retention(fleet.store)
    deleted = 0
    while count := retention.delete_weights(fleet.clock.wall() - 86_400.0, 1):
        deleted += count
    assert deleted > 0
    assert retention.delete_reports(fleet.clock.wall() - 86_400.0, 10_000) > 0
    assert len(fleet.store.weight_digests(name)) == made - deleted
    fleet.store.reopen(name)
    assert fleet.drive(name, fleet.transport()) == "rolled-back"
    assert fleet.current() == before
