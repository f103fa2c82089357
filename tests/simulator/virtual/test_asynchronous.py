"""An asynchronous campaign in virtual time: real devices, gateways that are killed, exact means."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from fleet.aggregation import init, staleness_scale
from fleet.campaign import RoundPlan
from fleet.gateway import actions as act
from fleet.gateway.store import RoundStore
from fleet.protocol.manifest import Manifest
from fleet.store import Events, SqlStore, tables
from simulator.experiments.fleet import VirtualFleet
from simulator.virtual.pool import DevicePool, LocalPool, ProcessPool
from simulator.virtual.population import Firmware, Population
from tests.simulator.virtual.small_fleet import CAMPAIGN, campaign, population

Made = dict[str, Firmware]
Folded = dict[tuple[int, str], tuple[int, int, np.ndarray]]
BUFFER, VERSIONS = 3, 5
KILLS = {"gateway": (5.0, 24.5, 40.5, 57.0), "broker": (15.0, 41.0)}


def slow_fleet(made: Made, devices: int = 7) -> Population:
    boards = {"devices": devices, "boards": {"stm32f407": 1.0}}
    stragglers = {"share": 0.7, "slower": [20, 400]}
    return population(made, devices, population={**boards, "stragglers": stragglers})


def run(
    of: Population,
    pool: DevicePool,
    folder: Path,
    kills: dict[str, tuple[float, ...]] | None = None,
) -> VirtualFleet:
    fleet = VirtualFleet(of, pool, folder)
    (gateway,) = fleet.gateways.values()
    (broker,) = fleet.brokers.values()
    for at in (kills or {}).get("gateway", ()):
        fleet.clock.call_at(at, gateway.kill)
    for at in (kills or {}).get("broker", ()):
        fleet.clock.call_at(at, broker.kill)
    (bundle,) = [one.bundle for one in of.firmware.values()]
    config = campaign(
        VERSIONS, min_devices=7, asynchronous={"buffer": BUFFER}, deadline_seconds=600
    )
    text = (bundle / "manifest.json").read_text()
    fleet.run_campaign(config, {"b": text}, (bundle / "weights.bin").read_bytes(), CAMPAIGN)
    return fleet


def parts_of(store: SqlStore) -> dict[tuple[int, int], int]:
    """Version by round and part."""
    table = tables.parts
    with store.reading() as connection:
        rows = connection.execute(sa.select(table.c.round, table.c.part, table.c.version))
        return {(number, part): version for number, part, version in rows}


def assert_versions_are_means_of_what_was_folded(
    store: SqlStore, folded: Folded, made: Made
) -> None:
    """In whole numbers up to one division: scales are multiples of 2^-20, units of 1/256."""
    (bundle,) = [one.bundle for one in made.values()]
    manifest = Manifest.parse((bundle / "manifest.json").read_text())
    plan = manifest.plans[0]
    places = manifest.plan_coordinates(plan)
    units = [int(256 * unit) for unit in manifest.steps_per_unit(plan)]
    master = init(manifest.tensors, (bundle / "weights.bin").read_bytes()).master
    limits = np.concatenate([np.full(one.size, one.limit) for one in manifest.tensors])
    versions = parts_of(store)
    bases = {
        one.number: RoundPlan.from_json(one.plan).training_round - 1
        for one in store.rounds(CAMPAIGN)
    }
    for version in range(1, VERSIONS + 1):
        total, weights = np.zeros(plan.delta_values, object), 0
        for (number, _), (part, weight, values) in folded.items():
            if versions.get((number, part)) != version:
                continue
            staleness = version - 1 - bases[number]
            scale = int(staleness_scale(staleness, 0.5) * 2**20) * weight
            total += scale * values.astype(object)
            weights += scale
        change = np.zeros(master.size)
        change[places] = [
            float(Fraction(one * unit, 256 * max(1, weights)))
            for one, unit in zip(total, units, strict=True)
        ]
        master = np.clip(master + change, -limits, limits)
        stored = np.frombuffer(store.weights(CAMPAIGN, version).master, "<f8")
        assert np.allclose(stored, master, rtol=0, atol=1e-9)
        master = stored


@pytest.mark.parametrize("kills", [{}, KILLS], ids=["quiet", "killed"])
def test_each_delta_is_in_one_version_whatever_is_killed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: dict[str, Any]
) -> None:
    folded: Folded = {}
    real = RoundStore.apply

    def apply(self: RoundStore, action: Any) -> Any:
        if isinstance(action, act.Accept):
            name = (action.key.round, action.report.device)
            assert name not in folded
            folded[name] = (action.part, action.weight, action.values.copy())
        return real(self, action)

    monkeypatch.setattr(RoundStore, "apply", apply)
    of = slow_fleet(made)
    fleet = run(of, LocalPool(of), tmp_path, kills)
    store = fleet.store
    assert store.campaign(CAMPAIGN).state == "finished", store.campaign(CAMPAIGN).reason
    assert_versions_are_means_of_what_was_folded(store, folded, made)
    told = [one.data for one in Events(store).after(0, CAMPAIGN, kinds=["version"])]
    assert [one["version"] for one in told] == list(range(1, VERSIONS + 1))
    versions = parts_of(store)
    counted = [name for name, of in folded.items() if (name[0], of[0]) in versions]
    assert len(counted) == sum(one["deltas"] for one in told)
    assert any(behind != "0" for one in told for behind in one["staleness"])
    results = {one.number: one.result for one in store.rounds(CAMPAIGN)}
    assert sum(one["accepted"] for one in results.values()) == len(folded)
    fleet.close()


def test_versions_of_what_arrives_are_the_same_with_any_number_of_processes(
    made: Made, tmp_path: Path
) -> None:
    found = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        of = slow_fleet(made)
        pool = LocalPool(of) if workers == 1 else ProcessPool(of, workers)
        fleet = run(of, pool, folder, KILLS)
        masters = [fleet.store.weights(CAMPAIGN, at).master for at in range(VERSIONS + 1)]
        found.append((masters, fleet.clock.now, pool.figures(fleet.clock.now)))
        fleet.close()
        pool.close()
    assert found[0] == found[1]


def test_who_does_not_wait_for_stragglers_has_a_version_before_they_deliver(
    made: Made, tmp_path: Path
) -> None:
    of = slow_fleet(made)
    fleet = run(of, LocalPool(of), tmp_path)
    first = Events(fleet.store).after(0, CAMPAIGN, kinds=["version"])[0].at
    began, _ = fleet.store.round_times(CAMPAIGN, 1)
    slowest = max(one["seconds"] for one in fleet.store.reports(CAMPAIGN, 1))
    assert first - began < slowest
    fleet.close()
