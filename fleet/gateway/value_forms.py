"""How the values of a round's deltas are coded and added up: as numbers, or as masked ones."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fleet.protocol import delta_coding
from fleet.protocol.masking import NONCE_BYTES, SEAL_BYTES, MaskedDelta

Values: TypeAlias = NDArray[np.int32] | NDArray[np.uint32]


class Decoded(NamedTuple):
    """A delta's values, and what an unmasker needs to know of its mask."""

    values: Values
    nonce: bytes = b""
    seals: bytes = b""


class ValueForm(NamedTuple):
    """Of one round. ``bits`` 0: plain values; else masked ones, sealed for so many unmaskers."""

    bits: int = 0
    unmaskers: int = 0

    def decode(self, coded: bytes, count: int) -> Decoded:
        """``count`` values; none have no coded bytes either. CodingError names what is wrong.

        Of masked values only the length can be wrong.
        """
        if not self.bits or not count:
            return Decoded(delta_coding.decode(coded, count))
        delta = MaskedDelta.decode(coded, count, self.bits, self.unmaskers)
        return Decoded(delta.values, delta.nonce, b"".join(delta.seals))

    def max_coded_bytes(self, count: int) -> int:
        """What so many values take at most."""
        if not self.bits:
            return delta_coding.max_coded_bytes(count)
        return NONCE_BYTES + self.unmaskers * SEAL_BYTES + count * (self.bits // 8)

    def add(self, total: NDArray[np.int64], values: Values, weight: int) -> None:
        """Add weight · values to ``total`` in place; masked ones modulo 2^bits, unweighted."""
        total += np.multiply(values, weight, dtype=np.int64)
        if self.bits:
            total &= (1 << self.bits) - 1
