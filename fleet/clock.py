"""Time comes from outside: whatever waits in a service is given a clock.

Live it is the machine's (:class:`SystemClock`). In a test or an experiment it is a
:class:`VirtualClock`: nothing waits, and what is due meanwhile happens in order of time.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """What a service asks of time; all in seconds."""

    def monotonic(self) -> float:
        """Since any origin; never goes back. For waiting and for deadlines of this process."""

    def wall(self) -> float:
        """Since 1970. For what is stored or shown; may step back."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def wall(self) -> float:
        """See `Clock`."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        time.sleep(max(0.0, seconds))


class VirtualClock:
    """A clock that stands still but in `sleep`, which runs what is due and returns at once.

    One thread only. Two runs with the same events are equal: what is due at one instant runs in
    the order in which it was asked for.
    """

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        """Begins at 0 on the monotonic clock, at `wall` seconds since 1970."""
        self._now = 0.0
        self._wall_offset = wall
        self._order = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def monotonic(self) -> float:
        """See `Clock`."""
        return self._now

    def wall(self) -> float:
        """See `Clock`."""
        return self._now + self._wall_offset

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward, or back where negative; the monotonic one goes on."""
        self._wall_offset += seconds

    def call_later(self, seconds: float, action: Callable[[], None]) -> None:
        """Run `action` when so much time has passed; it may ask for further ones."""
        self.call_at(self._now + seconds, action)

    def call_at(self, at: float, action: Callable[[], None]) -> None:
        """The same at a time of the monotonic clock, or now where that is over."""
        heapq.heappush(self._due, (max(self._now, at), next(self._order), action))

    @property
    def next_due(self) -> float:
        """When the next action is to run; infinity without one."""
        return self._due[0][0] if self._due else math.inf

    def sleep(self, seconds: float) -> None:
        """See `Clock`. Actions run inside of this call; one of them may not sleep itself."""
        self.run_until(self._now + max(0.0, seconds))

    def run_until(self, end: float) -> None:
        """Run what is due until then, that instant included, which it is afterwards."""
        while self._due and self._due[0][0] <= end:
            self._now, _, action = heapq.heappop(self._due)
            action()
        self._now = end
