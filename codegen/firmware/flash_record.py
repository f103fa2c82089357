"""The records that identity and journal are runs of (docs/specification/flash.md, "Records")."""

from __future__ import annotations

import struct
import zlib

RECORD_MAGIC, IDENTITY_KIND = 0x4A, 1
RECORD_GRAIN = 8
"""Records begin at multiples of this."""
RECORD_HEADER = struct.Struct("<BBH")
"""Magic, kind, payload bytes; a CRC-32 follows."""


def flash_record(kind: int, payload: bytes) -> bytes:
    """A record, with the erased bytes up to where the next one may begin."""
    header = RECORD_HEADER.pack(RECORD_MAGIC, kind, len(payload))
    record = header + struct.pack("<I", zlib.crc32(header + payload)) + payload
    return record + b"\xff" * (-len(record) % RECORD_GRAIN)
