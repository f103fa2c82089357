"""Faults come at their rates, in order; malicious deltas lie as they are said to."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulator.world.faults import Fault, Malicious
from tests.conftest import examples
from tests.simulator.world.worlds import world

DAY = 86_400.0
ALL = {
    "resets_per_day": 2.0,
    "brown_outs_per_day": 4.0,
    "brown_out_operations": 50,
    "flash_bit_flips_per_day": 1.0,
    "sram_bit_flips_per_day": 0.5,
}


def test_faults_come_at_their_rates_and_in_order() -> None:
    made = world(40, faults=ALL)
    found = [made.faults(number, 25 * DAY) for number in made.devices]
    assert all(one == sorted(one, key=lambda fault: fault.at_seconds) for one in found)
    assert all(0 <= fault.at_seconds < 25 * DAY for one in found for fault in one)
    counts = Counter(fault.kind for one in found for fault in one)
    for kind, per_day in {
        "reset": 2.0,
        "brown-out": 4.0,
        "flash-bit-flip": 1.0,
        "sram-bit-flip": 0.5,
    }.items():
        assert counts[kind] == pytest.approx(1000 * per_day, rel=0.12)  # type: ignore[index]


@examples(30)
@given(st.integers(0, 2**32 - 1), st.floats(0, 9 * DAY), st.floats(0, 9 * DAY))
def test_a_schedule_in_two_parts_is_the_whole_one(seed: int, one: float, other: float) -> None:
    made, (middle, end) = world(1, seed, faults=ALL), sorted((one, other))
    assert made.faults(0, middle) + made.faults(0, end, since=middle) == made.faults(0, end)


def test_a_fault_says_what_a_machine_needs_to_know() -> None:
    made = world(20, faults=ALL)
    for number in made.devices:
        board = made.board(number)
        for fault in made.faults(number, 20 * DAY):
            assert within(fault, [board.sram, *board.flashes.values()])


def within(fault: Fault, regions: list[object]) -> bool:
    told = fault.parameters
    if fault.kind == "reset":
        return told == {}
    if fault.kind == "brown-out":
        return 1 <= told["operation"] <= 50 and told["seed"] >= 0
    hit = [
        place
        for place, region in enumerate(regions)
        if 0 <= told["address"] - region.address < region.bytes  # type: ignore[attr-defined]
    ]
    assert 0 <= told["bit"] <= 7
    return len(hit) == 1 and (hit[0] == 0) is (fault.kind == "sram-bit-flip")


def test_bit_flips_hit_each_flash_by_its_size() -> None:
    made = world(
        1, population={"boards": {"stm32f746": 1.0}}, faults={"flash_bit_flips_per_day": 100.0}
    )
    found = made.faults(0, 60 * DAY)
    inside = sum(fault.parameters["address"] < 0x90000000 for fault in found) / len(found)
    assert inside == pytest.approx(1 / 17, abs=0.02)  # 1 MB of the board's own, 16 beside it


def test_clocks_go_wrong_within_what_was_asked_for() -> None:
    made = world(50, faults={"clock_drift_ppm": [-40, 60]})
    drifts = [1e6 * (made.clock_rate(number) - 1) for number in made.devices]
    assert -40 <= min(drifts) < -20
    assert 40 < max(drifts) <= 60
    assert world(1).clock_rate(0) == 1.0


def test_a_world_without_faults_has_none() -> None:
    assert world(1).faults(0, 1e9) == []


def test_so_many_devices_lie_as_was_asked_for() -> None:
    made = world(50, faults={"malicious": {"share": 0.2}})
    values = np.array([-128, -5, 0, 127], np.int8)
    sent = [made.poisoned(number, values, task=1) for number in made.devices]
    lying = [number for number in made.devices if made.is_malicious(number)]
    assert len(lying) == 10
    for number in made.devices:
        flipped = [127, 5, 0, -127] if number in lying else values.tolist()
        assert sent[number].tolist() == flipped


@examples(60)
@given(
    st.sampled_from(["sign-flip", "scaled", "random"]),
    st.sampled_from([np.int8, np.int16, np.int32, np.int64, np.float32]),
    st.floats(0.001, 1e6),
    st.integers(0, 2**32 - 1),
)
def test_a_lie_has_the_type_of_the_truth_and_no_overflow(
    attack: str, kind: type[np.generic], scale: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = (random.normal(size=100) * 50).astype(kind)
    assume(attack != "scaled" or scale != 1.0)
    lying = Malicious.model_validate({"attack": attack, "scale": scale})
    sent = lying.poisoned(values, random)
    assert (sent.dtype, sent.shape) == (values.dtype, values.shape)
    if attack != "random":
        factor = -scale if attack == "sign-flip" else scale
        assert (np.sign(sent) * np.sign(values.astype(np.float64)) * np.sign(factor) >= 0).all()


def test_random_deltas_are_as_long_as_true_ones_and_differ_by_task() -> None:
    made = world(1, faults={"malicious": {"share": 1.0, "attack": "random", "scale": 3.0}})
    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    one, other = (made.poisoned(0, values, task) for task in (1, 2))
    assert np.linalg.norm(one) == pytest.approx(3 * np.linalg.norm(values), rel=1e-4)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(one, made.poisoned(0, values, 1))
    assert not made.poisoned(0, np.zeros(4, np.int8), 1).any()
