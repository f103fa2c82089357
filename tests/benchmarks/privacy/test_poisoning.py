"""What hostile devices can do to a version, and what stands in their way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.privacy.poisoning import Attack, Person, fleet_of, run
from benchmarks.privacy.victims import Victim
from fleet.aggregation import FedAvg, SetMedian

CLIP = 200


@pytest.fixture(scope="module")
def people(demo: Victim) -> list[Person]:
    return fleet_of(demo, 40, seed=1)


def end(victim: Victim, people: Sequence[Person], attack: Attack, robust: bool) -> float:
    """Accuracy after two masked rounds with one hostile device."""
    rule = SetMedian() if robust else FedAvg()
    found = run(victim, people, rule, attack, 1, CLIP, masked=True, seed=1, rounds=2)
    return found.end


def test_a_hostile_device_that_keeps_within_the_range_spoils_a_mean_but_not_a_median_of_sets(
    demo: Victim, people: list[Person]
) -> None:
    honest = end(demo, people, Attack.NOTHING, robust=True)
    assert end(demo, people, Attack.WITHIN_RANGE, robust=True) > honest - 0.04
    assert end(demo, people, Attack.WITHIN_RANGE, robust=False) < honest - 0.3


def test_a_sum_that_honest_devices_cannot_have_is_left_out(
    demo: Victim, people: list[Person]
) -> None:
    args = (demo, people, SetMedian(), Attack.OUT_OF_RANGE, 1, CLIP)
    found = run(*args, masked=True, seed=1, rounds=2)
    assert found.refused_sets == 2
    assert found.end > found.before + 0.05


def test_without_masks_nobody_bounds_what_a_device_sends(
    demo: Victim, people: list[Person]
) -> None:
    found = run(
        demo, people, FedAvg(), Attack.OUT_OF_RANGE, 1, CLIP, masked=False, seed=1, rounds=1
    )
    assert found.refused_sets == 0
    assert found.end < found.before - 0.3
    assert found.gate == "fail"
