"""Random stories, told to Mosquitto and to the broker in virtual time: each client hears the same.

What needs time to pass isn't in them. Nor are acknowledgements out of order, which Mosquitto may
answer with messages out of order, nor topics that are retained again after they were cleared: those
keep their place among others in Mosquitto, and ours keeps nothing of them.
"""

from __future__ import annotations

import random

import mqtt5
import pytest
from mqtt5 import DisconnectReasonCode, PublishPacket, QoS, RetainHandling, TopicFilter

from .peers import Client, Mosquitto, Peer, Site, Virtual

NAMES = ["ant", "bee", "cow", "doe"]
TOPICS = [f"{first}/{second}" for first in "ab" for second in "xyz"]
FILTERS = [*TOPICS, "a/+", "+/x", "b/#", "#", "+/+"]
EVENTS = 250


class Story:
    """What each client has heard, event by event."""

    def __init__(self, peer: Peer, seed: int) -> None:
        self.random = random.Random(seed)
        self.site = Site(peer, f"story{seed}")
        self.clients: dict[str, Client] = {}
        self.unacknowledged: dict[str, list[int]] = {}
        self.heard: list[str] = []

    def tell(self) -> list[str]:
        events = {
            self.connects: 7,
            self.goes: 3,
            self.publishes: 45,
            self.subscribes: 14,
            self.unsubscribes: 4,
            self.acknowledges: 25,
        }
        for event in self.random.choices(list(events), list(events.values()), k=EVENTS):
            name = self.random.choice(NAMES)
            if event == self.connects or name in self.clients:
                self.heard.append(f"{event.__name__} {name}")
                event(name)
            self.listen()
        self.site.close()
        return self.heard

    def listen(self) -> None:
        for name in sorted(self.clients):
            try:
                packets = self.clients[name].settle()
            except EOFError:
                self.heard.append(f"{name} was hung up on")
                del self.clients[name]
                continue
            for packet in packets:
                self.hear(name, packet)

    def hear(self, name: str, packet: mqtt5.Packet) -> None:
        words = repr(packet)
        if isinstance(packet, PublishPacket):
            if packet.packet_id:
                self.unacknowledged[name].append(packet.packet_id)
            left = packet.message_expiry_interval
            if left is not None:  # a second or two may have passed
                assert left > 500
                words = words.replace(str(left), "some time")
        self.heard.append(f"{name} hears {words}")

    def connects(self, name: str) -> None:
        chance = self.random
        will = self.site.will(
            chance.choice(TOPICS),
            payload=name.encode(),
            qos=QoS(chance.randrange(2)),
            retain=chance.random() < 0.5,
        )
        client, answer = self.site.connecting(
            name,
            clean_start=chance.random() < 0.3,
            session_expiry_interval=chance.choice([0, 600, 600]),
            will=chance.choice([None, will]),
            receive_max=chance.choice([1, 3, 65535]),
            max_packet_size=chance.choice([None, None, 90]),
        )
        self.clients[name] = client
        self.unacknowledged[name] = []
        self.heard.append(f"session present: {answer.session_present}")

    def goes(self, name: str) -> None:
        client = self.clients.pop(name)
        reason = self.random.choice(
            [
                DisconnectReasonCode.NORMAL_DISCONNECTION,
                DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE,
            ]
        )
        client.disconnect(reason_code=reason)

    def publishes(self, name: str) -> None:
        chance = self.random
        qos, retain = chance.randrange(2), chance.random() < 0.4
        sizes = [4, 4, 4, 100] if retain else [0, 4, 4, 100]
        packet = PublishPacket(
            self.site.topic(chance.choice(TOPICS)),
            chance.randbytes(chance.choice(sizes)),
            qos=QoS(qos),
            packet_id=chance.randrange(1, 9) if qos else None,
            retain=retain,
            message_expiry_interval=chance.choice([None, None, 600]),
            response_topic=chance.choice([None, None, "back"]),
        )
        self.clients[name].send(packet)

    def subscribes(self, name: str) -> None:
        chance = self.random
        wanted = [
            TopicFilter(
                self.site.topic(pattern),
                max_qos=QoS(chance.randrange(3)),
                no_local=chance.random() < 0.3,
                retain_as_published=chance.random() < 0.3,
                retain_handling=RetainHandling(chance.randrange(3)),
            )
            for pattern in chance.sample(FILTERS, chance.choice([1, 1, 2]))
        ]
        self.clients[name].send(mqtt5.SubscribePacket(1, wanted))

    def unsubscribes(self, name: str) -> None:
        patterns = [self.site.topic(one) for one in self.random.sample(FILTERS, 2)]
        self.clients[name].send(mqtt5.UnsubscribePacket(2, patterns))

    def acknowledges(self, name: str) -> None:
        waiting = self.unacknowledged[name]
        for _ in range(min(len(waiting), self.random.choice([1, 1, 5]))):
            self.clients[name].send(mqtt5.PubAckPacket(waiting.pop(0)))


MORE = [pytest.param(seed, marks=pytest.mark.long) for seed in range(40, 1000)]


@pytest.mark.parametrize("seed", [*range(40), *MORE])
def test_both_brokers_answer_a_story_with_the_same_packets(
    mosquitto: Mosquitto, virtual: Virtual, seed: int
) -> None:
    there = Story(mosquitto, seed).tell()
    here = Story(virtual, seed).tell()
    for number, (one, other) in enumerate(zip(there, here, strict=False)):
        assert one == other, "\n".join(there[max(0, number - 15) : number])
    assert len(there) == len(here)
    assert sum("hears PublishPacket" in words for words in there) > 5
