"""A device with an authority does what its task key has signed for it, and nothing else."""

import ctypes
from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from fleet.protocol import Announce, Delta, DeviceState, Reason, Status, Task, topics
from fleet.protocol.keys import SigningKey
from simulator.devices.flash_image import identity_region

from ..host_device import IDENTITY, Publication, World
from ..keyed import AUTHORITY, DEVICE_KEYS, Keys
from ..tiny_round import task_for
from .rounds import (
    ALL,
    BIASES,
    FACTORY,
    TASK_TOPIC,
    decline_of,
    digest_of,
    finish_round,
    keyed_world,
    online,
    publish_blob,
    trained,
)

KEYS = Keys()
NEXT = replace(KEYS, generation=2, task=SigningKey.generate())
ELSEWHERE = replace(KEYS, gateway="north")
TASK = task_for(ALL, FACTORY)
LONG = KEYS.sign(task_for(ALL, FACTORY, epochs=200, lease=3, round=5))


@pytest.fixture
def world(library: ctypes.CDLL) -> World:
    return online(keyed_world(library, KEYS))


def refusal_beside_work(world: World, message: bytes | Task | Publication) -> Reason:
    """What the device says of a message that comes while it trains, which goes on.

    That it declines is never said of the round that it works on.
    """
    world.give(LONG)
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.forget_published()
    if isinstance(message, Publication):
        world.broker.send(message)
    else:
        world.give(message)
    world.run_until(lambda: DeviceState.DECLINED in [state for state, _ in world.states()])
    assert world.device.state == DeviceState.TRAINING
    reason = Reason(world.states()[0][1])
    (delta,) = finish_round(world)
    assert (delta.round, delta.lease, delta.train_steps) == (5, 3, 200 * delta.train_samples)
    for status in world.of(Status):
        assert status.state != DeviceState.DECLINED or status.round != LONG.round
    return reason


def delta_topics(world: World) -> set[str]:
    return {one.topic for one in world.broker.published if one.topic.endswith("/delta")}


def announced(world: World) -> Announce:
    """What the device says of itself over a new connection."""
    world.forget_published()
    world.link_is_up = False
    world.run_for(1)
    world.link_is_up = True
    return online(world).of(Announce)[0]


def test_a_signed_task_is_done_and_one_that_is_not_says_why(world: World) -> None:
    world.give(TASK)
    world.run_until(lambda: world.states()[-1][0] == DeviceState.DECLINED)
    assert world.states()[-1] == (DeviceState.DECLINED, Reason.NOT_SIGNED)
    assert not world.of(Delta)
    world.give(KEYS.sign(TASK))
    finish_round(world)


FORGED: dict[str, Callable[[Task], Task | bytes]] = {
    "unsigned": lambda task: replace(task, signature=b""),
    "by another key": lambda task: NEXT.sign(task),
    "by the authority": lambda task: replace(KEYS, task=AUTHORITY).sign(task),
    "for another device": lambda task: replace(KEYS, name="dev2").sign(task),
    "for another fleet": lambda task: replace(KEYS, fleet="g").sign(task),
    "to answer another gateway": lambda task: ELSEWHERE.sign(task),
    "another plan": lambda task: replace(task, plan=BIASES),
    "another lease": lambda task: replace(task, lease=9),
    "a longer deadline": lambda task: replace(task, deadline_seconds=9999),
    "unmasked": lambda task: replace(KEYS.masked(task), coding=0),
    "less clip": lambda task: replace(KEYS.masked(task, clip=9), clip=0),
    "a forged keyring with its own task key": lambda task: replace(
        NEXT.sign(task), keyring=replace(NEXT, authority=NEXT.task).signed_keyring
    ),
}


@pytest.mark.parametrize("round", [5, 6], ids=["of the same round", "of another"])
@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_task_disturbs_nothing(
    world: World, forge: Callable[[Task], Task | bytes], round: int
) -> None:
    task = KEYS.sign(task_for(ALL, FACTORY, lease=4, round=round))
    assert refusal_beside_work(world, forge(task)) == Reason.NOT_SIGNED
    assert announced(world).lease == 3, "an unsigned task raises no lease"


def test_a_gateway_cannot_have_the_delta_of_anothers_task(world: World) -> None:
    """Not by telling the device the same task with its own response topic."""
    world.gateway = ELSEWHERE.gateway
    world.give(KEYS.sign(TASK))
    assert decline_of(world) == Reason.NOT_SIGNED
    world.give(ELSEWHERE.sign(TASK))
    finish_round(world)
    assert delta_topics(world) == {topics.delta("f", "north", "dev1")}


def test_the_same_work_is_answered_to_the_gateway_that_has_its_highest_lease(world: World) -> None:
    world.give(LONG)
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.gateway = ELSEWHERE.gateway
    world.give(ELSEWHERE.sign(replace(LONG, lease=4)))
    (delta,) = finish_round(world)
    assert (delta.lease, delta.train_steps) == (4, 200 * delta.train_samples)
    assert delta_topics(world) == {topics.delta("f", "north", "dev1")}


LEASE_AND_TIMES = ("lease", "deadline_seconds", "check_in_seconds")
OTHER_VALUES = {
    "round": {"round": 6},
    "chunk_bytes": {"chunk_bytes": 20},
    "personal": {"personal": 1},
    "action": {"action": 0, "epochs": 0},
}
FIELDS = [one.name for one in fields(Task) if one.name not in ("keyring", "signature")]


@pytest.mark.parametrize("name", FIELDS)
def test_only_a_task_with_another_lease_and_other_times_is_the_same_work(
    world: World, name: str
) -> None:
    task = replace(LONG, check_in_seconds=60)
    task = KEYS.masked(task, clip=900, norm_share=30, noise_variance=9)
    world.give(task)
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    value = getattr(task, name)
    if isinstance(value, bytes):
        changes = {name: value[:-1] + bytes([value[-1] ^ 1])}
    elif name in LEASE_AND_TIMES:
        changes = {name: value + 1}
    else:
        changes = OTHER_VALUES.get(name, {name: max(value, 1) - 1})
    world.give(KEYS.sign(replace(task, **changes)))
    world.run_until(lambda: world.device.state != DeviceState.TRAINING)
    assert (world.device.state == DeviceState.SENDING) == (name in LEASE_AND_TIMES)


@pytest.mark.parametrize(("lease", "round"), [(3, 4), (2, 5), (2, 900), (0, 2**32 - 1)])
def test_a_replayed_older_task_disturbs_nothing(world: World, lease: int, round: int) -> None:
    older = KEYS.sign(task_for(BIASES, FACTORY, lease=lease, round=round))
    assert refusal_beside_work(world, older) == Reason.OLDER_LEASE


@pytest.mark.parametrize("payload", [b"\x82\x03\x01", b"\xff" * 300, TASK.encode() + b"\0"])
def test_a_malformed_task_disturbs_nothing(world: World, payload: bytes) -> None:
    assert refusal_beside_work(world, payload) == Reason.MALFORMED_TASK


def test_a_signed_task_without_response_topic_disturbs_nothing(world: World) -> None:
    task = task_for(ALL, FACTORY, lease=3, round=5)
    stripped = Publication(TASK_TOPIC, KEYS.sign(task).encode())
    assert refusal_beside_work(world, stripped) == Reason.NOT_SIGNED


def test_a_task_that_was_signed_without_response_topic_disturbs_nothing(world: World) -> None:
    task = KEYS.sign_for(b"", task_for(ALL, FACTORY, lease=3, round=5, epochs=1))
    message = Publication(TASK_TOPIC, task.encode())
    assert refusal_beside_work(world, message) == Reason.MALFORMED_TASK


def test_every_cut_of_a_signed_task_disturbs_nothing(world: World) -> None:
    whole = KEYS.sign(task_for(BIASES, FACTORY, lease=4, round=6)).encode()
    world.give(KEYS.sign(replace(LONG, epochs=255)))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    for length in range(1, len(whole)):
        world.give(whole[:length])
        world.run_for(0.002)
        assert world.device.state == DeviceState.TRAINING
    assert finish_round(world)[-1].round == 5


def test_the_highest_task_outlives_a_reset(world: World) -> None:
    world.give(KEYS.sign(task_for(ALL, FACTORY, lease=3, round=5)))
    finish_round(world)
    world.broker.retained.clear()
    world.boot()
    assert announced(world).lease == 3
    world.forget_published()
    world.give(KEYS.sign(task_for(BIASES, FACTORY, lease=3, round=4)))
    world.run_until(lambda: (DeviceState.DECLINED, Reason.OLDER_LEASE) in world.states())
    world.give(KEYS.sign(task_for(BIASES, FACTORY, lease=3, round=6)))
    (delta,) = finish_round(world)
    assert delta.round == 6


def test_the_same_task_is_done_again_after_a_reset_only(world: World) -> None:
    task = KEYS.sign(task_for(ALL, FACTORY, lease=3, round=5))
    world.give(task)
    first = finish_round(world)
    world.give(task)
    world.run_for(5)
    assert world.of(Delta) == first
    world.forget_published()
    world.boot()
    assert finish_round(world) == first


def test_the_task_is_kept_before_the_work_begins(world: World) -> None:
    world.give(LONG)
    world.run_until(lambda: world.device.state == DeviceState.SCORING)
    world.broker.retained.clear()
    world.boot()
    assert announced(world).lease == 3
    world.give(KEYS.sign(task_for(ALL, FACTORY, lease=3, round=4)))
    world.run_until(lambda: (DeviceState.DECLINED, Reason.OLDER_LEASE) in world.states())


def test_a_higher_lease_and_a_newer_keyring_are_kept_while_chunks_come(world: World) -> None:
    blob = trained().blob()
    task = task_for(ALL, blob, lease=3, round=5)
    publish_blob(world, blob, lacking=3)
    world.give(KEYS.sign(task))
    world.run_until(lambda: world.device.state == DeviceState.FETCHING)
    world.run_for(1)
    world.give(NEXT.sign(replace(task, lease=9), with_keyring=True))
    world.run_for(5)
    assert world.device.state == DeviceState.FETCHING
    retained = dict(world.broker.retained)
    world.broker.retained.clear()
    world.boot()
    told = announced(world)
    assert (told.lease, told.keyring) == (9, 2)
    world.broker.retained.update(retained)
    publish_blob(world, blob)
    world.give(NEXT.sign(replace(task, lease=9)))
    (delta,) = finish_round(world)
    assert (delta.lease, sum(world.device.erases[:2])) == (9, 0)


def test_a_device_that_cannot_keep_the_task_does_not_begin(world: World) -> None:
    journal = world.device.setup.regions.journal
    journal.first_sector = 1000  # where there is no flash
    world.boot()
    world.device.write_flash(journal.address, b"\0" * journal.bytes)
    online(world)
    world.forget_published()
    world.give(KEYS.sign(TASK))
    world.run_until(lambda: (DeviceState.DECLINED, Reason.FLASH_FAILURE) in world.states())
    assert not world.of(Delta)


def test_what_the_journal_cannot_keep_counts_until_the_next_reset(world: World) -> None:
    journal = world.device.setup.regions.journal
    journal.first_sector = elsewhere = 7  # so that erasing doesn't help
    world.boot()
    world.device.write_flash(journal.address, b"\0" * journal.bytes)
    online(world)
    world.give(NEXT.sign(task_for(ALL, FACTORY, lease=9, round=2), with_keyring=True))
    world.run_until(lambda: world.states()[-1] == (DeviceState.DECLINED, Reason.FLASH_FAILURE))
    for task, reason in (
        (KEYS.sign(task_for(ALL, FACTORY, lease=10)), Reason.NOT_SIGNED),
        (NEXT.sign(task_for(ALL, FACTORY, lease=8, round=9)), Reason.OLDER_LEASE),
        (NEXT.sign(task_for(ALL, FACTORY, lease=9, round=1)), Reason.OLDER_LEASE),
        (NEXT.sign(task_for(ALL, FACTORY, lease=9, round=3)), Reason.FLASH_FAILURE),
    ):
        world.forget_published()
        world.give(task)
        world.run_until(lambda reason=reason: (DeviceState.DECLINED, reason) in world.states())
    assert not world.of(Delta)
    assert announced(world).keyring == 2
    world.run_for(60)
    assert world.device.erases[elsewhere] + world.device.erases[elsewhere + 1] == 2, "once a task"


def test_a_newer_keyring_comes_with_a_task_and_is_announced(world: World) -> None:
    assert world.of(Announce)[0].keyring == 1
    world.give(NEXT.sign(TASK, with_keyring=True))
    finish_round(world)
    assert world.of(Announce)[-1].keyring == 2
    world.broker.retained.clear()
    world.boot()
    assert announced(world).keyring == 2
    world.give(KEYS.sign(task_for(ALL, FACTORY, round=2), with_keyring=True))
    world.run_until(lambda: world.states()[-1] == (DeviceState.DECLINED, Reason.NOT_SIGNED))


def test_a_newer_keyring_counts_though_the_task_does_not(world: World) -> None:
    """The old task key is revoked as soon as the device has heard of it."""
    world.give(replace(KEYS.sign(TASK), keyring=NEXT.signed_keyring))
    world.run_until(lambda: world.states()[-1] == (DeviceState.DECLINED, Reason.NOT_SIGNED))
    world.run_until(lambda: world.of(Announce)[-1].keyring == 2)
    world.boot()
    assert announced(world).keyring == 2


def test_an_empty_task_ends_the_round_unsigned(world: World) -> None:
    world.give(LONG)
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.give(b"")
    world.run_until(lambda: world.device.state == DeviceState.IDLE)
    assert not world.of(Delta)


def test_a_round_that_an_empty_task_ended_is_begun_again_under_a_higher_lease_only(
    world: World,
) -> None:
    world.give(LONG)
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    for _ in range(3):
        world.give(b"")
        world.run_until(lambda: world.device.state == DeviceState.IDLE)
        world.forget_published()
        world.give(LONG)
        world.run_until(lambda: bool(world.of(Status)))
        status = world.of(Status)[0]
        assert (status.state, status.reason) == (DeviceState.DECLINED, Reason.OLDER_LEASE)
        assert status.round == 5
        world.run_for(1)
        assert world.device.state == DeviceState.IDLE
    higher = KEYS.sign(replace(LONG, lease=4, epochs=1))
    world.give(higher)
    (delta,) = finish_round(world)
    assert (delta.round, delta.lease) == (5, 4)


def test_a_signed_task_and_empty_ones_in_turn_get_one_noise_in_a_boot(world: World) -> None:
    task = KEYS.masked(TASK, clip=60, noise_variance=90_000)
    world.receipt = lambda _: None
    world.give(task)
    world.run_until(lambda: bool(world.of(Delta)))
    (delta,) = world.of(Delta)
    operations = world.device.flash_operations
    for _ in range(5):
        world.give(b"")
        world.run_for(1)
        world.give(task)
        world.run_for(1)
    assert world.of(Delta) == [delta]
    assert world.device.flash_operations == operations


def test_wrong_chunks_and_empty_tasks_erase_a_slot_twice_at_most(world: World) -> None:
    """A download that was begun before is tried twice; whoever ends it in between gets no third."""
    blob = trained().blob()
    wrong = bytes(len(blob))
    task = KEYS.sign(task_for(ALL, blob))
    publish_blob(world, wrong, digest_of(blob), lacking=3)
    world.give(task)
    world.run_for(0.3)
    world.boot()
    for lacking in [None, 3] * 4:
        world.broker.retained.clear()
        publish_blob(world, wrong, digest_of(blob), lacking=lacking)
        erases = sum(world.device.erases[:2])
        world.give(task)
        for _ in range(300):
            if sum(world.device.erases[:2]) == erases:
                world.step()
        world.give(b"")
        world.run_for(0.1)
    assert 0 < sum(world.device.erases[:2]) <= 2
    assert world.device.base_weights == digest_of(FACTORY)


def test_a_device_without_authority_takes_tasks_of_any_signature(library: ctypes.CDLL) -> None:
    region = identity_region(IDENTITY, DEVICE_KEYS.encode())
    world = online(keyed_world(library, KEYS, region))
    assert world.of(Announce)[0].keyring == 0
    world.give(replace(TASK, signature=b"?" * 64, keyring=NEXT.signed_keyring))
    finish_round(world)
    assert world.of(Announce)[-1].keyring == 0


LOST = {
    "missing": identity_region(IDENTITY, DEVICE_KEYS.encode(), keyring=KEYS.signed_keyring),
    "damaged": KEYS.region(IDENTITY).replace(AUTHORITY.public[-4:], bytes(4)),
    "too short": identity_region(IDENTITY, DEVICE_KEYS.encode(), AUTHORITY.public[:-1]),
    "too long": identity_region(IDENTITY, DEVICE_KEYS.encode(), AUTHORITY.public + bytes(1)),
}


@pytest.mark.parametrize("region", LOST.values(), ids=LOST)
def test_a_device_that_lost_its_authority_takes_no_task_at_all(
    library: ctypes.CDLL, region: bytes
) -> None:
    world = online(keyed_world(library, KEYS, region))
    for task in (TASK, KEYS.sign(TASK), NEXT.sign(TASK, with_keyring=True)):
        world.forget_published()
        world.give(task)
        assert decline_of(world) == Reason.NOT_SIGNED


@pytest.mark.parametrize(
    "told",
    [KEYS.sign(TASK), replace(TASK, keyring=NEXT.signed_keyring)],
    ids=["a signed task", "a keyring"],
)
def test_what_the_journal_has_of_an_authority_is_enough_to_decline_all_tasks(
    world: World, told: Task
) -> None:
    world.give(told)
    world.run_for(10)
    world.broker.retained.clear()
    identity = world.device.setup.regions.identity
    world.device.write_flash(identity.address, b"\xff" * identity.bytes)
    world.device.write_flash(identity.address, identity_region(IDENTITY, DEVICE_KEYS.encode()))
    world.boot()
    online(world).forget_published()
    world.give(replace(TASK, lease=9, round=9))
    assert decline_of(world) == Reason.NOT_SIGNED


def test_the_longest_task_that_there_is_comes_through(library: ctypes.CDLL) -> None:
    keys = replace(KEYS, fleet="f" * 32, name="d" * 32, gateway="g" * 32)
    keys = replace(keys, unmaskers=(b"1" * 32, b"2" * 32, b"3" * 32))
    identity = replace(IDENTITY, fleet=keys.fleet, device=keys.name)
    world = keyed_world(library, keys, keys.region(identity))
    world.fleet, world.name, world.gateway = keys.fleet, keys.name, keys.gateway
    online(world)
    newer = replace(keys, generation=2**32 - 1)
    largest = dict.fromkeys(("lease", "round", "seed", "clip", "learning_rate_q20"), 2**32 - 1)
    task = newer.sign(
        newer.masked(replace(TASK, **largest), norm_share=1000, noise_variance=1 << 24),
        with_keyring=True,
    )
    world.give(task)
    world.run_until(lambda: world.of(Announce)[-1].keyring == 2**32 - 1)
    deltas = finish_round(world)
    assert deltas[-1].round == 2**32 - 1
    assert {status.round for status in world.of(Status)} <= {0, 2**32 - 1}
    assert len(task.encode()) > 400
