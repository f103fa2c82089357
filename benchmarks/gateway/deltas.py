"""What the devices of the benchmark send, and what the gateway's sums must then be."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.protocol import delta_coding

PLAN = hashlib.sha256(b"tinyfleet-benchmark-plan").digest()
WEIGHTS_DATA = hashlib.shake_256(b"tinyfleet-benchmark-weights").digest(8192)
WEIGHTS = hashlib.sha256(WEIGHTS_DATA).digest()
ANNOUNCED_SAMPLES = 400
# So many different deltas; more would only take longer to make.
VARIANTS = 32
# A spread that codes 2,606 values in as many bytes as the demo's plan `middle` takes.
SPREAD, SHARE_CHANGED = 12.0, 0.8


class Coded(NamedTuple):
    """A delta as it travels."""

    data: bytes
    crc32: int


class Deltas:
    """Deltas of ``values`` values: which one a device sends in a round follows from its number."""

    def __init__(self, values: int) -> None:
        """Make all variants."""
        random = np.random.default_rng(values)
        changed = random.random((VARIANTS, values)) < SHARE_CHANGED
        drawn = random.normal(size=(VARIANTS, values)) * SPREAD
        self._values: NDArray[np.int32] = np.where(changed, np.rint(drawn), 0).astype(np.int32)
        codes = (delta_coding.encode(row) for row in self._values)
        self._coded = [Coded(data, zlib.crc32(data)) for data in codes]

    @property
    def mean_bytes(self) -> float:
        """Coded bytes of a delta."""
        return sum(len(coded.data) for coded in self._coded) / VARIANTS

    def coded(self, device: int, round: int) -> Coded:
        """What device number ``device`` sends."""
        return self._coded[(device + round) % VARIANTS]

    @staticmethod
    def samples(device: int, round: int) -> int:
        """On how many samples it says it has trained: 1 … 400."""
        return 1 + (7 * device + 13 * round) % ANNOUNCED_SAMPLES

    def sum(self, devices: Iterable[int], round: int) -> tuple[bytes, int]:
        """Values (int64, little endian) and weight of the sum of these devices."""
        weights = np.zeros(VARIANTS, np.int64)
        for device in devices:
            weights[(device + round) % VARIANTS] += self.samples(device, round)
        total = weights @ self._values.astype(np.int64)
        return total.astype("<i8").tobytes(), int(weights.sum())
