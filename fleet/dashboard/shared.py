"""What the API says, asked once for all who look at the same page."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio

_Found = TypeVar("_Found")

FRESH_SECONDS = 1.0
MOST_PAGES = 256


class _Entry(Generic[_Found]):
    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.found: _Found | None = None
        self.until = 0.0


class Shared(Generic[_Found]):
    """Keeps what was found for a key for a moment; of several who ask at once, one finds it.

    All of them on one event loop: whoever waits for another's finding holds no thread.
    """

    def __init__(
        self, seconds: float = FRESH_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is kept yet; later for `seconds`."""
        self._seconds = seconds
        self._clock = clock
        self._entries: OrderedDict[str, _Entry[_Found]] = OrderedDict()

    async def get(self, key: str, find: Callable[[], Awaitable[_Found]]) -> _Found:
        """What `find` gives, or gave a moment ago. What it raises isn't kept."""
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        while len(self._entries) > MOST_PAGES:
            self._entries.popitem(last=False)
        async with entry.lock:
            if entry.found is None or self._clock() >= entry.until:
                entry.found = await find()
                entry.until = self._clock() + self._seconds
            return entry.found

    def clear(self) -> None:
        """Something was changed: whoever asks next is told of it."""
        self._entries.clear()
