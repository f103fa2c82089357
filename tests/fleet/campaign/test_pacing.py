"""When tasks go out: spread at random, and within what a site's link may carry."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet.campaign import CampaignConfig
from fleet.campaign.config import TaskPace
from fleet.campaign.pacing import (
    HOUR,
    Load,
    delays,
    likely_delay,
    longest_delay,
    site_name,
    task_bytes,
)
from fleet.errors import CampaignError
from fleet.protocol.fields import MAX_DELAY_SECONDS
from tests.fleet.campaign.test_planning import MANIFESTS

LOADS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4),
    st.tuples(st.sampled_from(["site x", "site y", "gateway z"]), st.integers(1, 100_000)),
    min_size=1,
    max_size=30,
).map(lambda found: [Load(name, site, count) for name, (site, count) in found.items()])
SEEDS = st.integers(0, 2**32 - 1)


def config(seed: int = 0, **pace: Any) -> CampaignConfig:
    return CampaignConfig.model_validate({"name": "test", "seed": seed, "pace": pace})


@given(SEEDS, st.integers(0, 99), LOADS)
def test_without_a_pace_all_tasks_go_out_at_once(seed: int, number: int, loads: list[Load]) -> None:
    assert set(delays(config(seed), number, loads).values()) == {0.0}


@given(SEEDS, LOADS, st.integers(20, 500_000))
@example(0, [Load(name, "site x", 100_000) for name in "abcdefghijklmnopqrstuvwxyzABCD"], 20)
def test_delays_depend_on_who_is_asked_and_not_on_the_order(
    seed: int, loads: list[Load], rate: int
) -> None:
    paced = config(seed, spread_seconds=60, site_bytes_per_hour=rate * 1000)
    assert delays(paced, 3, loads) == delays(paced, 3, loads[::-1])


def test_moments_are_spread_evenly_and_are_others_in_every_round() -> None:
    loads = [Load(f"d{number}", "site x", 1) for number in range(4000)]
    first, second = (delays(config(spread_seconds=100), number, loads) for number in (1, 2))
    for found in (first, second):
        assert 0 <= min(found.values()) < 1
        assert 99 < max(found.values()) <= 100
        assert sum(found.values()) / 4000 == pytest.approx(50, abs=2)
    assert sum(first[one] == second[one] for one in first) < 10
    assert first != delays(config(seed=1, spread_seconds=100), 1, loads)


@given(SEEDS, LOADS, st.integers(100_000, 50_000_000), st.floats(0, 600))
@example(0, [Load("a", "site x", 50_000), Load("b", "site x", 50_000)], 3_600_000, 0.0)
@example(0, [Load("a", "site x", 4), Load("b", "site x", 1)], 6_000_000, 0.0)
@example(0, [Load("a", "site x", 1), Load("b", "site x", 4)], 6_000_000, 0.0)
def test_a_site_never_carries_more_than_its_limit_in_whatever_time(
    seed: int, loads: list[Load], rate: int, spread: float
) -> None:
    found = delays(config(seed, spread_seconds=spread, site_bytes_per_hour=rate), 1, loads)
    for site in {one.site for one in loads}:
        queue = sorted((found[one.device], one.bytes) for one in loads if one.site == site)
        ends = [at for at, _ in queue]
        for start, at in enumerate([0.0, *ends[:-1]]):
            if at == ends[start] > 0:
                continue  # within a millisecond nobody knows who was first
            for last in range(start, len(queue)):
                carried = sum(count for _, count in queue[start : last + 1])
                # Delays are whole milliseconds, rounded up.
                assert carried * HOUR / rate <= ends[last] - at + 0.002
        assert ends[-1] <= spread + sum(count for _, count in queue) * HOUR / rate + 0.002


@given(SEEDS, LOADS)
def test_sites_wait_for_none_but_their_own(seed: int, loads: list[Load]) -> None:
    paced = config(seed, spread_seconds=10, site_bytes_per_hour=1_000_000)
    together = delays(paced, 1, loads)
    for site in {one.site for one in loads}:
        alone = delays(paced, 1, [one for one in loads if one.site == site])
        assert alone.items() <= together.items()


@given(SEEDS, LOADS, st.integers(100_000, 50_000_000), st.floats(0, 600), st.integers(1, 30))
def test_no_cohort_is_held_back_for_longer_than_the_longest_delay(
    seed: int, loads: list[Load], rate: int, spread: float, asked: int
) -> None:
    paced = config(seed, spread_seconds=spread, site_bytes_per_hour=rate)
    cohort = loads[:asked]
    longest = longest_delay(paced.pace, loads, asked)
    assert max(delays(paced, 1, cohort).values()) <= longest + 0.002
    assert likely_delay(paced.pace, cohort, 1.0) <= longest + 0.002
    assert math.isclose(likely_delay(paced.pace, loads, 0.0), spread)


def test_a_limit_that_holds_tasks_back_for_more_than_a_week_is_refused_with_the_remedy() -> None:
    loads = [Load(f"d{number}", "site x", 1000) for number in range(200)]
    slow = config(site_bytes_per_hour=1000)
    for check in (
        lambda: delays(slow, 1, loads),
        lambda: likely_delay(slow.pace, loads, 1.0),
    ):
        with pytest.raises(CampaignError, match=r"site x .* 8\.3 days .* 7 are the most; raise"):
            check()
    assert max(delays(slow, 1, loads[:168]).values()) == MAX_DELAY_SECONDS


def test_a_part_in_a_round_is_the_weights_and_where_it_trains_the_delta() -> None:
    manifest = next(iter(MANIFESTS.values()))
    plan = manifest.plans[-1]
    known = CampaignConfig(name="test", delta_bits_per_value=10)
    assert task_bytes(known, manifest, plan.id, trains=False) == manifest.weights.bytes
    delta = math.ceil(plan.delta_values * 10 / 8)
    assert task_bytes(known, manifest, plan.id, trains=True) == manifest.weights.bytes + delta


def test_a_gateway_without_a_site_shares_its_link_with_no_site_of_its_name() -> None:
    assert site_name("north", None) != site_name("south", "north")
    assert site_name("north", "barn") == site_name("south", "barn")


@pytest.mark.parametrize(
    "pace",
    [
        {"spread_seconds": -1},
        {"spread_seconds": MAX_DELAY_SECONDS + 1},
        {"spread_seconds": "inf"},
        {"site_bytes_per_hour": 0},
        {"site_bytes_per_hour": 1.5},
        {"bytes": 1},
    ],
)
def test_a_pace_that_makes_no_sense_is_refused_by_name(pace: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pace"):
        config(**pace)
    assert TaskPace() == config().pace
