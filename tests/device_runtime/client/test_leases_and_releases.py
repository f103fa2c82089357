"""Who may task a device, and what its application infers with."""

import ctypes

import numpy as np
import pytest

from fleet.protocol import Action, Announce, Delta, DeviceState, Reason, Status

from ..host_device import World
from ..tiny_round import Data, Weights, task_for
from .rounds import (
    ALL,
    DATA,
    FACTORY,
    decline_of,
    digest_of,
    finish_round,
    make_world,
    online,
    publish_blob,
    trained,
    worse_than,
)

GOOD = trained()
BLOB = GOOD.blob()


def reconnect(world: World) -> Announce:
    """Hangs up and dials again; what the device says of itself then."""
    world.forget_published()
    world.link_is_up = False
    world.run_for(1)
    world.link_is_up = True
    online(world)
    return world.of(Announce)[0]


# --- leases -------------------------------------------------------------------------------------


def test_a_task_with_a_lower_lease_is_declined(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, lease=8))
    finish_round(world)
    world.forget_published()
    world.give(task_for(ALL, FACTORY, round=2, lease=7))
    assert decline_of(world) == Reason.OLDER_LEASE
    assert world.of(Status)[-2:][0].round == 2


@pytest.mark.parametrize("lease", [8, 9, 2**32 - 1])
def test_the_same_lease_and_higher_ones_are_taken(world: World, lease: int) -> None:
    online(world).give(task_for(ALL, FACTORY, lease=8))
    finish_round(world)
    world.forget_published()
    world.give(task_for(ALL, FACTORY, round=2, lease=lease))
    (delta,) = finish_round(world)
    assert delta.lease == lease


def test_the_highest_lease_outlives_a_reset_and_is_announced(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, lease=300))
    finish_round(world)
    world.broker.retained.clear()
    world.boot()
    assert reconnect(world).lease == 300
    world.give(task_for(ALL, FACTORY, round=2, lease=299))
    assert decline_of(world) == Reason.OLDER_LEASE


def test_the_lease_is_kept_before_the_work_begins(library: ctypes.CDLL) -> None:
    world = online(make_world(library))
    world.give(task_for(ALL, FACTORY, lease=5, epochs=200))
    world.run_until(lambda: world.device.state == DeviceState.SCORING)
    world.broker.retained.clear()
    world.boot()
    assert reconnect(world).lease == 5


def test_a_task_with_a_lower_lease_does_not_disturb_the_work(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, lease=8, epochs=200))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.give(task_for(ALL, FACTORY, round=2, lease=7))
    world.run_until(lambda: (DeviceState.DECLINED, Reason.OLDER_LEASE) in world.states())
    assert world.device.state == DeviceState.TRAINING
    assert world.of(Status)[-1].round == 2
    (delta,) = finish_round(world)
    assert (delta.round, delta.lease) == (1, 8)
    # What the broker keeps of it is what it does now, not what it declined.
    world.run_for(15)
    assert world.states()[-1] == (DeviceState.IDLE, Reason.NONE)


def test_the_same_work_under_a_higher_lease_goes_on_under_that(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, lease=8, epochs=50))
    world.run_until(lambda: world.device.state == DeviceState.TRAINING)
    world.give(task_for(ALL, FACTORY, lease=9, epochs=50))
    (delta,) = finish_round(world)
    assert delta.lease == 9
    assert delta.train_steps == 50 * delta.train_samples
    world.broker.retained.clear()
    world.boot()
    assert reconnect(world).lease == 9


def test_a_device_that_cannot_keep_the_lease_does_not_begin(world: World) -> None:
    online(world)
    journal = world.device.setup.regions.journal
    journal.first_sector = 1000  # where there is no flash
    world.boot()
    world.device.write_flash(journal.address, b"\0" * journal.bytes)
    online(world)
    world.forget_published()
    world.give(task_for(ALL, FACTORY, lease=3))
    assert decline_of(world) == Reason.FLASH_FAILURE


# --- current and candidate ------------------------------------------------------------------------


def trained_on(world: World, blob: bytes, round: int = 1) -> None:
    world.forget_published()
    publish_blob(world, blob)
    world.give(task_for(ALL, blob, round=round))
    finish_round(world)
    world.forget_published()


def test_both_versions_are_announced(world: World) -> None:
    trained_on(online(world), BLOB)
    announce = reconnect(world)
    assert (announce.current, announce.candidate) == (digest_of(FACTORY), digest_of(BLOB))


def test_a_release_makes_the_candidate_current_and_reports_scores(world: World) -> None:
    trained_on(online(world), BLOB)
    world.give(task_for(ALL, BLOB, round=2, action=Action.RELEASE))
    (delta,) = finish_round(world)
    correct = DATA.part(held_out=True).correct(GOOD)
    assert (delta.correct_before, delta.correct_after) == (correct, correct)
    assert (delta.coded, delta.train_samples) == (b"", 0)
    assert world.device.current_weights == digest_of(BLOB)
    assert world.device.candidate_weights == bytes(32)
    announce = world.of(Announce)[-1]
    assert (announce.current, announce.candidate) == (digest_of(BLOB), bytes(32))
    world.boot()
    assert world.device.current_weights == digest_of(BLOB)


def test_a_release_fetches_what_the_device_lacks(world: World) -> None:
    publish_blob(world, BLOB)
    online(world).give(task_for(ALL, BLOB, action=Action.RELEASE))
    finish_round(world)
    assert world.device.current_weights == digest_of(BLOB)


@pytest.mark.parametrize("permille", [0, 1000])
def test_a_device_without_samples_takes_a_release_and_can_score_nothing(
    library: ctypes.CDLL, permille: int
) -> None:
    nothing = Data(np.ones((0, 16), np.int8), np.array([], np.int64))
    world = make_world(library, nothing)
    publish_blob(world, BLOB)
    task = task_for(ALL, BLOB, action=Action.RELEASE, max_score_drop_permille=permille)
    online(world).give(task)
    (delta,) = finish_round(world)
    assert (delta.held_out_samples, delta.train_samples, delta.coded) == (0, 0, b"")
    assert world.device.current_weights == digest_of(BLOB)
    world.forget_published()
    world.give(task_for(ALL, BLOB, round=2, action=Action.SCORE))
    assert decline_of(world) == Reason.NO_SAMPLES


def test_a_release_once_more_changes_nothing_and_reports_again(world: World) -> None:
    trained_on(online(world), BLOB)
    for number in (2, 3):
        world.forget_published()
        world.give(task_for(ALL, BLOB, round=number, action=Action.RELEASE))
        (delta,) = finish_round(world)
        assert delta.correct_after == DATA.part(held_out=True).correct(GOOD)
        assert world.device.current_weights == digest_of(BLOB)
    assert not world.of(Announce)


def test_what_scores_worse_than_what_is_current_is_not_released(world: World) -> None:
    trained_on(online(world), BLOB)
    world.give(task_for(ALL, BLOB, round=2, action=Action.RELEASE))
    finish_round(world)
    trained_on(world, worse_than(GOOD), round=3)  # 1000 permille: taken as a candidate
    world.give(
        task_for(ALL, worse_than(GOOD), round=4, action=Action.RELEASE, max_score_drop_permille=100)
    )
    assert decline_of(world) == Reason.SCORE_DROPPED
    assert world.device.current_weights == digest_of(BLOB)
    assert world.device.candidate_weights == digest_of(worse_than(GOOD))


def test_scoring_a_version_makes_it_the_candidate_only(world: World) -> None:
    publish_blob(world, BLOB)
    online(world).give(task_for(ALL, BLOB, action=Action.SCORE))
    (delta,) = finish_round(world)
    assert delta.correct_after == DATA.part(held_out=True).correct(Weights.parse(BLOB))
    assert world.device.current_weights == digest_of(FACTORY)
    assert world.device.candidate_weights == digest_of(BLOB)


def test_a_power_cut_at_every_flash_operation_of_a_release_leaves_one_of_both_current(
    library: ctypes.CDLL,
) -> None:
    release = task_for(ALL, BLOB, round=2, action=Action.RELEASE, lease=2)

    def ready() -> World:
        world = make_world(library)
        trained_on(online(world), BLOB)
        return world

    reference = ready()
    before = reference.device.flash_operations
    reference.give(release)
    expected = finish_round(reference)
    operations = reference.device.flash_operations - before
    assert operations >= 1
    for cut in range(1, operations + 1):
        world = ready()
        world.device.cut_power(cut)
        world.give(release)
        world.run_until(lambda world=world: not world.device.has_power)
        assert world.boot() == 0
        assert world.device.current_weights in (digest_of(FACTORY), digest_of(BLOB))
        assert finish_round(world) == expected
        assert world.device.current_weights == digest_of(BLOB)


def test_training_rounds_never_touch_what_is_current(world: World) -> None:
    trained_on(online(world), BLOB)
    world.give(task_for(ALL, BLOB, round=2, action=Action.RELEASE))
    finish_round(world)
    for number in range(3, 8):
        trained_on(world, trained(seed=number).blob(), round=number)
        assert world.device.current_weights == digest_of(BLOB)
    world.boot()
    assert world.device.current_weights == digest_of(BLOB)
    world.run_until(lambda: bool(world.of(Delta)))
