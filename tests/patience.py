"""How long tests wait for what must happen: as long as only a fault takes, on any machine."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 300.0


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], object] = "",
    look_seconds: float = 0.01,
) -> None:
    """Returns once ``condition`` holds; fails with ``what`` it waited for if it never does."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > end:
            said = what() if callable(what) else what
            raise AssertionError(f"waited {PATIENCE_SECONDS:.0f} s in vain: {said}")
        time.sleep(look_seconds)


def wait_for_service(
    condition: Callable[[], object], what: str | Callable[[], object] = ""
) -> None:
    """The same where a look is a request: a service answers so many a minute."""
    wait_until(condition, what, look_seconds=0.2)
