"""Arena offsets for buffers with lifetimes, and how far from the best they can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

ALIGNMENT = 8


@dataclass(frozen=True)
class Buffer:
    """``bytes`` of the arena, needed from step ``first`` to step ``last`` inclusive."""

    name: str
    bytes: int
    first: int
    last: int

    def lives_with(self, other: Buffer) -> bool:
        """Whether some step needs both."""
        return self.first <= other.last and other.first <= self.last


def _aligned(value: int) -> int:
    return -(-value // ALIGNMENT) * ALIGNMENT


def lower_bound(buffers: Iterable[Buffer]) -> int:
    """Bytes of the largest set that is live at one step: no plan can be smaller."""
    buffers = list(buffers)
    return max(
        (
            sum(_aligned(b.bytes) for b in buffers if b.first <= step <= b.last)
            for step in {buffer.first for buffer in buffers}
        ),
        default=0,
    )


def _place(order: list[Buffer]) -> dict[str, int]:
    placed: list[tuple[int, Buffer]] = []
    offsets: dict[str, int] = {}
    for buffer in order:
        taken = sorted(
            (offset, offset + _aligned(other.bytes))
            for offset, other in placed
            if buffer.lives_with(other)
        )
        best, best_gap, cursor = None, None, 0
        for start, end in taken:
            gap = start - cursor
            if gap >= _aligned(buffer.bytes) and (best_gap is None or gap < best_gap):
                best, best_gap = cursor, gap
            cursor = max(cursor, end)
        offset = cursor if best is None else best
        offsets[buffer.name] = offset
        placed.append((offset, buffer))
    return offsets


def arena_bytes(buffers: Iterable[Buffer], offsets: Mapping[str, int]) -> int:
    """Size of the arena that ``offsets`` need."""
    return max((offsets[b.name] + _aligned(b.bytes) for b in buffers), default=0)


def plan_offsets(buffers: Iterable[Buffer]) -> dict[str, int]:
    """Offsets by best fit, largest first or longest-lived first, whichever needs less."""
    buffers = list(buffers)
    orders = (
        sorted(buffers, key=lambda b: (-b.bytes, b.first, b.name)),
        sorted(buffers, key=lambda b: (b.first - b.last, -b.bytes, b.name)),
        sorted(buffers, key=lambda b: (-b.bytes * (b.last - b.first + 1), b.name)),
    )
    return min((_place(order) for order in orders), key=lambda o: arena_bytes(buffers, o))
