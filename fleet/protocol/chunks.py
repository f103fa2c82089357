"""Chunks of the weights as they lie at the broker: data and a CRC-32 that knows the number.

TCP and MQTT carry bytes whole; the serial line between modem and device doesn't, where its ring
runs over. A chunk that is damaged on the way is asked for again instead of spoiling all weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from fleet.errors import ProtocolError
from fleet.protocol.fields import CHUNK_BYTES, uint16

# So many chunks a device asks for at a time, each of which it acknowledges; of them and of all else
# the broker may send so many before it has an answer: they fit the device's receive ring.
GROUP_CHUNKS = 32
RECEIVE_MAXIMUM = 6
CRC_BYTES = 4


def group_of(number: int) -> int:
    """The group that chunk ``number`` is asked for with."""
    return number // GROUP_CHUNKS


def chunk_count(weights_bytes: int, chunk_bytes: int) -> int:
    """How many chunks weights of this size have."""
    return -(-weights_bytes // chunk_bytes)


def encode_chunk(number: int, data: bytes) -> bytes:
    """The payload of chunk ``number``: its data and their CRC-32."""
    uint16("chunk", "number", number)
    if not 0 < len(data) <= CHUNK_BYTES.most:
        raise ProtocolError(
            "chunk", "data", f"has {len(data)} bytes, 1 … {CHUNK_BYTES.most} are allowed"
        )
    return data + _crc(number, data)


def decode_chunk(number: int, payload: bytes) -> bytes:
    """The data of chunk ``number``; ProtocolError where its CRC-32 says that it is damaged."""
    data, crc = payload[:-CRC_BYTES], payload[-CRC_BYTES:]
    if not 0 < len(data) <= CHUNK_BYTES.most or crc != _crc(number, data):
        raise ProtocolError("chunk", "crc32", f"chunk {number} is damaged")
    return data


def _crc(number: int, data: bytes) -> bytes:
    return zlib.crc32(data, zlib.crc32(number.to_bytes(4, "little"))).to_bytes(4, "little")


def chunks_of(weights: bytes, chunk_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Number and payload of every chunk of ``weights``."""
    CHUNK_BYTES("chunk", "chunk_bytes", chunk_bytes)
    for number, start in enumerate(range(0, len(weights), chunk_bytes)):
        yield number, encode_chunk(number, weights[start : start + chunk_bytes])
