"""What befalls a device is its world's, in order of time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from simulator.virtual.events import Reach, Recording, Sample, _without, events_of
from simulator.virtual.population import Firmware
from tests.simulator.virtual.small_fleet import population

Made = dict[str, Firmware]
NOTHING = Recording(np.zeros((0, 1), np.int8), np.zeros(0, np.int64), np.zeros(0))


def disjoint(random: np.random.Generator) -> list[tuple[float, float]]:
    edges = np.unique(random.integers(0, 60, 2 * int(random.integers(0, 6))))
    return [(float(edges[at]), float(edges[at + 1])) for at in range(0, len(edges) - 1, 2)]


@pytest.mark.parametrize("seed", range(50))
def test_intervals_without_others_are_what_is_in_the_first_alone(seed: int) -> None:
    random = np.random.default_rng(seed)
    there, broken = disjoint(random), disjoint(random)
    left = list(_without(there, iter(broken)))

    def holds(intervals: list[tuple[float, float]], at: float) -> bool:
        return any(on <= at < off for on, off in intervals)

    for at in np.arange(0.5, 60):
        assert holds(left, at) == (holds(there, at) and not holds(broken, at))
    assert left == sorted(left)


def reach(events: Iterator[object], count: int) -> list[tuple[float, bool]]:
    found = []
    for event in itertools.islice(events, count):
        assert isinstance(event.what, Reach)  # type: ignore[attr-defined]
        found.append((event.at / 1e9, event.what.is_there))  # type: ignore[attr-defined]
    return found


def test_a_device_that_is_always_there_hears_of_nothing(made: Made) -> None:
    assert list(events_of(population(made).world, 0, NOTHING)) == []


def test_a_device_comes_and_goes_in_turn(made: Made) -> None:
    cycle = {"kind": "duty-cycle", "on_seconds": [20, 40], "off_seconds": [10, 30]}
    world = population(made, availability=cycle).world
    for device in range(4):
        found = reach(events_of(world, device, NOTHING), 9)
        times, states = zip(*found, strict=True)
        assert list(times) == sorted(times)
        # At the beginning it is in reach, unless the first event says otherwise.
        assert list(states) == list(itertools.islice(itertools.cycle([False, True]), 9))


def test_samples_come_when_the_sensor_records_them(made: Made) -> None:
    recording = Recording(np.array([[1], [2]], np.int8), np.array([3, 4]), np.array([0.5, 2.0]))
    found = list(events_of(population(made).world, 0, recording))
    assert [(one.at, one.what) for one in found] == [
        (500_000_000, Sample(3, b"\x01")),
        (2_000_000_000, Sample(4, b"\x02")),
    ]
