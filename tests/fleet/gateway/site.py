"""A site for tests: a real Mosquitto, a real gateway process, and devices that are paho clients
speaking the wire format. Only the training is made up."""

from __future__ import annotations

import hashlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import zlib
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
from fleet.protocol import Announce, Delta, DeviceState, Reason, Status, Task, delta_coding, topics
from fleet.protocol.fields import CHUNK_BYTES
from tests.patience import PATIENCE_SECONDS, wait_until

FLEET = "barn"
GATEWAY = "north"
CAMPAIGN = "00112233445566aa"
NO_CAMPAIGN = bytes(8)
PLAN = hashlib.sha256(b"plan").hexdigest()
OTHER_PLAN = hashlib.sha256(b"other plan").hexdigest()
BLOB = bytes(range(256)) * 21 + b"the end"
WEIGHTS = hashlib.sha256(BLOB).hexdigest()


def delta_chunks(
    task: Task, values: NDArray[np.int32], samples: int, **changes: Any
) -> list[Delta]:
    """The messages of a delta for ``task``; ``changes`` replace header fields."""
    coded = changes.pop("coded_all", None)
    if coded is None:
        coded = delta_coding.encode(values)
    header = {
        "campaign": task.campaign,
        "round": task.round,
        "plan": task.plan[:8],
        "weights": task.weights[:8],
        "chunks": max(1, -(-len(coded) // CHUNK_BYTES)),
        "coded_bytes": len(coded),
        "coded_crc32": zlib.crc32(coded),
        "train_samples": samples,
        "train_steps": samples * task.epochs,
        "held_out_samples": 10,
        "correct_before": 4,
        "correct_after": 7,
        "loss_before_thousandths": 1500,
        "loss_after_thousandths": 800,
        **changes,
    }
    return [
        Delta(chunk=chunk, coded=coded[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES], **header)
        for chunk in range(header["chunks"])
    ]


@dataclass
class Received:
    """A task as a device got it."""

    task: Task
    response_topic: str
    expiry_seconds: int | None


class FakeDevice:
    """A device whose training is a function; everything on the wire is real."""

    def __init__(
        self,
        name: str,
        port: int,
        password: str,
        train: Callable[[Task], tuple[NDArray[np.int32], int]] | None = None,
    ) -> None:
        self.name = name
        self.train = train
        self.tasks: queue.Queue[Received] = queue.Queue()
        self.cleared = threading.Event()
        self.blob: dict[int, bytes] = {}
        self.before_chunk: Callable[[int], None] = lambda chunk: None
        self.sent = threading.Event()
        self._done: set[tuple[bytes, int]] = set()
        self._acknowledged: set[int] = set()
        self._worker: threading.Thread | None = None
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
        properties.SessionExpiryInterval = 3600
        properties.ReceiveMaximum = 2
        properties.MaximumPacketSize = 768
        client.connect("127.0.0.1", port, 60, clean_start=False, properties=properties)
        client.loop_start()

    def _status(
        self,
        state: DeviceState,
        reason: Reason = Reason.NONE,
        campaign: bytes = NO_CAMPAIGN,
        round: int = 0,
    ) -> bytes:
        return Status(self.name, state, reason, campaign, round, 90).encode()

    def announcement(self) -> Announce:
        digest = bytes.fromhex(WEIGHTS)
        return Announce(self.name, "stm32f746", b"b" * 32, digest, 100_000, 90, 9600, 60, 30)

    def _on_connect(self, client: paho.Client, *_: Any) -> None:
        client.subscribe(topics.task(FLEET, self.name), qos=1)
        self.publish(topics.announce(FLEET, self.name), self.announcement().encode(), retain=True)
        self.say(DeviceState.IDLE)

    def say(
        self, state: DeviceState, reason: Reason = Reason.NONE, task: Task | None = None
    ) -> None:
        campaign, number = (task.campaign, task.round) if task else (NO_CAMPAIGN, 0)
        payload = self._status(state, reason, campaign, number)
        self.publish(topics.status(FLEET, self.name), payload, retain=True)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> paho.MQTTMessageInfo:
        return self.client.publish(topic, payload, qos=1, retain=retain)

    def _on_message(self, client: paho.Client, user: Any, message: paho.MQTTMessage) -> None:
        parts = topics.parse(message.topic)
        if parts.kind == "blob":
            self.blob[parts.chunk] = message.payload
            return
        if not message.payload:
            self.cleared.set()
            return
        self.cleared.clear()
        task = Task.decode(message.payload)
        properties = message.properties
        self.tasks.put(
            Received(
                task, properties.ResponseTopic, getattr(properties, "MessageExpiryInterval", None)
            )
        )
        if self.train and (task.campaign, task.round) not in self._done:
            self._done.add((task.campaign, task.round))
            self._worker = threading.Thread(target=self._work, args=(task,), daemon=True)
            self._worker.start()

    def fetch(self, sha256: str) -> None:
        self.client.subscribe(topics.any_chunk(FLEET, sha256), qos=1)

    def _work(self, task: Task) -> None:
        assert self.train
        self.say(DeviceState.TRAINING, task=task)
        values, samples = self.train(task)
        self.send(delta_chunks(task, values, samples))
        self.sent.set()
        self.say(DeviceState.IDLE)

    def send(self, chunks: list[Delta]) -> None:
        """One unacknowledged chunk at a time, as the device's client does it."""
        for index, chunk in enumerate(chunks):
            self.before_chunk(index)
            self.send_raw(chunk.encode())

    def send_raw(self, payload: bytes) -> None:
        info = self.publish(topics.delta(FLEET, GATEWAY, self.name), payload)
        end = time.monotonic() + PATIENCE_SECONDS
        while info.mid not in self._acknowledged:  # paho sends it again after a reconnection
            assert time.monotonic() < end, f"{self.name}: no acknowledgement"
            time.sleep(0.002)

    def acknowledged(self, messages: int) -> bool:
        """Whether the broker has taken at least so many."""
        return len(self._acknowledged) >= messages

    def close(self) -> None:
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

    def add(
        self,
        name: str,
        train: Callable[[Task], tuple[NDArray[np.int32], int]] | None = None,
    ) -> FakeDevice:
        device = FakeDevice(name, self.config.port, self.passwords[name], train)
        self.devices[name] = device
        self.until(lambda: self.is_online(name), f"{name} is known to the gateway")
        return device

    def is_online(self, name: str) -> bool:
        devices = self.client.hello()["devices"]
        return any(one["device"] == name and one["online"] for one in devices)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def said() -> str:
            log = self.folder / "gateway.log"
            return f"{what}\n{log.read_text() if log.exists() else ''}"

        wait_until(condition, said)

    def start(self, round: int = 1, values: int = 1000, **changes: Any) -> dict[str, Any]:
        names = changes.pop("names", self.names)
        request: dict[str, Any] = {
            "campaign": CAMPAIGN,
            "round": round,
            "blobs": [{"sha256": WEIGHTS, "data": BLOB, "chunk_bytes": 512}],
            "tasks": {name: {"plan": PLAN, "weights": WEIGHTS} for name in names},
            "plans": {PLAN: {"values": values}},
            "epochs": 2,
            "learning_rate": 0.01,
            "seed": 7,
            "deadline_seconds": 600,
            "max_score_drop_permille": 100,
            "check_in_seconds": 5,
            "target": len(names),
            **changes,
        }
        return self.client.start(**request)

    def collect_closed(self, round: int = 1) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            reply = self.client.collect(CAMPAIGN, round, wait_seconds=2)
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
