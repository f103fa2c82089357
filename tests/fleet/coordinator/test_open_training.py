"""Asynchronous campaigns: a version whenever enough deltas have arrived, each of them in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from fleet.aggregation import init, staleness_scale
from fleet.campaign import CampaignConfig, Operation, RoundPlan
from fleet.coordinator.creation import new_campaign
from fleet.store import Events, SqlStore, Stages, tables
from tests.fleet.aggregation.test_mean import MANIFEST
from tests.fleet.coordinator import small_model
from tests.fleet.coordinator.arriving_gateway import ArrivingGateway
from tests.fleet.coordinator.direct_transport import DirectTransport, PowerCutError, drive
from tests.fleet.coordinator.plain_gateway import device_delta, train_samples

BUFFER = 3
EXPONENT = 0.5
SECONDS = {
    **{f"g1-{index}": 5.0 + index for index in range(4)},
    **{f"g2-{index}": 6.5 + 20.0 * index for index in range(4)},
}


@pytest.fixture
def gateways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, ArrivingGateway]]:
    monkeypatch.chdir(tmp_path)
    made = new_gateways()
    yield made
    for one in made.values():
        one.close()


def new_gateways(names: tuple[str, ...] = ("g1", "g2")) -> dict[str, ArrivingGateway]:
    made = {}
    for name in names:
        devices = [
            small_model.device_entry(f"{name}-{index}", "ab"[index % 2]) for index in range(4)
        ]
        Path(f"{name}.sock").unlink(missing_ok=True)
        made[name] = ArrivingGateway(name, Path(f"{name}.sock"), devices, SECONDS)
    return made


def campaign(store: SqlStore, most_stale: int = 20, **fields: Any) -> str:
    asynchronous = {"buffer": BUFFER, "staleness_exponent": EXPONENT, "most_stale": most_stale}
    settings = {
        "rounds": 5,
        "min_devices": 8,
        "score_first": False,
        "last_round": "none",
        "asynchronous": asynchronous,
        **fields,
    }
    config = CampaignConfig.model_validate({"name": "test", **settings})
    return new_campaign(store, config, small_model.manifest_texts("a", "b"), small_model.blob())


def versions_told(store: SqlStore, name: str) -> list[dict[str, Any]]:
    return [one.data for one in Events(store).after(0, name, kinds=["version"])]


def parts_by_version(store: SqlStore, name: str) -> dict[int, list[tuple[int, str, int]]]:
    table = tables.parts
    query = sa.select(table.c.version, table.c.round, table.c.gateway, table.c.part)
    found: dict[int, list[tuple[int, str, int]]] = {}
    with store.reading() as connection:
        for version, *part in connection.execute(query.where(table.c.campaign == name)):
            found.setdefault(version, []).append((part[0], part[1], part[2]))
    return found


def assert_versions_are_the_weighted_means_of_their_parts(
    store: SqlStore, name: str, gateways: Mapping[str, ArrivingGateway], most_stale: int = 20
) -> None:
    """In fractions, from which delta is in which part, and which part in which version."""
    plans = {one.id: one for one in MANIFEST.plans}
    exact = [Fraction(float(one)) for one in init(MANIFEST.tensors, small_model.blob()).master]
    limits = [one.limit for one in MANIFEST.tensors for _ in range(one.size)]
    last = store.latest_weights(name).version
    seen: set[tuple[int, str]] = set()
    parts = parts_by_version(store, name)
    for version in range(1, last + 1):
        numerators = [Fraction(0)] * len(exact)
        weights = [Fraction(0)] * len(exact)
        for number, gateway, part in parts.get(version, []):
            plan = RoundPlan.from_json(store.round(name, number).plan)
            staleness = version - plan.training_round
            assert staleness >= 0
            scale = Fraction(staleness_scale(staleness, EXPONENT))
            for device in gateways[gateway].closed[name, number][part]:
                assert (number, device) not in seen
                seen.add((number, device))
                if staleness > most_stale:
                    continue
                entry = plans[next(o.plan for o in plan.assignments if o.device == device)]
                delta = device_delta(device, number, entry.delta_values)
                units = MANIFEST.steps_per_unit(entry)
                places = MANIFEST.plan_coordinates(entry)
                weight = scale * train_samples(device)
                for at, value, unit in zip(places, delta, units, strict=True):
                    numerators[at] += weight * int(value) * Fraction(float(unit))
                    weights[at] += weight
        for at, weight in enumerate(weights):
            if weight:
                exact[at] += numerators[at] / weight
                exact[at] = max(-limits[at], min(limits[at], exact[at]))
        stored = np.frombuffer(store.weights(name, version).master, "<f8")
        assert np.allclose(stored, [float(one) for one in exact], rtol=0, atol=1e-9)
    told = {
        (key[1], device)
        for one in gateways.values()
        for key, device in one.counted()
        if key[0] == name
    }
    assert all(count == 1 for one in gateways.values() for count in one.counted().values())
    assert seen <= told


def test_a_version_is_the_mean_of_what_arrived_and_what_is_stale_weighs_less(
    gateways: dict[str, ArrivingGateway],
) -> None:
    store = SqlStore()
    name = campaign(store)
    assert drive(store, name, DirectTransport(gateways)) == "finished"
    assert store.latest_weights(name).version == 5
    assert_versions_are_the_weighted_means_of_their_parts(store, name, gateways)
    events = versions_told(store, name)
    assert [one["version"] for one in events] == [1, 2, 3, 4, 5]
    assert all(one["deltas"] >= BUFFER for one in events)
    assert any(int(stale) > 0 for one in events for stale in one["staleness"])
    assert [one.twice_at_work for one in gateways.values()] == [[], []]
    rounds = store.rounds(name)
    assert [one.state for one in rounds] == ["done"] * 5
    # Devices that are free begin with the version that was just made; the others work on.
    digests = [store.weights(name, version).sha256 for version in range(5)]
    assert [one.plan["weights"] for one in rounds] == digests
    assert [len(one.plan["assignments"]) for one in rounds[1:]] == [
        one["deltas"] for one in events[:-1]
    ]
    for one in rounds:
        assert one.result["accepted"] == len(store.reports(name, one.number))
    assert not any(one.result["failed"] for one in rounds)


def test_what_is_too_stale_is_taken_and_weighs_nothing(
    gateways: dict[str, ArrivingGateway],
) -> None:
    store = SqlStore()
    name = campaign(store, most_stale=1)
    assert drive(store, name, DirectTransport(gateways)) == "finished"
    assert_versions_are_the_weighted_means_of_their_parts(store, name, gateways, most_stale=1)
    stale = [int(behind) for one in versions_told(store, name) for behind in one["staleness"]]
    assert max(stale) > 1


@pytest.mark.parametrize("rule", ["server-momentum", "server-adam", "server-yogi"])
def test_rules_over_one_sum_work_and_give_the_same_bits_again(
    gateways: dict[str, ArrivingGateway], rule: str
) -> None:
    masters = []
    for _ in range(2):
        store = SqlStore()
        name = campaign(store, aggregation={"rule": rule})
        assert drive(store, name, DirectTransport(gateways)) == "finished"
        masters.append([store.weights(name, version).master for version in range(6)])
        for one in gateways.values():
            one.rounds.clear()
    assert masters[0] == masters[1]
    assert len(set(masters[0])) == 6


def test_a_driver_killed_before_any_request_counts_every_delta_once(
    gateways: dict[str, ArrivingGateway],
) -> None:
    store = SqlStore()
    requests, cut = 0, -1
    while cut < requests:
        for one in gateways.values():
            one.rounds.clear()
            one.closed.clear()
        name = campaign(store, rounds=2)
        dying = DirectTransport(gateways, dies_at=cut if cut >= 0 else None)
        dying.pull = 2.5
        if cut < 0:
            assert drive(store, name, dying) == "finished"
            assert {one for _, one in dying.sent} >= {Operation.COLLECT, Operation.CANCEL}
            requests = len(dying.sent)
        else:
            with pytest.raises(PowerCutError):
                drive(store, name, dying)
            again = DirectTransport(gateways, clock=dying.clock)
            again.pull = 2.5
            assert drive(store, name, again) == "finished"
        assert store.latest_weights(name).version == 2
        assert_versions_are_the_weighted_means_of_their_parts(store, name, gateways)
        assert [one.state for one in store.rounds(name)] == ["done"] * 2
        assert [one.twice_at_work for one in gateways.values()] == [[], []]
        cut += 1


def test_a_gateway_that_is_away_for_a_while_keeps_no_version_waiting_and_nothing_is_lost(
    gateways: dict[str, ArrivingGateway],
) -> None:
    store = SqlStore()
    name = campaign(store, rounds=8, gateway_grace_seconds=600)
    transport = DirectTransport(gateways)
    transport.clock.call_later(6.0, lambda: transport.silent.add("g1"))
    transport.clock.call_later(45.0, lambda: transport.silent.discard("g1"))
    assert drive(store, name, transport) == "finished"
    assert_versions_are_the_weighted_means_of_their_parts(store, name, gateways)
    by_version = parts_by_version(store, name)
    assert any({gateway for _, gateway, _ in of} == {"g2"} for of in by_version.values())
    assert any(gateway == "g1" for of in by_version.values() for _, gateway, _ in of)
    assert [one.result["lost"] for one in store.rounds(name)] == [{}] * len(store.rounds(name))


def test_a_gateway_that_lies_about_a_part_is_left_out_and_the_campaign_goes_on(
    gateways: dict[str, ArrivingGateway],
) -> None:
    store = SqlStore()
    name = campaign(store, min_devices=4)
    transport = DirectTransport(gateways)
    transport.lies["g2", "collect"] = {"through": 1}
    assert drive(store, name, transport) == "finished"
    assert "sums of 1 devices, 0 deltas accepted" in store.quarantined(name)["g2"]
    assert store.latest_weights(name).version == 5
    assert {one["gateway"] for one in store.round(name, 5).plan["assignments"]} == {"g1"}


def test_where_all_have_delivered_a_version_is_made_of_fewer(
    gateways: dict[str, ArrivingGateway],
) -> None:
    store = SqlStore()
    name = campaign(store, rounds=2, deadline_seconds=40)
    gateways["g2"].silent = {f"g2-{index}" for index in range(4)}
    gateways["g1"].silent = {"g1-0", "g1-1", "g1-2"}
    assert drive(store, name, DirectTransport(gateways)) == "finished"
    assert [one["deltas"] for one in versions_told(store, name)] == [1, 1]
    assert store.round(name, 1).result["failed"]["g2-0"] == "no-report"


def test_rounds_without_a_delta_end_the_campaign(gateways: dict[str, ArrivingGateway]) -> None:
    store = SqlStore()
    retry = {"attempts": 9}
    name = campaign(store, rounds=9, max_empty_rounds=2, deadline_seconds=40, retry=retry)
    for one in gateways.values():
        one.silent = set(SECONDS)
    assert drive(store, name, DirectTransport(gateways)) == "failed"
    assert "no delta was accepted in 2 rounds" in store.campaign(name).reason
    versions = [store.weights(name, number).sha256 for number in range(3)]
    assert len(set(versions)) == 1


def test_a_stop_cancels_all_open_rounds(gateways: dict[str, ArrivingGateway]) -> None:
    store = SqlStore()
    name = campaign(store, rounds=50)
    transport = DirectTransport(gateways)
    transport.clock.call_later(20.0, lambda: store.ask(name, "stop"))
    assert drive(store, name, transport) == "cancelled"
    assert len(store.rounds(name)) > 1
    assert "running" not in {one.state for one in store.rounds(name)}
    for one in gateways.values():
        assert "running" not in {one._state(key) for key in one.rounds}


def test_a_pause_begins_no_round_and_what_arrives_meanwhile_counts(
    gateways: dict[str, ArrivingGateway],
) -> None:
    store = SqlStore()
    name = campaign(store, rounds=4)
    transport = DirectTransport(gateways)
    begun: list[float] = []

    def listens(gateway: str, operation: Operation, fields: Mapping[str, Any]) -> None:
        if operation is Operation.START:
            begun.append(transport.clock.monotonic())

    transport.listens = listens
    transport.clock.call_later(4.0, lambda: store.ask(name, "pause"))
    transport.clock.call_later(60.0, lambda: store.ask(name, ""))
    assert drive(store, name, transport) == "finished"
    assert not [at for at in begun if 5.0 < at < 60.0]
    assert_versions_are_the_weighted_means_of_their_parts(store, name, gateways)


def test_at_a_stages_end_stragglers_are_let_go_and_its_gates_are_asked(
    gateways: dict[str, ArrivingGateway],
) -> None:
    store = SqlStore()
    gates = [{"gate": "failures", "most": 0.6}, {"gate": "drift", "most_drop": 0.9}]
    stages = [{"name": "half", "share": 0.5, "gates": gates}, {"name": "all", "share": 1.0}]
    name = campaign(
        store,
        rounds=2,
        stages=stages,
        min_devices=4,
        score_first=True,
        last_round="release",
        asynchronous={"buffer": 2, "staleness_exponent": EXPONENT},
    )
    assert drive(store, name, DirectTransport(gateways)) == "finished"
    assert store.latest_weights(name).version == 4
    rounds = store.rounds(name)
    assert [one.kind for one in rounds] == [
        *("score-first", "train", "train", "score-last", "release"),
        *("score-first", "train", "train", "release"),
    ]
    assert Stages(store).judged(name)[0].outcome == "pass"
    # Who was let go has not failed, and is asked in the next round.
    assert not any(one.result["failed"] for one in rounds)
    released = store.weights(name, 2).sha256
    assert rounds[4].plan["weights"] == released
