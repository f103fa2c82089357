"""Rounds and deltas: no broker, no thread, time from the test.

The rule that everything rests on: whatever the order, however often chunks come, and
wherever the process dies, the sums are those of the devices' deltas, each once, and whoever has a
receipt is in them.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.errors import GatewayError
from fleet.gateway.actions import Publish
from fleet.gateway.rounds import RoundState
from fleet.protocol import (
    Action,
    Delta,
    DeviceState,
    Reason,
    ReceiptResult,
    topics,
)
from tests.conftest import examples
from tests.fleet.gateway.bench import KEY, Bench, ask
from tests.fleet.gateway.deltas import (
    FLEET,
    GATEWAY,
    OTHER_PLAN,
    PLAN,
    UPLINK,
    WEIGHTS,
    a_task,
    delta_chunks,
    delta_of,
    start_fields,
    tasks,
)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.announce("a", "b", "c")
    yield made
    made.store.close()


SHARED: dict[str, list[Delta]] = {
    name: delta_chunks(a_task(), *delta_of(name)) for name in ("a", "b", "c")
}
ALL_CHUNKS = -1
COUNTED, REFUSED, LATE = ReceiptResult.COUNTED, ReceiptResult.REFUSED, ReceiptResult.LATE


def start(bench: Bench, **changes: Any) -> dict[str, Any]:
    return bench.start(**{"uplink_chunk_bytes": UPLINK, **changes})


def expected(*devices: str) -> NDArray[np.int64]:
    total = np.zeros(700, np.int64)
    for device in devices:
        values, samples = delta_of(device)
        total += values.astype(np.int64) * samples
    return total


# ---- what is counted ---------------------------------------------------------------------


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Every chunk at least once, in any order, many of them several times, crashes between."""
    every = [(name, i) for name, chunks in SHARED.items() for i in range(len(chunks))]
    whole = [(name, ALL_CHUNKS) for name in SHARED]
    again = draw(st.lists(st.sampled_from([*every, *whole, *whole, ("crash", 0)]), max_size=20))
    # Who has no receipt sends again.
    return [*draw(st.permutations([*every, *again])), *whole]


@given(arrivals())
@examples(30)
def test_any_order_repetition_and_crash_give_the_same_sums(
    tmp_path_factory: pytest.TempPathFactory, order: list[tuple[str, int]]
) -> None:
    bench = Bench(tmp_path_factory.mktemp("logic"))
    bench.announce("a", "b", "c")
    start(bench)
    receipts = set()
    for name, chunk in order:
        if name == "crash":
            bench.crash()
            continue
        chunks = SHARED[name] if chunk == ALL_CHUNKS else [SHARED[name][chunk]]
        receipt = bench.send(name, chunks)
        if receipt:
            assert receipt.result == COUNTED
            receipts.add((name, receipt.coded_crc32))
    assert receipts == {(name, chunks[0].coded_crc32) for name, chunks in SHARED.items()}
    assert bench.logic.state(KEY) is RoundState.CLOSED
    assert np.array_equal(bench.sum(), expected("a", "b", "c"))
    (total,) = bench.collect()["sums"][PLAN]
    assert total["weight"] == sum(delta_of(name)[1] for name in "abc")
    assert total["devices"] == 3
    bench.store.close()


def test_sums_are_kept_apart_by_plan(bench: Bench) -> None:
    both = [tasks({"a": 1}), tasks({"b": 1, "c": 1}, plan=OTHER_PLAN)]
    start(bench, tasks=both, plans={PLAN: {"values": 700}, OTHER_PLAN: {"values": 40}})
    small = np.arange(40, dtype=np.int32)
    bench.send("a", SHARED["a"])
    bench.send("b", delta_chunks(a_task(OTHER_PLAN), small, 2))
    bench.send("c", delta_chunks(a_task(OTHER_PLAN), -small * 3, 5))
    assert np.array_equal(bench.sum(), expected("a"))
    assert np.array_equal(bench.sum(OTHER_PLAN), small * 2 - small * 15)


def test_with_uniform_weighting_every_device_counts_alike(bench: Bench) -> None:
    start(bench, weighting="uniform", plans={PLAN: {"values": 3}})
    for device, samples in (("a", 3), ("b", 300)):
        task = a_task(weighting=1)
        assert bench.send(device, delta_chunks(task, np.array([1, 2, 3], np.int32), samples))
    bench.send("c", delta_chunks(a_task(weighting=1), np.zeros(0, np.int32), 0))
    (part,) = bench.closed()["sums"][PLAN]
    assert np.frombuffer(part["values"], "<i8").tolist() == [2, 4, 6]
    assert (part["weight"], part["devices"]) == (2, 2)


def test_buckets_deal_devices_by_round_seed_and_name(bench: Bench) -> None:
    names = ["a", "b", "c", "d", "e"]
    bench.announce(*names)
    start(bench, names=names, fold={"name": "buckets", "count": 3}, plans={PLAN: {"values": 2}})
    bench.crash()
    wanted = np.zeros((3, 2), np.int64)
    for number, name in enumerate(names, 1):
        values = np.array([number, -number], np.int32)
        bench.send(name, delta_chunks(a_task(), values, 10 * number))
        digest = hashlib.sha256(f"tinyfleet-bucket/7/{name}".encode()).digest()
        wanted[int.from_bytes(digest[:8], "big") % 3] += values * (10 * number)
    parts = bench.closed()["sums"][PLAN]
    assert [np.frombuffer(part["values"], "<i8").tolist() for part in parts] == wanted.tolist()
    assert sum(part["devices"] for part in parts) == 5
    assert sum(part["weight"] for part in parts) == 150


def test_a_fold_that_nobody_knows_is_refused_by_name(bench: Bench) -> None:
    for fold in ({"name": "medians"}, {"name": "buckets"}, {"name": "buckets", "count": 0}):
        with pytest.raises(GatewayError, match=r"start: fold"):
            start(bench, fold=fold)


# ---- receipts ----------------------------------------------------------------------------


def test_a_receipt_says_what_was_counted_and_comes_after_it_is_on_disk(bench: Bench) -> None:
    start(bench)
    on_disk: list[int] = []

    def publish(message: Publish) -> None:
        with sqlite3.connect(bench.folder / "store.sqlite") as other:
            on_disk.append(other.execute("SELECT count(*) FROM accepted").fetchone()[0])
        published.append(message)

    published: list[Publish] = []
    bench.link.publish = publish  # type: ignore[method-assign]
    for delta in SHARED["a"]:
        bench.chunk("a", delta)
    receipt = bench.receipt_in(published, "a")
    assert receipt
    assert (receipt.campaign, receipt.round, receipt.lease) == (KEY.campaign, 1, 1)
    assert receipt.coded_crc32 == SHARED["a"][0].coded_crc32
    assert on_disk == [1]


def test_a_store_that_cannot_write_gives_no_receipt(bench: Bench) -> None:
    start(bench)
    before = len(bench.link.published)
    blocker = sqlite3.connect(bench.folder / "store.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    bench.store._db.execute("PRAGMA busy_timeout = 1")
    topic = topics.delta(FLEET, GATEWAY, "a")
    jobs = [bench.core.arrived(topic, delta.encode(), False) for delta in SHARED["a"]]
    with pytest.raises(Exception, match="can't be written"):
        bench.core.work(jobs)
    blocker.close()
    assert bench.link.published[before:] == []
    bench.crash()
    receipt = bench.send("a", SHARED["a"])
    assert receipt
    assert receipt.result == COUNTED
    assert np.array_equal(bench.sum(), expected("a"))


def test_receipts_keep_up_with_deltas_while_tasks_are_still_being_published(bench: Bench) -> None:
    names = [f"cow-{number}" for number in range(400)]
    bench.announce(*names)
    jobs = []
    ask(bench.core, "start", **start_fields(names, values=1))
    task = a_task(uplink_chunk_bytes=16384)
    for name in names[:200]:
        (delta,) = delta_chunks(task, np.ones(1, np.int32), 1)
        jobs.append(bench.core.arrived(topics.delta(FLEET, GATEWAY, name), delta.encode(), False))
    left = bench.core.unsent
    bench.core.work(jobs)
    assert bench.core.unsent <= left


def test_a_kill_between_the_write_and_the_receipt_costs_the_device_one_more_sending(
    bench: Bench,
) -> None:
    start(bench)
    *some, last = SHARED["a"]
    for delta in some:
        bench.chunk("a", delta)

    def killed(message: Publish) -> None:
        raise KeyboardInterrupt

    bench.link.publish = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        bench.chunk("a", last)
    bench.crash()
    receipt = bench.send("a", delta_chunks(a_task(), *delta_of("d")))
    assert receipt
    assert (receipt.result, receipt.coded_crc32) == (COUNTED, last.coded_crc32)
    assert np.array_equal(bench.sum(), expected("a"))


def test_a_second_delta_even_another_one_is_answered_with_the_first_receipt(bench: Bench) -> None:
    start(bench)
    first = bench.send("a", SHARED["a"])
    other = delta_chunks(a_task(), *delta_of("d"))
    assert other[0].coded_crc32 != SHARED["a"][0].coded_crc32
    for again in (SHARED["a"], other):
        assert bench.send("a", again) == first
    bench.crash()
    assert bench.send("a", other) == first
    bench.pass_time(100)
    assert bench.send("a", other) == first, "also when the round is over"
    bench.crash()
    assert bench.send("a", other) == first
    assert bench.refused() == {"duplicate": 5}
    assert np.array_equal(bench.sum(), expected("a"))


def test_a_delta_that_comes_after_the_end_is_late_even_before_a_tick(bench: Bench) -> None:
    start(bench)
    bench.clock.sleep(100)
    receipt = bench.send("a", SHARED["a"])
    assert receipt
    assert receipt.result == LATE
    assert bench.refused() == {"late": 1}
    assert not bench.sum().any()


def test_what_will_never_be_counted_is_told_so(bench: Bench) -> None:
    bench.announce("d", lease=4)
    bench.announce("e")
    start(bench, tasks=[tasks({"a": 3, "d": 4})], target=2)
    values, samples = delta_of("a")
    good = delta_chunks(a_task(lease=3), values, samples)

    def sends(device: str, **changes: Any) -> None:
        receipt = bench.send(device, [changed(one, **changes) for one in good])
        assert receipt
        assert receipt.result == REFUSED, changes
        assert receipt.coded_crc32 == good[0].coded_crc32

    sends("a", plan=b"12345678")
    sends("a", weights=b"12345678")
    sends("a", coding=1)
    sends("a", weighting=1)
    sends("a", correct_after=11)
    sends("a", train_samples=401)
    sends("a", lease=2)
    sends("a", lease=4)
    sends("a", round=9)
    sends("e")
    truncated = delta_chunks(a_task(lease=3), values, samples, coded_all=good[0].coded[:-2])
    receipt = bench.send("a", truncated)
    assert receipt
    assert receipt.result == REFUSED
    assert bench.refused() == {
        "wrong-plan": 1,
        "wrong-weights": 1,
        "coding": 3,
        "range": 2,
        "older-lease": 1,
        "wrong-lease": 1,
        "unknown-round": 1,
        "not-in-cohort": 1,
    }
    # A device whose delta was refused may send a better one.
    receipt = bench.send("a", good)
    assert receipt
    assert receipt.result == COUNTED


def test_what_may_have_been_damaged_on_the_way_gets_no_receipt(bench: Bench) -> None:
    start(bench)
    a = SHARED["a"]
    assert bench.send("a", [changed(one, coded_crc32=one.coded_crc32 ^ 1) for one in a]) is None
    assert bench.send("a", [a[0], changed(a[1], train_steps=3)]) is None
    assert bench.send("a", [changed(a[0], chunks=7)]) is None
    assert bench.arrives(topics.delta(FLEET, GATEWAY, "a"), b"\x92\x01") == []
    assert bench.refused() == {"crc": 1, "inconsistent-chunks": 2, "malformed": 1}
    receipt = bench.send("a", a)
    assert receipt
    assert receipt.result == COUNTED


def test_a_delta_in_a_round_that_only_scores_is_not_added_up(bench: Bench) -> None:
    start(bench, action="score", plans={PLAN: {"values": 2}})
    assert bench.task("a").epochs == 0
    score = a_task(action=Action.SCORE, epochs=0)
    values = np.array([1, 2], np.int32)
    receipt = bench.send("a", delta_chunks(score, values, 5))
    assert receipt
    assert receipt.result == REFUSED
    receipt = bench.send("a", delta_chunks(score, np.zeros(0, np.int32), 0))
    assert receipt
    assert receipt.result == COUNTED
    reply = bench.closed()
    assert reply["refused"] == {"range": 1}
    assert reply["accepted"] == 1
    (part,) = reply["sums"][PLAN]
    assert (part["weight"], part["devices"]) == (0, 0)


# ---- odd deltas --------------------------------------------------------------------------


def test_chunks_that_contradict_each_other_start_a_new_delta(bench: Bench) -> None:
    start(bench)
    bench.chunk("a", SHARED["a"][0])
    bench.chunk("a", SHARED["a"][1])
    bench.send("a", delta_chunks(a_task(), *delta_of("b")))
    assert bench.refused() == {"inconsistent-chunks": 1}
    assert np.array_equal(bench.sum(), expected("b"))


def test_a_device_cannot_make_the_store_keep_more_than_its_plan_can_take(bench: Bench) -> None:
    start(bench)
    huge = changed(SHARED["a"][0], coded_bytes=UPLINK * 60_000, chunks=60_000)
    bench.chunk("a", huge)
    assert bench.store._db.execute("SELECT count(*) FROM chunks").fetchone() == (0,)
    bench.chunk("a", changed(huge, chunk=59_999))
    assert bench.refused() == {"coding": 1}


def test_a_value_beyond_its_bound_is_refused_and_explained_even_after_a_crash(
    bench: Bench,
) -> None:
    start(bench, plans={PLAN: {"values": 5, "bounds": [[2, 7], [3, 1000]]}})
    bench.crash()
    for bad in ([8, 0, 0, 0, 0], [0, -8, 0, 0, 0], [7, 7, 0, 0, 1001], [0, 0, -(2**31), 0, 0]):
        bench.send("a", delta_chunks(a_task(), np.array(bad, np.int32), 5))
    assert bench.refused() == {"range": 4}
    details = [one["detail"] for one in bench.collect()["explanations"]]
    assert any("value 4 is 1001, beyond ±1000 (1 of 5 values" in detail for detail in details)
    # The ends of the range pass.
    ends = np.array([7, -7, 1000, -1000, 0], np.int32)
    bench.send("a", delta_chunks(a_task(), ends, 5))
    assert np.array_equal(bench.sum(), ends.astype(np.int64) * 5)


def test_more_samples_than_announced_are_refused_and_so_are_those_announced_on_the_way(
    bench: Bench,
) -> None:
    values = np.ones(5, np.int32)
    both = [tasks({"a": 1}), tasks({"b": 1}, samples=500)]
    start(bench, tasks=both, plans={PLAN: {"values": 5}})
    bench.crash()
    bench.send("a", delta_chunks(a_task(), values, 401))
    assert bench.refused() == {"range": 1}
    assert "claims 401" in bench.collect()["explanations"][0]["detail"]
    bench.announce("b", train_samples=65535)
    for samples in (65535, 501):
        bench.send("b", delta_chunks(a_task(), values, samples))
    assert bench.refused() == {"range": 3}
    for device, samples in (("a", 400), ("b", 500)):
        bench.send(device, delta_chunks(a_task(), values, samples))
    assert bench.closed()["sums"][PLAN][0]["weight"] == 900


def test_chunks_of_unfinished_deltas_are_gone_when_the_round_ends(bench: Bench) -> None:
    start(bench)
    bench.chunk("a", SHARED["a"][0])
    assert bench.store._db.execute("SELECT count(*) FROM chunks").fetchone() == (1,)
    bench.pass_time(101)
    assert bench.logic.state(KEY) is RoundState.CLOSED
    assert bench.store._db.execute("SELECT count(*) FROM chunks").fetchone() == (0,)


def test_a_device_that_declined_and_was_reset_may_still_deliver(bench: Bench) -> None:
    start(bench)
    bench.status("a", DeviceState.DECLINED, Reason.NOT_ENOUGH_SRAM)
    bench.status("b", DeviceState.FAILED, Reason.FLASH_FAILURE)
    bench.crash()
    assert bench.round.declined == {"a": 2, "b": 8}
    bench.status("a", DeviceState.TRAINING)
    assert bench.round.declined == {"b": 8}
    bench.send("a", SHARED["a"])
    bench.crash()
    assert bench.round.declined == {"b": 8}
    assert bench.round.accepted.keys() == {"a"}
    bench.pass_time(100)
    bench.crash()
    reply = bench.collect()
    assert (reply["accepted"], reply["declined"]) == (1, {"flash-failure": 1})


@given(st.binary(max_size=60), st.booleans())
def test_no_payload_whatever_upsets_the_gateway(
    tmp_path_factory: pytest.TempPathFactory, payload: bytes, retained: bool
) -> None:
    bench = SHARED_BENCH.setdefault("one", Bench(tmp_path_factory.getbasetemp()))
    for topic in (
        topics.announce(FLEET, "a"),
        topics.status(FLEET, "a"),
        topics.delta(FLEET, GATEWAY, "a"),
        topics.task(FLEET, "a"),
        topics.receipt(FLEET, "a"),
        topics.blob(FLEET, bytes.fromhex(WEIGHTS), 0),
        f"fleet/{FLEET}/something/else",
    ):
        bench.arrives(topic, payload, retained)
    assert bench.ask("hello")["gateway"] == GATEWAY


SHARED_BENCH: dict[str, Bench] = {}


def test_a_defect_in_dealing_with_one_message_does_not_touch_the_round(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(bench)
    monkeypatch.setattr("fleet.protocol.delta_coding.decode", lambda *_: [][0])
    assert bench.send("a", SHARED["a"]) is None
    monkeypatch.undo()
    receipt = bench.send("a", SHARED["a"])
    assert receipt
    assert receipt.result == COUNTED
    assert np.array_equal(bench.sum(), expected("a"))
