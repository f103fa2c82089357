"""What a campaign would do, before anything is done."""

from __future__ import annotations

from typing import Any

from fleet.service.operations import Actor
from fleet.service.schema import CampaignPlan, CampaignToStart
from tests.fleet.coordinator import small_model
from tests.fleet.service.conftest import Site, campaign, seen

ANN = Actor("ann", "viewer")


def plan(site: Site, **fields: Any) -> CampaignPlan:
    return site.operations.plan_campaign(ANN, CampaignToStart(campaign=campaign(**fields)))


def test_a_plan_counts_devices_rounds_and_bytes(site: Site) -> None:
    found = plan(site, rounds=3)
    assert (found.version, found.target.count, found.ready) == ("small:1", 6, 4)
    assert (found.rounds, found.longest_seconds) == (5, 600.0)
    assert found.bytes_down == 3 * 4 * len(small_model.blob())
    assert [(one.name, one.devices) for one in found.plans] == [("large", 4)]
    assert found.bytes_up == 3 * 4 * found.plans[0].delta_values * 12 / 8
    assert found.flash_slot_writes_per_device == 3
    assert site.client().campaigns().campaigns == []


def test_devices_that_could_not_take_part_are_counted_by_reason(site: Site) -> None:
    ops = site.operations
    ops.registry.observe(
        {f"d{at}": seen(ops, at, last_seen=ops.registry.now() - 9000 - at) for at in (0, 1)}
    )
    found = plan(site)
    assert found.ready == 2
    assert list(found.skipped.values()) == [2], "devices of a kind are counted together"


def test_a_retired_device_has_no_part_in_a_plan(site: Site) -> None:
    site.client().retire_device("d0")
    assert plan(site).ready == 3


def test_stages_grow_and_say_what_their_gates_would_notice(site: Site) -> None:
    gate = {"gate": "score", "by": "board"}
    stages = [
        {"name": "canary", "devices": 1, "gates": [gate]},
        {"name": "all", "share": 1.0},
    ]
    found = plan(site, stages=stages)
    assert [(one.stage, one.devices) for one in found.stages] == [("canary", 1), ("all", 4)]
    assert list(found.stages[0].smallest_detectable_drop) == ["mean by board"]
    assert found.stages[1].smallest_detectable_drop == {}
