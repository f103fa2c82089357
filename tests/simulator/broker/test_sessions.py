"""Connections and sessions, the same at Mosquitto and at the broker in virtual time."""

from __future__ import annotations

import mqtt5
import pytest
from mqtt5 import ConnAckReasonCode, DisconnectReasonCode, QoS

from .peers import MAX_INFLIGHT, MAX_PACKET, PASSWORD, Site, payloads

KEPT = {"clean_start": False, "session_expiry_interval": 600}


def test_a_client_is_told_the_brokers_limits(site: Site) -> None:
    _, answer = site.connecting("a")
    assert not answer.session_present
    assert answer.reason_code is ConnAckReasonCode.SUCCESS
    assert answer.receive_max == MAX_INFLIGHT
    assert answer.max_packet_size == MAX_PACKET
    assert answer.max_qos is QoS.AT_LEAST_ONCE
    assert answer.topic_alias_max == 0
    assert answer.server_keep_alive is None
    assert answer.assigned_client_id is None


def test_who_asks_for_no_keep_alive_is_given_the_longest(site: Site) -> None:
    _, answer = site.connecting("a", keep_alive=0)
    assert answer.server_keep_alive == 65535


def test_a_client_without_a_name_is_given_one(site: Site) -> None:
    names = []
    for _ in range(2):
        client = site.open()
        client.send(mqtt5.ConnectPacket("", clean_start=True))
        names.append(client.expect(mqtt5.ConnAckPacket).assigned_client_id)
    assert all(names)
    assert names[0] != names[1]


def test_a_wrong_password_is_refused(site: Site) -> None:
    client, answer = site.connecting("limited", username="limited", password=b"guess")
    assert answer.reason_code is ConnAckReasonCode.NOT_AUTHORIZED
    assert client.until_closed() == []


def test_an_unknown_way_of_authentication_is_refused(site: Site) -> None:
    client, answer = site.connecting("a", authentication_method="scram")
    assert answer.reason_code is ConnAckReasonCode.BAD_AUTHENTICATION_METHOD
    assert client.until_closed() == []


def test_a_will_with_a_quality_that_the_broker_lacks_is_refused(site: Site) -> None:
    client, answer = site.connecting("a", will=site.will("will", qos=QoS.EXACTLY_ONCE))
    assert answer.reason_code is ConnAckReasonCode.QUALITY_NOT_SUPPORTED
    assert client.until_closed() == []


def test_a_kept_session_has_what_came_meanwhile_but_not_with_quality_zero(site: Site) -> None:
    client = site.client("a", **KEPT)
    client.subscribe(site.topic("+"))
    client.cut()
    other = site.client("b")
    for number in range(4):
        other.publish(site.topic("x"), b"%d" % number, qos=number % 2)
    other.publish(site.topic("x"), b"last")
    client, answer = site.connecting("a", **KEPT)
    assert answer.session_present
    messages = client.messages()
    assert payloads(messages) == [b"1", b"3", b"last"]
    assert not any(message.duplicate for message in messages)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (KEPT, {"clean_start": True, "session_expiry_interval": 600}),
        ({"clean_start": True}, KEPT),
    ],
    ids=["clean start", "no expiry"],
)
def test_a_session_that_isnt_kept_begins_with_nothing(
    site: Site, first: dict[str, object], second: dict[str, object]
) -> None:
    client = site.client("a", **first)
    client.subscribe(site.topic("+"))
    client.disconnect()
    site.client("b").publish(site.topic("x"))
    client, answer = site.connecting("a", **second)
    assert not answer.session_present
    site.client("b").publish(site.topic("x"))
    assert client.messages() == []


def test_goodbye_can_end_a_session_that_was_to_be_kept(site: Site) -> None:
    client = site.client("a", **KEPT)
    client.disconnect(session_expiry_interval=0)
    _, answer = site.connecting("a", **KEPT)
    assert not answer.session_present


def test_goodbye_cant_keep_a_session_that_was_not_to_be_kept(site: Site) -> None:
    client = site.client("a")
    client.send(mqtt5.DisconnectPacket(session_expiry_interval=600))
    (goodbye,) = client.until_closed()
    assert isinstance(goodbye, mqtt5.DisconnectPacket)
    assert goodbye.reason_code is DisconnectReasonCode.PROTOCOL_ERROR


def test_what_wasnt_acknowledged_comes_again_and_says_so(site: Site) -> None:
    client = site.client("a", **KEPT)
    client.subscribe(site.topic("+"))
    other = site.client("b")
    for number in range(4):
        other.publish(site.topic("x"), b"%d" % number)
    before = client.messages()
    client.acknowledge(before[0], before[2])
    client.settle()
    client.cut()
    other.publish(site.topic("x"), b"4")
    client, answer = site.connecting("a", **KEPT)
    assert answer.session_present
    again = client.messages()
    assert payloads(again) == [b"1", b"3", b"4"]
    assert [message.duplicate for message in again] == [True, True, False]
    assert [message.packet_id for message in again[:2]] == [
        before[1].packet_id,
        before[3].packet_id,
    ]
    client.acknowledge(*again)
    client.settle()
    client.cut()
    client, _ = site.connecting("a", **KEPT)
    assert client.messages() == []


def test_all_that_wasnt_acknowledged_comes_again_whatever_the_receive_maximum(site: Site) -> None:
    client = site.client("a", receive_max=4, **KEPT)
    client.subscribe(site.topic("+"))
    other = site.client("b")
    for number in range(6):
        other.publish(site.topic("x"), b"%d" % number)
    assert payloads(client.messages()) == [b"0", b"1", b"2", b"3"]
    client.cut()
    client = site.client("a", receive_max=2, **KEPT)
    again = client.messages()
    assert payloads(again) == [b"0", b"1", b"2", b"3"]
    assert all(message.duplicate for message in again)


def test_a_second_connection_of_a_name_ends_the_first_without_a_word(site: Site) -> None:
    first = site.client("a", **KEPT)
    first.subscribe(site.topic("+"))
    second, answer = site.connecting("a", **KEPT)
    assert answer.session_present
    assert first.until_closed() == []
    site.client("b").publish(site.topic("x"), b"for the second")
    assert payloads(second.messages()) == [b"for the second"]


# ---- wills ---------------------------------------------------------------------------


def test_a_will_is_published_when_a_connection_breaks(site: Site) -> None:
    watcher = site.client("watcher")
    watcher.subscribe(site.topic("will"))
    client = site.client("a", will=site.will("will", qos=QoS.AT_LEAST_ONCE, retain=True))
    client.cut()
    (message,) = site.until_message(watcher)
    assert message.payload == b"gone"
    assert message.qos is QoS.AT_LEAST_ONCE
    assert not message.retain
    late = site.client("late")
    late.subscribe(site.topic("will"))
    (message,) = late.messages()
    assert message.payload == b"gone"
    assert message.retain


def test_a_wills_properties_are_passed_on(site: Site) -> None:
    watcher = site.client("watcher")
    watcher.subscribe(site.topic("will"))
    will = site.will(
        "will",
        message_expiry_interval=600,
        content_type="text",
        response_topic="back",
        correlation_data=b"7",
        user_properties=[("a", "1")],
    )
    site.client("a", will=will).cut()
    (message,) = site.until_message(watcher)
    left = message.message_expiry_interval
    assert left is not None
    assert 500 < left <= 600
    assert message.content_type == "text"
    assert message.response_topic == "back"
    assert message.correlation_data == b"7"
    assert message.user_properties == [("a", "1")]


@pytest.mark.parametrize(
    ("reason", "comes"),
    [
        (DisconnectReasonCode.NORMAL_DISCONNECTION, False),
        (DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE, True),
        (DisconnectReasonCode.PROTOCOL_ERROR, False),
    ],
    ids=["normal", "with will", "error"],
)
def test_a_goodbye_says_whether_the_will_is_published(
    site: Site, reason: DisconnectReasonCode, comes: bool
) -> None:
    watcher = site.client("watcher")
    watcher.subscribe(site.topic("will"))
    client = site.client("a", will=site.will("will"))
    client.disconnect(reason_code=reason)
    assert len(watcher.messages()) == comes


@pytest.mark.parametrize(
    ("before", "after", "comes"),
    [
        ({"clean_start": True}, {"clean_start": True}, True),
        (KEPT, {"clean_start": True}, True),
        ({"clean_start": True}, {"clean_start": False}, True),
        (KEPT, {"clean_start": False}, False),
    ],
    ids=["both clean", "then clean", "first clean", "kept"],
)
def test_a_will_is_published_on_take_over_where_the_session_ends(
    site: Site, before: dict[str, object], after: dict[str, object], comes: bool
) -> None:
    watcher = site.client("watcher")
    watcher.subscribe(site.topic("will"))
    site.client("a", will=site.will("will"), **before)
    site.client("a", **after)
    assert len(watcher.messages()) == comes


def test_a_delayed_will_isnt_published_on_take_over(site: Site) -> None:
    watcher = site.client("watcher")
    watcher.subscribe(site.topic("will"))
    site.client("a", will=site.will("will", will_delay_interval=1))
    site.client("a")
    assert watcher.messages() == []


def test_a_will_of_who_breaks_the_protocol_is_published(site: Site) -> None:
    watcher = site.client("watcher")
    watcher.subscribe(site.topic("will"))
    client = site.client("a", will=site.will("will"))
    client.send(b"\x30\x00")
    client.until_closed()
    assert payloads(watcher.messages()) == [b"gone"]


def test_who_connects_twice_over_one_connection_loses_session_and_will(site: Site) -> None:
    watcher = site.client("watcher")
    watcher.subscribe(site.topic("will"))
    client = site.client("a", will=site.will("will"), **KEPT)
    client.send(mqtt5.ConnectPacket(f"{site.prefix}-a"))
    assert client.until_closed() == []
    assert watcher.messages() == []
    _, answer = site.connecting("a", **KEPT)
    assert not answer.session_present


# ---- access --------------------------------------------------------------------------


def test_access_rules_hold_for_each_message_and_for_wills(site: Site) -> None:
    allowed, other = site.topic("allowed/x"), site.topic("other/x")
    watcher = site.client("watcher")
    watcher.subscribe(site.topic("#"))
    limited = site.client(
        "limited", username="limited", password=PASSWORD, will=site.will("other/will")
    )
    assert limited.subscribe(site.topic("#"), no_local=True) == [1]
    assert limited.publish(allowed, b"1") == 0x00
    assert limited.publish(other, b"2") == 0x87
    limited.publish(other, b"3", qos=0)
    publisher = site.client("publisher")
    for topic in (allowed, other):
        publisher.publish(topic, b"w", retain=True)
    assert [message.topic for message in watcher.messages()] == [allowed, allowed, other]
    assert [message.topic for message in limited.messages()] == [allowed]
    assert limited.subscribe(site.topic("#")) == [1]
    assert [message.topic for message in limited.messages()] == [allowed]
    limited.cut()
    site.client("limited", username="limited", password=PASSWORD)
    assert watcher.messages() == []
