"""What lies at the broker: put back after it was lost, taken away when it is over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import GatewayError
from fleet.gateway import actions as act
from fleet.gateway.actions import Publish
from fleet.gateway.instant import Instant
from fleet.gateway.retained import CHUNK_EXPIRY_SECONDS, LOOK_SECONDS, QUIET_SECONDS
from fleet.gateway.rounds import RoundState
from fleet.protocol import Task, topics
from fleet.protocol.chunks import chunks_of, decode_chunk
from tests.fleet.gateway.bench import KEY, Bench, ask
from tests.fleet.gateway.deltas import (
    BLOB,
    BLOB_CHUNKS,
    CAMPAIGN,
    FLEET,
    GATEWAY,
    WEIGHTS,
    a_task,
    delta_chunks,
    delta_of,
    start_fields,
    tasks,
)

RAW = bytes.fromhex(WEIGHTS)
CHUNKS = {topics.blob(FLEET, RAW, n): payload for n, payload in chunks_of(BLOB, 512)}
FIRST_CHUNK = topics.blob(FLEET, RAW, 0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.announce("a", "b", "c")
    yield made
    made.store.close()


def chunk_payloads(published: list[Publish]) -> dict[str, bytes]:
    assert all(one.retain for one in published if "/blob/" in one.topic)
    return {one.topic: one.payload for one in published if "/blob/" in one.topic}


def since(bench: Bench, before: int) -> list[Publish]:
    return bench.link.published[before:]


def end(bench: Bench, round: int = 1) -> list[Publish]:
    before = len(bench.link.published)
    bench.ask("cancel", campaign=CAMPAIGN, round=round)
    return since(bench, before)


def begin(bench: Bench, **changes: Any) -> list[Publish]:
    before = len(bench.link.published)
    assert bench.start(**changes)["state"] == "running"
    return since(bench, before)


def test_weights_are_at_the_broker_in_groups_as_long_as_an_open_round_needs_them(
    bench: Bench,
) -> None:
    published = begin(bench, names=["a"])
    assert chunk_payloads(published) == CHUNKS
    assert all(
        one.expiry_seconds == CHUNK_EXPIRY_SECONDS for one in published if "/blob/" in one.topic
    )
    assert chunk_payloads(begin(bench, round=2, names=["b"], blobs=[])) == {}, "they are there"
    assert chunk_payloads(end(bench)) == {}, "round 2 still needs them"
    emptied = [one for one in end(bench, 2) if "/blob/" in one.topic]
    assert {one.topic: one.payload for one in emptied} == dict.fromkeys(CHUNKS, b"")
    assert emptied[-1].topic == FIRST_CHUNK, "the chunk that others watch is the last to go"


def test_weights_lost_between_rounds_are_published_again(bench: Bench) -> None:
    begin(bench)
    end(bench)
    # Whatever became of them there: killed, its folder deleted, a new one.
    assert chunk_payloads(begin(bench, round=2, blobs=[])) == CHUNKS
    end(bench, 2)
    bench.crash()
    assert chunk_payloads(begin(bench, round=3, blobs=[])) == CHUNKS


def test_weights_outlive_rounds_that_start_from_them_one_after_the_other(bench: Bench) -> None:
    week = 7 * 24 * 3600

    def longest(number: int, name: str) -> list[Publish]:
        of = [tasks({name: 1}, delays={name: week})]
        return begin(bench, round=number, tasks=of, deadline_seconds=week, target=1)

    longest(1, "a")
    bench.clock.sleep(2 * week - 10)
    assert chunk_payloads(longest(2, "b")) == {}
    bench.clock.sleep(2 * week - 10)
    assert chunk_payloads(longest(3, "c")) == CHUNKS


def test_one_version_is_cut_in_one_way_at_a_time(bench: Bench) -> None:
    begin(bench, names=["a"])
    with pytest.raises(GatewayError, match="take 'chunk_bytes' 512 or wait"):
        begin(bench, round=2, names=["b"], chunk_bytes=256)
    assert bench.logic.state(KEY._replace(round=2)) is RoundState.UNKNOWN
    end(bench)
    cut = chunk_payloads(begin(bench, round=2, names=["b"], chunk_bytes=256))
    data = [decode_chunk(n, cut[topics.blob(FLEET, RAW, n)]) for n in range(len(cut))]
    assert b"".join(data) == BLOB
    assert max(map(len, data)) == 256


def connect(bench: Bench) -> None:
    bench.run(bench.core.connected())


def tell_all(bench: Bench, *, without: set[str], task: Task | None = None) -> None:
    """The broker tells what it retains: the weights and tasks of the round."""
    for topic, payload in CHUNKS.items():
        if topic not in without:
            bench.arrives(topic, payload, retained=True)
    for name in "abc":
        if name not in without:
            payload = (task or bench.task(name)).encode()
            bench.arrives(topics.task(FLEET, name), payload, retained=True)


def test_after_a_connection_only_what_the_broker_lacks_is_published(bench: Bench) -> None:
    begin(bench)
    bench.pass_time(30)
    connect(bench)
    subscribed = {one.topic: one for one in bench.link.filters}
    delta = subscribed[topics.any_delta(FLEET, GATEWAY)]
    assert delta.retain_as_published, "so that a device that retains its deltas shows"
    assert subscribed[topics.any_first_chunk(FLEET)].no_local
    lost = topics.blob(FLEET, RAW, 4)
    tell_all(bench, without={lost, "b", "c"})
    bench.arrives(topics.task(FLEET, "b"), changed(bench.task("b"), round=9).encode(), True)
    assert bench.pass_time(QUIET_SECONDS - 0.1) == []
    published = bench.pass_time(0.1)
    assert chunk_payloads(published) == {lost: CHUNKS[lost]}
    tasks = [one for one in published if "/blob/" not in one.topic]
    assert [one.topic for one in tasks] == [topics.task(FLEET, name) for name in "bc"]
    assert {one.expiry_seconds for one in tasks} == {68}
    assert {Task.decode(one.payload).deadline_seconds for one in tasks} == {100}, (
        "a task has one content, so that it can be signed"
    )
    assert [one.response_topic for one in tasks] == [
        topics.delta(FLEET, GATEWAY, name) for name in "bc"
    ]
    assert topics.any_task(FLEET) in bench.link.ended
    assert bench.pass_time(10) == []


def test_the_look_lasts_as_long_as_the_broker_has_something_to_tell(bench: Bench) -> None:
    begin(bench)
    connect(bench)
    for _ in range(3):
        assert bench.pass_time(QUIET_SECONDS - 0.1) == []
        bench.arrives(FIRST_CHUNK, CHUNKS[FIRST_CHUNK], retained=True)
    published = bench.pass_time(QUIET_SECONDS)
    assert chunk_payloads(published).keys() == CHUNKS.keys() - {FIRST_CHUNK}
    connect(bench)
    for _ in range(int(LOOK_SECONDS / QUIET_SECONDS) * 2):
        bench.pass_time(QUIET_SECONDS / 2)
        bench.arrives(FIRST_CHUNK, CHUNKS[FIRST_CHUNK], retained=True)
    assert not bench.logic.retained.looking, "but not for ever"


def test_everything_is_put_back_after_the_broker_has_lost_all(bench: Bench) -> None:
    begin(bench)
    bench.crash()
    connect(bench)
    published = bench.pass_time(QUIET_SECONDS)
    assert chunk_payloads(published) == CHUNKS
    tasks = {one.topic for one in published if "/blob/" not in one.topic}
    assert tasks == {topics.task(FLEET, name) for name in "abc"}


def kill_before_publishing(bench: Bench) -> None:
    """End the round; of its actions only those for the store happen."""
    now = Instant.of(bench.clock)
    actions = bench.logic.cancel(KEY, now)
    with bench.store.transaction():
        for action in actions:
            if isinstance(action, act.SetState):
                bench.store.apply(action)
    bench.crash()


def test_what_a_killed_gateway_left_behind_is_taken_away(bench: Bench) -> None:
    begin(bench)
    task = bench.task("a")
    kill_before_publishing(bench)
    connect(bench)
    published = bench.arrives(FIRST_CHUNK, CHUNKS[FIRST_CHUNK], retained=True)
    assert chunk_payloads(published) == dict.fromkeys(CHUNKS, b"")
    bench.arrives(topics.task(FLEET, "a"), task.encode(), retained=True)
    published = bench.pass_time(QUIET_SECONDS)
    assert published == [Publish(topics.task(FLEET, "a"), b"", retain=True)]
    connect(bench)
    bench.pass_time(QUIET_SECONDS)
    connect(bench)
    # By now it is another gateway's.
    assert bench.arrives(FIRST_CHUNK, CHUNKS[FIRST_CHUNK], retained=True) == []


def test_a_task_that_takes_the_place_of_one_that_is_over_is_not_taken_away_with_it(
    bench: Bench,
) -> None:
    begin(bench)
    old = bench.task("a")
    end(bench)
    begin(bench, names=["a"], round=2)
    new = bench.logic.rounds[KEY._replace(round=2)].spec.task("a", len(BLOB), 0).encode()
    connect(bench)
    # The broker has the old one back from its disk; the device may be at work on the new one.
    bench.arrives(topics.task(FLEET, "a"), old.encode(), retained=True)
    published = bench.pass_time(QUIET_SECONDS)
    tasks = [one.payload for one in published if one.topic == topics.task(FLEET, "a")]
    assert tasks == [new]


def test_tasks_of_another_gateway_in_the_same_round_are_left_alone(bench: Bench) -> None:
    bench.announce("d")
    begin(bench)
    task = bench.task("a")
    end(bench)
    connect(bench)
    bench.arrives(topics.task(FLEET, "d"), task.encode(), retained=True)
    assert bench.pass_time(QUIET_SECONDS) == []


def test_weights_that_another_gateway_took_away_are_put_back(bench: Bench) -> None:
    begin(bench)
    assert bench.arrives(FIRST_CHUNK, CHUNKS[FIRST_CHUNK]) == [], "another published them, too"
    assert chunk_payloads(bench.arrives(FIRST_CHUNK, b"")) == CHUNKS
    end(bench)
    assert bench.arrives(FIRST_CHUNK, b"") == []
    # Two that took turns in taking away and putting back would never end.
    assert bench.arrives(FIRST_CHUNK, CHUNKS[FIRST_CHUNK]) == []


def test_a_delta_that_a_device_retains_is_counted_and_taken_away(bench: Bench) -> None:
    begin(bench)
    (delta,) = delta_chunks(a_task(uplink_chunk_bytes=16384), *delta_of("a"))
    topic = topics.delta(FLEET, GATEWAY, "a")
    published = bench.chunk("a", delta, retained=True)
    assert Publish(topic, b"", retain=True) in published
    assert bench.receipt_in(published, "a")
    assert bench.arrives(topic, b"", retained=True) == [], "its being emptied says nothing"
    assert bench.refused() == {}


def test_tasks_of_a_large_round_do_not_hold_up_the_gateway(bench: Bench) -> None:
    names = [f"cow-{number}" for number in range(1000)]
    bench.announce(*names)
    bench.core.work([])
    before = len(bench.link.published)
    ask(bench.core, "start", **start_fields(names))
    assert len(since(bench, before)) < 100
    bench.run()
    assert len(since(bench, before)) == 1000 + BLOB_CHUNKS
    ask(bench.core, "cancel", campaign=CAMPAIGN, round=1)
    ask(bench.core, "start", **start_fields(names, round=2))
    ask(bench.core, "cancel", campaign=CAMPAIGN, round=2)
    bench.run()
    last = {one.topic: one.payload for one in since(bench, before) if "/task" in one.topic}
    assert set(last.values()) == {b""}, "tasks that wait are not published after their round"


def test_weights_of_two_versions_do_not_meet(bench: Bench) -> None:
    other = b"x" * 600
    sha = hashlib.sha256(other).hexdigest()
    begin(bench, names=["a"])
    start = begin(
        bench,
        round=2,
        blobs=[{"sha256": sha, "data": other}],
        tasks=[tasks({"b": 1}, plan=bench.round.spec.tasks["a"].plan.hex(), weights=sha)],
        target=1,
    )
    raw = bytes.fromhex(sha)
    wanted = {topics.blob(FLEET, raw, n): payload for n, payload in chunks_of(other, 512)}
    assert chunk_payloads(start) == wanted
    assert chunk_payloads(end(bench)) == dict.fromkeys(CHUNKS, b"")
    assert chunk_payloads(end(bench, 2)) == dict.fromkeys(wanted, b"")


def test_what_another_gateway_has_published_is_not_published_again(bench: Bench) -> None:
    connect(bench)
    bench.arrives(FIRST_CHUNK, CHUNKS[FIRST_CHUNK], retained=False)
    assert chunk_payloads(begin(bench, names=["a"])) == {}
    assert chunk_payloads(end(bench)) == {}, "it is the other's to take away"


def test_what_another_gateway_takes_away_is_put_back_and_this_ones_from_then_on(
    bench: Bench,
) -> None:
    connect(bench)
    bench.arrives(FIRST_CHUNK, CHUNKS[FIRST_CHUNK], retained=False)
    begin(bench, names=["a"])
    before = len(bench.link.published)
    bench.arrives(FIRST_CHUNK, b"", retained=False)
    assert chunk_payloads(since(bench, before)) == CHUNKS
    assert chunk_payloads(end(bench)) == dict.fromkeys(CHUNKS, b"")


@pytest.mark.parametrize("changed", ["emptied", "cut", "connection"])
def test_what_may_not_be_there_any_more_is_published(bench: Bench, changed: str) -> None:
    connect(bench)
    payload = CHUNKS[FIRST_CHUNK]
    bench.arrives(FIRST_CHUNK, payload[:-1] if changed == "cut" else payload, retained=False)
    if changed == "emptied":
        bench.arrives(FIRST_CHUNK, b"", retained=False)
    if changed == "connection":
        connect(bench)
    assert chunk_payloads(begin(bench, names=["a"])) == CHUNKS


def test_chunk_0_is_published_last(bench: Bench) -> None:
    published = [one.topic for one in begin(bench, names=["a"]) if "/blob/" in one.topic]
    assert published[-1] == FIRST_CHUNK
    assert sorted(published) == sorted(CHUNKS)
