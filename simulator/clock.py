"""Time as the simulated world sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

Milliseconds: TypeAlias = Callable[[], float]
"""A clock: milliseconds since any fixed instant, never going back."""


def host_milliseconds() -> float:
    """Milliseconds of the host's monotonic clock."""
    return time.monotonic_ns() / 1_000_000
