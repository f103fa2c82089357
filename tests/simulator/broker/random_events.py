"""A broker's life from a seed; what it sends is hashed."""

from __future__ import annotations

import hashlib
import itertools
import math
import random

import mqtt5
from mqtt5 import PublishPacket, QoS, RetainHandling, TopicFilter

from simulator.broker.broker import Broker
from simulator.broker.client import Client
from simulator.broker.connection import Connection
from simulator.broker.core import BrokerSettings

NAMES = [f"device{number}" for number in range(8)]
TOPICS = [f"{name}/{kind}" for name in NAMES[:4] for kind in "abc"]
FILTERS = [*TOPICS, *(f"{name}/+" for name in NAMES), "+/a", "+/b", "#"]


class Life:
    """Clients of both kinds that come, go, talk, and now and then say what makes no sense."""

    def __init__(self, seed: int, pieces: bool = False) -> None:
        self.random = random.Random(seed)
        self.pieces = pieces
        self.now = 0.0
        self.broker = Broker(lambda: self.now, BrokerSettings(10, 20))
        self.connections: dict[str, Connection] = {}
        self.clients: dict[str, Client] = {}
        self.digest = hashlib.sha256()
        self.messages = 0
        self.numbers = itertools.count()

    def run(self, events: int) -> str:
        weights = {
            self.connect: 6,
            self.publish: 40,
            self.subscribe: 12,
            self.unsubscribe: 3,
            self.end: 4,
            self.attach: 2,
            self.client_acts: 15,
            self.time_passes: 12,
            self.nonsense: 1,
            self.forget: 0.1,
        }
        actions = self.random.choices(list(weights), list(weights.values()), k=events)
        for action in actions:
            action()
            self.take()
        return self.digest.hexdigest()

    def give(self, connection: Connection, packet: mqtt5.Packet | bytes) -> None:
        data = packet if isinstance(packet, bytes) else packet.write()
        if self.pieces:
            for place in range(len(data)):
                connection.receive(data[place : place + 1])
        else:
            connection.receive(data)

    def some(self) -> Connection | None:
        if not self.connections:
            return None
        return self.connections[self.random.choice(list(self.connections))]

    def connect(self) -> None:
        name = self.random.choice(NAMES)
        will = mqtt5.Will(
            self.random.choice(TOPICS),
            payload=name.encode(),
            qos=QoS(self.random.randrange(2)),
            retain=self.random.random() < 0.5,
            will_delay_interval=self.random.choice([0, 0, 5]),
        )
        connection = self.broker.connect()
        self.give(
            connection,
            mqtt5.ConnectPacket(
                name,
                clean_start=self.random.random() < 0.3,
                session_expiry_interval=self.random.choice([0, 30, 0xFFFFFFFF]),
                will=self.random.choice([None, will]),
                keep_alive=self.random.choice([0, 10]),
                receive_max=self.random.choice([1, 3, 100]),
                max_packet_size=self.random.choice([None, 60]),
            ),
        )
        # Under a name of its own: the one before may have something to be taken.
        self.connections[f"{name}/{next(self.numbers)}"] = connection

    def publish(self) -> None:
        if connection := self.some():
            qos = self.random.randrange(2)
            packet = PublishPacket(
                self.random.choice(TOPICS),
                self.random.randbytes(self.random.choice([0, 5, 50])),
                qos=QoS(qos),
                packet_id=self.random.randrange(1, 100) if qos else None,
                retain=self.random.random() < 0.4,
                message_expiry_interval=self.random.choice([None, 20]),
                response_topic=self.random.choice([None, "back"]),
            )
            self.give(connection, packet)

    def subscribe(self) -> None:
        if connection := self.some():
            wanted = [
                TopicFilter(
                    pattern,
                    max_qos=QoS(self.random.randrange(3)),
                    no_local=self.random.random() < 0.3,
                    retain_as_published=self.random.random() < 0.3,
                    retain_handling=RetainHandling(self.random.randrange(3)),
                )
                for pattern in self.random.sample(FILTERS, 2)
            ]
            self.give(connection, mqtt5.SubscribePacket(1, wanted))

    def unsubscribe(self) -> None:
        if connection := self.some():
            patterns = self.random.sample(FILTERS, 3)
            self.give(connection, mqtt5.UnsubscribePacket(2, patterns))

    def end(self) -> None:
        if connection := self.some():
            if self.random.random() < 0.5:
                connection.close()
            else:
                self.give(connection, mqtt5.DisconnectPacket())

    def attach(self) -> None:
        name = self.random.choice([*NAMES[:2], "gateway"])
        self.clients[name] = self.broker.attach(name)

    def client_acts(self) -> None:
        if not self.clients:
            return
        client = self.clients[self.random.choice(list(self.clients))]
        client.subscribe(self.random.choice(FILTERS), no_local=self.random.random() < 0.5)
        client.unsubscribe(self.random.choice(FILTERS))
        client.publish(
            self.random.choice(TOPICS),
            self.random.randbytes(5),
            retain=self.random.random() < 0.3,
            expiry_seconds=self.random.choice([None, 15]),
        )

    def time_passes(self) -> None:
        self.now += self.random.choice([1.0, 300.0, 7000.0])
        if self.random.random() < 0.2 and self.broker.next_due() < math.inf:
            self.now = max(self.now, self.broker.next_due())
        self.broker.tick()

    def nonsense(self) -> None:
        if connection := self.some():
            self.give(connection, self.random.choice([b"\x00\x00", b"\x30\x00", b"\x82\x02\x00"]))

    def forget(self) -> None:
        self.broker.forget_everything()

    def take(self) -> None:
        for name, connection in list(self.connections.items()):
            data = connection.take()
            self.digest.update(data)
            while data:
                packet, used = mqtt5.read(memoryview(data))
                data = data[used:]
                if isinstance(packet, PublishPacket) and packet.packet_id:
                    self.messages += 1
                    if self.random.random() < 0.8:
                        self.give(connection, mqtt5.PubAckPacket(packet.packet_id))
            if connection.closed:
                del self.connections[name]
        for name, client in list(self.clients.items()):
            for received in client.take():
                self.digest.update(repr(received).encode())
            if client.closed:
                del self.clients[name]


if __name__ == "__main__":
    print(Life(1).run(5000))
