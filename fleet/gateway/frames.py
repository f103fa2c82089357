"""Frames on the gateway's socket: 4-byte big-endian length, then a CBOR map."""

from __future__ import annotations

import socket
import struct
from typing import Any

import cbor2

from fleet.errors import GatewayError

SOCKET_VERSION = 5
"""Of docs/specification/gateway.md; both ends have it."""
MAX_WAIT_SECONDS = 5.0
"""Of one `watch`; longer waits are several."""

# A start request carries weights, a reply carries sums; both are a few hundred kilobytes.
MAX_FRAME_BYTES = 64 << 20
_LENGTH = struct.Struct(">I")


def send(connection: socket.socket, value: dict[str, Any]) -> None:
    """Write one frame."""
    data = cbor2.dumps(value)
    if len(data) > MAX_FRAME_BYTES:
        raise GatewayError(f"a message of {len(data)} bytes is over the limit of {MAX_FRAME_BYTES}")
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """Read one frame; None at the end of the stream; GatewayError for what is no frame."""
    head = _receive_exactly(connection, _LENGTH.size)
    if not head:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > MAX_FRAME_BYTES:
        raise GatewayError(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
    data = _receive_exactly(connection, size)
    try:
        value = cbor2.loads(data)
    except Exception as error:  # cbor2 lets errors of tag handlers through, whatever they are
        raise GatewayError(f"a frame isn't CBOR: {error}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise GatewayError("a frame must hold a CBOR map with texts as keys")
    return value


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(1 << 16, size - len(data)))
        if not part:
            if not data:
                return b""
            raise GatewayError("the connection ended in the middle of a frame")
        data += part
    return bytes(data)
