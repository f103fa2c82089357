"""Orders of a tensor's values in memory: plain, or as rows in pairs.

Row pairs are the order of packed weights: tinyfleet/row_pairs.h says the same in C, and
``fleet.protocol.manifest`` says it for those who know no compiler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Order: TypeAlias = Literal["plain", "row-pairs"]
"""How values lie in memory: one after the other, or ``pack_rows``."""


def stored_bytes(order: Order, shape: Sequence[int], value_bytes: int) -> int:
    """Size of a tensor of this shape in memory; of row pairs with what fills them up."""
    if order == "row-pairs":
        return value_bytes * math.prod(_filled_up(shape[0], math.prod(shape[1:])))
    return value_bytes * math.prod(shape)


def pack_rows(matrix: NDArray[np.int8]) -> NDArray[np.int8]:
    """A matrix (rows, length) in row pairs, shape (bytes,).

    Two rows lie interleaved byte by byte, so that a word has two values of each; lengths are
    filled up with zeros to a multiple of 4, the number of rows to a multiple of 2.
    """
    rows, length = matrix.shape
    padded = np.zeros(_filled_up(rows, length), np.int8)
    padded[:rows, :length] = matrix
    pairs = padded.reshape(-1, 2, padded.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(pairs).ravel()


def unpack_rows(packed: NDArray[np.int8], rows: int, length: int) -> NDArray[np.int8]:
    """The inverse of ``pack_rows``."""
    pairs = packed.reshape(-1, _filled_up(rows, length)[1], 2).transpose(0, 2, 1)
    return np.ascontiguousarray(pairs.reshape(-1, pairs.shape[2])[:rows, :length])


def _filled_up(rows: int, length: int) -> tuple[int, int]:
    return -(-rows // 2) * 2, -(-length // 4) * 4
