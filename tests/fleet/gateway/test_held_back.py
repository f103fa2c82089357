"""Tasks that go out some time after their round's start, and rounds that last until then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.gateway.actions import Publish
from fleet.gateway.retained import QUIET_SECONDS
from fleet.protocol import DeviceState, Reason, Task, topics
from tests.fleet.gateway.bench import Bench
from tests.fleet.gateway.deltas import (
    CAMPAIGN,
    FLEET,
    UPLINK,
    a_task,
    delta_chunks,
    delta_of,
    tasks,
)
from tests.fleet.gateway.virtual_site import VirtualSite

DELAYS = {"b": 50.0, "c": 200.0}
DEADLINE = 100


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.announce("a", "b", "c")
    yield made
    made.store.close()


def start(bench: Bench, **changes: Any) -> list[Publish]:
    before = len(bench.link.published)
    of = [tasks(dict.fromkeys("abc", 1), delays=DELAYS)]
    wanted = {"tasks": of, "deadline_seconds": DEADLINE, "uplink_chunk_bytes": UPLINK, **changes}
    assert bench.start(**wanted)["state"] == "running"
    return bench.link.published[before:]


def tasked(published: list[Publish]) -> dict[str, Task]:
    """Devices that were given a task, and which."""
    names = {topics.task(FLEET, name): name for name in "abc"}
    return {
        names[one.topic]: Task.decode(one.payload)
        for one in published
        if one.topic in names and one.payload
    }


def connect(bench: Bench, *retained: str) -> list[Publish]:
    """A connection to a broker that has the tasks of these devices, and no weights."""
    bench.run(bench.core.connected())
    for name in retained:
        payload = bench.round.spec.task(name, 1, 1).encode()
        bench.arrives(topics.task(FLEET, name), payload, retained=True)
    return bench.pass_time(QUIET_SECONDS)


def test_a_task_goes_out_when_its_delay_is_over_and_has_the_whole_deadline(bench: Bench) -> None:
    assert tasked(start(bench)).keys() == {"a"}
    assert tasked(bench.pass_time(49.9)) == {}
    sent = bench.pass_time(0.1)
    assert {name: one.deadline_seconds for name, one in tasked(sent).items()} == {"b": DEADLINE}
    assert {one.expiry_seconds for one in sent} == {DEADLINE}
    assert tasked(bench.pass_time(100)) == {}
    assert tasked(bench.pass_time(50)).keys() == {"c"}


def test_a_round_lasts_until_the_time_of_its_last_device_is_over(bench: Bench) -> None:
    start(bench)
    bench.pass_time(200 + DEADLINE - 0.1)
    assert bench.collect()["state"] == "running"
    bench.pass_time(0.1)
    assert bench.collect()["state"] == "closed"


def test_the_delay_of_a_device_that_gets_no_task_makes_no_round_longer(bench: Bench) -> None:
    of = [tasks({"a": 1, "d": 1}, delays={"d": 500})]
    start(bench, tasks=of, target=1)
    bench.pass_time(DEADLINE)
    assert bench.collect()["state"] == "closed"


def test_the_seconds_of_a_report_are_those_from_the_task_on(bench: Bench) -> None:
    start(bench)
    bench.pass_time(50)
    bench.pass_time(7)
    for name in "ab":
        bench.send(name, delta_chunks(a_task(), *delta_of(name)))
    assert {one["device"]: one["seconds"] for one in bench.collect()["reports"]} == {
        "a": 57,
        "b": 7,
    }


def test_who_was_not_tasked_when_a_round_ends_never_is(bench: Bench) -> None:
    start(bench, target=1)
    bench.send("a", delta_chunks(a_task(), *delta_of("a")))
    assert bench.collect()["state"] == "closed"
    assert tasked(bench.pass_time(1000)) == {}
    assert tasked(start(bench, round=2)).keys() == {"a"}
    bench.pass_time(60)
    bench.ask("cancel", campaign=CAMPAIGN, round=2)
    assert tasked(bench.pass_time(1000)) == {}
    bench.crash()
    assert tasked(connect(bench)) == {}
    assert tasked(bench.pass_time(1000)) == {}


def test_a_round_waits_for_devices_that_were_not_tasked_yet(bench: Bench) -> None:
    start(bench)
    bench.send("a", delta_chunks(a_task(), *delta_of("a")))
    bench.pass_time(50)
    bench.status("b", DeviceState.DECLINED, Reason.NO_SAMPLES)
    assert bench.collect()["state"] == "running"
    bench.pass_time(150)
    bench.send("c", delta_chunks(a_task(), *delta_of("c")))
    assert bench.collect()["state"] == "closed"


def test_a_gateway_that_was_killed_holds_back_for_what_is_left_of_the_delay(bench: Bench) -> None:
    start(bench)
    bench.pass_time(20)
    bench.store.close()
    bench.clock.sleep(100)
    bench.open()
    sent = connect(bench, "a")
    assert tasked(sent).keys() == {"b"}
    left = {one.topic: one.expiry_seconds for one in sent if one.payload}
    assert left[topics.task(FLEET, "b")] == 28, "its time counts from when its task was due"
    assert tasked(bench.pass_time(77.9)) == {}
    assert tasked(bench.pass_time(0.1)).keys() == {"c"}
    assert bench.round.deadline == bench.clock.monotonic() + DEADLINE


def test_a_task_that_is_out_is_not_sent_again_by_a_gateway_that_was_killed(bench: Bench) -> None:
    start(bench)
    bench.pass_time(60)
    bench.crash()
    before = len(bench.link.published)
    connect(bench, "a", "b")
    assert tasked(bench.link.published[before:]) == {}


def test_a_wall_clock_that_steps_moves_no_delay(bench: Bench) -> None:
    start(bench)
    bench.clock.step_wall(-5000)
    bench.pass_time(10)
    bench.crash()
    assert tasked(bench.pass_time(39.9)) == {}
    assert tasked(bench.pass_time(0.1)).keys() == {"b"}


def test_who_has_delivered_is_not_tasked_again_where_the_wall_clock_was_set_back_meanwhile(
    bench: Bench,
) -> None:
    start(bench)
    bench.pass_time(60)
    bench.send("b", delta_chunks(a_task(), *delta_of("b")))
    bench.store.close()
    bench.clock.step_wall(-5000)
    bench.open()
    assert tasked(bench.pass_time(199.9)) == {}
    assert tasked(bench.pass_time(0.1)).keys() == {"c"}


def test_a_connection_puts_back_no_task_that_is_held_back_or_whose_time_is_over(
    bench: Bench,
) -> None:
    start(bench)
    assert tasked(connect(bench)).keys() == {"a"}
    bench.pass_time(DEADLINE)
    assert tasked(connect(bench)).keys() == {"b"}


def test_the_same_start_once_more_sends_no_task_ahead(bench: Bench) -> None:
    start(bench)
    assert tasked(start(bench)) == {}
    assert len(bench.round.held_back) == len(DELAYS)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_killed_nobody_is_tasked_ahead_of_time(tmp_path: Path, seed: int) -> None:
    site = VirtualSite(tmp_path, seed=seed, devices=12)
    delays = {name: 20.0 * number for number, name in enumerate(site.devices)}
    for _ in range(4):
        site.clock.call_later(site.random.uniform(10, 250), site.kill_gateway)
        site.clock.call_later(site.random.uniform(10, 250), site.broker.kill)
    site.begin(tasks=[tasks(dict.fromkeys(delays, 1), delays=delays)], deadline_seconds=600)
    began = site.clock.monotonic()
    ended = 0.0
    while ended == 0.0:
        site.clock.sleep(0.5)
        since = site.clock.monotonic() - began
        early = [name for name, one in site.devices.items() if one.lease and delays[name] > since]
        assert early == []
        if site.ask("collect", campaign=CAMPAIGN, round=1)["state"] == "closed":
            ended = since
    reply = site.closed(1)
    assert reply["accepted"] == 12
    assert ended > max(delays.values())
    seconds = {one["device"]: one["seconds"] for one in reply["reports"]}
    assert all(0 < one < 120 for one in seconds.values())
    site.close()
