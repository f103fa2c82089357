"""What changed since somebody asked last: polls cost what changed, not all there is."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

_NUMBER_BITS = 32
EPOCH_BITS = 31  # so that a cursor is a positive 64-bit integer

Key = TypeVar("Key", bound=Hashable)


class Page(NamedTuple, Generic[Key]):
    """Some of what changed, oldest change first, and where the next page begins."""

    keys: list[Key]
    cursor: int
    more: bool


class Changes(Generic[Key]):
    """Keys in the order of their last change.

    A cursor is the number of a change together with the epoch that it was counted in; one of
    another epoch (another process, whose count began anew) asks for everything.
    """

    def __init__(self, epoch: int) -> None:
        """``epoch``: 1 … 2^31-1, another one for every process."""
        self._epoch = epoch
        self._number = 0
        self._last: dict[Key, int] = {}

    def touch(self, key: Key) -> None:
        """A key has changed."""
        self._number += 1
        self._last.pop(key, None)
        self._last[key] = self._number

    def forget(self, key: Key) -> None:
        """A key is gone."""
        self._last.pop(key, None)

    def since(self, cursor: int, limit: int) -> Page[Key]:
        """At most ``limit`` keys that changed after ``cursor``; 0 is before everything."""
        epoch, number = divmod(cursor, 1 << _NUMBER_BITS)
        if epoch != self._epoch:
            number = 0
        newer: list[Key] = []
        for key, changed in reversed(self._last.items()):
            if changed <= number:
                break
            newer.append(key)
        newer.reverse()
        keys = newer[:limit]
        last = self._last[keys[-1]] if keys else self._number
        return Page(keys, (self._epoch << _NUMBER_BITS) + last, len(newer) > limit)
