"""Clients that break the protocol, the same at Mosquitto and at the broker in virtual time."""

from __future__ import annotations

import mqtt5
import pytest

from .peers import Site


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2, "big") + data


def packet(first: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([first, len(body)]) + body


X = text("x")

CONNECTED = {
    "a packet of type 0": b"\x00\x00",
    "a length of more than 4 bytes": b"\x30\xff\xff\xff\xff\x7f",
    "PUBLISH with QoS 3": packet(0x36, X + b"\x00\x01\x00"),
    "PUBLISH with QoS 2": packet(0x34, X + b"\x00\x01\x00"),
    "PUBLISH without a topic": packet(0x30, text("") + b"\x00"),
    "PUBLISH to +": packet(0x30, text("a/+") + b"\x00"),
    "PUBLISH to #": packet(0x30, text("#") + b"\x00"),
    "PUBLISH with a NUL in its topic": packet(0x30, text("a\0b") + b"\x00"),
    "PUBLISH with a control character in its topic": packet(0x30, text("a\x07b") + b"\x00"),
    "PUBLISH to what isn't UTF-8": packet(0x30, text(b"a\xff") + b"\x00"),
    "PUBLISH with a surrogate in its topic": packet(0x30, text(b"\xed\xa0\x80") + b"\x00"),
    "PUBLISH with identifier 0": packet(0x32, X + b"\x00\x00\x00"),
    "PUBLISH whose topic is longer than it": packet(0x30, b"\x00\x20x"),
    "PUBLISH whose properties are longer than it": packet(0x30, X + b"\x30\x02"),
    "PUBLISH with an unknown property": packet(0x30, X + b"\x02\x7f\x01"),
    "PUBLISH with another packet's property": packet(0x30, X + b"\x05\x11\x00\x00\x00\x01"),
    "PUBLISH with a property twice": packet(
        0x30, X + b"\x0a\x02\x00\x00\x00\x01\x02\x00\x00\x00\x01"
    ),
    "PUBLISH with a topic alias": packet(0x30, X + b"\x03\x23\x00\x01"),
    "PUBLISH to a topic with 202 levels": b"\x30\xcc\x01" + text("/" * 201) + b"\x00",
    "SUBSCRIBE with wrong flags": packet(0x80, b"\x00\x01\x00" + X + b"\x00"),
    "SUBSCRIBE to nothing": packet(0x82, b"\x00\x01\x00"),
    "SUBSCRIBE to an empty filter": packet(0x82, b"\x00\x01\x00" + text("") + b"\x00"),
    "SUBSCRIBE to a/#/b": packet(0x82, b"\x00\x01\x00" + text("a/#/b") + b"\x00"),
    "SUBSCRIBE to a+": packet(0x82, b"\x00\x01\x00" + text("a+") + b"\x00"),
    "SUBSCRIBE to a#": packet(0x82, b"\x00\x01\x00" + text("a#") + b"\x00"),
    "SUBSCRIBE with identifier 0": packet(0x82, b"\x00\x00\x00" + X + b"\x00"),
    "SUBSCRIBE with QoS 3": packet(0x82, b"\x00\x01\x00" + X + b"\x03"),
    "SUBSCRIBE with retain handling 3": packet(0x82, b"\x00\x01\x00" + X + b"\x30"),
    "SUBSCRIBE without options": packet(0x82, b"\x00\x01\x00" + X),
    "UNSUBSCRIBE from nothing": packet(0xA2, b"\x00\x01\x00"),
    "UNSUBSCRIBE from a/#/b": packet(0xA2, b"\x00\x01\x00" + text("a/#/b")),
    "PUBACK with identifier 0": packet(0x40, b"\x00\x00"),
    "PUBACK that ends early": packet(0x40, b"\x00"),
    "CONNACK": packet(0x20, b"\x00\x00\x00"),
}


# What the codec makes of text that isn't UTF-8 leaves a word of Python's behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("data", CONNECTED.values(), ids=CONNECTED.keys())
def test_a_client_that_breaks_the_protocol_is_disconnected(site: Site, data: bytes) -> None:
    client = site.client("a")
    client.send(data)
    for goodbye in client.until_closed():
        assert isinstance(goodbye, mqtt5.DisconnectPacket)
        assert goodbye.reason_code.value >= 0x80
    site.client("b").settle()


M = text("MQTT")

BEFORE = {
    "PINGREQ": b"\xc0\x00",
    "PUBLISH": packet(0x30, X + b"\x00"),
    "CONNECT of another protocol": packet(0x10, text("QTTM") + b"\x05\x02\x00\x00\x00" + X),
    "CONNECT with a reserved flag": packet(0x10, M + b"\x05\x03\x00\x00\x00" + X),
    "CONNECT with flags of a will that isn't there": packet(0x10, M + b"\x05\x22\x00\x00\x00" + X),
    "CONNECT with receive maximum 0": packet(0x10, M + b"\x05\x02\x00\x00\x03\x21\x00\x00" + X),
    "CONNECT with maximum packet size 0": packet(
        0x10, M + b"\x05\x02\x00\x00\x05\x27\x00\x00\x00\x00" + X
    ),
    "CONNECT with bytes behind it": packet(0x10, M + b"\x05\x02\x00\x00\x00" + X + b"yz"),
    "CONNECT that lacks its password": packet(0x10, M + b"\x05\xc2\x00\x00\x00" + X + X),
    "CONNECT with a will to a wildcard": packet(
        0x10, M + b"\x05\x06\x00\x00\x00" + X + b"\x00" + text("+") + text("gone")
    ),
    "something else": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("data", BEFORE.values(), ids=BEFORE.keys())
def test_who_doesnt_begin_with_connect_is_hung_up_on(site: Site, data: bytes) -> None:
    client = site.open()
    client.send(data)
    for answer in client.until_closed():
        assert isinstance(answer, mqtt5.ConnAckPacket)
        assert answer.reason_code.value >= 0x80
    site.client("b").settle()
