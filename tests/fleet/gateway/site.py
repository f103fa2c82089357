"""A site for tests: a real Mosquitto, a real gateway process, and devices that are paho clients
speaking the wire format. Only the training is made up."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from numpy.typing import NDArray
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet.errors import GatewayError
from fleet.gateway.broker import Broker, BrokerConfig, new_passwords
from fleet.gateway.client import GatewayClient
from fleet.gateway.config import BrokerSettings, GatewaySettings
from fleet.ports import free_port
from fleet.protocol import Delta, DeviceState, Reason, Receipt, Status, Task, topics
from fleet.protocol.chunks import decode_chunk
from tests.fleet.gateway.deltas import (
    CAMPAIGN,
    FLEET,
    GATEWAY,
    NO_CAMPAIGN,
    announcement,
    delta_chunks,
    start_fields,
)
from tests.patience import PATIENCE_SECONDS, wait_until

Train = Callable[[Task], tuple[NDArray[np.int32], int]]


@dataclass
class Received:
    """A task as a device got it."""

    task: Task
    response_topic: str
    expiry_seconds: int | None


class FakeDevice:
    """A device whose training is a function; everything on the wire is real.

    Like a device it sends its delta again over every new connection, and after a while without a
    receipt; a second here, not half a minute.
    """

    RESEND_SECONDS = 1.0

    def __init__(self, name: str, port: int, password: str, train: Train | None = None) -> None:
        self.name = name
        self.train = train
        self.code: Callable[[Task, NDArray[np.int32]], bytes] | None = None
        self.tasks: queue.Queue[Received] = queue.Queue()
        self.receipts: queue.Queue[Receipt] = queue.Queue()
        self.cleared = threading.Event()
        self.blob: dict[int, bytes] = {}
        self.before_chunk: Callable[[int], None] = lambda chunk: None
        self.done = threading.Event()
        self._fetching = ""
        self._closed = False
        self._state = DeviceState.IDLE
        self._wake = threading.Condition()
        self._connections = 0
        self._counted: set[tuple[bytes, int]] = set()
        self._working: set[tuple[bytes, int]] = set()
        self._acknowledged: set[int] = set()
        client = self.client = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=paho.MQTTv5)
        client.username_pw_set(name, password)
        client.reconnect_delay_set(1, 1)
        client.will_set(
            topics.status(FLEET, name), self._status(DeviceState.OFFLINE), qos=1, retain=True
        )
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_publish = lambda client, user, mid, *_: self._acknowledged.add(mid)
        properties = Properties(PacketTypes.CONNECT)
        properties.ReceiveMaximum = 2
        properties.MaximumPacketSize = 768
        client.connect("127.0.0.1", port, 60, clean_start=True, properties=properties)
        client.loop_start()

    def _status(
        self,
        state: DeviceState,
        reason: Reason = Reason.NONE,
        campaign: bytes = NO_CAMPAIGN,
        round: int = 0,
    ) -> bytes:
        return Status(state, reason, campaign, round, 90).encode()

    def _on_connect(self, client: paho.Client, *_: Any) -> None:
        client.subscribe(topics.to_device(FLEET, self.name), qos=1)
        if self._fetching:
            self.fetch(self._fetching)
        payload = announcement(train_samples=60).encode()
        self.publish(topics.announce(FLEET, self.name), payload, retain=True)
        self.say(self._state)
        with self._wake:
            self._connections += 1
            self._wake.notify_all()

    def say(
        self, state: DeviceState, reason: Reason = Reason.NONE, task: Task | None = None
    ) -> None:
        self._state = state
        campaign, number = (task.campaign, task.round) if task else (NO_CAMPAIGN, 0)
        payload = self._status(state, reason, campaign, number)
        self.publish(topics.status(FLEET, self.name), payload, retain=True)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> paho.MQTTMessageInfo:
        return self.client.publish(topic, payload, qos=1, retain=retain)

    def _on_message(self, client: paho.Client, user: Any, message: paho.MQTTMessage) -> None:
        parts = topics.parse(message.topic)
        if parts.kind == "blob":
            if message.payload:
                self.blob[parts.chunk] = decode_chunk(parts.chunk, message.payload)
            return
        if parts.kind == "receipt":
            receipt = Receipt.decode(message.payload)
            self.receipts.put(receipt)
            with self._wake:
                self._counted.add((receipt.campaign, receipt.round))
                self._wake.notify_all()
            return
        if not message.payload:
            self.cleared.set()
            with self._wake:
                self._wake.notify_all()
            return
        self.cleared.clear()
        task = Task.decode(message.payload)
        properties = message.properties
        self.tasks.put(
            Received(
                task, properties.ResponseTopic, getattr(properties, "MessageExpiryInterval", None)
            )
        )
        key = (task.campaign, task.round)
        if self.train and key not in self._working:
            self._working.add(key)
            threading.Thread(target=self._work, args=(task,), daemon=True).start()

    def fetch(self, sha256: str) -> None:
        self._fetching = sha256
        self.client.subscribe(topics.any_chunk(FLEET, bytes.fromhex(sha256)), qos=0)

    def _work(self, task: Task) -> None:
        assert self.train
        self.say(DeviceState.TRAINING, task=task)
        values, samples = self.train(task)
        coded = {} if self.code is None else {"coded_all": self.code(task, values)}
        chunks = delta_chunks(task, values, samples, **coded)
        while not self._is_over(task):
            connection = self._connections
            self.send(chunks, lambda seen=connection: self._connections != seen)
            with self._wake:
                self._wake.wait_for(
                    lambda seen=connection: self._is_over(task) or self._connections != seen,
                    self.RESEND_SECONDS,
                )
        self.done.set()
        self.say(DeviceState.IDLE)

    def _is_over(self, task: Task) -> bool:
        key = (task.campaign, task.round)
        return self._closed or key in self._counted or self.cleared.is_set()

    def send(self, chunks: list[Delta], given_up: Callable[[], bool] = lambda: False) -> None:
        """One unacknowledged chunk at a time, as the device's client does it."""
        for index, chunk in enumerate(chunks):
            self.before_chunk(index)
            self.send_raw(chunk.encode(), given_up)
            if given_up():
                return

    def send_raw(self, payload: bytes, given_up: Callable[[], bool] = lambda: False) -> None:
        info = self.publish(topics.delta(FLEET, GATEWAY, self.name), payload)
        end = time.monotonic() + PATIENCE_SECONDS
        # paho sends it again after a reconnection
        while info.mid not in self._acknowledged and not (given_up() or self._closed):
            assert time.monotonic() < end, f"{self.name}: no acknowledgement"
            time.sleep(0.002)

    def acknowledged(self, messages: int) -> bool:
        """Whether the broker has taken at least so many."""
        return len(self._acknowledged) >= messages

    def close(self) -> None:
        self._closed = True
        self.client.disconnect()
        self.client.loop_stop()


@dataclass
class Site:
    folder: Path
    names: list[str]
    devices: dict[str, FakeDevice] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.passwords = new_passwords([GATEWAY, *self.names])
        self.config = BrokerConfig(
            FLEET,
            {GATEWAY: self.passwords[GATEWAY]},
            {name: self.passwords[name] for name in self.names},
            port=free_port(),
        )
        self.broker = Broker(self.folder / "broker", self.config)
        self.broker.start()
        password_file = self.folder / "gateway.password"
        password_file.write_text(self.passwords[GATEWAY] + "\n")
        self.settings = GatewaySettings(
            fleet=FLEET,
            gateway=GATEWAY,
            store=self.folder / "store.sqlite",
            socket=self.folder / "gw.sock",
            broker=BrokerSettings(port=self.config.port, user=GATEWAY, password_file=password_file),
        )
        self.client = GatewayClient(self.settings.socket)

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def start_gateway(self) -> None:
        config = self.folder / "gateway.toml"
        self.settings.write(config)
        with (self.folder / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fleet.gateway", "--config", str(config)],
                stderr=log,
                stdout=log,
            )
        self.until(self._answers, "the gateway answers")

    def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, self.log
        try:
            self.client.hello()
        except GatewayError:
            return False
        return True

    def kill_gateway(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def stop_gateway(self) -> int:
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)

    def kill_broker(self) -> None:
        """As a power cut does it, and nothing of it is found again."""
        self.broker.kill()
        ours = ("mosquitto.conf", "passwords", "access", "own.json")
        for path in self.broker.folder.iterdir():
            if path.is_file() and path.name not in ours:
                path.unlink()

    def add(self, name: str, train: Train | None = None) -> FakeDevice:
        device = FakeDevice(name, self.config.port, self.passwords[name], train)
        self.devices[name] = device
        self.until(lambda: self.is_online(name), f"{name} is known to the gateway")
        return device

    def is_online(self, name: str) -> bool:
        return any(one["device"] == name and one["online"] for one in self.client.devices())

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def said() -> str:
            log = self.folder / "gateway.log"
            return f"{what}\n{log.read_text() if log.exists() else ''}"

        wait_until(condition, said)

    def start(self, round: int = 1, values: int = 1000, **changes: Any) -> dict[str, Any]:
        names = changes.pop("names", self.names)
        fields = start_fields(
            names, **{"deadline_seconds": 600, "round": round, "values": values, **changes}
        )
        return self.client.start(**fields)

    def collect_closed(self, round: int = 1) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            self.client.watch([(CAMPAIGN, round)], wait_seconds=2)
            reply = self.client.collect(CAMPAIGN, round)
            if reply["state"] != "running":
                return reply
            assert time.monotonic() < end, f"{reply}\n{self.log}"

    def close(self) -> None:
        for device in self.devices.values():
            device.close()
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.broker.stop()


def memory_kib(pid: int) -> int:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024
