"""A delta is kept and sent until somebody has it on disk."""

import ctypes
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fleet.protocol import Delta, DeviceState, Reason, Receipt, ReceiptResult, Status

from ..host_device import WIDE, Publication, World, counted
from ..tiny_round import Weights, clustered_data, expected_values, task_for, train, values_of
from .rounds import ALL, BIASES, DATA, FACTORY, finish_round, has_whole_delta, make_world, online

WIDE_DATA = clustered_data(inputs=WIDE.inputs)


def silent(world: World) -> World:
    """No receipt comes of its own accord."""
    world.receipt = lambda _: None
    return world


def delta_times(world: World, seconds: float) -> list[float]:
    """When the last chunk of a delta came, from now on, within so many seconds."""
    start, seen = world.now, len(world.broker.published)
    times = []
    while world.now < start + seconds * 1000:
        if not world.step(1):
            world.now += 20
        news = world.broker.published[seen:]
        seen += len(news)
        times += [(world.now - start) / 1000 for one in news if one.topic.endswith("/delta")]
    return times


def waits(times: list[float]) -> list[int]:
    return [round(later - sooner) for sooner, later in pairwise(times)]


def run_alone(world: World, polls: int) -> None:
    """Nothing is taken from the line meanwhile: it is full in the middle of a large delta."""
    for _ in range(polls):
        world.device.run(world.now)


def expected_wide() -> np.ndarray:
    before = Weights.parse(WIDE.factory)
    return expected_values(before, train(before, WIDE_DATA, 7, 2, False), False)


def test_a_delta_is_one_message_where_the_chunk_is_large_enough(wide_world: World) -> None:
    online(wide_world).give(task_for(ALL, WIDE.factory))
    (delta,) = finish_round(wide_world)
    assert len(delta.coded) > 4096, "more than any buffer of the device holds"
    np.testing.assert_array_equal(values_of([delta], 10_244), expected_wide())


@pytest.mark.parametrize("chunk_bytes", [64, 100, 1000, 5000])
def test_a_delta_comes_in_chunks_of_the_size_that_the_task_says(
    wide_world: World, chunk_bytes: int
) -> None:
    online(wide_world).give(task_for(ALL, WIDE.factory, uplink_chunk_bytes=chunk_bytes))
    deltas = finish_round(wide_world)
    assert {len(delta.coded) for delta in deltas[:-1]} == {chunk_bytes}
    assert [delta.chunk for delta in deltas] == list(range(deltas[0].chunks))
    np.testing.assert_array_equal(values_of(deltas, 10_244), expected_wide())


@pytest.mark.parametrize("cut_at", [1, 3])
def test_a_delta_that_the_connection_cut_off_comes_whole_over_the_next(
    wide_world: World, cut_at: int
) -> None:
    world = wide_world
    cuts = [cut_at]

    def cut(publication: Publication) -> int | None:
        is_due = publication.topic.endswith("/delta") and [len(world.of(Delta))] == cuts
        if is_due:
            cuts.clear()
            world.link_is_up = False
        return None if is_due else 0

    world.broker.answer = cut
    online(world).give(task_for(ALL, WIDE.factory, uplink_chunk_bytes=2000))
    world.run_until(lambda: not cuts)
    world.run_for(1)
    before = world.of(Delta)
    assert len(before) == cut_at
    world.link_is_up = True
    deltas = finish_round(world)[cut_at:]
    assert [delta.chunk for delta in deltas] == list(range(deltas[0].chunks))
    assert deltas[:cut_at] == before
    np.testing.assert_array_equal(values_of(deltas, 10_244), expected_wide())


def test_a_half_written_message_is_sent_again_from_its_start(wide_world: World) -> None:
    world = online(wide_world)
    world.give(task_for(ALL, WIDE.factory))
    world.run_until(lambda: world.device.state == DeviceState.SENDING)
    run_alone(world, 3)
    assert len(world.device.take()) > 1000  # and these are lost with the connection
    world.link_is_up = False
    world.run_for(1)
    assert not world.of(Delta)
    world.link_is_up = True
    (delta,) = finish_round(world)
    np.testing.assert_array_equal(values_of([delta], 10_244), expected_wide())


def test_a_delta_without_a_receipt_is_sent_again_ever_more_rarely(world: World) -> None:
    online(silent(world)).give(task_for(ALL, FACTORY, deadline_seconds=3600))
    times = delta_times(world, 1000)
    assert waits(times) == [30, 60, 120, 240, 240, 240]
    assert len(set(map(str, world.of(Delta)))) == 1
    assert world.states()[-1] == (DeviceState.SENDING, Reason.NONE)


def test_a_delta_without_a_receipt_is_sent_over_each_new_connection(world: World) -> None:
    online(silent(world)).give(task_for(ALL, FACTORY))
    world.run_until(lambda: has_whole_delta(world))
    for count in (2, 3):
        world.run_for(5)
        assert len(world.of(Delta)) == count - 1
        world.link_is_up = False
        world.run_for(1)
        world.link_is_up = True
        world.run_until(lambda count=count: len(world.of(Delta)) == count)
    world.hand_over(counted(world.of(Delta)[-1]))
    world.run_until(lambda: world.device.state == DeviceState.IDLE)
    assert len(set(map(str, world.of(Delta)))) == 1


def test_a_receipt_ends_the_round_and_the_delta_is_not_sent_again(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY))
    finish_round(world)
    world.run_for(400)
    world.link_is_up = False
    world.run_for(1)
    world.link_is_up = True
    world.run_for(60)
    assert world.broker.connects == 2
    assert len(world.of(Delta)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"round": 2},
        {"campaign": b"other!!!"},
    ],
)
def test_a_receipt_of_another_round_ends_nothing(world: World, change: dict) -> None:
    online(silent(world)).give(task_for(ALL, FACTORY))
    world.run_until(lambda: has_whole_delta(world))
    receipt = counted(world.of(Delta)[0])
    world.hand_over(replace(receipt, **change))
    world.run_for(5)
    assert world.device.state == DeviceState.SENDING
    world.hand_over(receipt)
    world.run_until(lambda: world.device.state == DeviceState.IDLE)


@pytest.mark.parametrize("payload", [b"", b"\x86\x02", b"\xff" * 40, b"\x86" + b"\x01" * 30])
def test_a_malformed_receipt_ends_nothing(world: World, payload: bytes) -> None:
    online(silent(world)).give(task_for(ALL, FACTORY))
    world.run_until(lambda: has_whole_delta(world))
    world.hand_over(payload)
    world.run_for(5)
    assert world.device.state == DeviceState.SENDING
    assert world.broker.connects == 1


def test_a_receipt_that_comes_twice_is_taken_once(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY))
    (first,) = finish_round(world)
    world.forget_published()
    world.give(task_for(BIASES, FACTORY, round=2, epochs=200))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.hand_over(counted(first))
    world.run_for(0.05)
    assert world.device.state == DeviceState.TRAINING
    assert finish_round(world)[-1].round == 2


def test_a_receipt_with_another_crc_counts_after_a_reset(world: World) -> None:
    """The gateway answers the second delta of a round with the receipt of the first."""
    online(silent(world)).give(task_for(ALL, FACTORY))
    world.run_until(lambda: has_whole_delta(world))
    (first,) = world.of(Delta)
    world.boot()
    world.run_until(lambda: len(world.of(Delta)) == 2)
    world.hand_over(replace(counted(first), coded_crc32=first.coded_crc32 ^ 1))
    world.run_until(lambda: world.device.state == DeviceState.IDLE)
    world.run_for(300)
    assert len(world.of(Delta)) == 2


def test_a_receipt_that_comes_after_a_reset_spares_the_training(world: World) -> None:
    online(silent(world)).give(task_for(ALL, FACTORY, epochs=200))
    world.run_until(lambda: has_whole_delta(world))
    (first,) = world.of(Delta)
    world.boot()
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.hand_over(counted(first))
    world.run_until(lambda: world.device.state == DeviceState.IDLE, seconds=1)
    world.run_for(100)
    assert len(world.of(Delta)) == 1


@pytest.mark.parametrize(
    ("result", "state", "reason"),
    [
        (ReceiptResult.REFUSED, DeviceState.FAILED, Reason.REFUSED_BY_GATEWAY),
        (ReceiptResult.LATE, DeviceState.DECLINED, Reason.DEADLINE_PASSED),
        (77, DeviceState.FAILED, Reason.REFUSED_BY_GATEWAY),
    ],
)
def test_a_delta_that_will_never_count_is_dropped_with_its_reason(
    world: World, result: int, state: DeviceState, reason: Reason
) -> None:
    def refuse(delta: Delta) -> Receipt:
        return replace(counted(delta), result=result)

    world.receipt = refuse
    online(world).give(task_for(ALL, FACTORY))
    world.run_until(lambda: world.states()[-1] == (state, reason))
    world.run_for(300)
    assert len(world.of(Delta)) == 1


def test_a_delta_without_a_receipt_is_dropped_at_the_deadline(world: World) -> None:
    online(silent(world)).give(task_for(ALL, FACTORY, deadline_seconds=100))
    world.run_until(lambda: world.states()[-1][0] == DeviceState.DECLINED, seconds=110)
    assert world.states()[-1][1] == Reason.DEADLINE_PASSED
    sent = len(world.of(Delta))
    world.run_for(300)
    assert len(world.of(Delta)) == sent


@pytest.mark.parametrize("payload", [b"", task_for(BIASES, FACTORY, round=2).encode()])
def test_a_delta_without_a_receipt_is_dropped_for_a_newer_task(
    world: World, payload: bytes
) -> None:
    online(silent(world)).give(task_for(ALL, FACTORY))
    world.run_until(lambda: has_whole_delta(world))
    world.give(payload)
    world.run_for(200)
    assert len([delta for delta in world.of(Delta) if delta.round == 1]) == 1


def test_a_newer_task_waits_for_the_rest_of_a_message_that_is_half_written(
    wide_library: ctypes.CDLL,
) -> None:
    world = online(make_world(wide_library, WIDE_DATA, WIDE))
    world.give(task_for(ALL, WIDE.factory))
    world.run_until(lambda: world.device.state == DeviceState.SENDING)
    run_alone(world, 3)
    world.give(task_for(BIASES, WIDE.factory, round=2))
    data = world.broker.take()
    assert world.device.receive(data) == len(data)
    run_alone(world, 50)
    world.run_until(lambda: len(world.of(Delta)) == 2)
    deltas = world.of(Delta)
    assert [delta.round for delta in deltas] == [1, 2]
    assert zlib.crc32(deltas[0].coded) == deltas[0].coded_crc32
    np.testing.assert_array_equal(values_of(deltas[:1], 10_244), expected_wide())


def answers(world: World, *reasons: int) -> Callable[[Publication], int]:
    left = list(reasons)

    def answer(publication: Publication) -> int:
        return left.pop(0) if left and publication.topic.endswith("/delta") else 0

    world.broker.answer = answer
    return answer


def test_a_delta_that_nobody_takes_is_sent_again_sooner(world: World) -> None:
    answers(world, 0x10, 0x10, 0x10)
    online(silent(world)).give(task_for(ALL, FACTORY))
    times = delta_times(world, 60)
    assert waits(times) == [5, 10, 20]
    world.hand_over(counted(world.of(Delta)[-1]))
    world.run_until(lambda: world.device.state == DeviceState.IDLE)


def test_a_delta_that_the_broker_forbids_fails_the_round(world: World) -> None:
    world.broker.answer = lambda publication: 0x87 if "/delta" in publication.topic else 0
    online(world).give(task_for(ALL, FACTORY))
    world.run_until(lambda: world.states()[-1][0] == DeviceState.FAILED)


def test_training_goes_on_without_a_link_and_the_delta_follows(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, epochs=20))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.link_is_up = False
    world.run_until(lambda: world.device.state == DeviceState.SENDING)
    world.run_for(3)
    assert not world.of(Delta)
    world.link_is_up = True
    deltas = finish_round(world)
    assert deltas[0].train_steps == 20 * deltas[0].train_samples


def test_a_finished_round_is_not_worked_on_again_after_a_reconnection(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY))
    finish_round(world)
    world.forget_published()
    world.link_is_up = False
    world.run_for(1)
    world.link_is_up = True
    world.run_until(lambda: bool(world.of(Status)))
    world.run_for(5)
    assert world.broker.connects == 2
    assert not world.of(Delta)
    assert len(world.of(Status)) == 1


def test_a_reset_device_does_the_round_again(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY))
    first = finish_round(world)
    world.forget_published()
    world.boot()
    assert finish_round(world) == first


def test_a_task_that_scores_sends_an_empty_delta(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, action=0))
    (delta,) = finish_round(world)
    correct = DATA.part(held_out=True).correct(Weights.parse(FACTORY))
    assert (delta.train_samples, delta.train_steps) == (0, 0)
    assert (delta.coded, delta.coded_bytes, delta.coded_crc32, delta.chunks) == (b"", 0, 0, 1)
    assert (delta.correct_before, delta.correct_after) == (correct, correct)
    assert delta.held_out_samples == len(DATA.part(held_out=True).labels)
