"""The client's rounds over a broker in the test and a clock that the test turns."""

import ctypes
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fleet.protocol import Announce, Delta, DeviceState, Reason, Status

from ..host_device import (
    PLANS,
    POOL_BYTES,
    SAMPLES,
    SECTORS,
    FakeBroker,
    HostDevice,
    Publication,
    World,
    build_library,
)
from ..tiny_round import (
    Data,
    Weights,
    clustered_data,
    expected_values,
    task_for,
    train,
    values_of,
)

FACTORY = bytes(144)
DATA = clustered_data()
ALL, BIASES, LARGE = PLANS
TASK_TOPIC = "fleet/f/dev/dev1/task"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build_library(tmp_path_factory.mktemp("device"))


@pytest.fixture
def world(library: ctypes.CDLL) -> World:
    return make_world(library, DATA)


def make_world(library: ctypes.CDLL, data: Data) -> World:
    made = World(HostDevice(library, data.region(SAMPLES)), FakeBroker())
    assert made.boot() == 0
    return made


def online(world: World) -> World:
    world.run_until(lambda: bool(world.of(Status)))
    return world


def trained(world: World, plan: bytes = ALL) -> Weights:
    """Other weights than the factory's, that score well."""
    return train(Weights.parse(FACTORY), DATA, seed=99, epochs=1, biases_only=plan == BIASES)


def publish_blob(world: World, blob: bytes, digest: str = "", chunk_bytes: int = 32) -> None:
    digest = digest or hashlib.sha256(blob).hexdigest()
    for number, start in enumerate(range(0, len(blob), chunk_bytes)):
        chunk = blob[start : start + chunk_bytes]
        world.broker.send(Publication(f"fleet/f/blob/{digest}/{number}", chunk, True))


def finish_round(world: World, seconds: float = 60) -> list[Delta]:
    def is_over() -> bool:
        deltas = world.of(Delta)
        return bool(deltas) and deltas[-1].chunk == deltas[-1].chunks - 1

    world.run_until(is_over, seconds)
    return world.of(Delta)


def decline_of(world: World) -> Reason:
    world.run_until(lambda: (world.states() or [(0, 0)])[-1][0] == DeviceState.DECLINED)
    assert not world.of(Delta)
    return Reason(world.states()[-1][1])


def test_a_device_announces_itself_and_its_state_after_connecting(world: World) -> None:
    online(world)
    announce = world.of(Announce)[0]
    held_out = len(DATA.part(held_out=True).labels)
    assert (announce.device, announce.board) == ("dev1", "host")
    assert announce.weights == hashlib.sha256(FACTORY).digest()
    assert announce.free_sram_bytes == POOL_BYTES
    assert (announce.train_samples, announce.held_out_samples) == (60 - held_out, held_out)
    assert world.states() == [(DeviceState.IDLE, Reason.NONE)]
    assert all(publication.retained for publication in world.broker.published)
    assert world.broker.subscribed == [TASK_TOPIC]
    assert world.device.state == DeviceState.IDLE


@pytest.mark.parametrize("plan", [ALL, BIASES])
@pytest.mark.parametrize("epochs", [1, 3])
def test_the_delta_is_what_training_in_the_order_of_the_seed_gives(
    world: World, plan: bytes, epochs: int
) -> None:
    online(world).give(task_for(plan, FACTORY, epochs=epochs, seed=1234))
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
    assert (deltas[0].plan, deltas[0].weights) == (plan[:8], hashlib.sha256(FACTORY).digest()[:8])
    world.run_until(lambda: world.of(Status)[-1].campaign == b"campaign")
    assert world.states()[-1] == (DeviceState.IDLE, Reason.NONE)


def test_weights_are_fetched_in_chunks_committed_and_trained_on(world: World) -> None:
    blob = trained(world).blob()
    publish_blob(world, blob)
    online(world).give(task_for(ALL, blob))
    deltas = finish_round(world)
    before = Weights.parse(blob)
    after = train(before, DATA, 7, 2, False)
    np.testing.assert_array_equal(
        values_of(deltas, 68), expected_values(before, after, biases_only=False)
    )
    assert world.device.base_weights == hashlib.sha256(blob).digest()
    assert world.broker.most_under_way <= 2
    digest = hashlib.sha256(blob).hexdigest()
    world.run_until(lambda: f"fleet/f/blob/{digest}/+" in world.broker.unsubscribed)


def test_a_later_version_comes_over_another_subscription(world: World) -> None:
    first = trained(world)
    second = train(first, DATA, 5, 1, False)
    online(world)
    for number, weights in enumerate((first, second)):
        world.broker.published.clear()
        publish_blob(world, weights.blob())
        world.give(task_for(ALL, weights.blob(), round=number + 1))
        finish_round(world)
        assert world.device.base_weights == hashlib.sha256(weights.blob()).digest()


def test_the_factory_weights_come_back_without_a_download(world: World) -> None:
    blob = trained(world).blob()
    publish_blob(world, blob)
    online(world).give(task_for(ALL, blob))
    finish_round(world)
    world.broker.published.clear()
    world.broker.retained.clear()
    world.give(task_for(ALL, FACTORY, round=2))
    deltas = finish_round(world)
    assert world.device.base_weights == hashlib.sha256(FACTORY).digest()
    assert deltas[0].weights == hashlib.sha256(FACTORY).digest()[:8]


def test_a_task_of_zero_epochs_only_scores(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, epochs=0))
    (delta,) = finish_round(world)
    correct = DATA.part(held_out=True).correct(Weights.parse(FACTORY))
    assert (delta.train_samples, delta.train_steps) == (0, 0)
    assert (delta.coded, delta.coded_bytes, delta.coded_crc32, delta.chunks) == (b"", 0, 0, 1)
    assert (delta.correct_before, delta.correct_after) == (correct, correct)
    assert delta.held_out_samples == len(DATA.part(held_out=True).labels)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"plan": b"?" * 32}, Reason.UNKNOWN_PLAN),
        ({"plan": LARGE}, Reason.NOT_ENOUGH_SRAM),
        ({"weights_bytes": 148}, Reason.WEIGHTS_SIZE_MISMATCH),
        ({"weights": b"\1" * 32, "chunk_bytes": 0}, Reason.MALFORMED_TASK),
        ({"weights": b"\1" * 32, "chunk_bytes": 30}, Reason.MALFORMED_TASK),
        ({"deadline_seconds": 0}, Reason.DEADLINE_PASSED),
        ({"weights": b"\1" * 32, "deadline_seconds": 3}, Reason.DEADLINE_PASSED),
    ],
)
def test_a_task_that_cannot_be_done_is_declined_with_its_reason(
    world: World, changes: dict, reason: Reason
) -> None:
    online(world).give(replace(task_for(ALL, FACTORY), **changes))
    assert decline_of(world) == reason
    assert world.of(Status)[-1].round == 1


@pytest.mark.parametrize("payload", [b"\x00", b"\x8d" + b"\x01" * 13, b"\xff" * 300])
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


def test_weights_with_another_digest_are_erased_and_declined(world: World) -> None:
    wanted, other = trained(world).blob(), bytes(range(144))
    publish_blob(world, other, digest=hashlib.sha256(wanted).hexdigest())
    online(world).give(task_for(ALL, wanted))
    assert decline_of(world) == Reason.WEIGHTS_DIGEST_MISMATCH
    assert world.device.base_weights == hashlib.sha256(FACTORY).digest()
    assert set(bytes(world.device.flash[: sum(SECTORS[:2])])) == {0xFF}


def test_a_damaged_remainder_of_an_old_download_is_fetched_again(world: World) -> None:
    blob = trained(world).blob()
    publish_blob(world, blob[:64] + b"?" * 32, digest=hashlib.sha256(blob).hexdigest())
    online(world).give(task_for(ALL, blob))
    world.run_for(2)
    assert world.device.state == DeviceState.FETCHING
    world.boot()
    world.broker.retained.clear()
    publish_blob(world, blob)
    world.give(task_for(ALL, blob))
    finish_round(world)
    assert world.device.base_weights == hashlib.sha256(blob).digest()


def worse_than(good: Weights) -> bytes:
    return Weights(-good.matrix, -good.biases).blob()


def test_weights_that_score_too_much_worse_are_not_taken(world: World) -> None:
    good = trained(world)
    for weights in (good.blob(), worse_than(good)):
        publish_blob(world, weights)
    online(world).give(task_for(ALL, good.blob()))
    finish_round(world)
    world.broker.published.clear()
    world.give(task_for(ALL, worse_than(good), round=2, max_score_drop_permille=100))
    assert decline_of(world) == Reason.SCORE_DROPPED
    assert world.device.base_weights == hashlib.sha256(good.blob()).digest()
    world.give(task_for(ALL, worse_than(good), round=3, max_score_drop_permille=1000))
    finish_round(world)
    assert world.device.base_weights == hashlib.sha256(worse_than(good)).digest()


def test_after_a_declined_version_the_active_one_still_trains(world: World) -> None:
    good = trained(world)
    for weights in (good.blob(), worse_than(good)):
        publish_blob(world, weights)
    online(world).give(task_for(ALL, good.blob()))
    finish_round(world)
    world.give(task_for(ALL, worse_than(good), round=2, max_score_drop_permille=100))
    world.run_until(lambda: world.states()[-1][0] == DeviceState.DECLINED)
    world.broker.published.clear()
    world.give(task_for(ALL, good.blob(), round=3, max_score_drop_permille=100))
    deltas = finish_round(world)
    assert deltas[0].correct_before == DATA.part(held_out=True).correct(good)
    assert world.device.base_weights == hashlib.sha256(good.blob()).digest()


def test_a_finished_round_is_not_worked_on_again_after_a_reconnection(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY))
    finish_round(world)
    world.broker.published.clear()
    world.link_is_up = False
    world.run_for(1)
    world.link_is_up = True
    world.run_until(lambda: len(world.states()) > 0)
    world.run_for(5)
    assert world.broker.connects == 2
    assert not world.of(Delta)


def test_a_reset_device_does_the_round_again(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY))
    first = finish_round(world)
    world.broker.published.clear()
    world.boot()
    assert finish_round(world) == first


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


def test_a_chunk_that_was_not_acknowledged_is_sent_again_over_the_next_connection(
    world: World,
) -> None:
    lost: list[bytes] = []

    def lose_first_delta(publication: Publication) -> int | None:
        if publication.topic.endswith("/delta") and not lost:
            lost.append(publication.payload)
            world.link_is_up = False
            return None
        return 0

    world.broker.answer = lose_first_delta
    online(world).give(task_for(ALL, FACTORY))
    world.run_until(lambda: bool(lost))
    world.run_for(1)
    world.link_is_up = True
    deltas = finish_round(world)
    assert deltas == [Delta.decode(lost[0])]


def test_a_delta_that_nobody_takes_is_sent_again_until_somebody_does(world: World) -> None:
    answers = [0x10, 0x10, 0]

    def answer(publication: Publication) -> int:
        return answers.pop(0) if publication.topic.endswith("/delta") else 0

    world.broker.answer = answer
    online(world).give(task_for(ALL, FACTORY))
    world.run_until(lambda: len(world.of(Delta)) == 3)
    assert len(set(map(str, world.of(Delta)))) == 1
    world.run_until(lambda: world.device.state == DeviceState.IDLE)


def test_a_delta_that_the_broker_forbids_fails_the_round(world: World) -> None:
    world.broker.answer = lambda publication: 0x87 if "/delta" in publication.topic else 0
    online(world).give(task_for(ALL, FACTORY))
    world.run_until(lambda: world.states()[-1][0] == DeviceState.FAILED)


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


def test_missing_chunks_are_asked_for_again(world: World) -> None:
    blob = trained(world).blob()
    publish_blob(world, blob[:96], digest=hashlib.sha256(blob).hexdigest())
    online(world).give(task_for(ALL, blob))
    world.run_for(3)
    # Retained while the device is subscribed, but never sent to it: as after a full queue.
    for number, start in enumerate(range(0, 144, 32)):
        topic = f"fleet/f/blob/{hashlib.sha256(blob).hexdigest()}/{number}"
        world.broker.retained[topic] = Publication(topic, blob[start : start + 32], True)
    finish_round(world)


def test_a_power_cut_at_every_flash_operation_of_a_round_is_recovered_from(
    library: ctypes.CDLL,
) -> None:
    blob = trained(make_world(library, DATA)).blob()
    reference = make_world(library, DATA)
    publish_blob(reference, blob)
    online(reference).give(task_for(ALL, blob))
    expected = finish_round(reference)
    operations = reference.device.flash_operations
    assert operations >= 144 // 4
    for cut in range(1, operations + 1):
        world = make_world(library, DATA)
        publish_blob(world, blob)
        world.device.cut_power(cut)
        world.give(task_for(ALL, blob))
        world.run_until(lambda world=world: not world.device.has_power)
        assert not world.of(Delta)
        assert world.boot() == 0
        digests = {hashlib.sha256(FACTORY).digest(), hashlib.sha256(blob).digest()}
        assert world.device.base_weights in digests
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
    world = make_world(library, DATA)
    world.now = 2**32 - 3000
    world.boot()
    online(world).give(task_for(ALL, FACTORY, epochs=200, deadline_seconds=60))
    finish_round(world)
    assert world.now > 2**32


def test_sources_stay_free_of_globals() -> None:
    for folder in ("client", "storage", "port/host"):
        for path in (Path(__file__).parents[3] / "device_runtime" / folder).glob("*.c"):
            for line in path.read_text().splitlines():
                is_variable = line.startswith("static ") and line.rstrip().endswith(";")
                assert not is_variable or "const" in line or "(" in line, f"{path.name}: {line}"
