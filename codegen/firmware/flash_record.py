"""The records that identity and journal are runs of (docs/specification/flash.md, "Records")."""

from __future__ import annotations

import struct
import zlib

RECORD_MAGIC = 0x4A
IDENTITY_KIND, KEYS_KIND, AUTHORITY_KIND, KEYRING_KIND = 1, 2, 3, 4
"""What an identity region has records of."""
RECORD_GRAIN = 8
"""Records begin at multiples of this."""
RECORD_HEADER = struct.Struct("<BBH")
"""Magic, kind, payload bytes; a CRC-32 follows."""


def flash_record(kind: int, payload: bytes) -> bytes:
    """A record, with the erased bytes up to where the next one may begin."""
    header = RECORD_HEADER.pack(RECORD_MAGIC, kind, len(payload))
    record = header + struct.pack("<I", zlib.crc32(header + payload)) + payload
    return record + b"\xff" * (-len(record) % RECORD_GRAIN)


def identity_records(
    identity: bytes,
    keys: bytes | None = None,
    authority: bytes | None = None,
    keyring: bytes | None = None,
) -> bytes:
    """What goes to the start of an identity region, the rest of which is erased flash.

    ``identity`` is the CBOR message; the device's keys, the authority's public key and a signed
    keyring are as docs/specification/masking.md has them, each left out where it is None.
    """
    payloads = {
        IDENTITY_KIND: identity,
        KEYS_KIND: keys,
        AUTHORITY_KIND: authority,
        KEYRING_KIND: keyring,
    }
    return b"".join(
        flash_record(kind, payload) for kind, payload in payloads.items() if payload is not None
    )


def newest_records(content: bytes) -> dict[int, bytes]:
    """The payload of each kind of record in a region, the last of several, as devices read it.

    What is damaged or no record is left out.
    """
    found: dict[int, bytes] = {}
    at = 0
    while at + RECORD_GRAIN <= len(content):
        magic, kind, size = RECORD_HEADER.unpack_from(content, at)
        payload = content[at + RECORD_GRAIN : at + RECORD_GRAIN + size]
        crc = zlib.crc32(payload, zlib.crc32(content[at : at + RECORD_HEADER.size]))
        (wanted,) = struct.unpack_from("<I", content, at + RECORD_HEADER.size)
        if magic != RECORD_MAGIC or len(payload) != size or crc != wanted:
            at += RECORD_GRAIN
            continue
        found[kind] = payload
        at += RECORD_GRAIN + size + -size % RECORD_GRAIN
    return found
