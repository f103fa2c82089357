"""How rounds begin, and how they end with time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import GatewayError
from fleet.gateway.round_logic import KEPT_ROUNDS
from fleet.gateway.rounds import RoundKey, RoundState
from fleet.protocol import DeviceState, Reason, Task, device_seed, topics
from tests.fleet.gateway.bench import FOREIGN, KEY, Bench
from tests.fleet.gateway.deltas import (
    CAMPAIGN,
    FLEET,
    UPLINK,
    a_task,
    announcement,
    delta_chunks,
    delta_of,
    tasks,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.announce("a", "b", "c")
    yield made
    made.store.close()


def start(bench: Bench, **changes: Any) -> dict[str, Any]:
    return bench.start(**{"uplink_chunk_bytes": UPLINK, **changes})


def test_starting_again_changes_nothing_and_survives_a_crash(bench: Bench) -> None:
    assert start(bench) == {"state": "running", "devices": {}}
    for again in ({}, {"blobs": []}):
        before = len(bench.link.published)
        assert start(bench, **again) == {"state": "running", "devices": {}}
        assert len(bench.link.published) == before
        bench.crash()
    with pytest.raises(GatewayError, match="another content"):
        start(bench, epochs=3)
    bench.pass_time(100)
    assert start(bench) == {"state": "closed", "devices": {}}
    bench.crash()
    with pytest.raises(GatewayError, match="another content"):
        start(bench, names=["a"])


def test_each_device_gets_its_own_answer_to_a_start(bench: Bench) -> None:
    bench.announce(FOREIGN)
    bench.announce("e", lease=9)
    start(bench, names=["a"])
    refused = {"a": "busy", FOREIGN: "unknown", "d": "unknown", "e": "older-lease"}
    names = ["a", "b", "d", "e", FOREIGN]
    wanted = {"state": "running", "devices": refused}
    assert start(bench, round=2, names=names) == wanted
    assert bench.logic.rounds[RoundKey(KEY.campaign, 2)].spec.tasks.keys() == {"b"}
    assert start(bench, round=2, names=names) == wanted
    bench.crash()
    assert start(bench, round=2, names=names) == wanted
    bench.ask("cancel", campaign=CAMPAIGN, round=1)
    assert start(bench, round=2, names=names) == wanted, "what was answered once stays"


def test_a_round_that_no_device_can_take_part_in_closes_at_once(bench: Bench) -> None:
    before = len(bench.link.published)
    reply = start(bench, names=["d", "e"])
    assert reply == {"state": "closed", "devices": {"d": "unknown", "e": "unknown"}}
    assert len(bench.link.published) == before
    collected = bench.collect()
    assert (collected["state"], collected["accepted"]) == ("closed", 0)
    assert not bench.sum().any()


def test_leases_only_grow(bench: Bench) -> None:
    start(bench, names=["a"], lease=5)
    bench.ask("cancel", campaign=CAMPAIGN, round=1)
    bench.crash()
    refused = {"state": "closed", "devices": {"a": "older-lease"}}
    assert start(bench, round=2, names=["a"], lease=4) == refused
    assert start(bench, round=3, names=["a"], lease=5)["devices"] == {}
    bench.ask("cancel", campaign=CAMPAIGN, round=3)
    bench.announce("a", lease=7)
    bench.crash()
    assert start(bench, round=4, names=["a"], lease=6)["devices"] == {"a": "older-lease"}
    assert start(bench, round=5, names=["a"], lease=7)["devices"] == {}
    (entry,) = [one for one in bench.ask("hello")["devices"] if one["device"] == "a"]
    assert entry["lease"] == 7


def test_every_device_has_a_seed_of_its_own(bench: Bench) -> None:
    start(bench, seed=11)
    sent = {
        name: Task.decode(message.payload)
        for message in bench.link.published
        for name in "abc"
        if message.topic == topics.task(FLEET, name)
    }
    assert {name: task.seed for name, task in sent.items()} == {
        name: device_seed(11, name) for name in "abc"
    }
    assert len({task.seed for task in sent.values()}) == 3


def test_old_rounds_and_their_weights_are_forgotten(bench: Bench) -> None:
    for number in range(KEPT_ROUNDS + 3):
        blob = b"weights %d" % number
        sha = hashlib.sha256(blob).hexdigest()
        start(
            bench,
            round=number,
            blobs=[{"sha256": sha, "data": blob}],
            tasks=[tasks({"a": 1}, weights=sha)],
            target=1,
        )
        bench.ask("cancel", campaign=CAMPAIGN, round=number)
    assert len(bench.logic.rounds) == KEPT_ROUNDS
    assert bench.logic.state(RoundKey(KEY.campaign, 2)) is RoundState.UNKNOWN
    assert bench.logic.state(RoundKey(KEY.campaign, 3)) is RoundState.CANCELLED
    bench.crash()
    assert len(bench.logic.rounds) == KEPT_ROUNDS
    assert len(bench.logic.blobs) == KEPT_ROUNDS
    assert bench.store._db.execute("SELECT count(*) FROM sums").fetchone() == (KEPT_ROUNDS,)


def test_of_rounds_that_ended_only_the_store_knows_the_devices(bench: Bench) -> None:
    start(bench)
    bench.send("a", delta_chunks(a_task(), *delta_of("a")))
    bench.status("b", DeviceState.DECLINED, Reason.NO_SAMPLES)
    bench.pass_time(100)
    for _ in range(2):
        assert not bench.round.spec.tasks
        assert not bench.round.accepted
        assert not bench.round.declined
        assert bench.collect()["accepted"] == 1
        assert bench.collect()["declined"] == {"no-samples": 1}
        bench.crash()


# ---- time --------------------------------------------------------------------------------


def test_a_wall_clock_that_steps_back_does_not_make_a_round_longer(bench: Bench) -> None:
    start(bench)
    bench.pass_time(50)
    bench.clock.step_wall(-3600)
    bench.pass_time(49)
    assert bench.round.open
    bench.pass_time(1)
    assert bench.collect()["state"] == "closed"


def test_nor_does_it_after_a_crash(bench: Bench) -> None:
    start(bench)
    bench.pass_time(50)
    bench.clock.step_wall(-3600)
    bench.pass_time(1)  # the step is noted
    bench.crash()
    bench.pass_time(48)
    assert bench.round.open
    bench.pass_time(1)
    assert bench.collect()["state"] == "closed"


def test_a_step_while_no_gateway_runs_gives_a_round_no_more_than_it_had(bench: Bench) -> None:
    start(bench)
    bench.store.close()
    bench.clock.step_wall(-3600)
    bench.open()
    bench.pass_time(100)
    assert bench.collect()["state"] == "closed"


def test_announcements_are_decoded_as_the_device_sent_them(bench: Bench) -> None:
    bench.announce("a", candidate=b"c" * 32, reset_cause=3, fault_code=4)
    bench.crash()
    (entry,) = [one for one in bench.ask("hello")["devices"] if one["device"] == "a"]
    assert entry["candidate"] == (b"c" * 32).hex()
    assert entry["current"] == announcement().current.hex()
    assert (entry["reset_cause"], entry["fault_code"]) == ("watchdog", 4)
