"""How long bytes take from one end of a line to the other.

A line carries a stream, as TCP gives it: in order and whole. A lost packet shows as time until it
was sent again, so that whatever comes behind it waits as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SECOND = 1_000_000_000
PACKET_BYTES = 1460
"""Of payload, in Ethernet's frames."""
RETRANSMISSION_NANOSECONDS = _SECOND
"""RFC 6298: the first time-out is a second at least."""


@dataclass(frozen=True)
class LineDirection:
    """One way of a line."""

    bytes_per_second: float
    latency_seconds: float
    jitter_seconds: float = 0.0
    """On top of the latency, uniform up to so much."""
    loss: float = 0.0
    """Share of packets that have to be sent again."""


class LineEnd:
    """Where bytes go in."""

    def __init__(self, direction: LineDirection, seed: tuple[int, ...]) -> None:
        """All chance comes from ``seed``."""
        self._direction = direction
        self._latency = round(direction.latency_seconds * _SECOND)
        self._random = (
            np.random.default_rng(seed) if direction.jitter_seconds or direction.loss else None
        )
        self._free_at = 0
        self._last_arrival = 0

    def dials(self, now: int) -> int:
        """When the first word of a new stream arrives; nothing of an old one is before it."""
        self._free_at = self._last_arrival = 0
        return self.arrives(now, 0)

    def arrives(self, now: int, count: int) -> int:
        """When ``count`` bytes that are handed over now have all come out at the other end."""
        direction = self._direction
        self._free_at = max(self._free_at, now) + int(count * _SECOND / direction.bytes_per_second)
        arrival = self._free_at + self._latency
        if self._random is not None:
            arrival += int(self._random.random() * direction.jitter_seconds * _SECOND)
            packets = -(-count // PACKET_BYTES)
            if packets and direction.loss:
                lost = int(self._random.binomial(packets, direction.loss))
                arrival += lost * RETRANSMISSION_NANOSECONDS
        self._last_arrival = max(self._last_arrival, arrival)
        return self._last_arrival
