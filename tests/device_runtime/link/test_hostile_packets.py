"""Packets that break the standard or our limits end the connection, and nothing else happens.

The process runs under AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import random

import pytest

from tests.device_runtime.link.conftest import CONNACK, Client
from tests.device_runtime.link.test_mqtt import plain, publication

HOSTILE_ONLINE = {
    "packet type 0": "00 00",
    "CONNECT from the broker": "10 00",
    "a second CONNACK": "20 03 00 00 00",
    "PUBREC": "50 02 00 01",
    "PUBREL": "62 02 00 01",
    "PUBCOMP": "70 02 00 01",
    "SUBSCRIBE from the broker": "82 05 00 01 00 00 00",
    "PINGREQ from the broker": "c0 00",
    "AUTH": "f0 00",
    "PUBACK with flags": "42 02 00 01",
    "PUBACK for nothing": "40 02 00 01",
    "PUBACK without identifier": "40 01 00",
    "SUBACK for nothing": "90 04 00 01 00 00",
    "SUBACK for identifier 0": "90 04 00 00 00 00",
    "PINGRESP for nothing": "d0 00",
    "PINGRESP with a body": "d0 01 00",
    "DISCONNECT with session expiry": "e0 07 00 05 11 00 00 00 01",
    "DISCONNECT with rubbish behind": "e0 03 00 00 ff",
    "length of five bytes": "30 ff ff ff ff 01",
    "length of five bytes, the last zero": "30 80 80 80 80 00",
    "length in more bytes than needed": "30 80 00",
    "length 2 in two bytes": "d0 82 00 00 00",
    "larger than the maximum packet size": "30 fe 05",  # 766 + 3 = 769 bytes
    "of 256 MiB": "30 ff ff ff 7f",
    "PUBLISH of QoS 2": publication("t", b"", first=0x34),
    "PUBLISH of QoS 3": publication("t", b"", first=0x36),
    "PUBLISH of QoS 0 with DUP": publication("t", b"", first=0x38),
    "PUBLISH without a body": "30 00",
    "PUBLISH with half a topic length": "30 01 00",
    "PUBLISH whose topic runs over the end": "30 06 00 ff 74 00 00 00",
    "PUBLISH whose topic fills the packet, no properties": "30 03 00 01 74",
    "PUBLISH with identifier 0": publication("t", b"", 0),
    "PUBLISH with half an identifier": "32 04 00 01 74 00",
    "PUBLISH with an empty topic": "30 03 00 00 00",
    "PUBLISH with a wildcard +": publication("a/+", b""),
    "PUBLISH with a wildcard #": publication("#", b""),
    "PUBLISH with NUL in the topic": "30 06 00 03 61 00 62 00",
    "PUBLISH with a cut UTF-8 sequence": "30 05 00 02 61 c3 00",
    "PUBLISH with an overlong UTF-8 sequence": "30 05 00 02 c0 af 00",
    "PUBLISH with a surrogate": "30 06 00 03 ed a0 80 00",
    "PUBLISH above U+10FFFF": "30 07 00 04 f4 90 80 80 00",
    "PUBLISH with a lone continuation byte": "30 04 00 01 80 00",
    "property length over the end": "30 05 00 01 74 05 00",
    "property length in more bytes than needed": "30 05 00 01 74 80 00",
    "property cut off": "30 06 00 01 74 02 02 00",
    "property that does not exist": "30 06 00 01 74 02 7e 00",
    "property of CONNACK": "30 07 00 01 74 03 13 00 0a",
    "topic alias, which we never allowed": "30 07 00 01 74 03 23 00 01",
    "subscription identifier, which we never gave": "30 06 00 01 74 02 0b 01",
    "message expiry twice": plain("30 0e 00 01 74 0a 02 00 00 00 01 02 00 00 00 01"),
    "response topic twice": "30 0c 00 01 74 08 08 00 01 61 08 00 01 61",
    "response topic with a wildcard": "30 08 00 01 74 04 08 00 01 2b",
    "payload format 2": "30 06 00 01 74 02 01 02",
    "correlation data over the properties' end": "30 09 00 01 74 03 09 00 02 aa bb",
    "user property without value": "30 08 00 01 74 04 26 00 01 61",
}

HOSTILE_CONNACK = {
    "PUBLISH before CONNACK": publication("t", b""),
    "DISCONNECT before CONNACK": "e0 00",
    "empty CONNACK": "20 00",
    "without properties": "20 02 00 00",
    "reserved flags": "20 03 02 00 00",
    "session present with a refusal": "20 03 01 86 00",
    "a session that we asked to be forgotten": "20 03 01 00 00",
    "reason that is neither success nor error": "20 03 00 01 00",
    "rubbish behind": "20 04 00 00 00 00",
    "receive maximum 0": "20 06 00 00 03 21 00 00",
    "maximum packet size 0": "20 08 00 00 05 27 00 00 00 00",
    "maximum QoS 2": "20 05 00 00 02 24 02",
    "retain available 2": "20 05 00 00 02 25 02",
    "server keep alive twice": "20 09 00 00 06 13 00 0a 13 00 0a",
    "message expiry, which belongs to PUBLISH": "20 08 00 00 05 02 00 00 00 01",
    "authentication that we didn't ask for": "20 07 00 00 04 15 00 01 61",
}


@pytest.mark.parametrize("name", HOSTILE_ONLINE)
@pytest.mark.parametrize("read_limit", [1, 4096])
def test_hostile_packet_ends_the_connection(client: Client, name: str, read_limit: int) -> None:
    client(f"read-limit {read_limit}")
    client.connect()
    events = client.feed(HOSTILE_ONLINE[name])
    assert [event.split(" reason")[0] for event in events] == ["lost cause=protocol-error"]
    sent = client.sent()
    assert sent[-3:-1] == bytes([0xE0, 0x01]), "the broker is told why"
    assert sent[-1] == int(events[0][-2:], 16)


@pytest.mark.parametrize("name", HOSTILE_CONNACK)
def test_hostile_answer_to_connect_ends_the_connection(client: Client, name: str) -> None:
    events = client.connect(HOSTILE_CONNACK[name])
    assert [event.split(" reason")[0] for event in events] == ["lost cause=protocol-error"]


def test_suback_that_grants_qos_2_ends_the_connection(client: Client) -> None:
    client.connect()
    client("subscribe a")
    client("poll 1")
    assert client.feed("90 04 00 01 00 02")[0].startswith("lost cause=protocol-error")


def test_suback_that_grants_more_than_was_asked_for_ends_the_connection(client: Client) -> None:
    client.connect()
    client("subscribe a 0")
    client("poll 1")
    assert client.feed("90 04 00 01 00 01")[0].startswith("lost cause=protocol-error")


def test_puback_for_another_publication_ends_the_connection(client: Client) -> None:
    client.connect()
    client("publish a 0 0 00")
    client("poll 1")
    assert client.feed("40 02 00 02")[0].startswith("lost cause=protocol-error")


def test_bytes_behind_a_hostile_packet_are_not_looked_at(client: Client) -> None:
    client.connect()
    events = client.feed("00 00" + publication("t", b"1"))
    assert len(events) == 1


def test_after_hostile_bytes_a_new_connection_starts_with_a_clean_parser(client: Client) -> None:
    client.connect()
    client.feed("30 fe 05 00 00 00")
    client("clock 60000")
    client("poll 1")
    client("accept")
    client("poll 2")
    assert client.feed(CONNACK) == ["connected"]
    assert client.feed(publication("t", b"1"))[0].startswith("message topic=t")


@pytest.mark.parametrize("seed", range(20))
def test_mutated_packets_never_upset_the_sanitizers(client: Client, seed: int) -> None:
    draw = random.Random(seed)
    valid = [
        publication("fleet/a/dev/b/task", bytes(150)),
        plain("33 11 00 01 74 00 2a 0b 02 00 00 01 2c 08 00 03 67 2f 64"),
        "d000",
        "e002 8e 00",
        "40 04 00 01 97 00",
    ]
    for _ in range(30):
        client("stop 0")
        client("hangup")
        client("poll 2")
        client.connect()
        packet = bytearray.fromhex(plain(draw.choice(valid)))
        for _ in range(draw.randint(1, 4)):
            packet[draw.randrange(len(packet))] = draw.randrange(256)
        client.feed(bytes(packet).hex(), polls=4)
    client.sent()
