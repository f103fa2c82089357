"""What a device has learnt, as a debug probe would find it in its flash.

Format: docs/specification/flash.md, "Weights slot".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from codegen.firmware.flash_layout import slot_header_bytes
from codegen.firmware.model_digest import slot_word

_MAGIC, _COMMITTED, _RELEASED = 0x33574654, 0x54494D43, 0x534C4552
_HEADER = struct.Struct("<5I32s")
_CHECKS = struct.Struct("<4I")
"""CRC-32 of the header and of the payload, commit, released."""


def released_weights(slots: Iterable[bytes], model_digest: str, weights_bytes: int) -> bytes | None:
    """The version that the application infers with, of what lies in ``slots``.

    None where it is the one that is built into the firmware. A slot of another model is as if
    erased.

    Args:
        slots: content of both.
        model_digest: `model.digest` of the bundle's manifest; so is
        weights_bytes: `weights.bytes`.
    """
    found: list[tuple[int, bytes]] = []
    for slot in slots:
        magic, sequence, size, _, model, _ = _HEADER.unpack_from(slot)
        header_crc, payload_crc, commit, released = _CHECKS.unpack_from(slot, _HEADER.size)
        start = slot_header_bytes(weights_bytes)
        payload = slot[start : start + weights_bytes]
        if (
            (magic, size, model) == (_MAGIC, weights_bytes, slot_word(model_digest))
            and (commit, released) == (_COMMITTED, _RELEASED)
            and header_crc == zlib.crc32(slot[: _HEADER.size])
            and payload_crc == zlib.crc32(payload)
        ):
            found.append((sequence, payload))
    return max(found)[1] if found else None
