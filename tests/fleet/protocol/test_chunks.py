"""Chunks of the weights: what is damaged on the way is seen."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import ProtocolError
from fleet.protocol import topics
from fleet.protocol.chunks import (
    RECEIVE_MAXIMUM,
    chunk_count,
    chunks_of,
    decode_chunk,
    encode_chunk,
)
from fleet.protocol.messages import MAX_PACKET_BYTES

RECEIVE_RING_BYTES = 4096


@given(st.binary(min_size=1, max_size=3000), st.sampled_from([16, 64, 512]))
def test_chunks_laid_end_to_end_are_the_weights(weights: bytes, chunk_bytes: int) -> None:
    chunks = list(chunks_of(weights, chunk_bytes))
    assert len(chunks) == chunk_count(len(weights), chunk_bytes)
    assert [number for number, _ in chunks] == list(range(len(chunks)))
    assert b"".join(decode_chunk(number, payload) for number, payload in chunks) == weights


def test_the_crc_is_over_number_and_data() -> None:
    crc = zlib.crc32(b"\x05\x01\0\0" + b"data")
    assert encode_chunk(261, b"data") == b"data" + crc.to_bytes(4, "little")


@given(st.integers(0, 65_535), st.binary(min_size=1, max_size=512), st.data())
def test_a_changed_bit_a_cut_and_another_number_are_seen(
    number: int, data: bytes, draw: st.DataObject
) -> None:
    payload = bytearray(encode_chunk(number, data))
    payload[draw.draw(st.integers(0, len(payload) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    damaged = [bytes(payload), encode_chunk(number, data)[:-1], encode_chunk(number ^ 1, data)]
    for other in damaged:
        with pytest.raises(ProtocolError, match="damaged"):
            decode_chunk(number, other)


@pytest.mark.parametrize("payload", [b"", b"abcd", bytes(517)])
def test_a_payload_that_can_hold_no_chunk_is_damaged(payload: bytes) -> None:
    with pytest.raises(ProtocolError, match="damaged"):
        decode_chunk(0, payload)


def test_as_many_of_the_largest_chunks_as_may_be_under_way_fit_the_receive_ring() -> None:
    topic = topics.blob("f" * 32, bytes(32), 65_535)
    packet = 3 + 2 + len(topic) + 2 + 1 + 5 + 512 + 4  # header, topic, id, expiry, data and CRC
    assert packet <= MAX_PACKET_BYTES
    # What else may come meanwhile, a receipt and acknowledgements; a task is one of them.
    assert RECEIVE_MAXIMUM * packet + 400 <= RECEIVE_RING_BYTES
