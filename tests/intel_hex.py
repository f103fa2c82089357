"""A reader of Intel HEX that knows nothing of the writer."""

from __future__ import annotations

import re

RECORD = re.compile(rb":([0-9A-F]{2})([0-9A-F]{4})([0-9A-F]{2})((?:[0-9A-F]{2})*)([0-9A-F]{2})")


def read_intel_hex(text: bytes) -> dict[int, int]:
    """Address → byte; asserts what the format demands, and that no byte is written twice."""
    memory: dict[int, int] = {}
    base = 0
    lines = text.split()
    assert lines[-1] == b":00000001FF"
    for line in lines[:-1]:
        assert sum(bytes.fromhex(line[1:].decode())) % 256 == 0
        match = RECORD.fullmatch(line)
        assert match, line
        count, offset, kind = (int(match[group], 16) for group in (1, 2, 3))
        data = bytes.fromhex(match[4].decode())
        assert count == len(data) > 0
        if kind == 4:
            assert (count, offset) == (2, 0)
            base = int.from_bytes(data, "big") << 16
            continue
        assert kind == 0
        assert offset + count <= 0x10000, "a record that wraps within its 64 KiB"
        written = {base + offset + place: byte for place, byte in enumerate(data)}
        assert not written.keys() & memory.keys()
        memory.update(written)
    return memory
