"""What only the broker in virtual time can: exact times, no memory, the same again."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from typing import Any

import mqtt5
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqtt5 import PublishPacket, QoS

from simulator.broker.broker import Broker
from simulator.broker.client import Received
from simulator.broker.core import BrokerSettings
from tests.simulator.conftest import ROOT, WorldClock

from .peers import Site, Virtual, payloads
from .random_events import Life

KEPT = {"clean_start": False, "session_expiry_interval": 600}


@pytest.fixture
def here(virtual: Virtual) -> Site:
    return Site(virtual, "here")


# ---- time ----------------------------------------------------------------------------


def test_nothing_is_due_before_somebody_connects(virtual: Virtual) -> None:
    assert virtual.broker.next_due() == math.inf
    virtual.broker.tick()


def test_a_silent_client_is_gone_after_one_and_a_half_keep_alives(
    virtual: Virtual, here: Site
) -> None:
    watcher = virtual.broker.attach("watcher")
    watcher.subscribe("#")
    silent = here.client("a", keep_alive=10, will=here.will("will"))
    virtual.clock.now = 8_000.0
    silent.settle()
    virtual.clock.now = virtual.broker.next_due()
    virtual.broker.tick()
    assert watcher.take() == []
    assert virtual.broker.next_due() == 23_000.0
    virtual.clock.now = 22_999.0
    virtual.broker.tick()
    assert watcher.take() == []
    virtual.clock.now = 23_000.0
    virtual.broker.tick()
    assert watcher.take() == [Received("here/will", b"gone", False)]
    assert silent.until_closed() == []


def test_a_will_is_published_when_its_delay_or_its_session_is_over(
    virtual: Virtual, here: Site
) -> None:
    watcher = virtual.broker.attach("watcher")
    watcher.subscribe("#")
    for name, delay in (("delay", 5), ("session", 30)):
        will = here.will(name, will_delay_interval=delay)
        client = here.client(name, will=will, clean_start=False, session_expiry_interval=20)
        client.cut()
    due = []
    while virtual.broker.next_due() < 100_000.0:
        virtual.clock.now = virtual.broker.next_due()
        virtual.broker.tick()
        due += [(virtual.clock.now, received.topic) for received in watcher.take()]
    assert due == [(5_000.0, "here/delay"), (20_000.0, "here/session")]
    for name in ("delay", "session"):
        _, answer = here.connecting(name, **KEPT)
        assert not answer.session_present


def test_who_comes_back_in_time_finds_session_and_no_will(virtual: Virtual, here: Site) -> None:
    watcher = virtual.broker.attach("watcher")
    watcher.subscribe("#")
    for _ in range(3):
        will = here.will("will", will_delay_interval=5)
        client, answer = here.connecting(
            "a", will=will, clean_start=False, session_expiry_interval=9
        )
        client.cut()
        virtual.clock.now += 4_999.0
        virtual.broker.tick()
    assert answer.session_present
    assert watcher.take() == []


def test_a_message_has_the_seconds_left_that_it_hasnt_waited(virtual: Virtual, here: Site) -> None:
    publisher = virtual.broker.attach("publisher")
    publisher.publish("here/x", b"1", retain=True, expiry_seconds=10)
    for now, left in ((0.0, 10), (999.0, 10), (1_000.0, 9), (9_999.0, 1), (10_000.0, None)):
        virtual.clock.now = now
        client = here.client("a")
        client.subscribe("here/x")
        assert [m.message_expiry_interval for m in client.messages()] == ([left] if left else [])


def test_what_expires_while_it_waits_leaves_its_place(virtual: Virtual, here: Site) -> None:
    client = here.client("a", receive_max=1, **KEPT)
    client.subscribe("x")
    publisher = virtual.broker.attach("publisher")
    publisher.publish("x", b"under way", expiry_seconds=5)
    publisher.publish("x", b"expires", expiry_seconds=5)
    publisher.publish("x", b"stays")
    (first,) = client.messages()
    virtual.clock.now = 5_000.0
    client.acknowledge(first)
    assert payloads(client.messages()) == [b"stays"]


# ---- loss of all state ---------------------------------------------------------------


def test_a_broker_that_forgets_has_no_session_no_message_and_no_will(
    virtual: Virtual, here: Site
) -> None:
    ready: list[str] = []
    gateway = virtual.broker.attach("gateway", lambda: ready.append("gateway"))
    gateway.subscribe("#")
    kept = here.client("kept", will=here.will("will"), **KEPT)
    kept.subscribe("#")
    away = here.client("away", will=here.will("delayed", will_delay_interval=5), **KEPT)
    away.subscribe("#")
    away.cut()
    gateway.publish("here/x", b"1", retain=True)
    stranger = here.open()
    half = virtual.broker.connect(lambda: ready.append("half"))
    half.receive(b"\x10")
    ready.clear()
    virtual.broker.forget_everything()
    assert ready == ["gateway", "half"]
    assert gateway.closed
    assert gateway.take() == []
    assert gateway.publish("here/y", b"2", retain=True) == 0
    gateway.subscribe("#")
    assert kept.until_closed() == []
    assert stranger.until_closed() == []
    assert virtual.broker.next_due() == math.inf
    gateway = virtual.broker.attach("gateway")
    gateway.subscribe("#")
    for name in ("kept", "away"):
        _, answer = here.connecting(name, **KEPT)
        assert not answer.session_present
    assert gateway.take() == []


# ---- clients in the same process -----------------------------------------------------


def test_a_client_in_the_process_and_one_of_bytes_hear_each_other(
    virtual: Virtual, here: Site
) -> None:
    ready: list[int] = []
    gateway = virtual.broker.attach("gateway", lambda: ready.append(1))
    gateway.subscribe("x/+", no_local=True, retain_as_published=True)
    device = here.client("device")
    device.subscribe("x/down")
    assert (
        gateway.publish("x/down", b"task", retain=True, expiry_seconds=60, response_topic="x/up")
        == 0
    )
    (message,) = device.messages()
    assert (message.payload, message.qos, message.retain) == (b"task", QoS(1), False)
    assert (message.message_expiry_interval, message.response_topic) == (60, "x/up")
    assert ready == []
    device.publish("x/up", b"1", qos=0)
    device.publish("x/up", b"2", retain=True)
    assert ready == [1]
    assert gateway.take() == [Received("x/up", b"1", False), Received("x/up", b"2", True)]
    gateway.unsubscribe("x/+")
    assert device.publish("x/up", b"3") == 0x10
    assert gateway.publish("nobody", b"") == 0x10
    assert gateway.take() == []


def test_a_client_in_the_process_ends_when_another_has_its_name(
    virtual: Virtual, here: Site
) -> None:
    ready: list[int] = []
    first = virtual.broker.attach("here-a", lambda: ready.append(1))
    first.subscribe("x")
    here.client("a")
    assert first.closed
    assert ready == [1]
    assert virtual.broker.attach("b").publish("x", b"") == 0x10
    first.close()
    second = virtual.broker.attach("here-a")
    second.close()
    assert second.closed


def test_bytes_are_taken_as_the_line_has_room(virtual: Virtual, here: Site) -> None:
    ready: list[int] = []
    connection = virtual.broker.connect(lambda: ready.append(connection.pending))
    connection.receive(mqtt5.ConnectPacket("a").write())
    connection.receive(mqtt5.PingReqPacket().write())
    assert len(ready) == 1
    whole = connection.pending
    said = b"".join(connection.take(3) for _ in range(whole // 3 + 1))
    assert len(said) == whole
    assert said[0] == 0x20
    assert connection.pending == 0
    connection.receive(mqtt5.PingReqPacket().write())
    assert len(ready) == 2


# ---- a receive maximum that is kept to -----------------------------------------------


def test_a_strict_broker_never_has_more_under_way_and_keeps_the_order() -> None:
    clock = WorldClock()
    broker = Broker(clock, BrokerSettings(strict_receive_maximum=True))
    chance = random.Random(3)
    publisher = broker.attach("publisher")
    connection = broker.connect()
    options: dict[str, Any] = {"max_packet_size": 100, **KEPT}
    connection.receive(mqtt5.ConnectPacket("a", receive_max=3, **options).write())
    wanted = [mqtt5.TopicFilter("x", max_qos=QoS(1))]
    connection.receive(mqtt5.SubscribePacket(1, wanted).write())
    connection.take()
    under_way: list[int] = []
    came: list[int] = []
    sent = 0
    while sent < 300 or under_way:
        if sent < 300 and chance.random() < 0.4:
            size = chance.choice([1, 1, 200])  # the last is too large for this client
            publisher.publish("x", sent.to_bytes(2, "big") * size)
            sent += 1
        elif under_way:
            packet_id = under_way.pop(chance.randrange(len(under_way)))
            connection.receive(mqtt5.PubAckPacket(packet_id).write())
        said = memoryview(connection.take())
        while said:
            packet, used = mqtt5.read(said)
            said = said[used:]
            assert isinstance(packet, PublishPacket)
            assert packet.packet_id not in under_way
            assert packet.packet_id
            under_way.append(packet.packet_id)
            came.append(int.from_bytes(packet.payload, "big"))
        assert len(under_way) <= 3
    assert came == sorted(set(came))
    assert 100 < len(came) < 300


# ---- bytes that a broken line makes of packets ---------------------------------------

SPOKEN = [
    mqtt5.ConnectPacket(
        "a", username="u", password=b"p", will=mqtt5.Will("w", payload=b"gone"), receive_max=3
    ),
    mqtt5.SubscribePacket(1, [mqtt5.TopicFilter("x/+", max_qos=QoS(1))]),
    PublishPacket("x/y", b"hello", qos=QoS(1), packet_id=1, retain=True, response_topic="back"),
    mqtt5.PubAckPacket(1),
    mqtt5.UnsubscribePacket(2, ["x/+"]),
    mqtt5.DisconnectPacket(),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@given(
    st.lists(st.sampled_from(SPOKEN), max_size=6),
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4),
    st.integers(0),
)
def test_whatever_comes_ends_a_connection_at_most(
    packets: list[mqtt5.Packet], damages: list[tuple[int, int]], cut: int
) -> None:
    broker = Broker(WorldClock())
    said = bytearray(b"".join(packet.write() for packet in [SPOKEN[0], *packets]))
    for place, value in damages:
        said[place % len(said)] = value
    connection = broker.connect()
    connection.receive(bytes(said[: cut % len(said)]))
    connection.receive(bytes(said[cut % len(said) :]))
    connection.close()
    other = broker.attach("other")
    other.subscribe("x/y")
    other.take()
    assert other.publish("x/y", b"still there") == 0
    assert [received.payload for received in other.take()] == [b"still there"]


# ---- the same again ------------------------------------------------------------------


def test_the_same_events_have_the_same_bytes_whatever_python_hashes_by() -> None:
    said = []
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulator.broker.random_events"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        said.append(subprocess.run(command, check=True, capture_output=True, env=environment))
    assert said[0].stdout == said[1].stdout
    assert len(said[0].stdout.strip()) == 64


def test_packets_that_come_byte_by_byte_have_the_same_answers() -> None:
    whole, pieces = Life(5), Life(5, pieces=True)
    assert whole.run(4000) == pieces.run(4000)
    assert whole.messages > 300


def test_retained_messages_that_were_replaced_leave_nothing_behind(virtual: Virtual) -> None:
    publisher = virtual.broker.attach("publisher")
    for number in range(10_000):
        topic = f"t/{number % 3}"
        publisher.publish(topic, b"%d" % number, retain=True, expiry_seconds=60 + number)
    assert len(virtual.broker._core._retained_ends) < 2_000
    virtual.clock.now = 10_058_000.0  # the last one but one has just expired
    publisher.publish("else", b"", retain=True, expiry_seconds=1)
    watcher = virtual.broker.attach("watcher")
    watcher.subscribe("t/#")
    assert watcher.take() == [Received("t/0", b"9999", True)]
