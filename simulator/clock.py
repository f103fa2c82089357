"""Time as the simulated world sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

SECOND = 1_000_000_000
"""In nanoseconds, the unit of boards' clocks and of virtual time."""
MILLISECOND = 1_000_000

Milliseconds: TypeAlias = Callable[[], float]
"""A clock: milliseconds since any fixed instant, never going back."""


def host_milliseconds() -> float:
    """Milliseconds of the host's monotonic clock."""
    return time.monotonic_ns() / 1_000_000
