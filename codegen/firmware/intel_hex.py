"""Intel HEX: bytes with the addresses they belong to, as text that every flash programmer reads.

A record is a line ``:LLAAAATT…CC`` of hex digits: bytes of data, low half of the address, type,
data, and what makes all of its bytes add up to 0 modulo 256.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_DATA, _END, _UPPER_ADDRESS = 0x00, 0x01, 0x04
_LINE_BYTES = 16
_HALF = 1 << 16
_SPACE = 1 << 32


def intel_hex(pieces: Iterable[tuple[int, bytes]]) -> bytes:
    """The file that puts each piece, (address, bytes), into memory.

    Raises ValueError for bytes beyond the 32-bit address space.
    """
    lines: list[str] = []
    upper = 0  # what a reader assumes at the start of a file
    for address, data in _lines(pieces):
        if address >> 16 != upper:
            upper = address >> 16
            lines.append(_record(0, _UPPER_ADDRESS, upper.to_bytes(2, "big")))
        lines.append(_record(address % _HALF, _DATA, data))
    lines.append(_record(0, _END, b""))
    return "".join(lines).encode("ascii")


def _lines(pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The pieces cut where addresses are multiples of a line's bytes, and so of the halves."""
    for address, data in pieces:
        if address < 0 or address + len(data) > _SPACE:
            raise ValueError(f"{len(data)} bytes at {address:#x} lie outside of 32-bit addresses")
        start = 0
        while start < len(data):
            end = start + _LINE_BYTES - (address + start) % _LINE_BYTES
            yield address + start, data[start:end]
            start = end


def _record(address: int, kind: int, data: bytes) -> str:
    content = bytes([len(data), *address.to_bytes(2, "big"), kind]) + data
    return f":{content.hex().upper()}{-sum(content) % 256:02X}\n"
