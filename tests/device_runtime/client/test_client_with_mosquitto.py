"""Rounds of a host device over a real Mosquitto that may lose everything at any instant."""

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fleet.protocol import Announce, Delta, DeviceState, Status, Task
from tests.patience import wait_until

from ..host_device import SMALL, HostDevice
from ..tiny_round import Weights, expected_values, task_for, train, values_of
from .mosquitto_site import Gateway, Line, Mosquitto
from .rounds import ALL, BIASES, DATA, digest_of, trained

BLOB = trained().blob()
KEY = b"campaign", 1


@dataclass
class Site:
    """What a test holds in its hands."""

    broker: Mosquitto
    gateway: Gateway
    device: HostDevice
    seen: list[Announce | Status | Delta] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.device.power_on(0) == 0
        self.line = Line(self.device, self.broker.port)
        self.line.waits_on_line = False

    def look(self) -> list[Announce | Status | Delta]:
        while not self.gateway.received.empty():
            self.seen.append(self.gateway.received.get())
        return self.seen

    def statuses(self) -> list[int]:
        return [message.state for message in self.look() if isinstance(message, Status)]

    def run_until(self, done: Callable[[], object], polls: int = 20) -> None:
        """Carries bytes until ``done``."""
        wait_until(lambda: self.line.step(polls) or done(), self.broker.log)

    def connect(self) -> None:
        self.run_until(lambda: DeviceState.IDLE in self.statuses())

    def reset(self) -> None:
        self.line.hang_up()
        assert self.device.power_on(0) == 0

    def run_until_state(self, state: DeviceState) -> None:
        self.run_until(lambda: self.device.state == state, polls=1)

    def finish(self, task: Task) -> None:
        key = task.campaign, task.round
        self.run_until(
            lambda: key in self.gateway.counted and self.device.state == DeviceState.IDLE
        )


@pytest.fixture
def site(tmp_path: Path, library: ctypes.CDLL) -> Iterator[Site]:
    with Mosquitto(tmp_path) as broker:
        gateway = Gateway(broker)
        yield Site(broker, gateway, HostDevice(library, DATA.region(SMALL.samples)))
        gateway.close()


def check(site: Site, task: Task) -> None:
    """The one delta that was counted is what training on these weights gives."""
    before = Weights.parse(BLOB)
    biases_only = task.plan == BIASES
    expected = expected_values(
        before, train(before, DATA, 7, task.epochs, biases_only), biases_only
    )
    deltas, _ = site.gateway.counted[task.campaign, task.round]
    np.testing.assert_array_equal(values_of(deltas, len(expected)), expected)


def begin(site: Site, **changes: object) -> Task:
    site.connect()
    site.gateway.publish_weights(BLOB, digest_of(BLOB))
    task = task_for(ALL, BLOB, **changes)
    site.gateway.give(task)
    return task


def test_rounds_with_a_reset_and_a_broker_that_loses_everything_between_them(site: Site) -> None:
    task = begin(site)
    site.finish(task)
    assert isinstance(site.look()[0], Announce)
    check(site, task)

    site.reset()  # without a word, so that the broker publishes the will
    assert site.device.candidate_weights == digest_of(BLOB)
    site.seen.clear()
    site.run_until(lambda: site.gateway.duplicates == 1)
    site.run_until_state(DeviceState.IDLE)
    assert DeviceState.OFFLINE in site.statuses()
    site.gateway.end_round()

    site.broker.lose_everything()
    second = task_for(BIASES, BLOB, round=2)
    site.gateway.give(second)
    site.finish(second)
    check(site, second)
    assert site.gateway.duplicates == 1


def test_the_broker_loses_everything_while_weights_are_fetched(site: Site) -> None:
    site.connect()
    site.gateway.publish_weights(BLOB, digest_of(BLOB), range(7))
    task = task_for(ALL, BLOB)
    site.gateway.give(task)
    site.run_until_state(DeviceState.FETCHING)
    for _ in range(200):
        site.line.step()
    site.broker.lose_everything()
    site.gateway.publish_weights(BLOB, digest_of(BLOB))
    site.finish(task)
    check(site, task)
    assert len(site.gateway.counted) == 1


def test_the_broker_loses_everything_while_the_device_trains(site: Site) -> None:
    task = begin(site, epochs=100)
    site.run_until_state(DeviceState.TRAINING)
    site.broker.lose_everything()
    site.finish(task)
    check(site, task)
    assert site.gateway.duplicates == 0


def test_the_broker_loses_everything_while_the_delta_is_sent(site: Site) -> None:
    task = begin(site, uplink_chunk_bytes=64)
    site.run_until_state(DeviceState.SENDING)
    site.broker.lose_everything()
    site.finish(task)
    check(site, task)


def test_the_broker_loses_everything_while_the_device_waits_for_its_receipt(site: Site) -> None:
    site.gateway.gives_receipts = False
    task = begin(site)
    site.run_until(lambda: KEY in site.gateway.counted)
    site.broker.lose_everything()
    site.gateway.gives_receipts = True
    site.finish(task)
    check(site, task)
    assert site.gateway.duplicates >= 1


@pytest.mark.slow
def test_a_lost_receipt_is_given_again_when_the_delta_comes_again(site: Site) -> None:
    site.gateway.gives_receipts = False
    task = begin(site)
    site.run_until(lambda: KEY in site.gateway.counted)
    site.gateway.gives_receipts = True
    site.line.waits_on_line = True
    site.run_until(lambda: site.gateway.duplicates)  # after 30 s of its own
    site.line.waits_on_line = False
    site.run_until(lambda: site.device.state == DeviceState.IDLE)
    check(site, task)
    assert site.gateway.duplicates == 1


def test_a_delta_of_many_messages_comes_whole_though_the_line_breaks(site: Site) -> None:
    task = begin(site, uplink_chunk_bytes=64, epochs=3)
    for _ in range(3):
        site.run_until_state(DeviceState.SENDING)
        site.line.hang_up()
        for _ in range(20):
            site.line.step(polls=1)
    site.finish(task)
    check(site, task)


def test_a_device_keeps_to_what_the_access_list_allows(site: Site) -> None:
    site.connect()
    site.gateway.publish_weights(BLOB, digest_of(BLOB))
    assert "Denied" not in site.broker.log()
    site.gateway.give(task_for(ALL, BLOB))
    site.run_until(lambda: bool(site.gateway.counted))
    assert "Denied" not in site.broker.log()
