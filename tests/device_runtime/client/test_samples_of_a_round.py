"""Which samples a round trains on, also while the application goes on recording."""

import ctypes

import numpy as np
import pytest

from fleet.protocol import Announce, Delta, DeviceState, Status

from ..host_device import PLANS, SAMPLES, FakeBroker, HostDevice, World, build_library
from ..tiny_round import (
    INPUTS,
    Data,
    Weights,
    clustered_data,
    expected_values,
    shuffled,
    task_for,
    tf_random,
    values_of,
)

FACTORY = Weights.parse(bytes(144))
ROOM = 512
UNIT = SAMPLES.bytes // SAMPLES.units
PER_UNIT = (UNIT - 36) // 32
ALL = PLANS[0]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build_library(tmp_path_factory.mktemp("device"))


CHOICE = 0x63686F69
"""The stream of random numbers that scoring.c chooses with."""


def world_with(library: ctypes.CDLL, data: Data, keep: int = 0) -> World:
    device = HostDevice(library, data.region(SAMPLES))
    device.setup.regions.samples.keep = keep
    world = World(device, FakeBroker())
    assert world.boot() == 0
    world.run_until(lambda: bool(world.of(Status)))
    return world


def record(world: World, data: Data) -> None:
    for sample, label in zip(data.samples, data.labels, strict=True):
        assert world.device.record(sample.tobytes(), int(label)) == 0


def trained_on(data: Data, order: list[int], seed: int, epochs: int) -> Weights:
    """The perceptron over the samples in ``order``, shuffled for each epoch."""
    weights = Weights(FACTORY.matrix.copy(), FACTORY.biases.copy())
    for epoch in range(epochs):
        for index in shuffled(len(order), seed, epoch):
            sample, label = data.samples[order[index]], data.labels[order[index]]
            best = int(np.argmax(weights.scores(sample)))
            if best != label:
                change = sample.astype(np.int64) >> 3
                weights.matrix[label] += change
                weights.matrix[best] -= change
                weights.biases[label] += 1
                weights.biases[best] -= 1
    return weights


def train_ordinals(first: int, count: int) -> list[int]:
    return [ordinal for ordinal in range(first, first + count) if ordinal % 3 != 2]


def delta_of(world: World, **changes: object) -> Delta:
    world.give(task_for(ALL, FACTORY.blob(), **changes))
    world.run_until(lambda: bool(world.of(Delta)), 120)
    (delta,) = world.of(Delta)
    return delta


def test_a_round_trains_on_the_newest_samples_that_its_list_has_room_for(
    library: ctypes.CDLL,
) -> None:
    data = clustered_data(1200)
    world = world_with(library, data)
    announce = world.of(Announce)[0]
    assert (announce.train_samples, announce.held_out_samples) == (ROOM, 400)
    delta = delta_of(world, epochs=2, seed=1234)
    # The n-th of more than 512 takes the place n mod 512.
    order = [0] * ROOM
    for n, ordinal in enumerate(train_ordinals(0, 1200)):
        order[n % ROOM] = ordinal
    assert min(order) > 400
    expected = expected_values(FACTORY, trained_on(data, order, 1234, 2), biases_only=False)
    assert expected.any()
    np.testing.assert_array_equal(values_of([delta], len(expected)), expected)
    assert (delta.train_samples, delta.train_steps) == (ROOM, 2 * ROOM)
    assert delta.held_out_samples == 400


def test_a_round_over_a_reservoir_trains_on_a_fair_choice_since_that_has_no_newest(
    library: ctypes.CDLL,
) -> None:
    data = clustered_data(2000)
    delta = delta_of(world_with(library, data, keep=1), epochs=2, seed=77)
    order: list[int] = []
    for n, ordinal in enumerate(train_ordinals(0, 2000)):
        at = n if n < ROOM else tf_random(77, CHOICE, n) % (n + 1)
        if at < ROOM:
            order[at : at + 1] = [ordinal]
    assert 800 < np.mean(order) < 1200
    expected = expected_values(FACTORY, trained_on(data, order, 77, 2), biases_only=False)
    np.testing.assert_array_equal(values_of([delta], len(expected)), expected)


def test_what_an_application_records_is_trained_on_in_the_next_round_and_pushes_out_the_oldest(
    library: ctypes.CDLL,
) -> None:
    old, new = clustered_data(2 * PER_UNIT, seed=1), clustered_data(PER_UNIT, seed=2)
    world = world_with(library, old)
    record(world, new)
    both = Data(
        np.concatenate([old.samples, new.samples]), np.concatenate([old.labels, new.labels])
    )
    delta = delta_of(world, seed=5)
    ordinals = train_ordinals(PER_UNIT, 2 * PER_UNIT)
    order = [0] * ROOM
    for n, ordinal in enumerate(ordinals):
        order[n % ROOM] = ordinal
    expected = expected_values(FACTORY, trained_on(both, order, 5, 2), biases_only=False)
    np.testing.assert_array_equal(values_of([delta], len(expected)), expected)


def test_a_round_skips_samples_that_had_to_go_and_what_is_held_out_in_their_place(
    library: ctypes.CDLL,
) -> None:
    recorded = 2 * PER_UNIT
    world = world_with(library, clustered_data(recorded))
    world.give(task_for(ALL, FACTORY.blob(), epochs=1))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    # As many again, each where one of the old ones was: every third of them is held out.
    record(world, clustered_data(recorded, seed=2))
    world.run_until(lambda: bool(world.of(Delta)), 60)
    (delta,) = world.of(Delta)
    old = train_ordinals(0, recorded)[-ROOM:]
    left = sum((ordinal + recorded) % 3 != 2 for ordinal in old)
    assert left < 0.6 * ROOM
    assert abs(delta.train_steps - left) <= 2, "a step or two came before"
    assert delta.train_samples == ROOM


def test_identity_and_lease_outlive_any_number_of_samples(library: ctypes.CDLL) -> None:
    world = world_with(library, clustered_data(10))
    before = bytes(world.device.flash[: SAMPLES.address - 0x08000000])
    for seed in range(8):
        record(world, clustered_data(1000, seed=seed))
    assert bytes(world.device.flash[: SAMPLES.address - 0x08000000]) == before
    assert world.boot() == 0
    world.run_until(lambda: len(world.of(Announce)) == 2)
    assert world.of(Announce)[-1].train_samples == ROOM


def test_a_power_cut_while_recording_leaves_a_device_that_trains(library: ctypes.CDLL) -> None:
    data = clustered_data(2 * PER_UNIT)
    for cut in range(1, 20):
        world = world_with(library, data)
        world.device.cut_power(cut)  # the retired word, the erased sector, header, record
        payload = bytes(range(INPUTS))
        statuses = [world.device.record(payload, 1) for _ in range(4)]
        assert statuses[-1] != 0
        assert world.boot() == 0
        world.run_until(lambda world=world: len(world.of(Announce)) == 2)
        assert world.of(Announce)[-1].train_samples == ROOM
        assert world.device.record(payload, 1) == 0
