"""What a campaign would do, before anything is done."""

from __future__ import annotations

from typing import Any

import pytest

from fleet.errors import CampaignError
from fleet.service.campaign_schema import CampaignPlan
from fleet.service.operations import Actor
from fleet.service.schema import CampaignToStart
from tests.fleet.coordinator import small_model
from tests.fleet.service.conftest import Site, campaign, measured, seen, with_power

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
        {"name": "all", "share": 1.0, "gates": [{"gate": "drift"}, {"gate": "failures"}]},
    ]
    found = plan(site, stages=stages)
    assert [(one.stage, one.devices) for one in found.stages] == [("canary", 1), ("all", 4)]
    assert list(found.stages[0].smallest_detectable_drop) == ["mean by board"]
    assert list(found.stages[1].smallest_detectable_drop) == ["drift"]
    assert (found.stages[1].smallest_detectable_drop["drift"] or 0.0) > 0.05


def all_measured(site: Site) -> None:
    measured(site, "train", {"d0": 10, "d2": 12, "d1": 40, "d3": 300})
    measured(site, "score-last", {"d0": 4, "d1": 5}, steps=0)
    measured(site, "release", {"d0": 2, "d1": 3}, steps=0)


def test_what_nobody_has_measured_is_not_known(site: Site) -> None:
    found = plan(site)
    assert found.expected_seconds is None
    assert [(one.board, one.name, one.devices) for one in found.costs] == [
        ("a", "large", 2),
        ("b", "large", 2),
    ]
    for one in found.costs:
        assert one.round_seconds == {"score": None, "train": None, "release": None}
        assert (one.seconds, one.active_milliwatts, one.millijoules) == (None, None, None)
    measured(site, "train", {"d0": 10, "d1": 20})
    found = plan(site)
    assert found.costs[0].round_seconds == {"score": None, "train": 10, "release": None}
    assert (found.expected_seconds, found.costs[0].seconds) == (None, None)


def test_seconds_and_energy_follow_from_past_campaigns_and_the_boards_power(site: Site) -> None:
    all_measured(site)
    with_power(site, "a", 132)
    found = plan(site, rounds=3)
    a, b = found.costs
    assert a.round_seconds == {"score": 4, "train": 11, "release": 2}
    assert (a.seconds, a.active_milliwatts) == (4 + 3 * 11 + 2, 132)
    assert a.round_millijoules == {"score": 4 * 132, "train": 11 * 132, "release": 2 * 132}
    assert a.millijoules == 39 * 132
    assert b.seconds == 5 + 3 * 170 + 3
    assert (b.active_milliwatts, b.millijoules) == (None, None)
    assert b.round_millijoules == {"score": None, "train": None, "release": None}
    # A round lasts until the slower board is done, or the deadline is.
    assert found.expected_seconds == 5 + 3 * 120 + 3


def test_a_kind_of_device_that_was_not_measured_leaves_open_how_long_rounds_take(
    site: Site,
) -> None:
    all_measured(site)
    ops = site.operations
    ops.registry.observe({"d2": seen(ops, 2, free_sram_bytes=1000)})
    found = plan(site)
    assert [(one.name, one.board, one.seconds is None) for one in found.costs] == [
        ("large", "b", False),
        ("large", "a", False),
        ("small", "a", True),
    ]
    assert found.expected_seconds is None


def test_the_time_until_tasks_go_out_is_part_of_a_plan(site: Site) -> None:
    all_measured(site)
    rate = 3600 * len(small_model.blob())
    found = plan(site, rounds=3, pace={"spread_seconds": 60, "site_bytes_per_hour": rate})
    delta = found.bytes_up / (3 * 4)
    # gw1 is at one site: four devices in a row, a second each for the weights.
    queue = 4 * (1 + delta / len(small_model.blob()))
    assert found.longest_round_seconds == pytest.approx(120 + 60 + queue, abs=0.1)
    assert found.longest_seconds == pytest.approx(5 * 180 + 2 * 4 + 3 * queue, abs=0.1)
    assert found.expected_seconds == pytest.approx(5 * 60 + 5 + 3 * 120 + 3, abs=0.1)
    few = plan(site, cohort_size=1, pace={"site_bytes_per_hour": rate})
    assert few.longest_round_seconds == pytest.approx(120 + 4, abs=0.1), "scores are of all"


def test_a_pace_that_no_round_can_keep_to_is_refused_before_the_campaign(site: Site) -> None:
    with pytest.raises(CampaignError, match="site home would get its task"):
        plan(site, pace={"site_bytes_per_hour": 1})
    config = campaign(pace={"site_bytes_per_hour": 1}).model_dump(mode="json")
    answer = site.ask("viewer", "POST", "/v1/campaigns-plan", json={"campaign": config})
    assert answer.status_code == 422
    assert "raise site_bytes_per_hour" in answer.text


def test_a_masked_plan_says_who_hides_in_whom_and_who_could_see_what(site: Site) -> None:
    plain = plan(site)
    assert (plain.sets, plain.too_few_to_hide) == ([], 0)
    assert any("each device's changes" in one.sees for one in plain.who_sees)
    found = plan(site, coding="masked", masking={"least_devices": 2, "spare": 0.0})
    assert [(one.name, one.devices, one.sets, one.smallest) for one in found.sets] == [
        ("large", 4, 1, 4)
    ]
    assert any("sums of sets of 2 devices" in one.sees for one in found.who_sees)
    few = plan(site, coding="masked", masking={"least_devices": 5})
    assert (few.sets, few.too_few_to_hide) == ([], 4)
