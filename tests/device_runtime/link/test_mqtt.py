"""The MQTT client against scripted bytes; hostile packets are written out byte by byte."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device_runtime.link.conftest import CONNACK, Client

MakeClient = Callable[..., Client]

TF_OK, TF_AGAIN, TF_NO_MEMORY, TF_BAD_INPUT, TF_FLASH_FAILED, TF_LINK_LOST = 0, 1, 2, 4, 5, 6


def plain(packet: str) -> str:
    """Hex without comments and spaces."""
    return "".join("".join(line.split("#")[0].split()) for line in packet.splitlines())


def publication(topic: str, payload: bytes, packet_id: int = 7, first: int = 0x32) -> str:
    body = len(topic).to_bytes(2, "big") + topic.encode()
    body += packet_id.to_bytes(2, "big") if first & 6 else b""
    body += b"\0" + payload
    length, rest = bytearray(), len(body)
    while rest or not length:
        length.append(rest & 0x7F | (0x80 if rest > 0x7F else 0))
        rest >>= 7
    return (bytes([first]) + bytes(length) + body).hex()


def online(client: Client, connack: str = CONNACK) -> Client:
    assert "connected" in client.connect(connack)[0]
    client.sent()
    return client


# -- connecting ------------------------------------------------------------------------------


def test_connect_carries_session_limits_will_and_credentials(make_client: MakeClient) -> None:
    client = make_client(user="meter-1", password="secret", will="s/1")
    client("start")
    assert client("poll 1") == ["dial"]
    client("accept")
    client("poll 2")
    assert client.sent() == bytes.fromhex(
        plain(
            """
            10 3b                       # CONNECT, 59 bytes follow
            00 04 4d 51 54 54 05        # MQTT 5
            ee                          # user, password, retained will of QoS 1, clean start
            00 3c                       # keep alive 60 s
            0a                          # 10 bytes of properties, no session expiry
            21 00 02                    # receive maximum 2
            27 00 00 03 00              # maximum packet size 768
            17 00                       # no reason strings
            00 07 6d 65 74 65 72 2d 31  # client identifier meter-1
            00                          # no will properties
            00 03 73 2f 31              # will topic s/1
            00 04 67 6f 6e 65           # will payload
            00 07 6d 65 74 65 72 2d 31  # user
            00 06 73 65 63 72 65 74     # password
            """
        )
    )


def test_connect_survives_a_stream_that_takes_one_byte_at_a_time(client: Client) -> None:
    client("write-limit 1")
    client("start")
    client("poll 1")
    client("accept")
    client("poll 100")
    assert client.sent()[:2] == bytes([0x10, 30])
    assert client.feed(CONNACK) == ["connected"]


@pytest.mark.parametrize(
    ("reason", "name"), [("86", "bad credentials"), ("87", "not authorized"), ("88", "busy")]
)
def test_refusal_in_connack_is_told_and_tried_again_later(
    client: Client, reason: str, name: str
) -> None:
    assert client.connect(f"20 03 00 {reason} 00") == [f"lost cause=refused reason={reason}"]
    assert client.state() == "waiting"
    client("clock 1000")
    assert client("poll 1") == ["dial"]


def test_refusal_is_read_even_when_the_broker_hangs_up_at_once(client: Client) -> None:
    client("start")
    client("poll 1")
    client("accept")
    client("poll 2")
    client("feed 2003008600")
    client("hangup")
    assert client("poll 5") == ["lost cause=refused reason=86"]


def test_server_keep_alive_replaces_ours(client: Client) -> None:
    online(client, "20 06 00 00 03 13 00 0a")  # server keep alive 10 s
    client("clock 4999")
    client("poll 1")
    assert client.sent() == b""
    client("clock 1")
    client("poll 1")
    assert client.sent() == bytes([0xC0, 0x00])


@pytest.mark.parametrize(
    ("connack", "retain", "reason"),
    [
        ("20 05 00 00 02 24 00", 0, "9b"),  # maximum QoS 0
        ("20 05 00 00 02 25 00", 1, "9a"),  # retain not available
        ("20 08 00 00 05 27 00 00 00 20", 0, "95"),  # maximum packet size 32
    ],
)
def test_limits_of_the_broker_refuse_a_publication_without_sending_it(
    client: Client, connack: str, retain: int, reason: str
) -> None:
    online(client, connack)
    client(f"publish t {retain} 0 {'aa' * 40}")
    assert client("poll 1") == [f"published id=1 reason={reason}"]
    assert client.sent() == b""


def test_publication_within_the_limits_of_the_broker_is_sent(client: Client) -> None:
    online(client, "20 0a 00 00 07 25 00 27 00 00 00 20")  # no retain, at most 32 bytes
    client("publish t 0 0 aabb")
    client("poll 1")
    assert client.sent() == bytes.fromhex("32 08 00 01 74 00 01 00 aa bb")


# -- publishing --------------------------------------------------------------------------------


def test_publication_has_expiry_and_retain_and_is_acknowledged(client: Client) -> None:
    online(client)
    assert client("publish d/a 1 600 0102") == ["publish 0 id=1"]
    client("poll 1")
    assert client.sent() == bytes.fromhex(
        plain(
            """
            33 0f                # PUBLISH, QoS 1, retain
            00 03 64 2f 61       # topic d/a
            00 01                # packet identifier 1
            05 02 00 00 02 58    # message expiry 600 s
            01 02
            """
        )
    )
    assert client.feed("40 02 00 01") == ["published id=1 reason=00"]


def test_only_one_publication_is_under_way(client: Client) -> None:
    online(client)
    client("publish a 0 0 01")
    assert client("publish b 0 0 02") == [f"publish {TF_AGAIN} id=0"]
    client("poll 1")
    assert client("publish b 0 0 02") == [f"publish {TF_AGAIN} id=0"]
    client.feed("40 02 00 01")
    assert client("publish b 0 0 02") == ["publish 0 id=2"]


def test_refused_publication_is_told_with_its_reason(client: Client) -> None:
    online(client)
    client("publish a 0 0 01")
    client("poll 1")
    # PUBACK, reason 0x97 (quota), property length 0
    assert client.feed("40 04 00 01 97 00") == ["published id=1 reason=97"]


@pytest.mark.parametrize("size", [100, 113, 114, 115, 500, 735])
def test_payloads_around_the_edges_of_the_length_field_go_out_whole(
    client: Client, size: int
) -> None:
    online(client)
    payload = bytes(index & 0xFF for index in range(size))
    client("write-limit 7")
    client(f"publish topic/one 0 0 {payload.hex()}")
    client("poll 3")
    assert client.sent().hex() == publication("topic/one", payload, 1)


def test_payload_larger_than_the_buffer_is_refused(client: Client) -> None:
    online(client)
    assert client("publish t 0 0 " + "00" * 768) == [f"publish {TF_NO_MEMORY} id=0"]
    assert client("publish t 0 0 00") == ["publish 0 id=1"]


@pytest.mark.parametrize("topic", ["a/+", "#", "t" * 129])
def test_topics_with_wildcards_or_over_the_limit_are_refused(client: Client, topic: str) -> None:
    online(client)
    assert client(f"publish {topic} 0 0 00") == [f"publish {TF_BAD_INPUT} id=0"]


def reconnect(client: Client) -> None:
    """After a loss: through the wait to the next CONNACK."""
    client("poll 1")
    client("clock 60000")
    client("poll 1")
    client("accept")
    client("poll 2")
    client.sent()
    client.feed(CONNACK)


def test_publication_is_sent_again_after_reconnection_as_new(client: Client) -> None:
    online(client)
    client("publish a 0 0 05")
    client("poll 1")
    before = client.sent()
    client("hangup")
    assert client("poll 1") == ["lost cause=stream-closed reason=00"]
    reconnect(client)
    assert client.sent() == before
    assert client.feed("40 02 00 01") == ["published id=1 reason=00"]


def test_publication_cut_off_in_the_middle_is_sent_again_from_its_start(client: Client) -> None:
    online(client)
    client("room 5")
    client("publish abc 0 0 0506")
    client("poll 2")
    assert len(client.sent()) == 5
    client("room")
    client("hangup")
    reconnect(client)
    assert client.sent().hex() == publication("abc", b"\5\6", 1)


def test_publication_made_offline_goes_out_after_connecting(client: Client) -> None:
    client("publish a 0 0 05")
    online_events = client.connect()
    assert online_events == ["connected"]
    assert client.sent().endswith(bytes.fromhex("32 07 00 01 61 00 01 00 05"))


def test_acknowledgement_never_interrupts_a_publication_that_is_half_written(
    client: Client,
) -> None:
    online(client)
    client("room 4")
    client("publish abc 0 0 0506")
    client("poll 1")
    client.feed(publication("t", b"x", 9))
    client("room")
    client("poll 1")
    puback = bytes.fromhex("40 02 00 09")
    assert client.sent().hex() == publication("abc", b"\5\6", 1) + puback.hex()


def test_missing_acknowledgement_ends_the_connection(client: Client) -> None:
    online(client)
    client("publish a 0 0 05")
    client("poll 1")
    client("clock 19999")
    assert client("poll 1") == []
    client("clock 1")
    assert client("poll 1") == ["lost cause=no-answer reason=00"]


def test_acknowledgement_that_came_during_a_long_computation_counts(client: Client) -> None:
    online(client)
    client("publish a 0 0 05")
    client("poll 1")
    client("feed 40020001")
    client("clock 25000")
    assert client("poll 3") == ["published id=1 reason=00"]


# -- receiving ---------------------------------------------------------------------------------


def test_message_properties_reach_the_callback(client: Client) -> None:
    online(client)
    events = client.feed(
        plain(
            """
            33 26                   # PUBLISH, QoS 1, retained, 38 bytes follow
            00 04 74 61 73 6b       # topic task
            00 2a                   # packet identifier 42
            1c                      # 28 bytes of properties
            01 01                   # payload is text
            02 00 00 01 2c          # expires in 300 s
            08 00 03 67 2f 64       # response topic g/d
            09 00 02 ca fe          # correlation data
            26 00 01 6b 00 01 76    # user property k = v
            03 00                   # content type, cut off here
            """
        )
    )
    assert events == []
    assert client.feed("00 aa") == [
        "message topic=task qos=1 retained=1 duplicate=0 expiry=300 response=g/d "
        "correlation=cafe payload=aa"
    ]
    assert client.sent() == bytes.fromhex("40 02 00 2a")


def test_qos_0_message_is_not_acknowledged(client: Client) -> None:
    online(client)
    assert "payload=0102" in client.feed(publication("t", b"\1\2", first=0x30))[0]
    assert client.sent() == b""


def test_empty_payload_and_duplicate_flag_are_passed_on(client: Client) -> None:
    online(client)
    (event,) = client.feed(publication("t", b"", first=0x3A))
    assert "duplicate=1" in event
    assert event.endswith("payload=")


def test_message_that_is_not_taken_yet_is_handed_over_again_and_holds_up_the_rest(
    client: Client,
) -> None:
    online(client)
    client(f"answer {TF_AGAIN}")
    client("feed " + publication("t", b"1", 1) + publication("t", b"2", 2))
    assert [line[-2:] for line in client("poll 3")] == ["31", "31", "31"]
    assert client.sent() == b""
    client(f"answer {TF_OK}")
    assert [line[-2:] for line in client("poll 3")] == ["31", "32"]
    assert client.sent() == bytes.fromhex("40 02 00 01 40 02 00 02")


@pytest.mark.parametrize(("status", "reason"), [(TF_BAD_INPUT, 0x99), (TF_FLASH_FAILED, 0x83)])
def test_message_that_the_callback_refuses_is_acknowledged_with_a_reason(
    client: Client, status: int, reason: int
) -> None:
    online(client)
    client(f"answer {status}")
    client.feed(publication("t", b"1", 1))
    assert client.sent() == bytes([0x40, 3, 0, 1, reason])


def test_acknowledgements_wait_for_room_and_none_is_lost(client: Client) -> None:
    online(client)
    client("room 0")
    client("feed " + "".join(publication("t", b"", i) for i in range(1, 100)))
    client("poll 200")
    client("room")
    client("poll 300")
    acknowledged = client.sent()
    assert acknowledged == b"".join(bytes([0x40, 2, 0, i]) for i in range(1, 100))


def test_connection_lost_with_an_untaken_message_does_not_acknowledge_it(client: Client) -> None:
    online(client)
    client(f"answer {TF_AGAIN}")
    client.feed(publication("t", b"1", 1), polls=1)
    client("hangup")
    assert client("poll 1") == ["lost cause=stream-closed reason=00"]
    assert client.sent() == b""


def test_packets_are_understood_byte_by_byte(client: Client) -> None:
    client("read-limit 1")
    online(client)
    stream = publication("first", bytes(range(200)), 1) + publication("second", b"x", 2)
    events = []
    for index in range(0, len(stream), 2):
        client(f"feed {stream[index : index + 2]}")
        events += client("poll 1")
    assert [event.split()[1] for event in events] == ["topic=first", "topic=second"]
    assert events[0].endswith(bytes(range(200)).hex())


def test_largest_allowed_packet_is_taken(client: Client) -> None:
    online(client)
    packet = publication("t", bytes(768 - 3 - 3 - 2 - 1))
    assert len(packet) == 2 * 768
    assert client.feed(packet)[0].startswith("message")


# -- subscriptions -----------------------------------------------------------------------------


def test_subscription_and_its_end_are_acknowledged(client: Client) -> None:
    online(client)
    assert client("subscribe b/+") == ["subscribe 0 id=1"]
    assert client("subscribe c") == [f"subscribe {TF_AGAIN} id=0"]
    assert client("unsubscribe c") == ["unsubscribe 0 id=2"]
    client("poll 1")
    assert client.sent() == bytes.fromhex(
        "82 09 00 01 00 00 03 62 2f 2b 01  a2 06 00 02 00 00 01 63".replace(" ", "")
    )
    assert client.feed("90 04 00 01 00 01") == ["subscribed id=1 reason=01"]
    assert client.feed("b0 04 00 02 00 11") == ["unsubscribed id=2 reason=11"]


def test_subscription_of_qos_0_asks_for_that(client: Client) -> None:
    online(client)
    client("subscribe b/+ 0")
    client("poll 1")
    assert client.sent() == bytes.fromhex("82 09 00 01 00 00 03 62 2f 2b 00")
    assert client.feed("90 04 00 01 00 00") == ["subscribed id=1 reason=00"]
    assert client("subscribe b/+ 2") == [f"subscribe {TF_BAD_INPUT} id=0"]


def test_refused_subscription_is_told(client: Client) -> None:
    online(client)
    client("subscribe b")
    client("poll 1")
    assert client.feed("90 04 00 01 00 87") == ["subscribed id=1 reason=87"]


def test_subscription_needs_a_connection(client: Client) -> None:
    assert client("subscribe b") == [f"subscribe {TF_LINK_LOST} id=0"]


def test_long_filter_uses_a_two_byte_length(client: Client) -> None:
    online(client)
    client("subscribe " + "f" * 128)
    client("poll 1")
    assert client.sent() == bytes.fromhex("82 86 01 00 01 00 00 80") + b"f" * 128 + b"\1"


# -- keep alive, loss, stop ----------------------------------------------------------------------


def test_ping_without_answer_ends_the_connection(client: Client) -> None:
    online(client)
    client("clock 30000")
    client("poll 1")
    assert client.sent() == bytes([0xC0, 0])
    client("clock 20000")
    assert client("poll 1") == ["lost cause=no-answer reason=00"]


def test_ping_with_answer_keeps_the_connection(client: Client) -> None:
    online(client)
    for _ in range(5):
        client("clock 30000")
        client("poll 1")
        assert client.sent() == bytes([0xC0, 0])
        client.feed("d0 00")
    assert client.state() == "online"


def test_pings_go_out_while_a_message_waits_to_be_taken(client: Client) -> None:
    online(client)
    client(f"answer {TF_AGAIN}")
    client.feed(publication("t", b"1", 1), polls=1)
    client("clock 30000")
    client("poll 1")
    assert client.sent() == bytes([0xC0, 0])


def test_timers_survive_the_wrap_of_the_clock(client: Client) -> None:
    client(f"clock {2**32 - 10000}")
    online(client)
    client("clock 29999")
    client("poll 1")
    assert client.sent() == b""
    client("clock 1")
    client("poll 1")
    assert client.sent() == bytes([0xC0, 0])


def test_disconnect_of_the_broker_is_told_with_its_reason(client: Client) -> None:
    online(client)
    assert client.feed("e0 02 8e 00") == ["lost cause=disconnected reason=8e"]


def test_dialling_that_nobody_answers_is_given_up(client: Client) -> None:
    client("start")
    client("poll 1")
    client("clock 4999")
    assert client("poll 1") == []
    client("clock 1")
    assert client("poll 1") == ["lost cause=no-answer reason=00"]


def waits_until_dialling(client: Client, losses: int) -> list[int]:
    """Milliseconds between each loss and the next dialling."""
    client("start")
    client("poll 1")
    waits = []
    for _ in range(losses):
        client("accept")
        client("poll 2")
        client("hangup")
        client("poll 1")
        wait = int(client("next")[0].split()[1])
        client(f"clock {wait - 1}")
        assert client("poll 1") == []
        client("clock 1")
        assert client("poll 1") == ["dial"]
        waits.append(wait)
    return waits


def test_waits_grow_exponentially_up_to_a_limit_with_jitter(make_client: MakeClient) -> None:
    fleets = [waits_until_dialling(make_client(seed=seed), 10) for seed in (1, 2, 3)]
    for waits in fleets:
        for index, wait in enumerate(waits):
            most = min(1000 * 2**index, 60000)
            assert most // 2 <= wait <= most
    assert len({tuple(waits) for waits in fleets}) == 3


def test_broker_that_accepts_and_hangs_up_at_once_is_not_hammered(client: Client) -> None:
    client("start")
    client("poll 1")
    waits = []
    for _ in range(6):
        client("accept")
        client("poll 2")
        client.feed(CONNACK)
        client("hangup")
        client("poll 1")
        waits.append(int(client("next")[0].split()[1]))
        client(f"clock {waits[-1]}")
        client("poll 1")
    assert waits[-1] >= 16000


@pytest.mark.parametrize(("with_will", "packet"), [(0, "e0 00"), (1, "e0 01 04")])
def test_stop_says_goodbye_after_what_is_queued(
    client: Client, with_will: int, packet: str
) -> None:
    online(client)
    client("room 0")
    client.feed(publication("t", b"1", 5))
    client("room")
    client(f"stop {with_will}")
    client("poll 1")
    assert client.sent() == bytes.fromhex("40 02 00 05" + packet)
    client("hangup")
    assert client("poll 1") == ["stopped"]
    assert client.state() == "idle"
    assert client("poll 3") == []


def test_stop_does_not_wait_forever_for_the_broker(client: Client) -> None:
    online(client)
    client("stop 0")
    client("clock 20000")
    assert client("poll 1") == ["stopped"]


def test_stopped_client_can_be_started_again(client: Client) -> None:
    client("start")
    client("poll 1")
    client("stop 0")
    assert client("poll 1") == ["stopped"]
    assert client.connect() == ["connected"]


def test_client_identifier_is_required_and_bounded(harness: Path) -> None:
    for identifier in ("", "x" * 65):
        done = subprocess.run([harness, "id", identifier], capture_output=True, text=True)
        assert done.stdout == f"init {TF_BAD_INPUT}\n"


def test_connect_packet_that_does_not_fit_is_refused(harness: Path) -> None:
    done = subprocess.run([harness, "password", "x" * 800], capture_output=True, text=True)
    assert done.stdout == f"init {TF_BAD_INPUT}\n"
