"""Now, as events carry it: logic never asks a clock."""

from __future__ import annotations

from typing import NamedTuple, Self

from fleet.clock import Clock


class Instant(NamedTuple):
    """One moment on both clocks of :mod:`fleet.clock`, in seconds."""

    monotonic: float
    """For deadlines and ages: never goes back, means nothing to another process."""
    wall: float
    """For what is stored or shown: since 1970, may step."""

    @classmethod
    def of(cls, clock: Clock) -> Self:
        """This moment."""
        return cls(clock.monotonic(), clock.wall())

    def age_of(self, wall: float) -> float:
        """How long ago a stored time was; 0 for one that lies ahead."""
        return max(0.0, self.wall - wall)
