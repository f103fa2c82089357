"""Coding of a delta's values: Rice codes in blocks of 32, runs of zero blocks (wire.md).

Canonical: one list of values has one byte string, which the device's C encoder produces
as well, bit for bit. Rice codes: R. F. Rice, "Some practical universal noiseless coding
techniques", JPL Publication 79-22, 1979.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleet.errors import CodingError
from fleet.protocol import delta_library

BLOCK_VALUES = 32
MAX_PARAMETER = 14
ZERO_RUN = 15
MAX_RUN_BLOCKS = 256
ESCAPE_QUOTIENT = 20
HEADER_BITS = 4
MAX_VALUES = (1 << 32) - 1
RUN_BITS = 8
ESCAPE_BITS = ESCAPE_QUOTIENT + 32


def max_coded_bytes(count: int) -> int:
    """Upper limit for the coded bytes of ``count`` values: every value escaped."""
    blocks = -(-count // BLOCK_VALUES)
    return (blocks * HEADER_BITS + count * ESCAPE_BITS + 7) // 8


def encode(values: NDArray[np.int32]) -> bytes:
    """The coded bytes of ``values`` (int32, one dimension, in plan order)."""
    if values.dtype != np.int32 or values.ndim != 1:
        raise CodingError(f"a row of int32 is wanted, not {values.dtype} of shape {values.shape}")
    count = values.size
    if count == 0:
        return b""
    wide = values.astype(np.int64)
    zigzag = (wide << 1) ^ (wide >> 31)
    blocks = -(-count // BLOCK_VALUES)

    present = np.arange(blocks * BLOCK_VALUES).reshape(blocks, BLOCK_VALUES) < count
    padded = np.zeros(blocks * BLOCK_VALUES, np.int64)
    padded[:count] = zigzag
    grid = padded.reshape(blocks, BLOCK_VALUES)
    parameter = _best_parameters(grid, present)
    is_zero = grid.max(axis=1) == 0

    # A row of codes per block: its header in column 0, then its values. Codes of length 0
    # are those that don't exist: values of zero blocks, headers inside of a run, the end.
    code = np.zeros((blocks, 1 + BLOCK_VALUES), np.int64)
    length = np.zeros((blocks, 1 + BLOCK_VALUES), np.int64)
    code[:, 0] = parameter
    length[:, 0] = HEADER_BITS
    quotient = grid >> parameter[:, None]
    escaped = quotient >= ESCAPE_QUOTIENT
    low = grid & ((1 << parameter[:, None]) - 1)
    capped = np.minimum(quotient, ESCAPE_QUOTIENT)  # shifting by more would overflow
    ones = ((1 << capped) - 1) << 1
    code[:, 1:] = np.where(
        escaped, (((1 << ESCAPE_QUOTIENT) - 1) << 32) | grid, (ones << parameter[:, None]) | low
    )
    length[:, 1:] = np.where(escaped, ESCAPE_BITS, quotient + 1 + parameter[:, None])
    length[:, 1:][~present] = 0
    _merge_zero_blocks(is_zero, code, length)
    return _pack(code.ravel(), length.ravel())


def _best_parameters(grid: NDArray[np.int64], present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The parameter that makes each block shortest, the smaller on a tie."""
    costs = np.empty((MAX_PARAMETER + 1, len(grid)), np.int64)
    for k in range(MAX_PARAMETER + 1):
        quotient = grid >> k
        bits = np.where(quotient >= ESCAPE_QUOTIENT, ESCAPE_BITS, quotient + 1 + k)
        costs[k] = np.where(present, bits, 0).sum(axis=1)
    best: NDArray[np.int64] = np.argmin(costs, axis=0).astype(np.int64)
    return best


def _merge_zero_blocks(
    is_zero: NDArray[np.bool_], code: NDArray[np.int64], length: NDArray[np.int64]
) -> None:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], is_zero.astype(np.int8), [0]))))
    length[is_zero] = 0
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        for first in range(start, end, MAX_RUN_BLOCKS):
            run = min(MAX_RUN_BLOCKS, end - first)
            code[first, 0] = (ZERO_RUN << RUN_BITS) | (run - 1)
            length[first, 0] = HEADER_BITS + RUN_BITS


def _pack(code: NDArray[np.int64], length: NDArray[np.int64]) -> bytes:
    """Lay codes of given lengths end to end, most significant bit first."""
    used = length > 0
    code, length = code[used], length[used]
    ends = np.cumsum(length)
    remaining = np.repeat(ends, length) - np.arange(ends[-1]) - 1
    bits = (np.repeat(code, length) >> remaining) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def decode(data: bytes, count: int) -> NDArray[np.int32]:
    """The ``count`` values that ``data`` codes; CodingError for any but the canonical form."""
    if not 0 <= count <= MAX_VALUES:
        raise CodingError(f"{count} values can't be")
    if len(data) > max_coded_bytes(count):
        raise CodingError(f"{len(data)} bytes are more than {count} values can take")
    decoder = delta_library.installed() or decode_with_numpy
    return decoder(data, count)


def decode_with_numpy(data: bytes, count: int) -> NDArray[np.int32]:
    """As ``decode``, where the device's C isn't built; and the oracle that it is compared with."""
    zigzag = _read_zigzag(data, count)
    values = ((zigzag >> 1) ^ -(zigzag & 1)).astype(np.int32)
    if encode(values) != data:
        raise CodingError("isn't the canonical form of its values")
    return values


def _read_zigzag(data: bytes, count: int) -> NDArray[np.int64]:
    # A text of ones and zeros: str.find is the fastest unary decoder that Python has.
    bits = bin(int.from_bytes(b"\x01" + data, "big"))[3:]
    total = len(bits)
    zigzag = np.zeros(count, np.int64)
    position = done = 0
    while done < count:
        if position + HEADER_BITS > total:
            raise CodingError(f"ends after {done} of {count} values")
        k = int(bits[position : position + HEADER_BITS], 2)
        position += HEADER_BITS
        if k == ZERO_RUN:
            if position + RUN_BITS > total:
                raise CodingError(f"ends after {done} of {count} values")
            run = int(bits[position : position + RUN_BITS], 2) + 1
            position += RUN_BITS
            if run > -(-(count - done) // BLOCK_VALUES):
                raise CodingError(f"a run of {run} zero blocks goes beyond {count} values")
            done = min(count, done + run * BLOCK_VALUES)
            continue
        in_block = min(BLOCK_VALUES, count - done)
        block: list[int] = []
        for _ in range(in_block):
            stop = bits.find("0", position, position + ESCAPE_QUOTIENT)
            if stop >= 0:
                end = stop + 1 + k
                value = (stop - position) << k
                if k:
                    value |= int(bits[stop + 1 : end] or "0", 2)
            else:
                end = position + ESCAPE_BITS
                value = int(bits[position + ESCAPE_QUOTIENT : end] or "0", 2)
            if end > total:
                raise CodingError(f"ends after {done + len(block)} of {count} values")
            block.append(value)
            position = end
        zigzag[done : done + in_block] = block
        done += in_block
    if total - position >= 8:
        raise CodingError(f"{(total - position) // 8} bytes are left over after the values")
    return zigzag
