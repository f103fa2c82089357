"""How long bytes take from one end of a device's line to the other.

A line carries a stream, as TCP gives it: in order and whole. What a bad network does to one is the
world's (`simulator.world.links`).
"""

from __future__ import annotations

from simulator.clock import SECOND
from simulator.world.links import Stream

LEAST_NANOSECONDS = 10_000_000
"""No line is faster than that: bytes pass through a modem on one side and a broker's machine on the
other. So much of a fleet's time, or more, is simulated at once (`simulator.virtual.pool`)."""


class LineEnd:
    """Where the bytes of one connection go in."""

    def __init__(self, stream: Stream) -> None:
        """One direction of the connection."""
        self._stream = stream

    def arrives(self, now: int, count: int) -> int:
        """When ``count`` bytes that are handed over now have all come out; in nanoseconds."""
        # To TCP all is one topic, and nothing is dropped or sent once more on purpose.
        sent = self._stream.send(now / SECOND, count, topic="", qos=1, again=True)
        assert sent.arrives_at is not None
        return max(round(sent.arrives_at * SECOND), now + LEAST_NANOSECONDS)
