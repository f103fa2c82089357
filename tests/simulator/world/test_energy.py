"""Meters, batteries and wear, beside what can be reckoned by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.firmware.boards import load_board
from simulator.world.availability import Intervals, never
from simulator.world.energy import Battery, FlashWear
from tests.conftest import examples
from tests.simulator.world.worlds import world

HOUR = 3600.0


def some(*hours: tuple[float, float]) -> Intervals:
    def intervals(since: float) -> Iterator[tuple[float, float]]:
        return ((on * HOUR, off * HOUR) for on, off in hours if off * HOUR > since)

    return intervals


def test_a_meter_counts_what_a_board_takes() -> None:
    made = world(
        1,
        population={"boards": {"stm32f746": 1.0}, "clocks_per_instruction": 2.0},
        links={"serial": {"up_microjoules_per_byte": 3.0, "down_microjoules_per_byte": 1.0}},
        energy={"idle_milliwatts": 2.0, "erase_millijoules": 50.0},
    )
    meter = made.meter(0)
    assert meter is not None
    # 84 million instructions take a second at 168 MHz, and 248 mW; it idles for nine more.
    used = meter.used(10.0, instructions=84_000_000)
    assert meter.compute == pytest.approx(248.0)
    assert meter.idle == pytest.approx(18.0)
    assert used == pytest.approx(266.0 / 3600)
    meter.used(bytes_up=1000, bytes_down=500, erases=2, words=1000)
    assert meter.link == pytest.approx(3.0 + 0.5)
    assert meter.flash == pytest.approx(100.0 + 0.63)
    assert meter.milliwatt_hours == pytest.approx((266.0 + 3.5 + 100.63) / 3600)


def test_a_straggler_uses_as_much_for_an_instruction_as_others() -> None:
    slow = world(1, population={"stragglers": {"share": 1.0, "slower": 8}})
    meters = slow.meter(0), world(1).meter(0)
    one, other = (meter.millijoules_per_instruction for meter in meters if meter is not None)
    assert one == pytest.approx(other)


def test_a_battery_goes_down_and_up_within_its_capacity() -> None:
    battery = Battery(100.0, 50.0, some((1, 2), (5, 9)), milliwatts=30.0)
    assert battery.advance(1 * HOUR, 10.0) == pytest.approx(40.0)
    assert battery.advance(1.5 * HOUR, 0.0) == pytest.approx(55.0)  # half an hour of charging
    assert battery.advance(3 * HOUR, 5.0) == pytest.approx(65.0)
    assert battery.advance(9 * HOUR, 0.0) == pytest.approx(100.0)  # full
    assert battery.advance(9 * HOUR, 30.0) == pytest.approx(70.0)  # at once
    assert battery.advance(12 * HOUR, 500.0) == 0.0
    assert battery.is_empty
    with pytest.raises(ValueError, match="can't go back"):
        battery.advance(11 * HOUR, 0.0)


@examples(60)
@given(st.lists(st.tuples(st.floats(0.0, 5e4), st.floats(0.0, 3.0)), min_size=1, max_size=20))
def test_a_battery_that_neither_fills_nor_empties_loses_what_goes_out_and_gets_what_comes_in(
    steps: list[tuple[float, float]],
) -> None:
    nights = some(*((24 * day + 22, 24 * day + 30) for day in range(20)))
    battery = Battery(10_000.0, 50.0, nights, milliwatts=20.0)
    at, used = 0.0, 0.0
    for span, drain in steps:
        at, used = at + span, used + drain
        battery.advance(at, drain)
    fed = sum(max(min(off, at) - on, 0.0) for on, off in nights(0.0)) / HOUR
    assert battery.level == pytest.approx(5000.0 - used + 20.0 * fed)


def test_devices_begin_with_batteries_of_their_own() -> None:
    made = world(100, energy={"battery_milliwatt_hours": [1000, 3000], "charge_percent": [20, 90]})
    batteries = [made.battery(number) for number in made.devices]
    levels = [battery.percent for battery in batteries if battery is not None]
    assert 20 <= min(levels) < 30
    assert 80 < max(levels) <= 90
    assert made.charging(0) is never


def test_without_a_battery_something_feeds_a_device_always() -> None:
    made = world(1)
    assert made.battery(0) is None
    assert list(made.charging(0)(5.0)) == [(0.0, math.inf)]


def test_wear_is_told_of_the_sector_that_is_worn_most() -> None:
    board = load_board("stm32f746")
    wear = world(1, population={"boards": {board.name: 1.0}}).flash_wear(0)
    internal = len(board.flash.sectors)
    erases = np.zeros(internal + 2, np.uint32)
    erases[internal - 1] = 30  # of 10,000
    erases[internal] = 200  # of 100,000: the first sector of the external flash
    assert wear.worst_share(erases) == pytest.approx(0.003)
    erases[internal] = 400
    assert wear.worst_share(erases) == pytest.approx(0.004)
    assert wear.worst_share(erases[:internal]) == pytest.approx(0.003)


def test_a_board_without_an_external_flash_has_the_wear_of_its_own() -> None:
    wear = FlashWear(load_board("stm32f407"), {"internal": 5, "external": 1})
    assert wear.worst_share(np.array([0] * 11 + [1], np.uint32)) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="shape"):
        wear.worst_share(np.zeros(13, np.uint32))
