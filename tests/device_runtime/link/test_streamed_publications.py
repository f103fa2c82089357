"""Publications whose bytes are drawn from a source while they go out, and cancelled ones."""

from __future__ import annotations

import pytest

from tests.device_runtime.link.conftest import Client
from tests.device_runtime.link.test_mqtt import (
    TF_AGAIN,
    TF_NO_MEMORY,
    online,
    publication,
    reconnect,
)


def drawn(count: int) -> bytes:
    """What the harness' source gives."""
    return bytes((i * 7 + (i >> 8)) & 0xFF for i in range(count))


@pytest.mark.parametrize("size", [1, 100, 114, 700, 735, 736, 737, 5000, 16_384])
@pytest.mark.parametrize("write_limit", [5, 65536])
def test_a_streamed_payload_goes_out_whole_whatever_its_size(
    client: Client, size: int, write_limit: int
) -> None:
    online(client)
    client(f"write-limit {write_limit}")
    assert client(f"stream topic/one 0102 {size}") == ["publish 0 id=1"]
    assert client("poll 1") == ["restart"]
    assert client.sent().hex() == publication("topic/one", b"\1\2" + drawn(size), 1)
    assert client.feed("40 02 00 01") == ["published id=1 reason=00"]


def test_a_streamed_payload_waits_for_room_and_nothing_gets_between(client: Client) -> None:
    online(client)
    sent = b""
    client("stream t 01 5000")
    for _ in range(200):
        client("room 37")
        client.feed(publication("t", b"x", 9) if not sent else "", polls=1)
        sent += client.sent()
    whole = bytes.fromhex(publication("t", b"\1" + drawn(5000), 1))
    puback = bytes.fromhex("40 02 00 09")
    assert sent in {whole + puback, puback + whole}


def test_a_streamed_payload_that_was_cut_off_is_drawn_again_from_its_first_byte(
    client: Client,
) -> None:
    online(client)
    client("room 2000")
    client("stream t 01 5000")
    client("poll 2")
    assert len(client.sent()) == 2000
    client("room")
    client("hangup")
    reconnect(client)
    assert client.sent().hex() == publication("t", b"\1" + drawn(5000), 1)


def test_a_streamed_payload_that_was_not_acknowledged_is_drawn_again(client: Client) -> None:
    online(client)
    client("stream t 01 3000")
    client("poll 1")
    before = client.sent()
    client("hangup")
    reconnect(client)
    assert client.sent() == before


def test_a_slow_link_is_given_time_as_long_as_bytes_go_out(client: Client) -> None:
    online(client)
    client("room 500")
    client("stream t 01 5000")
    for _ in range(5):
        client("clock 19000")
        client("room 500")
        client.feed("d0 00" if client.sent().endswith(b"\xc0\0") else "", polls=1)
    assert client.state() == "online"
    client("clock 20001")
    client("room 0")
    assert client("poll 1") == ["lost cause=no-answer reason=00"]


def test_a_streamed_payload_counts_in_the_packet_limit_of_the_broker(client: Client) -> None:
    online(client, "20 08 00 00 05 27 00 00 10 00")  # maximum packet size 4,096
    client("stream t 01 4096")
    assert client("poll 1") == ["published id=1 reason=95"]
    assert client.sent() == b""


def test_a_head_that_leaves_no_room_for_the_source_is_refused(client: Client) -> None:
    online(client)
    room = 768 - 4 - 2 - 1 - 2 - 1
    assert client(f"stream t {'00' * room} 1") == [f"publish {TF_NO_MEMORY} id=0"]
    assert client("stream t 00 1000001") == [f"publish {TF_NO_MEMORY} id=0"]
    assert client(f"stream t {'00' * (room - 1)} 1") == ["publish 0 id=1"]


# -- cancelling --------------------------------------------------------------------------------


def test_a_publication_that_has_not_begun_is_cancelled_without_a_trace(client: Client) -> None:
    online(client)
    client("room 0")
    client("stream t 01 100")
    client("poll 1")
    assert client("cancel") == ["cancel 0"]
    client("room")
    client("poll 2")
    assert client.sent() == b""
    assert client("publish t 0 0 02") == ["publish 0 id=2"]


def test_a_publication_that_is_half_written_cannot_be_cancelled(client: Client) -> None:
    online(client)
    client("room 50")
    client("stream t 01 100")
    client("poll 1")
    assert client("cancel") == [f"cancel {TF_AGAIN}"]
    client("room")
    client("poll 1")
    assert client.sent().hex() == publication("t", b"\1" + drawn(100), 1)
    assert client("cancel") == ["cancel 0"]


def test_a_cancelled_publication_that_is_out_tells_nothing_and_is_not_repeated(
    client: Client,
) -> None:
    online(client)
    client("stream t 01 100")
    client("poll 1")
    client("cancel")
    assert client("publish t 0 0 02") == [f"publish {TF_AGAIN} id=0"]
    assert client.feed("40 02 00 01") == []
    client("stream t 01 100")
    client("poll 1")
    client("cancel")
    client.sent()
    client("hangup")
    reconnect(client)
    assert client.sent() == b""
