"""A site around a host device: a real Mosquitto that keeps nothing, a small gateway, a line."""

from __future__ import annotations

import os
import queue
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet.gateway.broker import find_mosquitto, password_lines
from fleet.ports import free_port
from fleet.protocol import Announce, Delta, Receipt, Status, Task, topics
from fleet.protocol.chunks import chunks_of

from ..host_device import HostDevice, counted

DEVICE_SPEED = 4  # the device's clock runs faster, so that its waits don't make tests long

CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous false
password_file {folder}/passwords
acl_file {folder}/access
use_username_as_clientid true
persistence false
max_packet_size 17000
set_tcp_nodelay true
log_dest stderr
"""
ACCESS = """\
pattern write fleet/f/dev/%u/announce
pattern write fleet/f/dev/%u/status
pattern write fleet/f/gw/gw/%u/delta
pattern read fleet/f/to/%u/+
pattern read fleet/f/blob/+/+/+

user gw
topic read fleet/f/dev/+/+
topic readwrite fleet/f/to/+/+
topic read fleet/f/gw/gw/+/delta
topic readwrite fleet/f/blob/+/+/+
"""


class Mosquitto:
    """As wire.md wants it: nothing is left of it when it is killed."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        text = CONFIG.format(port=self.port, folder=folder)
        if os.geteuid() == 0:
            text += "user root\n"
        (folder / "mosquitto.conf").write_text(text)
        (folder / "access").write_text(ACCESS)
        (folder / "passwords").write_text(password_lines({"gw": "gateway", "dev1": "secret"}))
        for name in ("access", "passwords"):
            (folder / name).chmod(0o600)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            command = [find_mosquitto(), "-v", "-c", str(self.folder / "mosquitto.conf")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(self.log())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def lose_everything(self) -> None:
        """Killed, its folder of data deleted, and started again."""
        self.kill()
        shutil.rmtree(self.folder / "data", ignore_errors=True)
        self.start()

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Gateway:
    """Puts back what the broker has lost, counts each delta once, and says so in receipts."""

    def __init__(self, broker: Mosquitto) -> None:
        self.received: queue.Queue[Announce | Status | Delta] = queue.Queue()
        self.chunks: dict[str, bytes] = {}
        self.task: Task | None = None
        self.counted: dict[tuple[bytes, int], tuple[list[Delta], Receipt]] = {}
        self.partial: dict[int, Delta] = {}
        self.gives_receipts = True
        self.duplicates = 0
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id="gw", protocol=paho.MQTTv5
        )
        self.client.username_pw_set("gw", "gateway")
        self.client.reconnect_delay_set(0.05, 0.2)
        self.client.on_message = self._take
        self.client.on_connect = self._on_connect
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()

    def _on_connect(self, *_: object) -> None:
        ends = ("dev/+/announce", "dev/+/status", "gw/gw/+/delta")
        self.client.subscribe([(f"fleet/f/{end}", 1) for end in ends])
        for topic, payload in self.chunks.items():
            self.client.publish(topic, payload, 1, True)
        if self.task is not None:
            self._publish_task(self.task.encode())

    def _take(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        kinds = {"announce": Announce, "status": Status, "delta": Delta}
        decoded = kinds[message.topic.rpartition("/")[2]].decode(message.payload)
        if isinstance(decoded, Delta):
            self._count(decoded)
        self.received.put(decoded)

    def _count(self, delta: Delta) -> None:
        key = delta.campaign, delta.round
        if key in self.counted:
            self.duplicates += delta.chunk + 1 == delta.chunks
            self.give_receipt(key)
            return
        if self.partial and next(iter(self.partial.values())).coded_crc32 != delta.coded_crc32:
            self.partial.clear()
        self.partial[delta.chunk] = delta
        if len(self.partial) == delta.chunks:
            self.counted[key] = [*self.partial.values()], counted(delta)
            self.partial = {}
            self.give_receipt(key)

    def give_receipt(self, key: tuple[bytes, int]) -> None:
        if self.gives_receipts:
            receipt = self.counted[key][1]
            self.client.publish(topics.receipt("f", "dev1"), receipt.encode(), 0)

    def publish_weights(
        self, blob: bytes, sha256: bytes, numbers: Iterable[int] | None = None
    ) -> None:
        chunks = dict(chunks_of(blob, 16))
        for number in chunks if numbers is None else numbers:
            topic = topics.blob("f", sha256, number)
            self.chunks[topic] = chunks[number]
            self.client.publish(topic, chunks[number], 1, True)

    def give(self, task: Task) -> None:
        self.task = task
        self._publish_task(task.encode())

    def end_round(self) -> None:
        self.task = None
        self._publish_task(b"")

    def _publish_task(self, payload: bytes) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = topics.delta("f", "gw", "dev1")
        properties.MessageExpiryInterval = 600
        self.client.publish(topics.task("f", "dev1"), payload, 1, True, properties)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class Line:
    """Carries a device's bytes over TCP."""

    def __init__(self, device: HostDevice, port: int) -> None:
        self.device, self.port = device, port
        self.socket: socket.socket | None = None
        self.waiting = b""
        self.waits_on_line = True
        """Whether time passes for a device that is connected: where none does, a machine that is
        slow makes it send nothing twice."""
        self._now = 0.0
        self._looked = time.monotonic()

    def _milliseconds(self) -> int:
        """The device's clock."""
        looked = time.monotonic()
        if self.socket is None or self.waits_on_line:
            self._now += 1000 * DEVICE_SPEED * (looked - self._looked)
        self._looked = looked
        return int(self._now) & 0xFFFFFFFF

    def hang_up(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket, self.waiting = None, b""
        self.device.set_carrier(False)

    def step(self, polls: int = 20) -> None:
        busy = self.device.run(self._milliseconds(), polls)
        try:
            if self.socket is None and self.device.dials:
                self.socket = socket.create_connection(("127.0.0.1", self.port), 5)
                self.device.set_carrier(True)
            if self.socket is None:
                time.sleep(0.002)
                return
            self.socket.sendall(self.device.take())
            if not self.device.dials:
                self.hang_up()
                return
            if not self.waiting and select.select([self.socket], [], [], 0 if busy else 0.002)[0]:
                self.waiting = self.socket.recv(4096)
                if not self.waiting:
                    self.hang_up()
                    return
            taken = self.device.receive(self.waiting)
            assert taken == len(self.waiting), "the receive ring overflowed"
            self.waiting = b""
        except OSError:
            self.hang_up()
            time.sleep(0.02)
