"""Arena offsets for buffers with lifetimes, and how far from the best they can be.

Two buffers that live at one step may not share bytes, except where the step that writes the one
and reads the other for the last time allows it: a kernel that goes through both in order may let
its output overlap its input's place (``Overlap``).
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from types import MappingProxyType

ALIGNMENT = 8
TRIALS = 800
"""Orders that are tried when the simple ones miss the lower bound by more than is near enough."""
NEAR_ENOUGH = 512
"""The lower bound's part that an arena may be above it: what is left costs the most trials."""


@dataclass(frozen=True)
class Overlap:
    """Where a new buffer may lie over an old one that dies as it is made.

    ``lead`` bytes before the old one's start, or anywhere before that; ``exact``: only there.
    """

    lead: int
    exact: bool = False


@dataclass(frozen=True)
class Buffer:
    """``bytes`` of the arena, needed from step ``first`` to step ``last`` inclusive.

    ``over`` has the older buffers that this one may overlap, by name: their last step is ``first``.
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


def live_bytes(buffers: Iterable[Buffer]) -> list[int]:
    """Bytes that each step needs at least, where overlaps are used as far as they go."""
    buffers = list(buffers)
    size = {b.name: aligned(b.bytes) for b in buffers}
    change = [0] * (max((b.last for b in buffers), default=-1) + 2)
    saved = [0] * len(change)
    for new in buffers:
        change[new.first] += size[new.name]
        change[new.last + 1] -= size[new.name]
        shared = (
            min(size[old], size[new.name] - aligned(overlap.lead))
            for old, overlap in new.over.items()
        )
        saved[new.first] += max(0, *shared, 0)
    return [total - less for total, less in zip(accumulate(change), saved, strict=True)][:-1]


def lower_bound(buffers: Iterable[Buffer]) -> int:
    """Bytes of the largest set that is live at one step: no plan can be smaller."""
    return max(live_bytes(buffers), default=0)


def _forbidden(buffer: Buffer, other: Buffer) -> tuple[tuple[int, int], ...]:
    """Open intervals, relative to the start of ``other``, in which ``buffer`` can't start."""
    below, above = -aligned(buffer.bytes), aligned(other.bytes)
    if other.name in buffer.over:
        overlap = buffer.over[other.name]
        at = max(-aligned(overlap.lead), below)
        return ((below, at), (at, above)) if overlap.exact else ((at, above),)
    if buffer.name in other.over:
        overlap = other.over[buffer.name]
        at = min(aligned(overlap.lead), above)
        return ((below, at), (at, above)) if overlap.exact else ((below, at),)
    return ((below, above),)


class _Placer:
    """Places buffers, known by their index, one after the other, each as low as it can lie."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.sizes = [aligned(b.bytes) for b in buffers]
        # For each buffer (other, start, end): intervals relative to the other's offset.
        self.forbidden: list[list[tuple[int, int, int]]] = [[] for _ in buffers]
        for i, new in enumerate(buffers):
            for j, old in enumerate(buffers[:i]):
                if new.lives_with(old):
                    self.forbidden[i] += [(j, *interval) for interval in _forbidden(new, old)]
                    self.forbidden[j] += [(i, *interval) for interval in _forbidden(old, new)]
        self.neighbours = [{other for other, _, _ in intervals} for intervals in self.forbidden]

    def place(
        self, order: Iterable[int], most: int, old: Sequence[int], moved: Iterable[int]
    ) -> list[int] | None:
        """The offset of each buffer; None where the arena would be larger than ``most``.

        ``old`` are the offsets of an order that differs in the places of ``moved`` only. A buffer
        keeps its offset there as long as those of its neighbours are the same.
        """
        offsets = [-1] * len(self.sizes)
        due = set(moved).union(*(self.neighbours[index] for index in moved))
        for index in order:
            if index not in due:
                offsets[index] = old[index]
                continue
            blocked = [
                (at + start, at + end)
                for other, start, end in self.forbidden[index]
                if (at := offsets[other]) >= 0
            ]
            blocked.sort()
            # Intervals are open: where one ends and the next begins, a buffer may start.
            offset = 0
            for start, end in blocked:
                if start >= offset:
                    break
                if end > offset:
                    offset = end
            if offset + self.sizes[index] > most:
                return None
            offsets[index] = offset
            if offset != old[index]:
                due |= self.neighbours[index]
        return offsets

    def ends(self, offsets: Iterable[int]) -> list[int]:
        """One past the last byte of each buffer."""
        return list(map(operator.add, offsets, self.sizes))


def near_enough(bound: int) -> int:
    """The arena that isn't made any smaller for a lower bound of ``bound`` bytes."""
    return bound + bound // NEAR_ENOUGH


def arena_bytes(buffers: Iterable[Buffer], offsets: Mapping[str, int]) -> int:
    """Size of the arena that ``offsets`` need."""
    return max((offsets[b.name] + aligned(b.bytes) for b in buffers), default=0)


def widest_gap(buffers: Iterable[Buffer], offsets: Mapping[str, int], size: int) -> tuple[int, int]:
    """Start and bytes of the widest gap that ``buffers`` leave in an arena of ``size`` bytes."""
    end, gaps = 0, [(0, 0)]
    taken = [(offsets[b.name], offsets[b.name] + aligned(b.bytes)) for b in buffers]
    for start, behind in sorted([*taken, (size, size)]):
        gaps.append((end, start - end))
        end = max(end, behind)
    return max(gaps, key=lambda gap: gap[1])


def _order(buffers: Sequence[Buffer], key: Callable[[Buffer], tuple[int | str, ...]]) -> list[int]:
    """Indices of ``buffers``, those of the least ``key`` first."""
    return sorted(range(len(buffers)), key=lambda index: key(buffers[index]))


def _first_fit(placer: _Placer, orders: Sequence[list[int]], trials: int, wanted: int) -> list[int]:
    """Offsets by the best of ``orders`` after ``trials`` changes; fewer once ``wanted`` is met."""
    every = range(len(placer.sizes))
    best = [-1 for _ in every]
    order: list[int] = []
    size = sum(placer.sizes) + 1
    for trial in orders:
        offsets = placer.place(trial, size - 1, best, every)
        if offsets is not None:
            order, best, size = trial, offsets, max(placer.ends(offsets))
    chance = random.Random(0)
    for _ in range(trials):
        if size <= wanted:
            break
        # A buffer at the top is in the way, or one that lies below it and keeps it there.
        ends = placer.ends(best)
        top = chance.choice([index for index in order if ends[index] == size])
        below = [other for other, _, _ in placer.forbidden[top] if best[other] < best[top]]
        kind = chance.random()
        moved = chance.choice(order if kind < 0.2 else below if below and kind < 0.6 else [top])
        trial = [index for index in order if index != moved]
        # To the front, or anywhere.
        trial.insert(0 if chance.random() < 0.3 else chance.randrange(len(order)), moved)
        offsets = placer.place(trial, size, best, [moved])
        if offsets is not None:
            order, best, size = trial, offsets, max(placer.ends(offsets))
    return best


def plan_offsets(buffers: Iterable[Buffer], enough: int | None = None) -> dict[str, int]:
    """Offsets by first fit: simple orders first, then random changes of the best while they help.

    Always the same for the same buffers. Stops near the lower bound, or at an arena of ``enough``
    bytes; where the lower bound is above that, no order can be, and only the simple ones
    are tried.
    """
    buffers = list(buffers)
    if not buffers:
        return {}
    placer = _Placer(buffers)
    bound = lower_bound(buffers)
    wanted = max(near_enough(bound), enough or 0)
    trials = TRIALS if enough is None or bound <= enough else 0
    best = _first_fit(
        placer,
        [
            _order(buffers, lambda b: (-b.bytes, b.first, b.name)),
            _order(buffers, lambda b: (b.first - b.last, -b.bytes, b.name)),
            _order(buffers, lambda b: (-b.bytes * (b.last - b.first + 1), b.name)),
        ],
        trials,
        wanted,
    )
    if max(placer.ends(best)) > wanted:
        # Outputs that begin before their inputs push these up, which shows late when one doesn't
        # plan from the end.
        from_end = [_order(buffers, lambda b: (-b.last, -b.bytes, b.name))]
        best = min(
            (best, _first_fit(placer, from_end, trials, wanted)),
            key=lambda offsets: max(placer.ends(offsets)),
        )
    return {buffer.name: offset for buffer, offset in zip(buffers, best, strict=True)}
