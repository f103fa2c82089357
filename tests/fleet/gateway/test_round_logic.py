"""The state machine alone: no broker, no disk but SQLite's, time from the test.

The rule that everything rests on: whatever the order, however often chunks come, and
wherever the process dies, the sums are those of the devices' deltas, each once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, get_args

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.errors import GatewayError
from fleet.gateway import actions as act
from fleet.gateway.actions import Action, StoreAction
from fleet.gateway.round_logic import KEPT_ROUNDS, PROBE_SECONDS, RoundLogic
from fleet.gateway.rounds import RoundKey, RoundSpec, RoundState, StartRequest
from fleet.gateway.store import RoundStore
from fleet.protocol import Announce, Delta, DeviceState, Reason, Status, Task, topics
from tests.conftest import examples
from tests.fleet.gateway.site import (
    BLOB,
    CAMPAIGN,
    FLEET,
    GATEWAY,
    OTHER_PLAN,
    PLAN,
    WEIGHTS,
    delta_chunks,
)

KEY = RoundKey(bytes.fromhex(CAMPAIGN), 1)
STORE_ACTIONS = get_args(StoreAction)


@dataclass
class Bench:
    """Logic and store as the daemon joins them, without threads and broker."""

    path: Path
    now: float = 1000.0
    others: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        self.store = RoundStore(self.path)
        self.logic = RoundLogic(FLEET, GATEWAY, lambda device: device != "foreign")
        devices, statuses = self.store.devices()
        self.logic.restore(devices, statuses, self.store.rounds(), self.store.blobs())

    def crash(self) -> None:
        """All that isn't in the store is gone."""
        self.store.close()
        self.open()

    def do(self, actions: list[Action]) -> list[Action]:
        others = []
        with self.store.transaction():
            todo = list(actions)
            while todo:
                action = todo.pop(0)
                if not isinstance(action, STORE_ACTIONS):
                    others.append(action)
                    continue
                coded = self.store.apply(action)
                if isinstance(action, act.Assemble):
                    assert coded is not None
                    todo[:0] = self.logic.assembled(action.key, action.device, coded, self.now)
        return others

    def announce(self, *devices: str) -> None:
        for device in devices:
            message = Announce(device, "b", bytes(32), bytes(32), 1, 1, 1, 400, 1)
            self.do(self.logic.announce(device, message.encode(), self.now, None))

    def start(self, **changes: Any) -> list[Action]:
        return self.do(self.logic.start(StartRequest.parse(request(**changes)), self.now))

    def chunk(self, device: str, delta: Delta) -> list[Action]:
        return self.do(self.logic.chunk(device, delta.encode(), self.now, "token"))

    def status(self, device: str, state: DeviceState, reason: Reason = Reason.NONE) -> None:
        message = Status(device, state, reason, *KEY, 50)
        self.do(self.logic.status(device, message.encode(), self.now, None))

    def sum(self, plan: str = PLAN) -> NDArray[np.int64]:
        return np.frombuffer(self.store.sums(KEY)[plan]["values"], "<i8")


def request(**changes: Any) -> dict[str, Any]:
    names = changes.pop("names", ["a", "b", "c"])
    return {
        "campaign": CAMPAIGN,
        "round": 1,
        "blobs": [{"sha256": WEIGHTS, "data": BLOB, "chunk_bytes": 512}],
        "tasks": {name: {"plan": PLAN, "weights": WEIGHTS} for name in names},
        "plans": {PLAN: {"values": 700}},
        "epochs": 1,
        "learning_rate": 0.5,
        "seed": 1,
        "deadline_seconds": 100,
        "max_score_drop_permille": 50,
        "check_in_seconds": 1,
        "target": len(names),
        **changes,
    }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "store.sqlite")
    made.announce("a", "b", "c")
    return made


def delta_of(device: str, values: int = 700) -> tuple[NDArray[np.int32], int]:
    random = np.random.default_rng(sum(device.encode()))
    return random.integers(-(2**31), 2**31, values).astype(np.int32), ord(device[0]) * 3


def a_task(plan: str = PLAN) -> Task:
    return Task(*KEY, bytes.fromhex(plan), bytes.fromhex(WEIGHTS), 1, 512, 1, 1, 1, 1, 1, 1)


def of(kind: type, actions: list[Action]) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


SHARED: dict[str, list[Delta]] = {
    name: delta_chunks(a_task(), *delta_of(name)) for name in ("a", "b", "c")
}


ALL_CHUNKS = -1


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Every chunk at least once, in any order, many of them several times, crashes between."""
    every = [(name, i) for name, chunks in SHARED.items() for i in range(len(chunks))]
    whole = [(name, ALL_CHUNKS) for name in SHARED]
    again = draw(st.lists(st.sampled_from([*every, *whole, *whole, ("crash", 0)]), max_size=20))
    return draw(st.permutations([*every, *again]))


@given(arrivals())
@examples(30)
def test_any_order_repetition_and_crash_give_the_same_sums(
    tmp_path_factory: pytest.TempPathFactory, order: list[tuple[str, int]]
) -> None:
    bench = Bench(tmp_path_factory.mktemp("logic") / "store.sqlite")
    bench.announce("a", "b", "c")
    bench.start()
    for name, chunk in order:
        if name == "crash":
            bench.crash()
        elif chunk == ALL_CHUNKS:
            for delta in SHARED[name]:
                bench.chunk(name, delta)
        else:
            bench.chunk(name, SHARED[name][chunk])
    assert bench.logic.state(KEY) is RoundState.CLOSED
    expected = sum(values.astype(np.int64) * samples for values, samples in map(delta_of, "abc"))
    assert np.array_equal(bench.sum(), expected)
    total = bench.store.sums(KEY)[PLAN]
    assert total["weight"] == sum(delta_of(name)[1] for name in "abc")
    assert total["devices"] == 3
    bench.store.close()


def test_a_delta_from_a_device_without_a_task_is_not_counted_in(bench: Bench) -> None:
    bench.start(names=["a", "b"])
    for delta in SHARED["c"]:
        bench.chunk("c", delta)
    assert bench.store.counters(KEY) == {"not-in-cohort": 1}
    assert not bench.sum().any()


def test_sums_are_kept_apart_by_plan(bench: Bench) -> None:
    tasks = {
        "a": {"plan": PLAN, "weights": WEIGHTS},
        "b": {"plan": OTHER_PLAN, "weights": WEIGHTS},
        "c": {"plan": OTHER_PLAN, "weights": WEIGHTS},
    }
    bench.start(tasks=tasks, plans={PLAN: {"values": 700}, OTHER_PLAN: {"values": 40}})
    small = np.arange(40, dtype=np.int32)
    for delta in SHARED["a"]:
        bench.chunk("a", delta)
    for delta in delta_chunks(a_task(OTHER_PLAN), small, 2):
        bench.chunk("b", delta)
    for delta in delta_chunks(a_task(OTHER_PLAN), -small * 3, 5):
        bench.chunk("c", delta)
    values, samples = delta_of("a")
    assert np.array_equal(bench.sum(), values.astype(np.int64) * samples)
    assert np.array_equal(bench.sum(OTHER_PLAN), small * 2 - small * 15)


def test_the_acknowledgement_comes_with_what_has_to_be_stored_before_it(bench: Bench) -> None:
    bench.start()
    for delta in SHARED["a"]:
        actions = bench.logic.chunk("a", delta.encode(), bench.now, "token")
        assert isinstance(actions[-1], act.Acknowledge)
        assert of(act.SaveChunk, actions)
        bench.do(actions)


def test_a_delta_that_only_scores_has_no_say_in_the_sum(bench: Bench) -> None:
    bench.start(epochs=0)
    for device in "abc":
        [delta] = delta_chunks(a_task(), np.empty(0, np.int32), 0)
        bench.chunk(device, delta)
    assert bench.logic.state(KEY) is RoundState.CLOSED
    assert not bench.sum().any()
    assert bench.store.sums(KEY)[PLAN]["weight"] == 0
    assert [row[0] for row in bench.store.reports(KEY)] == ["a", "b", "c"]


def test_values_without_samples_and_samples_without_values_are_refused(bench: Bench) -> None:
    bench.start()
    for delta in delta_chunks(a_task(), delta_of("a")[0], 0):
        bench.chunk("a", delta)
    [empty] = delta_chunks(a_task(), np.empty(0, np.int32), 5)
    bench.chunk("b", empty)
    assert bench.store.counters(KEY) == {"coding": 2}


def test_a_device_that_starts_over_with_other_samples_is_accepted_with_the_new_delta(
    bench: Bench,
) -> None:
    bench.start()
    bench.chunk("a", SHARED["a"][0])
    bench.chunk("a", SHARED["a"][1])
    values, samples = delta_of("b")
    for delta in delta_chunks(a_task(), values, samples):
        bench.chunk("a", delta)
    assert bench.store.counters(KEY) == {"inconsistent-chunks": 1}
    assert np.array_equal(bench.sum(), values.astype(np.int64) * samples)


def test_a_device_cannot_make_the_store_keep_more_than_its_plan_can_take(bench: Bench) -> None:
    bench.start()
    huge = changed(SHARED["a"][0], coded_bytes=512 * 60_000, chunks=60_000)
    last = changed(huge, chunk=59_999)
    assert not of(act.SaveChunk, bench.logic.chunk("a", huge.encode(), bench.now, None))
    bench.chunk("a", last)
    assert bench.store.counters(KEY) == {"coding": 1}


def test_a_value_beyond_its_bound_is_refused_and_explained_even_after_a_crash(
    bench: Bench,
) -> None:
    bench.start(plans={PLAN: {"values": 5, "bounds": [[2, 7], [3, 1000]]}})
    bench.crash()
    for bad in ([8, 0, 0, 0, 0], [0, -8, 0, 0, 0], [7, 7, 0, 0, 1001], [0, 0, -(2**31), 0, 0]):
        for delta in delta_chunks(a_task(), np.array(bad, np.int32), 5):
            bench.chunk("a", delta)
    assert bench.store.counters(KEY) == {"range": 4}
    details = [one["detail"] for one in bench.store.explanations(KEY)]
    assert any("value 4 is 1001, beyond ±1000 (1 of 5 values" in detail for detail in details)
    assert not bench.sum().any()
    # The ends of the range pass, and a device whose delta was refused may send a better one.
    ends = np.array([7, -7, 1000, -1000, 0], np.int32)
    for delta in delta_chunks(a_task(), ends, 5):
        bench.chunk("a", delta)
    assert np.array_equal(bench.sum(), ends.astype(np.int64) * 5)


def test_more_samples_than_announced_are_refused_and_so_are_those_announced_on_the_way(
    bench: Bench,
) -> None:
    task = {"plan": PLAN, "weights": WEIGHTS}
    values = np.ones(5, np.int32)
    bench.start(tasks={"a": task, "b": {**task, "train_samples": 500}}, plans={PLAN: {"values": 5}})
    bench.crash()
    [claim] = delta_chunks(a_task(), values, 401)
    bench.chunk("a", claim)
    assert bench.store.counters(KEY) == {"range": 1}
    assert "claims 401" in bench.store.explanations(KEY)[0]["detail"]
    boast = Announce("b", "b", bytes(32), bytes(32), 1, 1, 1, 65535, 1)
    bench.do(bench.logic.announce("b", boast.encode(), bench.now, None))
    for samples in (65535, 501):
        [claim] = delta_chunks(a_task(), values, samples)
        bench.chunk("b", claim)
    assert bench.store.counters(KEY) == {"range": 3}
    for device, samples in (("a", 400), ("b", 500)):
        [claim] = delta_chunks(a_task(), values, samples)
        bench.chunk(device, claim)
    assert bench.store.sums(KEY)[PLAN]["weight"] == 900


def test_bounds_survive_the_store_and_rounds_of_older_versions_can_be_read() -> None:
    plans = {PLAN: {"values": 5, "bounds": [[2, 7], [3, 1000]]}}
    tasks = {"a": {"plan": PLAN, "weights": WEIGHTS, "train_samples": 9}}
    bounded = RoundSpec.from_request(StartRequest.parse(request(plans=plans, tasks=tasks)), {})
    assert RoundSpec.decode(bounded.encode()) == bounded
    assert bounded.bounds == {bytes.fromhex(PLAN): ((2, 7), (3, 1000))}
    assert bounded.most_samples == {"a": 9}
    plain = RoundSpec.from_request(StartRequest.parse(request()), {})
    assert len(cbor2.loads(plain.encode())) == 12, "as before there were bounds"
    assert RoundSpec.decode(plain.encode()) == plain


@pytest.mark.parametrize("bounds", [[[4, 7]], [[2, 7], [4, 7]], [], [[5]], [[5, -1]], 7])
def test_bounds_that_do_not_cover_the_values_are_refused(bounds: Any) -> None:
    with pytest.raises(GatewayError, match="bounds"):
        StartRequest.parse(request(plans={PLAN: {"values": 5, "bounds": bounds}}))


def test_chunks_of_unfinished_deltas_are_gone_when_the_round_ends(bench: Bench) -> None:
    bench.start()
    bench.chunk("a", SHARED["a"][0])
    bench.now += 101
    bench.do(bench.logic.tick(bench.now))
    assert bench.logic.state(KEY) is RoundState.CLOSED
    assert bench.store._db.execute("SELECT count(*) FROM chunks").fetchone() == (0,)
    for delta in SHARED["a"]:
        bench.chunk("a", delta)
    assert bench.store.counters(KEY) == {"late": 1}


def test_a_delta_that_comes_after_the_deadline_is_late_even_before_a_tick(bench: Bench) -> None:
    bench.start()
    bench.now += 100
    for delta in SHARED["a"]:
        bench.chunk("a", delta)
    assert bench.store.counters(KEY) == {"late": 1}
    assert not bench.sum().any()


def test_a_device_that_declined_and_was_reset_may_still_deliver(bench: Bench) -> None:
    bench.start()
    bench.status("a", DeviceState.DECLINED, Reason.NOT_ENOUGH_SRAM)
    bench.status("b", DeviceState.FAILED, Reason.FLASH_FAILURE)
    bench.crash()
    assert bench.logic.rounds[KEY].declined == {"a": 2, "b": 8}
    bench.status("a", DeviceState.TRAINING)
    assert bench.logic.rounds[KEY].declined == {"b": 8}
    for delta in SHARED["a"]:
        bench.chunk("a", delta)
    bench.crash()
    assert bench.logic.rounds[KEY].declined == {"b": 8}
    assert bench.logic.rounds[KEY].accepted == {"a"}


def test_weights_are_published_once_per_version(bench: Bench) -> None:
    assert len(of(act.PublishChunks, bench.start(target=1))) == 1
    bench.do(bench.logic.cancel(KEY, bench.now))
    assert not of(act.PublishChunks, bench.start(round=2, blobs=[]))
    bench.crash()
    bench.do(bench.logic.cancel(RoundKey(KEY.campaign, 2), bench.now))
    assert not of(act.PublishChunks, bench.start(round=3, blobs=[]))
    bench.do(bench.logic.cancel(RoundKey(KEY.campaign, 3), bench.now))
    bench.now += 3600  # retention at the broker has ended
    assert len(of(act.PublishChunks, bench.start(round=4, blobs=[]))) == 1


def test_after_a_connection_only_what_the_broker_lacks_is_published(bench: Bench) -> None:
    bench.start()
    bench.now += 30
    [subscribe] = of(act.Subscribe, bench.do(bench.logic.connected(bench.now)))
    assert topics.any_delta(FLEET, GATEWAY) in subscribe.filters
    bench.do(bench.logic.task_seen("a", bench.logic.rounds[KEY].spec.task("a", 70).encode(), None))
    old = changed(bench.logic.rounds[KEY].spec.task("b", 70), round=0)
    bench.do(bench.logic.task_seen("b", old.encode(), None))
    for chunk in range(11):
        if chunk != 4:
            bench.do(bench.logic.chunk_seen(bytes.fromhex(WEIGHTS), chunk, None))
    assert not bench.do(bench.logic.tick(bench.now + PROBE_SECONDS - 0.1))
    bench.now += PROBE_SECONDS
    actions = bench.do(bench.logic.tick(bench.now))
    published = of(act.Publish, actions)
    assert {p.topic for p in published} == {topics.task(FLEET, name) for name in "bc"}
    assert {p.expiry_seconds for p in published} == {68}
    assert all(
        p.response_topic == topics.delta(FLEET, GATEWAY, d)
        for p, d in zip(published, "bc", strict=True)
    )
    assert [p.chunks for p in of(act.PublishChunks, actions)] == [[4]]
    assert of(act.Unsubscribe, actions)


def test_a_task_of_a_round_that_ended_is_taken_away_after_a_crash(bench: Bench) -> None:
    bench.start()
    task = bench.logic.rounds[KEY].spec.task("a", 70)
    bench.logic.cancel(KEY, bench.now)  # the actions are lost …
    with bench.store.transaction():  # … but for the first, which is in the store
        bench.store.apply(act.SetState(KEY, RoundState.CANCELLED, bench.now))
    bench.crash()
    bench.do(bench.logic.connected(bench.now))
    bench.do(bench.logic.task_seen("a", task.encode(), None))
    actions = bench.do(bench.logic.tick(bench.now + PROBE_SECONDS))
    assert of(act.Publish, actions) == [act.Publish(topics.task(FLEET, "a"), b"", retain=True)]


def test_starting_again_changes_nothing_and_survives_a_crash(bench: Bench) -> None:
    assert of(act.Publish, bench.start())
    assert not bench.start()
    bench.crash()
    assert not bench.start()
    assert not bench.start(blobs=[])
    with pytest.raises(GatewayError, match="another content"):
        bench.start(epochs=2)


def test_devices_of_other_gateways_and_busy_ones_are_refused(bench: Bench) -> None:
    bench.announce("foreign")
    with pytest.raises(GatewayError, match="isn't one of gateway north"):
        bench.start(names=["foreign"])
    with pytest.raises(GatewayError, match="d has never announced itself"):
        bench.start(names=["d"])
    bench.start()
    with pytest.raises(GatewayError, match="device c is still in round 1"):
        bench.start(round=2, names=["c"])


def test_old_rounds_and_their_weights_are_forgotten(bench: Bench) -> None:
    for number in range(KEPT_ROUNDS + 3):
        blob = b"weights %d" % number
        sha = hashlib.sha256(blob).hexdigest()
        bench.start(
            round=number,
            blobs=[{"sha256": sha, "data": blob, "chunk_bytes": 512}],
            tasks={"a": {"plan": PLAN, "weights": sha}},
            target=1,
        )
        bench.do(bench.logic.cancel(RoundKey(KEY.campaign, number), bench.now))
    assert len(bench.logic.rounds) == KEPT_ROUNDS
    assert bench.logic.state(RoundKey(KEY.campaign, 2)) is RoundState.UNKNOWN
    assert bench.logic.state(RoundKey(KEY.campaign, 3)) is RoundState.CANCELLED
    bench.crash()
    assert len(bench.logic.rounds) == KEPT_ROUNDS
    assert len(bench.logic.blobs) == KEPT_ROUNDS
    assert bench.store._db.execute("SELECT count(*) FROM sums").fetchone() == (KEPT_ROUNDS,)


@given(st.binary(max_size=60))
def test_no_payload_whatever_upsets_the_gateway(payload: bytes) -> None:
    logic = RoundLogic(FLEET, GATEWAY, lambda device: True)
    for event in (logic.announce, logic.status, logic.chunk):
        assert event("a", payload, 1.0, "token")[-1] == act.Acknowledge("token")


def test_a_device_that_uses_the_name_of_another_is_ignored(bench: Bench) -> None:
    message = Announce("b", "board", bytes(32), bytes(32), 1, 1, 1, 1, 1)
    before = dict(bench.logic.devices)
    actions = bench.do(bench.logic.announce("a", message.encode(), bench.now, None))
    assert bench.logic.devices == before
    assert "is b, the topic says a" in of(act.Log, actions)[0].text
