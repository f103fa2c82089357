"""Intervals: disjoint, in order, the same wherever one begins to look."""

from __future__ import annotations

import math
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import WorldError
from simulator.world.availability import Intervals, is_there, next_change
from tests.conftest import examples
from tests.simulator.world.worlds import world

DAY = 86_400.0
KINDS: list[dict[str, Any]] = [
    {"kind": "diurnal"},
    {"kind": "diurnal", "lasts_hours": [1, 17], "varies_hours": 3, "days_share": 0.6},
    {"kind": "duty-cycle", "on_seconds": [5, 50], "off_seconds": [300, 900]},
    {"kind": "charging"},
]
NIGHTS = {"begins_hours": [21, 24], "lasts_hours": [5, 9], "varies_hours": 1, "days_share": 0.9}


def intervals(described: dict[str, Any], seed: int = 1, device: int = 0) -> Intervals:
    made = world(4, seed, availability=described, energy={"charging": NIGHTS})
    return made.availability(device)


def until(end: float, of: Intervals, since: float = 0.0) -> list[tuple[float, float]]:
    return list(takewhile(lambda one: one[0] < end, of(since)))


@examples(60)
@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.floats(0, 1000 * DAY))
def test_intervals_are_disjoint_and_in_order_wherever_one_begins(
    described: dict[str, Any], seed: int, since: float
) -> None:
    of = intervals(described, seed)
    found = list(islice(of(since), 20))
    assert all(0 <= on < off for on, off in found)
    assert all(off < on for (_, off), (on, _) in pairwise(found))
    assert found[0][1] > since


@pytest.mark.parametrize("described", KINDS, ids=lambda one: str(one["kind"]))
def test_beginning_late_changes_nothing(described: dict[str, Any]) -> None:
    of = intervals(described)
    whole = until(8 * DAY, of)
    for since in (0.0, 3600.0, 2 * DAY, 5.5 * DAY, whole[3][0], whole[3][1]):
        assert until(8 * DAY, of, since) == [one for one in whole if one[1] > since]


@pytest.mark.parametrize("described", KINDS, ids=lambda one: str(one["kind"]))
def test_going_from_change_to_change_meets_every_one(described: dict[str, Any]) -> None:
    of = intervals(described)
    expected = [at for one in until(3 * DAY, of) for at in one if at > 0.0]
    at, met = 0.0, []
    while len(met) < len(expected):
        there = is_there(of, at)
        at = next_change(of, at)
        met.append(at)
        assert is_there(of, at) is not there
        assert is_there(of, math.nextafter(at, 0.0)) is there
    assert met == expected


def test_one_that_is_always_there_never_comes_or_goes() -> None:
    of = intervals({"kind": "always"})
    assert is_there(of, 0.0)
    assert is_there(of, 1e12)
    assert next_change(of, 0.0) == math.inf


def test_devices_are_there_for_the_share_of_the_time_that_was_asked_for() -> None:
    made = world(
        300,
        availability={"kind": "duty-cycle", "on_seconds": 100, "off_seconds": 300},
    )
    there = sum(is_there(made.availability(number), 12_345.0) for number in made.devices)
    assert there == pytest.approx(75, abs=20)
    hours = world(300, availability={"kind": "diurnal", "lasts_hours": 6, "days_share": 0.5})
    there = sum(is_there(hours.availability(number), 12.3 * DAY) for number in hours.devices)
    assert there == pytest.approx(300 * 0.25 * 0.5, abs=18)


def test_diurnal_devices_keep_their_hours_within_what_varies() -> None:
    of = intervals({"kind": "diurnal", "begins_hours": 22, "lasts_hours": 8, "varies_hours": 1})
    found = until(30 * DAY, of)
    assert len(found) in (30, 31)  # the night into the first day is one
    assert found[0][0] == 0.0 or found[0][0] > 20 * 3600
    for on, off in found[1:]:
        assert 21.0 <= on % DAY / 3600 <= 23.0
        assert off - on == pytest.approx(8 * 3600)
    assert len({on % DAY for on, _ in found[1:]}) > 20


def test_one_that_waits_for_its_charger_is_there_when_something_feeds_it() -> None:
    made = world(4, availability={"kind": "charging"}, energy={"charging": NIGHTS})
    for number in made.devices:
        there, fed = made.availability(number)(0.0), made.charging(number)(0.0)
        assert list(islice(there, 9)) == list(islice(fed, 9))


def test_intervals_of_a_file_are_put_in_order_and_joined(tmp_path: Path) -> None:
    (tmp_path / "hours.csv").write_text(
        "\ufeffdevice,from_seconds,to_seconds\n2,50,60\ndevice-0000002,10,20\n2,15,30.5\n0,5,1e9\n2,30.5,40\n"
    )
    made = world(4, folder=tmp_path, availability={"kind": "file", "path": "hours.csv"})
    assert list(made.availability(2)(0.0)) == [(10.0, 40.0), (50.0, 60.0)]
    assert list(made.availability(2)(40.0)) == [(50.0, 60.0)]
    assert next_change(made.availability(2), 60.0) == math.inf
    assert not is_there(made.availability(1), 7.0)
    assert is_there(made.availability(0), 7.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "first line is empty; make it device,from_seconds,to_seconds"),
        ("device,on,off\n0,1,2\n", "first line is device,on,off; make it"),
        ("device,from_seconds,to_seconds\n0,5,5\n", ":2: 5 to 5 is no interval"),
        ("device,from_seconds,to_seconds\n0,1,2\n0,-1,5\n", ":3: -1 to 5 is no interval"),
        ("device,from_seconds,to_seconds\n0,nan,5\n", ":2: nan to 5 is no interval"),
        ("device,from_seconds,to_seconds\nmcu,1,5\n", ":2: 'mcu' is no device"),
        ("device,from_seconds,to_seconds\n0,1\n", ":2: give 3 values"),
        ("device,from_seconds,to_seconds\n0,1,2,3\n", ":2: give 3 values"),
        ("device,from_seconds,to_seconds\n0,x,5\n", ":2: could not convert"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "hours.csv").write_text(text)
    with pytest.raises(WorldError, match=said):
        world(4, folder=tmp_path, availability={"kind": "file", "path": "hours.csv"})


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"availability\.path: .*hours\.csv"):
        world(4, folder=tmp_path, availability={"kind": "file", "path": "hours.csv"})
