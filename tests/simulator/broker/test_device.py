"""The firmware's own client, as host code, at the broker in virtual time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codegen.firmware.bundle import Bundle
from fleet.protocol import Announce, Delta, DeviceState, Status, topics
from fleet.protocol.chunks import chunks_of
from simulator.broker.broker import Broker
from simulator.broker.client import Client
from simulator.broker.connection import Connection
from simulator.broker.core import BrokerSettings
from simulator.machines.device_spec import DeviceSpec
from simulator.machines.protocol import Machine
from simulator.machines.registry import build_machine, machine_kind
from tests.device_runtime.host_device import counted
from tests.device_runtime.tiny_round import task_for
from tests.simulator.conftest import WorldClock
from tests.simulator.line import idle

CHUNK_BYTES = 512
DELTA = "fleet/barn/gw/gw/cow/delta"


class Cable:
    """A device's serial line, its modem and the network in one, all of it fast."""

    def __init__(self, machine: Machine, world: WorldClock, broker: Broker) -> None:
        self.machine, self.world, self.broker = machine, world, broker
        self.connection: Connection | None = None
        self.connections = 0
        self.plugged_in = True

    def pull(self) -> None:
        """The network is gone."""
        self.plugged_in = False
        if self.connection is not None:
            self.connection.close()

    def step(self) -> None:
        idle(self.machine, self.world)
        said = self.machine.take_transmitted()
        connection = self.connection
        if connection is not None:
            connection.receive(said)
            if data := connection.take(4096 - self.machine.bytes_under_way):
                assert self.machine.receive(data) == len(data), "the receive ring overflowed"
            if not self.machine.data_terminal_ready or not self.plugged_in or connection.closed:
                connection.close()
                self.connection = None
                self.machine.set_data_carrier_detect(False)
        elif self.plugged_in and self.machine.data_terminal_ready:
            self.connection = self.broker.connect()
            self.connections += 1
            self.machine.set_data_carrier_detect(True)
        self.world.now += 5.0
        self.broker.tick()

    def until(self, condition: Callable[[], bool], seconds: float = 120.0) -> None:
        end = self.world.now + seconds * 1000.0
        while not condition():
            assert self.world.now < end, f"nothing happened within {seconds} s"
            self.step()


class Gateway:
    """Hears what the device says."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.heard: list[tuple[str, bytes, bool]] = []
        client.subscribe("fleet/barn/dev/+/announce", retain_as_published=True)
        client.subscribe("fleet/barn/dev/+/status", retain_as_published=True)
        client.subscribe("fleet/barn/gw/gw/+/delta")

    def last(self, topic: str) -> bytes | None:
        self.heard += self.client.take()
        return next((payload for one, payload, _ in reversed(self.heard) if one == topic), None)

    def state(self) -> int | None:
        payload = self.last(topics.status("barn", "cow"))
        return None if payload is None else Status.decode(payload).state


@pytest.fixture
def broker(world: WorldClock) -> Broker:
    return Broker(world, BrokerSettings(max_packet_size=17_000))


@pytest.fixture
def cable(digits: Bundle, world: WorldClock, broker: Broker, tmp_path: Path) -> Cable:
    samples = np.zeros((4, 8, 8, 1), np.int8)
    spec = DeviceSpec(
        "cow", digits.path, "moo", samples, np.arange(4), fleet="barn", machine="host"
    )
    machine_kind("host").prepare(spec.bundle, tmp_path / "library.so")
    return Cable(build_machine(spec, tmp_path / "library.so", world), world, broker)


def test_a_device_announces_itself_and_its_will_speaks_when_the_line_is_cut(
    cable: Cable, broker: Broker, digits: Bundle
) -> None:
    gateway = Gateway(broker.attach("gw"))
    cable.until(lambda: gateway.state() == DeviceState.IDLE)
    payload = gateway.last(topics.announce("barn", "cow"))
    assert payload is not None
    assert Announce.decode(payload).current == bytes.fromhex(digits.manifest.weights.sha256)
    cable.pull()
    assert gateway.state() == DeviceState.OFFLINE
    assert all(retained for _, _, retained in gateway.heard)
    later = Gateway(broker.attach("later"))
    assert later.last(topics.announce("barn", "cow")) == payload
    assert later.state() == DeviceState.OFFLINE


def test_a_device_trains_a_round_and_begins_anew_with_a_broker_that_has_lost_everything(
    cable: Cable, broker: Broker, digits: Bundle
) -> None:
    gateway = Gateway(broker.attach("gw"))
    blob = bytes([digits.weights[0] ^ 1]) + digits.weights[1:]
    digest = hashlib.sha256(blob).digest()
    task = task_for(bytes.fromhex(digits.manifest.plans[0].id), blob, chunk_bytes=CHUNK_BYTES)

    def publish_round() -> None:
        for number, payload in chunks_of(blob, CHUNK_BYTES):
            gateway.client.publish(
                topics.blob("barn", digest, number), payload, retain=True, expiry_seconds=600
            )
        gateway.client.publish(
            topics.task("barn", "cow"),
            task.encode(),
            retain=True,
            expiry_seconds=600,
            response_topic=DELTA,
        )

    publish_round()
    cable.until(lambda: cable.machine.flash_operations > 0)
    broker.forget_everything()
    assert gateway.client.closed
    gateway = Gateway(broker.attach("gw"))
    publish_round()
    cable.until(lambda: gateway.last(DELTA) is not None)
    assert cable.connections == 2
    payload = gateway.last(DELTA)
    assert payload is not None
    delta = Delta.decode(payload)
    assert (delta.campaign, delta.round, delta.chunks) == (task.campaign, task.round, 1)
    cable.until(lambda: gateway.state() == DeviceState.SENDING)
    gateway.client.publish(topics.receipt("barn", "cow"), counted(delta).encode(), qos=0)
    cable.until(lambda: gateway.state() == DeviceState.IDLE)
