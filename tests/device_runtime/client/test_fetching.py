"""Weights come a group of chunks at a time, and what is under way never exceeds the ring."""

import ctypes
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fleet.protocol import DeviceState, Reason, topics
from fleet.protocol.chunks import RECEIVE_MAXIMUM, encode_chunk

from ..host_device import FLASH_ADDRESS, RING_BYTES, SECTORS, WIDE, Publication, World
from ..tiny_round import task_for
from .rounds import (
    ALL,
    BIASES,
    FACTORY,
    decline_of,
    digest_of,
    finish_round,
    group_filter,
    make_world,
    online,
    publish_blob,
    trained,
)

BLOB = trained().blob()
"""Nine chunks of 16 bytes."""
OTHER, THIRD = trained(seed=5).blob(), trained(seed=6).blob()


WIDE_BLOB = bytes((i * 7 + i // 251) % 251 for i in range(len(WIDE.factory)))
"""Two groups of chunks of 512 bytes: 32 and 9."""


def give_wide(world: World, lacking: int | None = None) -> None:
    """A task with weights of two groups, where the broker has them but for one chunk."""
    publish_blob(world, WIDE_BLOB, chunk_bytes=512, lacking=lacking)
    online(world).give(task_for(ALL, WIDE_BLOB, chunk_bytes=512))


def is_fetched(world: World) -> bool:
    return world.device.state not in (DeviceState.IDLE, DeviceState.FETCHING)


def asked(world: World, blob: bytes = BLOB) -> list[int]:
    """The groups that were subscribed, in order."""
    prefix = group_filter(blob, 0).removesuffix("0/+")
    return [
        int(wanted.removeprefix(prefix).removesuffix("/+"))
        for kind, wanted in world.broker.requests
        if kind == "subscribe" and wanted.startswith(prefix)
    ]


def slots_of(world: World) -> NDArray[np.uint8]:
    return np.frombuffer(bytes(world.device.flash[: sum(SECTORS[:2])]), np.uint8)


def only_listens(world: World) -> bool:
    return set(world.broker.filters) <= {"fleet/f/to/dev1/+"}


def test_groups_are_asked_for_one_after_the_other(wide_world: World) -> None:
    give_wide(wide_world)
    wide_world.broker.requests.clear()
    wide_world.run_until(lambda: is_fetched(wide_world))
    first, second = group_filter(WIDE_BLOB, 0), group_filter(WIDE_BLOB, 1)
    assert wide_world.broker.requests == [
        ("subscribe", first),
        ("unsubscribe", first),
        ("subscribe", second),
        ("unsubscribe", second),
    ]


def test_what_is_under_way_at_a_time_never_exceeds_the_receive_ring(wide_world: World) -> None:
    give_wide(wide_world)
    # Each step of this world hands over whatever the broker may send by then.
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, wide_world.bytes_down - before[0])
        before[0] = wide_world.bytes_down
        return is_fetched(wide_world)

    before = [wide_world.bytes_down]
    wide_world.run_until(look)
    assert wide_world.broker.most_under_way == RECEIVE_MAXIMUM
    assert RECEIVE_MAXIMUM * 512 < most <= RING_BYTES - 400
    assert wide_world.bytes_down <= 1.12 * len(WIDE_BLOB)


def test_a_core_that_is_away_for_long_loses_nothing(wide_world: World) -> None:
    give_wide(wide_world)

    def look() -> bool:
        for _ in range(5):
            wide_world.now += 1000
            wide_world.carry()  # all that the broker may send, and the core sleeps
        return is_fetched(wide_world)

    wide_world.run_until(look, seconds=3600)
    assert wide_world.broker.connects == 1
    assert asked(wide_world, WIDE_BLOB) == [0, 1]


def test_nothing_can_come_while_flash_is_erased_or_the_engine_runs(library: ctypes.CDLL) -> None:
    world = online(make_world(library))
    checked = {"erased": 0, "engine": 0}

    def watched(done: Callable[[], bool]) -> Callable[[], bool]:
        """Looks at every step whether the ring had to take chunks meanwhile."""
        slots = slots_of(world)
        was_quiet = only_listens(world)

        def look() -> bool:
            nonlocal slots, was_quiet
            now = slots_of(world)
            if (now & ~slots).any():  # bits that were clear are set: only erasing does that
                checked["erased"] += 1
                assert was_quiet
            if world.device.state in (DeviceState.SCORING, DeviceState.TRAINING):
                checked["engine"] += 1
                assert was_quiet
            slots, was_quiet = now, only_listens(world)
            return done()

        return look

    for number, blob in enumerate((BLOB, OTHER, BLOB, THIRD), start=1):
        publish_blob(world, blob)
        world.give(task_for(ALL, blob, round=number))
        if number == 3:  # the task changes in the middle of a download
            world.run_until(
                watched(lambda blob=blob: group_filter(blob, 0) in world.broker.filters)
            )
            continue
        world.run_until(watched(lambda blob=blob: world.device.base_weights == digest_of(blob)))
        finish_round(world)
    assert checked["erased"] >= 2
    assert checked["engine"] > 50


@pytest.mark.parametrize("number", [0, 5, 8])
def test_a_damaged_chunk_is_fetched_again_at_once(world: World, number: int) -> None:
    topic = topics.blob("f", digest_of(BLOB), number)
    damaged: list[str] = []

    def damage(publication: Publication) -> Publication:
        if publication.topic != topic or damaged:
            return publication
        damaged.append(topic)
        payload = publication.payload
        return replace(publication, payload=payload[:3] + bytes([payload[3] ^ 4]) + payload[4:])

    world.broker.damage = damage
    publish_blob(world, BLOB)
    online(world).give(task_for(ALL, BLOB))
    start = world.now
    finish_round(world)
    assert damaged
    assert asked(world) == [0, 0]
    assert world.now - start < 10_000
    assert DeviceState.DECLINED not in [state for state, _ in world.states()]


def test_a_chunk_that_is_damaged_at_the_broker_is_asked_for_now_and_then_and_never_declines(
    world: World,
) -> None:
    publish_blob(world, BLOB)
    topic = topics.blob("f", digest_of(BLOB), 2)
    world.broker.retained[topic] = Publication(topic, b"x" * 20, True)
    online(world).give(task_for(ALL, BLOB, deadline_seconds=300))
    world.run_for(60)
    assert asked(world) in ([0] * 5, [0] * 6)
    assert world.device.state == DeviceState.FETCHING
    publish_blob(world, BLOB)
    finish_round(world)


@pytest.mark.parametrize(
    "payload",
    [
        encode_chunk(3, BLOB[48:60]),  # too short
        encode_chunk(3, BLOB[48:68]),  # too long
        encode_chunk(4, BLOB[48:64]),  # of another place
        BLOB[48:64],  # without a CRC
        b"",
    ],
)
def test_a_chunk_that_is_not_what_its_topic_says_is_dropped(world: World, payload: bytes) -> None:
    publish_blob(world, BLOB, lacking=3)
    topic = topics.blob("f", digest_of(BLOB), 3)
    world.broker.retained[topic] = Publication(topic, payload, True)
    online(world).give(task_for(ALL, BLOB))
    world.run_for(3)
    publish_blob(world, BLOB)
    finish_round(world)
    assert world.device.candidate_weights == digest_of(BLOB)


def test_a_missing_chunk_is_asked_for_again_after_15_seconds(world: World) -> None:
    publish_blob(world, BLOB, lacking=1)
    online(world).give(task_for(ALL, BLOB))
    world.run_for(10)
    assert asked(world) == [0]
    world.broker.retained |= {
        publication.topic: publication
        for publication in (
            Publication(topics.blob("f", digest_of(BLOB), 1), encode_chunk(1, BLOB[16:32]), True),
        )
    }
    world.run_for(7)
    assert asked(world)[:2] == [0, 0]
    finish_round(world)


def test_a_chunk_that_is_published_later_is_taken_without_asking(world: World) -> None:
    publish_blob(world, BLOB, lacking=1)
    online(world).give(task_for(ALL, BLOB))
    world.run_for(10)
    publish_blob(world, BLOB)
    finish_round(world)
    assert asked(world) == [0]


def test_after_a_reset_only_groups_that_lack_a_chunk_are_asked_for(wide_world: World) -> None:
    give_wide(wide_world, lacking=35)
    wide_world.run_for(3)
    assert asked(wide_world, WIDE_BLOB) == [0, 1]
    wide_world.boot()
    wide_world.broker.requests.clear()
    publish_blob(wide_world, WIDE_BLOB, chunk_bytes=512)
    wide_world.run_until(lambda: wide_world.device.candidate_weights == digest_of(WIDE_BLOB))
    assert asked(wide_world, WIDE_BLOB) == [1]


def test_after_a_lost_connection_the_download_goes_on_where_it_was(wide_world: World) -> None:
    give_wide(wide_world, lacking=35)
    wide_world.run_for(3)
    wide_world.link_is_up = False
    wide_world.run_for(1)
    wide_world.broker.requests.clear()
    wide_world.link_is_up = True
    publish_blob(wide_world, WIDE_BLOB, chunk_bytes=512)
    wide_world.run_until(lambda: wide_world.device.candidate_weights == digest_of(WIDE_BLOB))
    assert asked(wide_world, WIDE_BLOB) == [1]


def test_a_refused_subscription_is_tried_again(world: World) -> None:
    refusals = [group_filter(BLOB, 0)]
    world.broker.refuse = lambda wanted: wanted in refusals and bool(refusals.pop())
    publish_blob(world, BLOB)
    online(world).give(task_for(ALL, BLOB))
    finish_round(world)
    assert asked(world) == [0, 0]


def test_another_task_stops_the_download_of_the_first(world: World) -> None:
    publish_blob(world, BLOB, lacking=1)
    publish_blob(world, OTHER)
    online(world).give(task_for(ALL, BLOB))
    world.run_for(2)
    world.give(task_for(BIASES, OTHER, round=2))
    (delta,) = finish_round(world)
    assert delta.round == 2
    assert group_filter(BLOB, 0) in world.broker.unsubscribed
    assert world.device.candidate_weights == digest_of(OTHER)
    assert only_listens(world)


def test_an_empty_task_stops_the_download(world: World) -> None:
    publish_blob(world, BLOB, lacking=1)
    online(world).give(task_for(ALL, BLOB))
    world.run_for(2)
    world.give(b"")
    world.run_for(2)
    assert only_listens(world)
    assert world.device.state == DeviceState.IDLE


def test_weights_with_another_digest_are_erased_and_declined(world: World) -> None:
    wanted, other = BLOB, bytes(range(144))
    publish_blob(world, other, digest=digest_of(wanted))
    online(world).give(task_for(ALL, wanted))
    assert decline_of(world) == Reason.WEIGHTS_DIGEST_MISMATCH
    assert world.device.current_weights == digest_of(FACTORY)
    assert set(bytes(world.device.flash[: sum(SECTORS[:2])])) == {0xFF}
    assert only_listens(world)


def test_a_remainder_of_an_old_download_that_fits_nothing_is_fetched_again(world: World) -> None:
    publish_blob(world, BLOB[:64] + b"?" * 64, digest=digest_of(BLOB))
    online(world).give(task_for(ALL, BLOB))
    world.run_for(2)
    assert world.device.state == DeviceState.FETCHING
    world.boot()
    world.broker.retained.clear()
    publish_blob(world, BLOB)
    world.give(task_for(ALL, BLOB))
    finish_round(world)
    assert world.device.candidate_weights == digest_of(BLOB)


def test_smaller_chunks_than_a_word_are_no_chunks(world: World) -> None:
    assert FLASH_ADDRESS % 4 == 0
    payload = bytearray(task_for(ALL, BLOB).encode())
    where = payload.index(b"\x18\x90\x10") + 2  # weights of 144 bytes, chunks of 16
    payload[where] = 17
    online(world).give(bytes(payload))
    assert decline_of(world) == Reason.MALFORMED_TASK
