"""Devices in virtual time: what a fleet of them learns, and what befalls them on the way."""

from __future__ import annotations

import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.errors import FleetError
from simulator.virtual.pool import LocalPool, ProcessPool
from simulator.virtual.population import Firmware
from tests.simulator.virtual.small_fleet import CAMPAIGN, campaign, population, run

Made = dict[str, Firmware]


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seconds: float) -> None:
        raise AssertionError(f"somebody waits for {seconds} s")

    monkeypatch.setattr(time, "sleep", refuse)


def outcome(of: Any, folder: Path, **fields: Any) -> Any:
    """State, accepted deltas of each round, last weights, end, and what devices have done."""
    pool = LocalPool(of)
    fleet = run(of, pool, folder, campaign(**fields) if fields else None)
    try:
        record = fleet.store.campaign(CAMPAIGN)
        accepted = [one.result.get("accepted") for one in fleet.store.rounds(CAMPAIGN)]
        weights = fleet.store.latest_weights(CAMPAIGN).sha256
        return record.state, accepted, weights, fleet.clock.now, pool.totals(fleet.clock.now)
    finally:
        fleet.close()


def test_a_campaign_trains_every_device_in_every_round_and_repeats_itself(
    made: Made, tmp_path: Path
) -> None:
    results = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        results.append(outcome(population(made), tmp_path / name))
    state, accepted, _, _, totals = results[0]
    assert (state, accepted) == ("finished", [6, 6])
    # Of 12 samples, 4 are held out: scored before and after each round.
    assert (totals.train_steps, totals.forward_passes) == (6 * 2 * 8, 6 * 2 * 2 * 4)
    assert totals.busy_seconds > 0
    assert results[0] == results[1]


def test_a_flash_is_as_worn_as_its_sector_that_was_erased_most(made: Made, tmp_path: Path) -> None:
    of = population(made, 2, energy={"erase_budget": {"internal": 50, "external": 1}})
    pool = LocalPool(of)
    fleet = run(of, pool, tmp_path, campaign(rounds=6))
    try:
        figures = pool.figures(fleet.clock.now)
        for number, device in pool.devices.items():
            erases = device.machine.sector_erases
            assert sum(erases) == device.machine.done.flash_erases == figures[number].flash_erases
            assert sum(erases) >= max(erases) > 0
            assert figures[number].most_flash_wear == max(erases) / 50
    finally:
        fleet.close()


def test_any_number_of_processes_gives_the_same(made: Made, tmp_path: Path) -> None:
    found = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        of = population(made, 7)
        pool = LocalPool(of) if workers == 1 else ProcessPool(of, workers)
        fleet = run(of, pool, folder)
        try:
            weights = fleet.store.latest_weights(CAMPAIGN).sha256
            found.append((weights, fleet.clock.now, pool.figures(fleet.clock.now)))
        finally:
            fleet.close()
            pool.close()
    assert found[0] == found[1]
    assert list(found[0][2]) == list(range(7))


def test_a_closed_pool_keeps_no_device_whoever_keeps_the_pool(made: Made, tmp_path: Path) -> None:
    """The next cell of an experiment has as many."""
    of = population(made, 2)
    pool = LocalPool(of)
    fleet = run(of, pool, tmp_path)
    device = weakref.ref(pool.devices[1])
    fleet.close()
    pool.close()
    assert fleet.pool is pool
    assert device() is None


def test_a_worker_that_dies_is_told_of(made: Made) -> None:
    of = population(made, 2)
    pool = ProcessPool(of, 2)
    pool._processes[1][0].kill()
    pool._processes[1][0].join()
    with pytest.raises(FleetError, match="a worker of the virtual fleet has died"):
        pool.figures(0)
    pool.close()


def test_a_slow_device_takes_longer_and_nobody_learns_anything_else(
    made: Made, tmp_path: Path
) -> None:
    def fleet_of(slower: int) -> Any:
        boards = {"devices": 3, "boards": {"stm32f407": 1.0}}
        stragglers = {"share": 1.0, "slower": slower}
        folder = tmp_path / str(slower)
        folder.mkdir()
        world = population(
            made,
            3,
            population={**boards, "stragglers": stragglers},
            energy={"idle_milliwatts": 0.0},
        )
        return outcome(world, folder)

    quick, slow = fleet_of(1), fleet_of(50)
    assert slow[:3] == quick[:3]
    assert slow[3] > quick[3]
    assert slow[4].busy_seconds > 20 * quick[4].busy_seconds
    # It has other work; what it computes for us takes no more of its battery.
    assert slow[4].milliwatt_hours == pytest.approx(quick[4].milliwatt_hours, rel=0.01)


def test_a_narrow_line_takes_longer(made: Made, tmp_path: Path) -> None:
    rates = {"up_bytes_per_second": 200, "down_bytes_per_second": 200}
    (tmp_path / "narrow").mkdir()
    narrow = outcome(
        population(made, 2, links={"narrow": rates}), tmp_path / "narrow", deadline_seconds=3600
    )
    wide = outcome(population(made, 2), tmp_path, deadline_seconds=3600)
    assert narrow[:3] == wide[:3]
    seconds_of_one_device = (narrow[4].bytes_down + narrow[4].bytes_up) / 2 / 200
    assert narrow[3] / 1e9 > seconds_of_one_device / 2 > wide[3] / 1e9


def test_devices_that_come_and_go_are_asked_again_when_they_are_back(
    made: Made, tmp_path: Path
) -> None:
    cycle = {"kind": "duty-cycle", "on_seconds": [20, 40], "off_seconds": [10, 30]}
    fields = {"deadline_seconds": 300, "wait_for_devices_seconds": 600, "min_devices": 4}
    found = {}
    for name, world in (("calm", {}), ("away", {"availability": cycle})):
        (tmp_path / name).mkdir()
        found[name] = outcome(population(made, 4, **world), tmp_path / name, **fields)
    state, accepted, _, ended, _ = found["away"]
    assert state == "finished"
    assert all(1 <= one <= 4 for one in accepted)
    assert ended > found["calm"][3]


def test_resets_and_torn_flash_cost_time_and_no_delta_counts_twice(
    made: Made, tmp_path: Path
) -> None:
    faults = {"resets_per_day": 5_000, "brown_outs_per_day": 5_000, "brown_out_operations": 100}
    state, accepted, _, _, totals = outcome(
        population(made, 5, faults=faults), tmp_path, rounds=3, deadline_seconds=300
    )
    assert state == "finished"
    assert len(accepted) == 3
    assert all(one <= 5 for one in accepted)
    assert totals.resets > 5


def test_a_device_whose_battery_is_empty_stays_away_until_it_was_charged(
    made: Made, tmp_path: Path
) -> None:
    energy = {
        "battery_milliwatt_hours": 0.05,
        "idle_milliwatts": 50.0,
        "charging": {"begins_hours": 0.5, "lasts_hours": 1.0},
        "charging_milliwatts": 500.0,
    }
    of = population(made, 2, energy=energy)
    pool = LocalPool(of)
    fleet = run(of, pool, tmp_path, campaign(rounds=1, min_devices=2))
    try:
        before = pool.totals(fleet.clock.now).resets
        fleet.clock.sleep(2 * 3600.0)
        # 0.05 mWh last for four seconds; half an hour later something feeds them, and they start.
        assert pool.totals(fleet.clock.now).resets >= before + 2
    finally:
        fleet.close()


def test_messages_that_come_twice_late_or_never_change_no_weights(
    made: Made, tmp_path: Path
) -> None:
    unruly = {
        "latency_seconds": 0.1,
        "redelivered": 0.5,
        "redelivered_after_seconds": [0.5, 5],
        "held_back": 0.5,
        "held_back_seconds": [0, 3],
        "dropped": 0.3,
    }
    (tmp_path / "unruly").mkdir()
    fields = {"deadline_seconds": 600, "min_devices": 5}
    disturbed = outcome(
        population(made, 5, links={"unruly": unruly}), tmp_path / "unruly", **fields
    )
    calm = outcome(population(made, 5), tmp_path, **fields)
    assert disturbed[:3] == calm[:3]
    assert disturbed[3] > calm[3]


def test_a_malicious_fleet_learns_the_opposite(made: Made, tmp_path: Path) -> None:
    def change(folder: Path, **world: Any) -> Any:
        folder.mkdir()
        fleet = run(of := population(made, 3, **world), pool := LocalPool(of), folder, campaign(1))
        try:
            after, before = (
                np.frombuffer(fleet.store.weights(CAMPAIGN, number).master, "<f8")
                for number in (1, 0)
            )
            return after - before
        finally:
            fleet.close()
            pool.close()

    honest = change(tmp_path / "honest")
    faults = {"malicious": {"share": 1.0, "attack": "sign-flip"}}
    hostile = change(tmp_path / "hostile", faults=faults)
    # But where a weight is at the end of its range.
    assert np.mean(hostile == -honest) > 0.95
    assert honest.any()


def test_a_device_that_has_lost_its_identity_rests(made: Made) -> None:
    of = population(made, devices=2)
    pool = LocalPool(of)
    flash = of.bundle("stm32f407").manifest.flash
    ruined = pool.devices[1]
    assert ruined.machine.flip(flash.identity.address + 20, 3)
    ruined.machine.power_on()
    pool.begin(60_000_000_000, {})
    assert ruined.machine.device_state == 0
    assert {one.device for one in pool.finish() if one.kind == "dial"} == {0}
    assert ruined.next_due > 60_000_000_000
