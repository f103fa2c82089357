"""What a device says about itself, and that it says no more than that."""

import ctypes

import pytest

from fleet.protocol import Announce, Delta, DeviceState, Reason, ResetCause, Status

from ..host_device import World
from ..tiny_round import task_for
from .rounds import ALL, FACTORY, finish_round, make_world, online, publish_blob, trained


def test_a_round_that_is_quick_costs_no_status(world: World) -> None:
    online(world)
    world.forget_published()
    blob = trained().blob()
    publish_blob(world, blob)
    world.give(task_for(ALL, blob))
    finish_round(world)
    world.run_for(60)
    assert [publication.topic for publication in world.broker.published] == [
        "fleet/f/gw/gw/dev1/delta"
    ]


def test_a_state_that_lasts_is_told_and_so_is_its_end(world: World) -> None:
    online(world).give(task_for(ALL, FACTORY, weights=b"\1" * 32))
    world.run_for(9)
    assert world.states() == [(DeviceState.IDLE, 0)]
    world.run_for(3)
    assert world.states()[-1] == (DeviceState.FETCHING, 0)
    world.give(b"")
    world.run_for(12)
    assert world.states() == [
        (DeviceState.IDLE, 0),
        (DeviceState.FETCHING, 0),
        (DeviceState.IDLE, 0),
    ]


def test_a_quiet_device_says_every_15_minutes_that_it_is_there(world: World) -> None:
    online(world)
    world.run_for(14.9 * 60)
    assert len(world.of(Status)) == 1
    world.run_for(30 * 60)
    assert len(world.of(Status)) == 3
    assert len(world.of(Announce)) == 1


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (ResetCause.POWER_ON, Reason.NONE),
        (ResetCause.WATCHDOG, Reason.RESTARTED_BY_WATCHDOG),
        (ResetCause.FAULT, Reason.RESTARTED_AFTER_FAULT),
        (ResetCause.BROWN_OUT, Reason.NONE),
    ],
)
def test_why_a_device_started_is_in_its_announcement_and_its_first_status(
    library: ctypes.CDLL, cause: ResetCause, reason: Reason
) -> None:
    world = make_world(library)
    setup = world.device.setup
    setup.reset_cause, setup.fault_code, setup.fault_pc = cause, 3, 0x0800_1234
    world.boot()
    online(world)
    announce = world.of(Announce)[0]
    assert (announce.reset_cause, announce.fault_code) == (cause, 3)
    assert announce.fault_pc == 0x0800_1234
    assert world.states() == [(DeviceState.IDLE, reason)]
    world.give(task_for(ALL, FACTORY))
    finish_round(world)
    world.run_for(20)
    assert world.states()[-1] == (DeviceState.IDLE, Reason.NONE)


def test_what_a_connection_and_a_round_cost_on_the_line(world: World) -> None:
    """The figures of docs/specification/wire.md, Bytes."""
    online(world)
    world.run_for(1)
    connection = world.bytes_up
    assert connection <= 440
    blob = trained().blob()
    publish_blob(world, blob)
    world.give(task_for(ALL, blob))
    (delta,) = finish_round(world)
    overhead = world.bytes_up - connection - len(delta.coded)
    assert overhead <= 140 + 4 * len(blob) // 16 + 100


def test_after_a_reconnection_everything_is_said_again(world: World) -> None:
    online(world)
    world.forget_published()
    world.link_is_up = False
    world.run_for(1)
    world.broker.retained.clear()
    world.link_is_up = True
    online(world)
    assert len(world.of(Announce)) == 1
    assert world.states() == [(DeviceState.IDLE, Reason.NONE)]
    assert not world.of(Delta)
