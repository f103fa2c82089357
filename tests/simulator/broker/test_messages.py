"""Publications and subscriptions, the same at Mosquitto and at the broker in virtual time."""

from __future__ import annotations

import mqtt5
import pytest
from mqtt5 import PublishPacket, QoS, RetainHandling

from .peers import MAX_INFLIGHT, MAX_PACKET, MAX_QUEUED, Site, payloads

GRANTED_0, GRANTED_1 = 0x00, 0x01


def test_a_message_goes_to_all_who_subscribed_with_the_lower_quality(site: Site) -> None:
    zero, one = site.client("zero"), site.client("one")
    assert zero.subscribe(site.topic("x"), qos=0) == [GRANTED_0]
    assert one.subscribe(site.topic("x"), site.topic("y"), qos=2) == [GRANTED_1, GRANTED_1]
    publisher = site.client("publisher")
    for qos in (0, 1):
        publisher.publish(site.topic("x"), b"%d" % qos, qos=qos)
    assert [(m.payload, m.qos) for m in zero.messages()] == [
        (b"0", QoS.AT_MOST_ONCE),
        (b"1", QoS.AT_MOST_ONCE),
    ]
    assert [(m.payload, m.qos) for m in one.messages()] == [
        (b"0", QoS.AT_MOST_ONCE),
        (b"1", QoS.AT_LEAST_ONCE),
    ]


def test_a_publisher_is_told_when_nobody_is_subscribed(site: Site) -> None:
    publisher = site.client("publisher")
    assert publisher.publish(site.topic("x")) == 0x10
    subscriber = site.client("subscriber", clean_start=False, session_expiry_interval=600)
    subscriber.subscribe(site.topic("x"))
    assert publisher.publish(site.topic("x")) == 0x00
    assert len(subscriber.messages()) == 1
    subscriber.disconnect()
    assert publisher.publish(site.topic("x")) == 0x00
    publisher.subscribe(site.topic("y"), no_local=True)
    assert publisher.publish(site.topic("y")) == 0x00
    assert publisher.unsubscribe(site.topic("y"), site.topic("y")) == [0x00, 0x11]
    assert publisher.publish(site.topic("y")) == 0x10
    assert publisher.messages() == []


def test_packet_identifiers_count_from_one(site: Site) -> None:
    subscriber = site.client("subscriber")
    subscriber.subscribe(site.topic("x"))
    publisher = site.client("publisher")
    for _ in range(3):
        publisher.publish(site.topic("x"))
    first = subscriber.messages()
    subscriber.acknowledge(*first)
    publisher.publish(site.topic("x"))
    assert [m.packet_id for m in [*first, *subscriber.messages()]] == [1, 2, 3, 4]


def test_properties_are_passed_on_in_their_order(site: Site) -> None:
    subscriber = site.client("subscriber")
    subscriber.subscribe(site.topic("x"))
    site.client("publisher").publish(
        site.topic("x"),
        "grüß dich".encode(),
        payload_format_indicator=1,
        content_type="text/plain",
        response_topic=site.topic("back"),
        correlation_data=b"\x00\xff",
        user_properties=[("b", "1"), ("a", "2"), ("b", "1")],
    )
    (message,) = subscriber.messages()
    assert message.payload_format_indicator == 1
    assert message.content_type == "text/plain"
    assert message.response_topic == site.topic("back")
    assert message.correlation_data == b"\x00\xff"
    assert message.user_properties == [("b", "1"), ("a", "2"), ("b", "1")]
    assert message.message_expiry_interval is None


def test_an_expiry_of_zero_seconds_is_none(site: Site) -> None:
    site.client("publisher").publish(site.topic("x"), retain=True, message_expiry_interval=0)
    late = site.client("late")
    late.subscribe(site.topic("x"))
    assert [m.message_expiry_interval for m in late.messages()] == [None]


# ---- retained ------------------------------------------------------------------------


def test_the_last_retained_message_comes_with_a_subscription_behind_its_answer(site: Site) -> None:
    publisher = site.client("publisher")
    for payload in (b"1", b"2"):
        publisher.publish(site.topic("x"), payload, retain=True, response_topic="back", qos=1)
    publisher.publish(site.topic("x"), b"3")
    late = site.client("late")
    late.subscribe(site.topic("x"), qos=0)
    (message,) = late.messages()
    assert (message.payload, message.retain, message.qos) == (b"2", True, QoS.AT_MOST_ONCE)
    assert message.response_topic == "back"
    late.subscribe(site.topic("+"), qos=1)
    (message,) = late.messages()
    assert (message.payload, message.retain, message.qos) == (b"2", True, QoS.AT_LEAST_ONCE)


def test_an_empty_retained_message_clears_and_is_passed_on(site: Site) -> None:
    publisher, subscriber = site.client("publisher"), site.client("subscriber")
    publisher.publish(site.topic("x"), b"1", retain=True)
    subscriber.subscribe(site.topic("x"))
    publisher.publish(site.topic("x"), b"", retain=True)
    assert payloads(subscriber.messages()) == [b"1", b""]
    late = site.client("late")
    late.subscribe(site.topic("x"))
    assert late.messages() == []


@pytest.mark.parametrize("as_published", [False, True])
def test_a_retain_flag_is_passed_on_where_asked(site: Site, as_published: bool) -> None:
    publisher, subscriber = site.client("publisher"), site.client("subscriber")
    publisher.publish(site.topic("x"), b"before", retain=True)
    subscriber.subscribe(site.topic("+"), retain_as_published=as_published)
    publisher.publish(site.topic("x"), b"retained", retain=True)
    publisher.publish(site.topic("x"), b"not", retain=False)
    assert [(m.payload, m.retain) for m in subscriber.messages()] == [
        (b"before", True),
        (b"retained", as_published),
        (b"not", False),
    ]


@pytest.mark.parametrize(
    ("handling", "comes"),
    [
        (RetainHandling.SEND_ALWAYS, [1, 1]),
        (RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS, [1, 0]),
        (RetainHandling.SEND_NEVER, [0, 0]),
    ],
)
def test_retained_messages_come_as_the_subscription_wants_them(
    site: Site, handling: RetainHandling, comes: list[int]
) -> None:
    site.client("publisher").publish(site.topic("x"), b"1", retain=True)
    subscriber = site.client("subscriber")
    for count in comes:
        subscriber.subscribe(site.topic("x"), retain_handling=handling)
        assert len(subscriber.messages()) == count


def test_retained_messages_come_in_the_order_in_which_their_topics_were_made(site: Site) -> None:
    publisher = site.client("publisher")
    names = ["b/2", "a", "b", "b/1/x", "c/1"]
    for name in names:
        publisher.publish(site.topic(name), b"old", retain=True)
    publisher.publish(site.topic("a"), b"new", retain=True)
    subscriber = site.client("subscriber", receive_max=100)
    subscriber.subscribe(site.topic("#"), qos=0)
    found = [m.topic.removeprefix(site.topic("")) for m in subscriber.messages()]
    assert found == ["b", "b/2", "b/1/x", "a", "c/1"]
    subscriber.subscribe(site.topic("b/#"), qos=0)
    found = [m.topic.removeprefix(site.topic("")) for m in subscriber.messages()]
    assert found == ["b/2", "b/1/x", "b"]


# ---- subscriptions -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("a", ["a"], ["a/", "b", "A", "a/b"]),
        ("a/", ["a/"], ["a", "a/b"]),
        ("/a", ["/a"], ["a"]),
        ("+", ["a", "b"], ["a/b", "/a", "a/"]),
        ("a/+", ["a/b", "a/"], ["a", "a/b/c"]),
        ("+/+", ["a/b", "/a", "a/"], ["a", "a/b/c"]),
        ("a/+/c", ["a/b/c", "a//c"], ["a/b", "a/c", "a/b/c/d"]),
        ("#", ["a", "/", "a/b/c", ""], []),
        ("a/#", ["a", "a/", "a/b", "a/b/c"], ["b", "ab", "b/a"]),
        ("+/b/#", ["a/b", "a/b/c", "/b"], ["b", "a/c/b"]),
        ("ä/+", ["ä/ß"], ["a/ß"]),
    ],
)
def test_filters_match_live_and_retained(
    site: Site, pattern: str, matches: list[str], others: list[str]
) -> None:
    publisher, subscriber, late = (site.client(name) for name in ("p", "s", "l"))
    subscriber.subscribe(site.topic(pattern))
    for name in [*others, *matches]:
        publisher.publish(site.topic(name), name.encode() or b"none", retain=True)
    late.subscribe(site.topic(pattern))
    for client in (subscriber, late):
        topics = [m.topic.removeprefix(site.topic("")) for m in client.messages()]
        assert sorted(topics) == sorted(matches)


def test_topics_with_a_dollar_are_met_by_their_name_only(site: Site) -> None:
    subscriber, named = site.client("s"), site.client("n")
    subscriber.subscribe("#", "+/" + site.prefix)
    subscriber.settle()
    named.subscribe(f"$own/{site.prefix}")
    site.client("p").publish(f"$own/{site.prefix}", retain=True)
    assert subscriber.messages() == []
    assert len(named.messages()) == 1
    late = site.client("l")
    late.subscribe("+/" + site.prefix)
    assert late.messages() == []
    late.subscribe("$own/#")
    assert len(late.messages()) == 1


def test_no_local_keeps_only_ones_own_away(site: Site) -> None:
    one, other = site.client("one"), site.client("other")
    one.subscribe(site.topic("x"), no_local=True)
    one.publish(site.topic("x"), b"own")
    other.publish(site.topic("x"), b"other's")
    assert payloads(one.messages()) == [b"other's"]


def test_each_filter_that_matches_brings_a_message(site: Site) -> None:
    subscriber = site.client("s")
    for qos, pattern in enumerate(["#", "+/y", "x/y"]):
        subscriber.subscribe(site.topic(pattern), qos=min(qos, 1))
    site.client("p").publish(site.topic("x/y"))
    assert [m.qos.value for m in subscriber.messages()] == [1, 1, 0]


def test_subscribing_again_changes_only_the_quality(site: Site) -> None:
    one, other = site.client("one"), site.client("other")
    one.subscribe(site.topic("x"), qos=1, no_local=True, retain_as_published=True)
    one.subscribe(site.topic("x"), qos=0)
    one.publish(site.topic("x"), b"own", retain=True)
    other.publish(site.topic("x"), b"other's", retain=True)
    (message,) = one.messages()
    assert (message.payload, message.retain, message.qos.value) == (b"other's", True, 0)


# ---- limits --------------------------------------------------------------------------


def test_a_window_of_messages_is_under_way_and_one_that_is_acknowledged_brings_another_window(
    site: Site,
) -> None:
    """The second is Mosquitto's mistake: its window counts from the message acknowledged."""
    subscriber = site.client("s", receive_max=3)
    publisher = site.client("p")
    for number in range(14):
        publisher.publish(site.topic(f"{number}"), b"%d" % number, retain=True)
    subscriber.subscribe(site.topic("+"))
    first = subscriber.messages()
    assert payloads(first) == [b"0", b"1", b"2"]
    subscriber.acknowledge(first[0])
    second = subscriber.messages()
    assert payloads(second) == [b"3", b"4", b"5"]
    subscriber.acknowledge(second[-1])  # behind four others
    assert payloads(subscriber.messages()) == []
    subscriber.acknowledge(first[1])
    assert payloads(subscriber.messages()) == [b"6", b"7", b"8"]
    subscriber.acknowledge(first[2])
    assert payloads(subscriber.messages()) == [b"9", b"10", b"11"]


def test_a_client_that_tells_no_receive_maximum_has_the_brokers(site: Site) -> None:
    subscriber = site.client("s")
    subscriber.subscribe(site.topic("x"))
    publisher = site.client("p")
    for number in range(MAX_INFLIGHT + 5):
        publisher.publish(site.topic("x"), b"%d" % number)
    assert len(subscriber.messages()) == MAX_INFLIGHT


def test_a_publisher_is_answered_however_much_it_sends_at_once(site: Site) -> None:
    publisher = site.client("p")
    count = 3 * MAX_INFLIGHT
    for packet_id in range(1, count + 1):
        publisher.send(PublishPacket(site.topic("x"), b"", qos=QoS(1), packet_id=packet_id))
    answers = publisher.settle()
    assert all(isinstance(answer, mqtt5.PubAckPacket) for answer in answers)
    assert len(answers) == count


def test_a_publication_that_is_sent_again_is_passed_on_again(site: Site) -> None:
    subscriber, publisher = site.client("s"), site.client("p")
    subscriber.subscribe(site.topic("x"))
    for duplicate in (False, True):
        publisher.send(
            PublishPacket(site.topic("x"), b"1", qos=QoS(1), packet_id=7, duplicate=duplicate)
        )
        assert publisher.expect(mqtt5.PubAckPacket).packet_id == 7
    assert [(m.payload, m.duplicate) for m in subscriber.messages()] == [(b"1", False)] * 2


def test_a_refused_message_is_over(site: Site) -> None:
    subscriber = site.client("s", receive_max=1)
    subscriber.subscribe(site.topic("x"))
    publisher = site.client("p")
    for payload in (b"1", b"2"):
        publisher.publish(site.topic("x"), payload)
    (message,) = subscriber.messages()
    assert message.packet_id
    subscriber.send(
        mqtt5.PubAckPacket(
            message.packet_id, reason_code=mqtt5.PubAckReasonCode.PAYLOAD_FORMAT_INVALID
        )
    )
    assert payloads(subscriber.messages()) == [b"2"]


def test_what_is_too_large_for_a_client_never_comes(site: Site) -> None:
    """A byte more than the client wants does: Mosquitto doesn't count the first one."""
    subscriber = site.client("s", max_packet_size=100)
    subscriber.subscribe(site.topic("x"))
    publisher = site.client("p")
    overhead = len(mqtt5.PublishPacket(site.topic("x"), b"", qos=QoS(1), packet_id=1).write())
    for size in (100, 101, 102):
        assert publisher.publish(site.topic("x"), b"y" * (size - overhead)) == 0
    assert [len(m.write()) for m in subscriber.messages()] == [100, 101]


def test_what_is_too_large_for_a_client_takes_room_of_its_window(site: Site) -> None:
    """Until something that is acknowledged makes room: Mosquitto's mistake again."""
    subscriber = site.client("s", max_packet_size=100, receive_max=2)
    subscriber.subscribe(site.topic("x"))
    publisher = site.client("p")
    publisher.publish(site.topic("x"), bytes(100))
    publisher.publish(site.topic("x"), b"1")
    publisher.publish(site.topic("x"), b"2")
    (first,) = subscriber.messages()
    assert first.payload == b"1"
    subscriber.acknowledge(first)
    assert payloads(subscriber.messages()) == [b"2"]


def test_so_many_messages_wait_for_a_client_and_no_more(site: Site) -> None:
    options = {"clean_start": False, "session_expiry_interval": 600}
    subscriber = site.client("s", **options)
    subscriber.subscribe(site.topic("x"))
    subscriber.cut()
    publisher = site.client("p")
    for number in range(MAX_QUEUED + 3):
        assert publisher.publish(site.topic("x"), b"%d" % number) == 0
    subscriber = site.client("s", receive_max=100, **options)
    assert payloads(subscriber.messages()) == [b"%d" % number for number in range(MAX_QUEUED)]


def test_so_many_messages_wait_behind_those_under_way(site: Site) -> None:
    subscriber = site.client("s", receive_max=2)
    subscriber.subscribe(site.topic("x"))
    publisher = site.client("p")
    for number in range(MAX_QUEUED + 5):
        publisher.publish(site.topic("x"), b"%d" % number)
    taken = []
    while messages := subscriber.messages():
        taken += messages
        subscriber.acknowledge(*messages)
    assert payloads(taken) == [b"%d" % number for number in range(MAX_QUEUED + 2)]


def test_the_largest_packet_that_the_broker_takes(site: Site) -> None:
    publisher = site.client("p")
    topic = site.topic("x")
    rest = 1 + 2 + len(topic) + 2 + 1  # type and flags, topic, packet identifier, properties
    assert publisher.publish(topic, bytes(MAX_PACKET - rest)) == 0x10
    packet = mqtt5.PublishPacket(topic, bytes(MAX_PACKET - rest + 1), qos=QoS(1), packet_id=9)
    publisher.send(packet.write()[:3])  # its length is enough
    (goodbye,) = publisher.until_closed()
    assert isinstance(goodbye, mqtt5.DisconnectPacket)
    assert goodbye.reason_code is mqtt5.DisconnectReasonCode.PACKET_TOO_LARGE
