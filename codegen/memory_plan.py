"""Arena offsets for buffers with lifetimes, and how far from the best they can be.

Two buffers that live at one step may not share bytes, except where the step that writes the one
and reads the other for the last time allows it: a kernel that goes through both in order may let
its output overlap its input's place (``Overlap``).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

ALIGNMENT = 8
TRIALS = 400
"""Orders that are tried when the simple ones miss the lower bound."""


@dataclass(frozen=True)
class Overlap:
    """Where a new buffer may lie over an old one that dies as it is made.

    ``lead`` bytes before the old one's start, or anywhere before that; None: only exactly on it.
    """

    lead: int | None


@dataclass(frozen=True)
class Buffer:
    """``bytes`` of the arena, needed from step ``first`` to step ``last`` inclusive.

    ``over`` has the older buffers that this one may overlap, by name.
    """

    name: str
    bytes: int
    first: int
    last: int
    over: Mapping[str, Overlap] = field(default_factory=lambda: MappingProxyType({}))

    def lives_with(self, other: Buffer) -> bool:
        """Whether some step needs both."""
        return self.first <= other.last and other.first <= self.last


def aligned(value: int) -> int:
    """The next multiple of the arena's alignment."""
    return -(-value // ALIGNMENT) * ALIGNMENT


def live_bytes(buffers: Sequence[Buffer], step: int) -> int:
    """Bytes that are needed at ``step`` at least, where overlaps are used as far as they go."""
    live = {b.name: b for b in buffers if b.first <= step <= b.last}
    total = sum(aligned(b.bytes) for b in live.values())
    for new in live.values():
        saved = 0
        for name, overlap in new.over.items():
            if name in live:
                old = aligned(live[name].bytes)
                lead = aligned(overlap.lead or 0)
                saved = max(saved, old + aligned(new.bytes) - max(lead + old, aligned(new.bytes)))
        total -= saved
    return total


def lower_bound(buffers: Iterable[Buffer]) -> int:
    """Bytes of the largest set that is live at one step: no plan can be smaller."""
    buffers = list(buffers)
    return max((live_bytes(buffers, step) for step in {b.first for b in buffers}), default=0)


def peak_step(buffers: Sequence[Buffer]) -> int:
    """The step that sets the lower bound."""
    return max({b.first for b in buffers}, key=lambda step: live_bytes(buffers, step))


def _forbidden(buffer: Buffer, other: Buffer, at: int) -> list[tuple[int, int]]:
    """Open intervals in which ``buffer`` can't start while ``other`` lies at ``at``."""
    size, other_size = aligned(buffer.bytes), aligned(other.bytes)
    below, above = at - size, at + other_size
    if other.name in buffer.over:
        lead = buffer.over[other.name].lead
        if lead is None:
            return [(below, at), (at, above)]
        return [(at - min(aligned(lead), size), above)]
    if buffer.name in other.over:
        lead = other.over[buffer.name].lead
        if lead is None:
            return [(below, at), (at, above)]
        return [(below, at + min(aligned(lead), other_size))]
    return [(below, above)]


class _Placer:
    """Places buffers one after the other, each as low as it can lie."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.neighbours = {
            b.name: [o for o in buffers if o is not b and b.lives_with(o)] for b in buffers
        }

    def place(self, order: Iterable[Buffer]) -> dict[str, int]:
        offsets: dict[str, int] = {}
        for buffer in order:
            blocked: list[tuple[int, int]] = []
            for other in self.neighbours[buffer.name]:
                if other.name in offsets:
                    blocked += _forbidden(buffer, other, offsets[other.name])
            blocked.sort()
            # Intervals are open: where one ends and the next begins, a buffer may start.
            offset = 0
            for start, end in blocked:
                if start < offset < end:
                    offset = end
            offsets[buffer.name] = offset
        return offsets


def arena_bytes(buffers: Iterable[Buffer], offsets: Mapping[str, int]) -> int:
    """Size of the arena that ``offsets`` need."""
    return max((offsets[b.name] + aligned(b.bytes) for b in buffers), default=0)


def plan_offsets(buffers: Iterable[Buffer], trials: int = TRIALS) -> dict[str, int]:
    """Offsets by first fit: simple orders first, then random changes of the best while they help.

    Always the same for the same buffers. Stops as soon as the lower bound is met.
    """
    buffers = list(buffers)
    placer = _Placer(buffers)
    bound = lower_bound(buffers)
    best_order: list[Buffer] = []
    best: dict[str, int] = {}
    best_bytes = -1
    for order in (
        sorted(buffers, key=lambda b: (-b.bytes, b.first, b.name)),
        sorted(buffers, key=lambda b: (b.first - b.last, -b.bytes, b.name)),
        sorted(buffers, key=lambda b: (-b.bytes * (b.last - b.first + 1), b.name)),
    ):
        offsets = placer.place(order)
        size = arena_bytes(buffers, offsets)
        if best_bytes < 0 or size < best_bytes:
            best_order, best, best_bytes = order, offsets, size
    chance = random.Random(0)
    for _ in range(trials):
        if best_bytes <= bound:
            break
        # The buffers at the top are in the way: one of them goes earlier.
        order = list(best_order)
        top = [b for b in order if best[b.name] + aligned(b.bytes) == best_bytes]
        moved = chance.choice(top if chance.random() < 0.5 else order)
        order.remove(moved)
        order.insert(chance.randrange(len(order) + 1), moved)
        offsets = placer.place(order)
        size = arena_bytes(buffers, offsets)
        if size <= best_bytes:
            best_order, best, best_bytes = order, offsets, size
    return best
