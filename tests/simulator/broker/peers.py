"""Two brokers behind one small client: Mosquitto over TCP, and ours in memory."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import mqtt5
from mqtt5 import PublishPacket, QoS, RetainHandling, TopicFilter

from fleet.gateway.broker import find_mosquitto, password_lines
from fleet.ports import free_port
from simulator.broker.broker import Broker
from simulator.broker.connection import Connection
from simulator.broker.core import BrokerSettings
from tests.patience import PATIENCE_SECONDS
from tests.simulator.conftest import WorldClock

MAX_INFLIGHT, MAX_QUEUED, MAX_PACKET = 20, 30, 4000
PASSWORD = b"secret"

_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
password_file {folder}/passwords
acl_file {folder}/access
persistence false
max_inflight_messages {inflight}
max_queued_messages {queued}
max_packet_size {packet}
max_qos 1
max_topic_alias 0
set_tcp_nodelay true
log_dest stderr
"""
# Who has no name may do all. The limited user writes and reads what is meant for it.
_ACCESS = """\
topic readwrite #
topic readwrite $own/#
user limited
topic write +/allowed/#
topic read +/allowed/#
"""


class Transport(Protocol):
    """A connection's bytes."""

    def send(self, data: bytes) -> None: ...

    def more(self) -> bytes:
        """Bytes that have come; b"" where the broker has ended the connection."""
        ...

    def cut(self) -> None:
        """Break it, without a word."""
        ...


class Peer(Protocol):
    """A broker under test."""

    name: str

    def open(self) -> Transport: ...

    def until(self, condition: Callable[[], bool]) -> None:
        """Let time pass until then."""
        ...


class _Socket:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # it may have ended what isn't MQTT
            self._socket.sendall(data)

    def more(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except ConnectionError:
            return b""

    def cut(self) -> None:
        self._socket.close()


class Mosquitto:
    """The program, on loopback, with nothing kept."""

    name = "mosquitto"

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        text = _CONFIG.format(
            port=self._port,
            folder=folder,
            inflight=MAX_INFLIGHT,
            queued=MAX_QUEUED,
            packet=MAX_PACKET,
        )
        if os.geteuid() == 0:
            text += "user root\n"
        (folder / "mosquitto.conf").write_text(text)
        (folder / "access").write_text(_ACCESS)
        (folder / "passwords").write_text(password_lines({"limited": PASSWORD.decode()}))
        for name in ("access", "passwords"):
            (folder / name).chmod(0o600)
        with (folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [find_mosquitto(), "-c", str(folder / "mosquitto.conf")], stdout=log, stderr=log
            )
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError):
                _Socket(self._port).cut()
                return
            assert time.monotonic() < end, (folder / "log").read_text()
            assert self._process.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)

    @staticmethod
    def version() -> str:
        said = subprocess.run([find_mosquitto(), "-h"], capture_output=True, text=True).stdout
        return said.split()[2]

    def open(self) -> Transport:
        return _Socket(self._port)

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end, "it didn't happen"
            time.sleep(0.05)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class _Limited:
    """The same access list."""

    def may_connect(self, client_id: str, user: str | None, password: bytes | None) -> bool:
        return user is None or (user == "limited" and password == PASSWORD)

    def _may(self, client_id: str, topic: str) -> bool:
        return not client_id.endswith("-limited") or topic.split("/")[1] == "allowed"

    may_publish = may_receive = _may


class _Memory:
    def __init__(self, broker: Broker) -> None:
        self._connection: Connection = broker.connect()

    def send(self, data: bytes) -> None:
        self._connection.receive(data)

    def more(self) -> bytes:
        data = self._connection.take()
        assert data or self._connection.closed, "nothing more comes, and the connection is open"
        return data

    def cut(self) -> None:
        self._connection.close()


class Virtual:
    """The broker without I/O."""

    name = "virtual"

    def __init__(self) -> None:
        self.clock = WorldClock()
        self.broker = Broker(
            self.clock, BrokerSettings(MAX_INFLIGHT, MAX_QUEUED, MAX_PACKET), _Limited()
        )

    def open(self) -> Transport:
        return _Memory(self.broker)

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            due = self.broker.next_due()
            assert due < math.inf, "it never happens"
            self.clock.now = max(self.clock.now, due)
            self.broker.tick()


class Client:
    """A client that says what it is told to, packet by packet."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._heard = b""
        self._waiting: list[mqtt5.Packet] = []
        self._ids = itertools.count(1)

    def send(self, packet: mqtt5.Packet | bytes) -> None:
        self._transport.send(packet if isinstance(packet, bytes) else packet.write())

    def cut(self) -> None:
        self._transport.cut()

    def next(self) -> mqtt5.Packet:
        """The next packet; EOFError where the broker has ended the connection."""
        while True:
            with contextlib.suppress(IndexError):
                packet, used = mqtt5.read(memoryview(self._heard))
                self._heard = self._heard[used:]
                return packet
            data = self._transport.more()
            if not data:
                raise EOFError
            self._heard += data

    def expect(self, kind: type[Any]) -> Any:
        packet = self.next()
        assert isinstance(packet, kind), packet
        return packet

    def settle(self) -> list[mqtt5.Packet]:
        """What has come until now: the broker answers in order."""
        self.send(mqtt5.PingReqPacket())
        packets = []
        while not isinstance(packet := self.next(), mqtt5.PingRespPacket):
            packets.append(packet)
        return packets

    def messages(self) -> list[PublishPacket]:
        """The same, where all of it is messages."""
        packets = self.settle()
        assert all(isinstance(packet, PublishPacket) for packet in packets), packets
        return [packet for packet in packets if isinstance(packet, PublishPacket)]

    def until_closed(self) -> list[mqtt5.Packet]:
        """What comes before the broker ends the connection."""
        packets = []
        with contextlib.suppress(EOFError):
            while True:
                packets.append(self.next())
        return packets

    def publish(self, topic: str, payload: bytes = b"x", qos: int = 1, **options: Any) -> int:
        """Publish; the reason in the acknowledgement, 0 with QoS 0."""
        packet_id = next(self._ids) if qos else None
        self.send(PublishPacket(topic, payload, qos=QoS(qos), packet_id=packet_id, **options))
        if packet_id is None:
            return 0
        acknowledged = self.expect(mqtt5.PubAckPacket)
        assert acknowledged.packet_id == packet_id
        return int(acknowledged.reason_code)

    def subscribe(self, *patterns: str, qos: int = 1, **options: Any) -> list[int]:
        """Subscribe; the reasons."""
        options = {"retain_as_published": False, **options}
        filters = [TopicFilter(one, max_qos=QoS(qos), **options) for one in patterns]
        packet_id = next(self._ids)
        self.send(mqtt5.SubscribePacket(packet_id, filters))
        acknowledged = self.expect(mqtt5.SubAckPacket)
        assert acknowledged.packet_id == packet_id
        return [int(reason) for reason in acknowledged.reason_codes]

    def unsubscribe(self, *patterns: str) -> list[int]:
        packet_id = next(self._ids)
        self.send(mqtt5.UnsubscribePacket(packet_id, list(patterns)))
        acknowledged = self.expect(mqtt5.UnsubAckPacket)
        assert acknowledged.packet_id == packet_id
        return [int(reason) for reason in acknowledged.reason_codes]

    def acknowledge(self, *messages: PublishPacket) -> None:
        for message in messages:
            assert message.packet_id
            self.send(mqtt5.PubAckPacket(message.packet_id))

    def disconnect(self, **options: Any) -> None:
        """Say goodbye, and wait for the end."""
        self.send(mqtt5.DisconnectPacket(**options))
        assert self.until_closed() == []


class Site:
    """One test's part of a broker: names that nobody else uses."""

    def __init__(self, peer: Peer, prefix: str) -> None:
        self.peer = peer
        self.prefix = prefix
        self._clients: list[Client] = []

    def topic(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def open(self) -> Client:
        """A transport without CONNECT."""
        self._clients.append(Client(self.peer.open()))
        return self._clients[-1]

    def connecting(self, name: str, **options: Any) -> tuple[Client, mqtt5.ConnAckPacket]:
        options = {"clean_start": True, "keep_alive": 600, **options}
        client = self.open()
        client.send(mqtt5.ConnectPacket(f"{self.prefix}-{name}", **options))
        return client, client.expect(mqtt5.ConnAckPacket)

    def client(self, name: str, **options: Any) -> Client:
        client, answer = self.connecting(name, **options)
        assert int(answer.reason_code) == 0
        return client

    def will(self, name: str, payload: bytes = b"gone", **options: Any) -> mqtt5.Will:
        return mqtt5.Will(self.topic(name), payload=payload, **options)

    def until_message(self, client: Client) -> list[PublishPacket]:
        """Let time pass until messages come."""
        messages: list[PublishPacket] = []

        def came() -> bool:
            messages.extend(client.messages())
            return bool(messages)

        self.peer.until(came)
        return messages

    def close(self) -> None:
        for client in self._clients:
            client.cut()


def payloads(messages: Sequence[PublishPacket]) -> list[bytes]:
    return [message.payload for message in messages]


__all__ = ["Client", "Mosquitto", "Peer", "RetainHandling", "Site", "Virtual", "payloads"]
