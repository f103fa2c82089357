"""Shares of boards, sites, memory and speed."""

from __future__ import annotations

from collections import Counter

import pytest

from codegen.firmware.boards import load_board
from simulator.world.population import device_name
from tests.simulator.world.worlds import world


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_what_was_asked_for_even_in_a_small_fleet(seed: int) -> None:
    made = world(
        20,
        seed,
        population={
            "sites": {"barn": {"share": 0.25, "gateways": 3}, "field": {"share": 0.75}},
            "stragglers": {"share": 0.9},
            "reserved_sram_shares": {0: 0.5, 40_000: 0.5},
        },
    )
    devices = [made.device(number) for number in made.devices]
    assert Counter(one.board for one in devices) == {"stm32f746": 6, "stm32f407": 14}
    assert Counter(one.reserved_sram_bytes for one in devices) == {0: 10, 40_000: 10}
    assert sum(one.slower > 1.0 for one in devices) == 18
    assert Counter(one.site for one in devices)["barn"] in range(4, 7)
    assert all(one.gateway.rpartition("-")[0] == one.site for one in devices)


def test_shares_of_two_things_have_nothing_in_common() -> None:
    made = world(2000, population={"stragglers": {"share": 0.5}})
    devices = [made.device(number) for number in made.devices]
    slow = [one for one in devices if one.slower > 1.0]
    assert len(slow) == 1000
    assert sum(one.board == "stm32f746" for one in slow) / 1000 == pytest.approx(0.3, abs=0.04)


def test_a_sites_gateways_have_about_as_many_devices_each() -> None:
    made = world(900, population={"sites": {"barn": {"gateways": 3}}})
    counts = Counter(made.device(number).gateway for number in made.devices)
    assert counts.keys() == {"barn-1", "barn-2", "barn-3"}
    assert min(counts.values()) > 250


def test_a_straggler_computes_so_many_times_slower_than_its_board() -> None:
    made = world(
        50,
        population={
            "stragglers": {"share": 0.5, "slower": [2, 8]},
            "clocks_per_instruction": 2.0,
        },
    )
    for number in made.devices:
        one = made.device(number)
        own = load_board(one.board).clock_hz / 2.0
        assert one.instructions_per_second == pytest.approx(own / one.slower)
        assert one.slower == 1.0 or 2.0 <= one.slower <= 8.0


def test_names_are_in_the_order_of_numbers() -> None:
    names = [device_name(number) for number in (0, 9, 10, 99_999, 9_999_999)]
    assert names == sorted(set(names))
