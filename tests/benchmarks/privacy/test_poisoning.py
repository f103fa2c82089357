"""What hostile devices can do to a version, and what stands in their way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.privacy.poisoning import Attack, Person, Threat, fleet_of, run
from benchmarks.privacy.victims import Victim
from fleet.aggregation import AggregationRule, FedAvg, SetMedian

CLIP = 200


@pytest.fixture(scope="module")
def people(demo: Victim) -> list[Person]:
    return fleet_of(demo, 40, seed=1)


def end(
    victim: Victim, people: Sequence[Person], attack: Attack, rule: AggregationRule, clip: int
) -> float:
    """Accuracy after two masked rounds with one hostile device."""
    threat = Threat(attack, hostile=0 if attack is Attack.NOTHING else 1, masked=True)
    return run(victim, people, rule, threat, clip, seed=1, rounds=2).end


def test_a_hostile_device_that_keeps_within_the_range_spoils_a_mean_but_not_a_median_of_sets(
    demo: Victim, people: list[Person]
) -> None:
    honest = end(demo, people, Attack.NOTHING, SetMedian(), CLIP)
    assert end(demo, people, Attack.WITHIN_RANGE, SetMedian(), CLIP) > honest - 0.04
    # One clip for each device bounds what one of them can do to the sum of all.
    held_back = end(demo, people, Attack.WITHIN_RANGE, FedAvg(), CLIP)
    assert end(demo, people, Attack.WITHIN_RANGE, FedAvg(), 0) + 0.3 < held_back < honest - 0.05


def test_a_sum_that_honest_devices_cannot_have_is_left_out(
    demo: Victim, people: list[Person]
) -> None:
    threat = Threat(Attack.OUT_OF_RANGE, hostile=1, masked=True)
    found = run(demo, people, SetMedian(), threat, CLIP, seed=1, rounds=2)
    assert found.refused_sets == 2
    assert found.end > found.before + 0.05


def test_without_masks_nobody_bounds_what_a_device_sends(
    demo: Victim, people: list[Person]
) -> None:
    threat = Threat(Attack.OUT_OF_RANGE, hostile=1, masked=False)
    found = run(demo, people, FedAvg(), threat, CLIP, seed=1, rounds=1)
    assert found.refused_sets == 0
    assert found.end < found.before - 0.3
    assert found.gate == "fail"
