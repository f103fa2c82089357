"""A round of host devices over a real Mosquitto, with a small gateway in the test."""

import hashlib
import queue
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet.gateway.broker import Broker, BrokerConfig
from fleet.ports import free_port
from fleet.protocol import Announce, Delta, DeviceState, Status
from tests.patience import PATIENCE_SECONDS

from ..host_device import PLANS, SECTORS, HostDevice, build_library
from ..tiny_round import Weights, clustered_data, expected_values, task_for, train, values_of

FACTORY = bytes(144)
DATA = clustered_data()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    config = BrokerConfig("f", {"gw": "gateway secret"}, {"dev1": "secret"}, free_port())
    with Broker(tmp_path, config) as running:
        yield running


class Gateway:
    """Publishes blobs and tasks, collects what devices say."""

    def __init__(self, broker: Broker) -> None:
        self.received: queue.Queue[Announce | Status | Delta] = queue.Queue()
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id="gw", protocol=paho.MQTTv5
        )
        self.client.username_pw_set("gw", "gateway secret")
        self.client.on_message = self._take
        self.client.on_connect = lambda client, *_: client.subscribe(
            [(f"fleet/f/{end}", 1) for end in ("dev/+/announce", "dev/+/status", "gw/gw/+/delta")]
        )
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()

    def _take(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        kinds = {"announce": Announce, "status": Status, "delta": Delta}
        self.received.put(kinds[message.topic.rpartition("/")[2]].decode(message.payload))

    def publish_blob(self, blob: bytes) -> None:
        topic = f"fleet/f/blob/{hashlib.sha256(blob).hexdigest()}"
        for number, start in enumerate(range(0, len(blob), 32)):
            self.client.publish(f"{topic}/{number}", blob[start : start + 32], 1, True)

    def give(self, payload: bytes) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = "fleet/f/gw/gw/dev1/delta"
        properties.MessageExpiryInterval = 60
        self.client.publish("fleet/f/dev/dev1/task", payload, 1, True, properties)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Line:
    """Carries a device's bytes over TCP."""

    def __init__(self, device: HostDevice, broker: Broker) -> None:
        self.device, self.broker = device, broker
        self.socket: socket.socket | None = None
        self.waiting = b""

    def hang_up(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket, self.waiting = None, b""
        self.device.set_carrier(False)

    def step(self) -> None:
        busy = self.device.run(int(time.monotonic() * 1000) & 0xFFFFFFFF, 50)
        try:
            if self.socket is None and self.device.dials:
                self.socket = socket.create_connection((self.broker.host, self.broker.port), 5)
                self.device.set_carrier(True)
            if self.socket is None:
                time.sleep(0.01)
                return
            self.socket.sendall(self.device.take())
            if not self.device.dials:
                self.hang_up()
                return
            if not self.waiting and select.select([self.socket], [], [], 0 if busy else 0.005)[0]:
                self.waiting = self.socket.recv(256)
                if not self.waiting:
                    self.hang_up()
                    return
            self.waiting = self.waiting[self.device.receive(self.waiting) :]
        except OSError:
            self.hang_up()
            time.sleep(0.05)

    def run_until(self, gateway: Gateway, kind: type, wanted: object = None) -> list:
        """Runs until the gateway has such a message; returns all that came meanwhile."""
        end = time.monotonic() + PATIENCE_SECONDS
        seen: list = []
        while time.monotonic() < end:
            self.step()
            while not gateway.received.empty():
                seen.append(gateway.received.get())
                message = seen[-1]
                if isinstance(message, kind) and wanted in (None, getattr(message, "state", None)):
                    return seen
        raise AssertionError(f"no {kind.__name__} within {PATIENCE_SECONDS} s, only {seen}")


@pytest.fixture
def gateway(broker: Broker) -> Iterator[Gateway]:
    made = Gateway(broker)
    yield made
    made.close()


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> HostDevice:
    library = build_library(tmp_path_factory.mktemp("device"))
    return HostDevice(library, DATA.region(SECTORS[2]))


def test_a_round_over_mosquitto_with_a_reset_and_a_broker_that_restarts(
    broker: Broker, gateway: Gateway, device: HostDevice
) -> None:
    blob = train(Weights.parse(FACTORY), DATA, 99, 1, False).blob()
    assert device.power_on(0) == 0
    line = Line(device, broker)
    seen = line.run_until(gateway, Status, DeviceState.IDLE)
    assert isinstance(seen[0], Announce)

    gateway.publish_blob(blob)
    task = task_for(PLANS[0], blob)
    gateway.give(task.encode())
    delta = line.run_until(gateway, Delta)[-1]
    before = Weights.parse(blob)
    np.testing.assert_array_equal(
        values_of([delta], 68), expected_values(before, train(before, DATA, 7, 2, False), False)
    )
    line.run_until(gateway, Status, DeviceState.IDLE)

    line.hang_up()  # without a word, so that the broker publishes the will
    assert device.power_on(0) == 0
    assert device.active_weights == hashlib.sha256(blob).digest()
    seen = line.run_until(gateway, Delta)
    assert seen[-1] == delta, "the retained task is worked on again after a reset"
    assert DeviceState.OFFLINE in [item.state for item in seen if isinstance(item, Status)]
    line.run_until(gateway, Status, DeviceState.IDLE)

    broker.kill()
    broker.start()
    gateway.give(task_for(PLANS[1], blob, round=2).encode())
    seen = line.run_until(gateway, Delta)
    assert seen[-1].round == 2
    after = train(before, DATA, 7, 2, biases_only=True)
    np.testing.assert_array_equal(values_of([seen[-1]], 4), expected_values(before, after, True))
