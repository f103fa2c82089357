"""The client's rounds over a broker in the test and a clock that the test turns."""

import ctypes
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleet.protocol import Action, Announce, Delta, DeviceState, Reason, Status
from fleet.protocol.chunks import RECEIVE_MAXIMUM

from ..host_device import POOL_BYTES, HostDevice, Publication, World, counted
from ..tiny_round import (
    Data,
    Weights,
    clustered_data,
    expected_values,
    task_for,
    train,
    values_of,
)
from .rounds import (
    ALL,
    BIASES,
    DATA,
    FACTORY,
    LARGE,
    TASK_TOPIC,
    decline_of,
    digest_of,
    finish_round,
    group_filter,
    make_world,
    online,
    publish_blob,
    trained,
    worse_than,
)


def test_a_device_announces_itself_and_its_state_after_connecting(world: World) -> None:
    online(world)
    announce = world.of(Announce)[0]
    held_out = len(DATA.part(held_out=True).labels)
    assert announce.board == "host"
    assert (announce.current, announce.candidate) == (digest_of(FACTORY), bytes(32))
    assert announce.free_sram_bytes == POOL_BYTES
    assert (announce.train_samples, announce.held_out_samples) == (60 - held_out, held_out)
    assert (announce.lease, announce.reset_cause, announce.fault_code) == (0, 0, 0)
    assert world.states() == [(DeviceState.IDLE, Reason.NONE)]
    assert all(publication.retained for publication in world.broker.published)
    assert world.device.state == DeviceState.IDLE


def test_one_filter_brings_everything_that_is_meant_for_the_device(world: World) -> None:
    online(world)
    assert world.broker.filters == {"fleet/f/to/dev1/+": 1}
    world.broker.send(Publication("fleet/f/to/dev1/something-later", b"x"))
    world.give(task_for(ALL, FACTORY))
    assert finish_round(world)


@pytest.mark.parametrize("plan", [ALL, BIASES])
@pytest.mark.parametrize("epochs", [1, 3])
def test_the_delta_is_what_training_in_the_order_of_the_seed_gives(
    world: World, plan: bytes, epochs: int
) -> None:
    online(world).give(task_for(plan, FACTORY, epochs=epochs, seed=1234, lease=5))
    deltas = finish_round(world)
    before = Weights.parse(FACTORY)
    after = train(before, DATA, 1234, epochs, plan == BIASES)
    expected = expected_values(before, after, plan == BIASES)
    assert expected.any()
    np.testing.assert_array_equal(values_of(deltas, len(expected)), expected)
    held_out = DATA.part(held_out=True)
    assert deltas[0].correct_before == held_out.correct(before)
    assert deltas[0].correct_after == held_out.correct(after)
    assert deltas[0].loss_before_thousandths == held_out.mean_loss_thousandths(before)
    assert deltas[0].loss_after_thousandths == held_out.mean_loss_thousandths(after)
    assert deltas[0].held_out_samples == len(held_out.labels)
    assert deltas[0].train_samples == len(DATA.part(held_out=False).labels)
    assert deltas[0].train_steps == epochs * deltas[0].train_samples
    assert (deltas[0].plan, deltas[0].weights) == (plan[:8], digest_of(FACTORY)[:8])
    assert deltas[0].lease == 5
    assert len(deltas) == 1
    assert world.device.state == DeviceState.IDLE


def test_weights_are_fetched_in_chunks_committed_and_trained_on(world: World) -> None:
    blob = trained().blob()
    publish_blob(world, blob)
    online(world).give(task_for(ALL, blob))
    deltas = finish_round(world)
    before = Weights.parse(blob)
    after = train(before, DATA, 7, 2, False)
    np.testing.assert_array_equal(
        values_of(deltas, 68), expected_values(before, after, biases_only=False)
    )
    assert world.device.candidate_weights == digest_of(blob)
    assert world.device.current_weights == digest_of(FACTORY)
    assert world.broker.most_under_way <= RECEIVE_MAXIMUM
    assert world.broker.filters == {"fleet/f/to/dev1/+": 1}


def test_a_later_version_comes_over_other_subscriptions(world: World) -> None:
    first = trained()
    second = train(first, DATA, 5, 1, False)
    online(world)
    for number, weights in enumerate((first, second)):
        world.forget_published()
        publish_blob(world, weights.blob())
        world.give(task_for(ALL, weights.blob(), round=number + 1))
        finish_round(world)
        assert world.device.base_weights == digest_of(weights.blob())
        assert group_filter(weights.blob(), 0) in world.broker.subscribed


def test_the_factory_weights_come_back_without_a_download(world: World) -> None:
    blob = trained().blob()
    publish_blob(world, blob)
    online(world).give(task_for(ALL, blob))
    finish_round(world)
    world.give(task_for(ALL, blob, round=2, action=Action.RELEASE))
    world.run_until(lambda: world.device.current_weights == digest_of(blob))
    world.forget_published()
    world.broker.retained.clear()
    world.give(task_for(ALL, FACTORY, round=3))
    deltas = finish_round(world)
    assert world.device.candidate_weights == digest_of(FACTORY)
    assert deltas[0].weights == digest_of(FACTORY)[:8]


@pytest.mark.parametrize("name", ["candidate", "current"])
def test_weights_that_the_device_has_are_not_fetched(world: World, name: str) -> None:
    candidate = trained().blob()
    publish_blob(world, candidate)
    online(world).give(task_for(ALL, candidate))
    finish_round(world)
    blob = candidate if name == "candidate" else FACTORY
    world.broker.requests.clear()
    world.forget_published()
    world.give(task_for(ALL, blob, round=2))
    (delta,) = finish_round(world)
    assert delta.weights == digest_of(blob)[:8]
    assert world.broker.requests == []
    assert world.device.candidate_weights == digest_of(candidate)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"plan": b"?" * 32}, Reason.UNKNOWN_PLAN),
        ({"plan": LARGE}, Reason.NOT_ENOUGH_SRAM),
        ({"weights_bytes": 148}, Reason.WEIGHTS_SIZE_MISMATCH),
        ({"deadline_seconds": 0}, Reason.DEADLINE_PASSED),
        ({"weights": b"\1" * 32, "deadline_seconds": 3}, Reason.DEADLINE_PASSED),
        ({"coding": 1}, Reason.UNKNOWN_CODING),
        ({"coding": 200}, Reason.UNKNOWN_CODING),
        ({"weighting": 2}, Reason.UNKNOWN_CODING),
        ({"action": 3}, Reason.MALFORMED_TASK),
    ],
)
def test_a_task_that_cannot_be_done_is_declined_with_its_reason(
    world: World, changes: dict, reason: Reason
) -> None:
    online(world).give(replace(task_for(ALL, FACTORY), **changes))
    assert decline_of(world) == reason
    status = world.of(Status)[-1]
    assert (status.campaign, status.round) == (b"campaign", 1)


def test_uniform_weighting_is_taken_and_said_again_in_the_delta(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, weighting=1))
    (delta,) = finish_round(world)
    assert (delta.coding, delta.weighting) == (0, 1)


@pytest.mark.parametrize("payload", [b"\x00", b"\x93" + b"\x02" * 19, b"\xff" * 300])
def test_a_malformed_task_is_declined_and_the_next_one_is_done(
    world: World, payload: bytes
) -> None:
    online(world).give(payload)
    assert decline_of(world) == Reason.MALFORMED_TASK
    world.give(task_for(ALL, FACTORY))
    finish_round(world)


def test_a_task_without_response_topic_is_malformed(world: World) -> None:
    online(world)
    payload = task_for(ALL, FACTORY).encode()
    world.broker.send(Publication(TASK_TOPIC, payload, True))
    assert decline_of(world) == Reason.MALFORMED_TASK


@pytest.mark.parametrize(
    ("said", "told"), [(7, 7), (100, 100), (101, 255), (128 + 7, 128 + 7), (228, 228), (229, 255)]
)
def test_a_charge_is_told_with_whether_something_feeds_it_and_nonsense_is_unknown(
    library: ctypes.CDLL, said: int, told: int
) -> None:
    world = make_world(library)
    world.device.set_battery(said)
    online(world)
    assert world.of(Announce)[-1].battery == told
    assert world.of(Status)[-1].battery == told


def test_the_message_expiry_shortens_the_deadline(world: World) -> None:
    task = task_for(ALL, FACTORY, weights=b"\1" * 32, deadline_seconds=600)
    online(world).give(task, expiry_seconds=2)
    start = world.now
    assert decline_of(world) == Reason.DEADLINE_PASSED
    assert world.now - start < 4000


@pytest.mark.parametrize("labels", [[0, 1], []])
def test_a_device_without_enough_samples_declines(library: ctypes.CDLL, labels: list[int]) -> None:
    data = Data(np.ones((len(labels), 16), np.int8), np.array(labels, np.int64))
    world = online(make_world(library, data))
    world.give(task_for(ALL, FACTORY))
    assert decline_of(world) == Reason.NO_SAMPLES


def test_weights_that_score_too_much_worse_are_not_taken(world: World) -> None:
    good = trained()
    for weights in (good.blob(), worse_than(good)):
        publish_blob(world, weights)
    online(world).give(task_for(ALL, good.blob()))
    finish_round(world)
    world.forget_published()
    world.give(task_for(ALL, worse_than(good), round=2, max_score_drop_permille=100))
    assert decline_of(world) == Reason.SCORE_DROPPED
    assert world.device.base_weights == digest_of(good.blob())
    world.give(task_for(ALL, worse_than(good), round=3, max_score_drop_permille=1000))
    finish_round(world)
    assert world.device.base_weights == digest_of(worse_than(good))


def test_after_a_declined_version_the_candidate_still_trains(world: World) -> None:
    good = trained()
    for weights in (good.blob(), worse_than(good)):
        publish_blob(world, weights)
    online(world).give(task_for(ALL, good.blob()))
    finish_round(world)
    world.give(task_for(ALL, worse_than(good), round=2, max_score_drop_permille=100))
    world.run_until(lambda: world.states()[-1][0] == DeviceState.DECLINED)
    world.forget_published()
    world.give(task_for(ALL, good.blob(), round=3, max_score_drop_permille=100))
    deltas = finish_round(world)
    assert deltas[0].correct_before == DATA.part(held_out=True).correct(good)
    assert world.device.base_weights == digest_of(good.blob())


def test_an_empty_task_ends_the_round(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, epochs=200))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.give(b"")
    world.run_until(lambda: world.device.state == DeviceState.IDLE)
    world.run_for(10)
    assert not world.of(Delta)


def test_the_receive_ring_is_looked_at_between_training_steps(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, epochs=200))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.give(b"")
    for _ in range(4):
        world.step()
    assert world.device.state == DeviceState.IDLE


def test_another_task_replaces_the_one_under_way(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, epochs=200))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.give(task_for(BIASES, FACTORY, round=2, epochs=1))
    deltas = finish_round(world)
    assert {delta.round for delta in deltas} == {2}


def test_the_same_task_once_more_does_not_restart_the_work(world: World) -> None:
    task = task_for(ALL, FACTORY, epochs=20)
    online(world).give(task)
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    for _ in range(5):
        world.give(task)
        world.run_for(0.02)
    deltas = finish_round(world)
    assert deltas[0].train_steps == 20 * deltas[0].train_samples


def test_the_round_is_dropped_at_its_deadline_although_the_link_is_down(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, epochs=200, deadline_seconds=5))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.link_is_up = False
    world.run_for(6)
    world.link_is_up = True
    assert decline_of(world) == Reason.DEADLINE_PASSED


def test_a_device_rests_until_its_next_check_in(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, check_in_seconds=120))
    finish_round(world)
    world.run_until(lambda: world.broker.disconnected)
    assert world.states()[-1] == (DeviceState.IDLE, Reason.NONE)
    start = world.now
    world.run_until(lambda: world.broker.connects == 2, seconds=200)
    assert 119 <= (world.now - start) / 1000 <= 140


def test_a_device_that_rests_leaves_no_state_behind_that_is_over(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, check_in_seconds=120))
    world.receipt = lambda _: None
    world.run_until(lambda: (DeviceState.SENDING, 0) in world.states())
    world.hand_over(counted(world.of(Delta)[-1]))
    world.run_until(lambda: world.broker.disconnected)
    assert world.states()[-1] == (DeviceState.IDLE, Reason.NONE)


def test_a_power_cut_at_every_flash_operation_of_a_round_is_recovered_from(
    library: ctypes.CDLL,
) -> None:
    blob = trained().blob()
    reference = make_world(library)
    publish_blob(reference, blob)
    online(reference).give(task_for(ALL, blob))
    expected = finish_round(reference)
    operations = reference.device.flash_operations
    assert operations >= 144 // 4
    for cut in range(1, operations + 1):
        world = make_world(library)
        publish_blob(world, blob)
        world.device.cut_power(cut)
        world.give(task_for(ALL, blob))
        world.run_until(lambda world=world: not world.device.has_power)
        assert not world.of(Delta)
        assert world.boot() == 0
        assert world.device.current_weights == digest_of(FACTORY)
        assert world.device.candidate_weights in (bytes(32), digest_of(blob))
        assert finish_round(world) == expected


def test_a_device_without_identity_does_not_start(library: ctypes.CDLL) -> None:
    device = HostDevice(library, b"", identity=None)
    assert device.power_on(0) == 3  # TF_NOT_FOUND
    assert not device.run(1)
    assert device.state == DeviceState.OFFLINE


def test_devices_in_one_process_do_not_share_anything(library: ctypes.CDLL) -> None:
    worlds = [make_world(library, clustered_data(30, seed)) for seed in range(1, 21)]
    for world in worlds:
        world.give(task_for(ALL, FACTORY))
    for _ in range(20_000):
        for world in worlds:
            world.step(5)
        if all(world.of(Delta) for world in worlds):
            break
    before = Weights.parse(FACTORY)
    for seed, world in enumerate(worlds, start=1):
        after = train(before, clustered_data(30, seed), 7, 2, False)
        np.testing.assert_array_equal(
            values_of(world.of(Delta), 68), expected_values(before, after, False)
        )


def test_the_clock_may_wrap_during_a_round(library: ctypes.CDLL) -> None:
    world = make_world(library)
    world.now = 2**32 - 3000
    world.boot()
    online(world).give(task_for(ALL, FACTORY, epochs=200, deadline_seconds=60))
    finish_round(world)
    assert world.now > 2**32


def test_sources_stay_free_of_globals() -> None:
    for folder in ("client", "storage", "link", "codec", "port/host"):
        for path in (Path(__file__).parents[3] / "device_runtime" / folder).glob("*.c"):
            for line in path.read_text().splitlines():
                is_variable = line.startswith("static ") and line.rstrip().endswith(";")
                assert not is_variable or "const" in line or "(" in line, f"{path.name}: {line}"
