"""A world is what its description and seed say, whoever asks for what first."""

from __future__ import annotations

import dataclasses
import json
import pickle
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from codegen.firmware.boards import load_board
from simulator.errors import WorldError
from simulator.world.world import World, WorldConfig
from tests.simulator.world.worlds import config, world

EVERYTHING: dict[str, Any] = {
    "population": {
        "devices": 30,
        "boards": {"stm32f746": 0.3, "stm32f407": 0.7},
        "reserved_sram_bytes": [0, 65536],
        "sites": {"barn": {"share": 0.5, "gateways": 2}, "field": {"share": 0.5}},
        "stragglers": {"share": 0.9, "slower": [2, 8]},
    },
    "data": {
        "dataset": {"name": "digits"},
        "partition": {"kind": "label-skew", "concentration": 3, "sizes": {"kind": "zipf"}},
        "held_out_share": 0.2,
        "recorded_over_hours": 48,
        "sensor": {"kind": "image", "rotation_degrees": {"at": [15, 35], "per_day": [-5, 5]}},
        "stuck": {"share": 0.2, "after_hours": [1, 40]},
        "shuffled_labels": 0.2,
    },
    "availability": {"kind": "charging"},
    "links": {
        "wifi": {"share": 0.5, "latency_seconds": 0.02, "loss": 0.05, "jitter_seconds": 0.1},
        "narrow": {"share": 0.5, "up_bytes_per_second": [200, 2000], "disconnects_per_hour": 1},
    },
    "faults": {
        "resets_per_day": 1,
        "brown_outs_per_day": 2,
        "flash_bit_flips_per_day": 0.5,
        "sram_bit_flips_per_day": 0.5,
        "clock_drift_ppm": [-40, 40],
        "malicious": {"share": 0.1, "attack": "random"},
    },
    "energy": {
        "battery_milliwatt_hours": [1000, 3000],
        "charge_percent": [20, 90],
        "charging": {"begins_hours": [21, 23], "lasts_hours": [5, 8], "varies_hours": 1},
    },
}


def facts(made: World, number: int, *, shared_data: bool = True) -> list[Any]:
    """All that a world says about a device, comparable."""
    battery = made.battery(number)
    assert battery is not None
    stream = made.stream(number, "up")
    log = made.data.log(number)
    return [
        dataclasses.astuple(made.device(number)),
        made.link(number),
        list(islice(made.availability(number)(1e5), 3)),
        list(islice(made.outages(number)(1e5), 3)) if made.link(number).name == "narrow" else [],
        [stream.send(at, 5000, topic="t", qos=1) for at in (0.0, 1.0, 50.0)],
        made.faults(number, 5 * 86_400.0),
        made.clock_rate(number),
        made.poisoned(number, np.arange(9, dtype=np.int8), task=4).tolist(),
        (battery.capacity, battery.level),
        vars(made.meter(number)),
        [part.tobytes() for part in (log.x, log.y, log.seconds)] if shared_data else [],
    ]


def test_the_order_in_which_devices_are_asked_changes_nothing() -> None:
    described = WorldConfig.model_validate(EVERYTHING)
    first, again = World(described, 7), World(described, 7)
    order = list(first.devices)
    in_order = {number: facts(first, number) for number in order}
    random.Random(0).shuffle(order)
    assert {number: facts(again, number) for number in order} == in_order
    assert facts(first, 3) == in_order[3]
    assert facts(World(described, 8), 3) != in_order[3]


def test_a_device_stays_what_it_is_when_the_fleet_grows() -> None:
    grown = {**EVERYTHING, "population": {**EVERYTHING["population"], "devices": 57}}
    small = World(WorldConfig.model_validate(EVERYTHING), 7)
    large = World(WorldConfig.model_validate(grown), 7)
    for number in small.devices:
        assert facts(small, number, shared_data=False) == facts(large, number, shared_data=False)


@pytest.mark.parametrize("kind", ["iid", "label-skew"])
def test_samples_that_devices_draw_for_themselves_stay_theirs_when_the_fleet_grows(
    kind: str,
) -> None:
    partition = {"kind": kind} | ({"concentration": 2} if kind == "label-skew" else {})
    data = {"partition": partition, "samples_per_device": [20, 40]}
    small, large = world(5, data=data).data, world(5000, data=data).data
    for number in range(5):
        np.testing.assert_array_equal(small.log(number).positions, large.log(number).positions)
    assert len(large.log(4999)) >= 20


def test_another_process_makes_the_same_world() -> None:
    made = World(WorldConfig.model_validate(EVERYTHING), 7)
    assert facts(pickle.loads(pickle.dumps(made)), 3) == facts(made, 3)


def test_a_description_comes_back_from_its_json() -> None:
    described = WorldConfig.model_validate(EVERYTHING)
    assert WorldConfig.parse(described.model_dump_json()) == described
    assert WorldConfig.parse(yaml.safe_dump(EVERYTHING)) == described
    assert described.model_dump()["data"]["dataset"] == {"name": "digits"}


def changed(path: str, value: Any) -> str:
    """The text of a world where the field at ``path`` has another value."""
    whole: dict[str, Any] = yaml.safe_load(yaml.safe_dump(EVERYTHING))
    *folders, last = path.split(".")
    here = whole
    for part in folders:
        here = here[part]
    here[last] = value
    return yaml.safe_dump(whole)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("population.devices", "200", "population.devices: input should be a valid integer"),
        ("population.devices", True, "population.devices: input should be a valid integer"),
        ("population.devices", 0, "population.devices: .* greater than or equal to 1, not 0"),
        ("population.boards", {"stm32f746": 0.5}, "boards: shares add up to 0.5; make them"),
        ("population.boards", {"esp32": 1.0}, "boards: no board 'esp32'; known boards: mps2"),
        ("population.reserved_sram_bytes", 131072, "population: reserved_sram_bytes: .* stm32f407"),
        ("population.reserved_sram_shares", {1: 1.0}, "reserved_sram_shares: .* leave one out"),
        ("population.stragglers.slower", [8, 2], "stragglers.slower: .* the smaller one first"),
        ("population.stragglers.slower", [0.5, 2], "stragglers.slower: begins at 0.5"),
        ("population.stragglers.slower", [1, 2, 3], r"stragglers.slower: give .*\[low, high\]"),
        ("population.sites", {}, "population.sites: .* at least 1"),
        ("population.boads", {}, "population.boads: there is no such field; did you mean boards?"),
        ("data.dataset", "digit", "data.dataset: no data set 'digit'; installed are digits"),
        ("data.dataset", 3, "data.dataset: give a data set's name"),
        ("data.dataset", {"name": "har", "foldr": "x"}, "data.dataset: foldr: .* mean folder?"),
        ("data.held_out_share", 1.0, "data.held_out_share: input should be less than 1"),
        ("data.partition.kind", "dirichlet", "data.partition: no kind 'dirichlet'; there are"),
        ("data.partition", {}, "data.partition: say which kind it is"),
        ("data.partition.concentration", 0, "data.partition.concentration: .* greater than 0"),
        (
            "data.partition.sizes.sigma",
            1,
            "data.partition.sizes.sigma: .* there are exponent, kind",
        ),
        ("data.samples_per_device", 20, "data: samples_per_device: partition.sizes says already"),
        ("data.sensor.rotation_degrees.per_days", 1, "rotation_degrees.per_days: .* per_day?"),
        ("data.sensor.gain", "dim", "data.sensor.gain.at: give a number"),
        ("data.stuck.after_hours", -1, "data.stuck.after_hours: begins at -1"),
        ("availability.kind", "nightly", "availability: no kind 'nightly'; there are 'always'"),
        (
            "availability",
            {"kind": "duty-cycle", "on_seconds": 5},
            "availability.off_seconds: it is",
        ),
        ("energy.charging", None, "availability.kind: charging, but nobody says when"),
        ("energy.charging.lasts_hours", 23, "energy.charging: lasts_hours: 23 and twice .* 25"),
        ("links.wifi.share", 0.7, "links: shares add up to 1.2"),
        ("links.wifi.loss", float("nan"), "links.wifi.loss: input should be a finite number"),
        ("links.wifi.loss", 1.0, "links.wifi.loss: .* less than or equal to 0.9"),
        ("links.wifi.los", 0.1, "links.wifi.los: there is no such field; did you mean loss?"),
        ("links.narrow.up_bytes_per_second", 0, "links.narrow.up_bytes_per_second: begins at 0"),
        ("faults.malicious.attack", "scaled", "faults.malicious: scale: a delta times 1 is the"),
        ("faults.malicious.attack", "lie", "faults.malicious.attack: .* 'sign-flip'"),
        ("faults.resets_per_day", -1, "faults.resets_per_day: .* not -1"),
        ("energy.battery_milliwatt_hours", 0, "energy.battery_milliwatt_hours: begins at 0"),
        ("energy.charge_percent", 120, "energy.charge_percent: ends at 120"),
        ("energy.erase_budget", {"internal": 5}, "energy: erase_budget: .* external"),
        ("weather", {}, "world: weather: there is no such field; there are availability, data"),
    ],
)
def test_a_wrong_field_is_named_with_its_remedy(path: str, value: Any, said: str) -> None:
    with pytest.raises(WorldError, match=said):
        WorldConfig.parse(changed(path, value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("population: [", "world: not YAML"),
        ("3", "world: it has fields of its own, and isn't 3"),
        ("population: {devices: 3, boards: {stm32f746: 1}}", "world: data: it is missing"),
        ("population: 4", "world: population: it has fields of its own, and isn't 4"),
        ("{? [1]: 2}", "world: "),
        ("!!python/object/apply:os.system [echo]", "world: not YAML"),
    ],
)
def test_what_is_no_world_is_refused(text: str, said: str) -> None:
    with pytest.raises(WorldError, match=said):
        WorldConfig.parse(text)


def test_batteries_need_to_know_what_a_board_takes(tmp_path: Path) -> None:
    own = load_board("stm32f407").model_dump(mode="json", exclude={"active_milliwatts"})
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**own, "name": "own"}))
    boards = {"boards": {str(path): 1.0}}
    assert world(1, population=boards).meter(0) is None
    batteries = {"battery_milliwatt_hours": 1000}
    with pytest.raises(ValidationError, match=r"active_milliwatts: .* write {own: …}"):
        config(population=boards, energy=batteries)
    told = world(1, population=boards, energy={**batteries, "active_milliwatts": {"own": 336}})
    meter = told.meter(0)
    assert meter is not None
    # 336 mW at 168 MHz, 1.5 clocks each.
    assert meter.millijoules_per_instruction == pytest.approx(3e-6)


@pytest.mark.parametrize("ask", [lambda w, n: w.data.log(n), lambda w, n: w.data.held_out_log(n)])
def test_a_device_that_there_is_not_has_no_data(ask: Callable[[World, int], Any]) -> None:
    with pytest.raises(IndexError):
        ask(world(4), 4)
