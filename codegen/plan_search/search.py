"""The plan of highest summed contribution within limits.

The paper (arXiv 2206.15472) searches by evolution. Costs from a compiled program are cheap enough
here for branch and bound, which ends with a proof: a greedy plan improved by exchanges is the
first incumbent, then every bias depth and every combination is either tried or ruled out.

What rules out is a bound and two properties of costs: state, delta and update of a trained tensor
add up, and training more never costs less. The planner of the arena is a heuristic, so the second
can fail by a few bytes; a plan that is missed for it is one that hardly fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from codegen.plan_search.candidates import Selection
from codegen.plan_search.contributions import Contributions
from codegen.plan_search.costs import Costs, Increment, Limits

MOST_COSTED = 400
"""Selections that a search asks the costs of before it settles for the best one so far."""

SLACK_BYTES = 8
"""By which sums of parts can differ from the whole, which is aligned."""

Cost = Callable[[Selection], Costs]
Increments = Mapping[tuple[str, int], Increment]
"""By layer and number of channels."""


@dataclass(frozen=True)
class Found:
    """Result of a search. ``optimal``: every other plan was tried or ruled out."""

    selection: Selection
    value: float
    costs: Costs
    optimal: bool


@dataclass(frozen=True)
class _Option:
    """So many channels of a layer: what it is worth, and what it adds to any plan at least."""

    channels: int
    value: float
    added: Increment


@dataclass(frozen=True)
class _Item:
    layer: str
    position: int
    options: tuple[_Option, ...]


def value_of(selection: Selection, contributions: Contributions) -> float:
    """Summed contribution of ``selection``."""
    weights = (contributions.weights[layer][count] for layer, count in selection.channels)
    return contributions.biases[selection.depth] + sum(weights)


def search(
    contributions: Contributions,
    cost: Cost,
    increments: Increments,
    limits: Limits,
    most_costed: int = MOST_COSTED,
) -> Found | None:
    """The best selection within ``limits``; None where not even the head alone is.

    ``increments`` has what every (layer, channels) of ``contributions`` adds to any plan. Of plans
    of equal value the one that was found first is kept.
    """
    return _Search(contributions, cost, increments, limits, most_costed).run()


class _Search:
    def __init__(
        self,
        contributions: Contributions,
        cost: Cost,
        increments: Increments,
        limits: Limits,
        most_costed: int,
    ) -> None:
        self.contributions = contributions
        self.ask = cost
        self.increments = increments
        self.limits = limits
        self.left = most_costed
        self.known: dict[Selection, Costs] = {}
        self.too_much: list[Selection] = []
        self.items = self._items()
        self.best: Found | None = None

    def _items(self) -> list[_Item]:
        """Layers worth training, those that are worth most for their state first."""
        items = []
        for position, (layer, gains) in enumerate(self.contributions.weights.items()):
            options: list[_Option] = []
            for count, value in sorted(gains.items()):
                # An option that is worth no more than a smaller one is never needed.
                if value > max((option.value for option in options), default=0.0):
                    options.append(_Option(count, value, self.increments[layer, count]))
            if options:
                items.append(_Item(layer, position, tuple(reversed(options))))
        items.sort(
            key=lambda item: -max(o.value / max(1, o.added.state_bytes) for o in item.options)
        )
        return items

    def cost(self, selection: Selection) -> Costs:
        if selection not in self.known:
            self.left -= 1
            self.known[selection] = self.ask(selection)
        return self.known[selection]

    def run(self) -> Found | None:
        if not self._consider(Selection()):
            return None
        self._climb()
        # Depths whose upper bound is highest come first; the others then fall at once.
        depths = sorted(
            range(len(self.contributions.biases)),
            key=lambda depth: -self.contributions.biases[depth],
        )
        for depth in depths:
            self._branch(Selection(depth), 0)
        assert self.best is not None
        return Found(self.best.selection, self.best.value, self.best.costs, optimal=self.left > 0)

    def _consider(self, selection: Selection) -> bool:
        """Whether ``selection`` is within limits; if so, it may become the incumbent."""
        if any(_contains(selection, other) for other in self.too_much):
            return False  # training more costs no less
        costs = self.cost(selection)
        if not self.limits.allow(costs):
            self.too_much = [o for o in self.too_much if not _contains(o, selection)]
            self.too_much.append(selection)
            return False
        value = value_of(selection, self.contributions)
        if self.best is None or value > self.best.value:
            self.best = Found(selection, value, costs, optimal=False)
        return True

    # The first incumbent: best single changes until there are none.

    def _climb(self) -> None:
        while True:
            assert self.best is not None
            before = self.best
            ranked = sorted(
                self._neighbours(before.selection),
                key=lambda other: -value_of(other, self.contributions),
            )
            for other in ranked:
                if value_of(other, self.contributions) <= before.value or self.left <= 0:
                    break
                if self._may_fit(before, other) and self._consider(other):
                    break
            if self.best is before:
                return

    def _may_fit(self, before: Found, other: Selection) -> bool:
        """A guess by what adds up, which spares costing what can't fit."""
        old, new = set(before.selection.channels), set(other.channels)
        added = sum(self.increments[pair].state_bytes for pair in new - old)
        freed = sum(self.increments[pair].state_bytes for pair in old - new)
        return before.costs.sram_bytes + added - freed <= self.limits.sram_bytes + SLACK_BYTES

    def _neighbours(self, selection: Selection) -> Iterator[Selection]:
        """Another depth; one layer with more, fewer or no channels; one layer for another."""
        chosen = dict(selection.channels)
        for depth in range(len(self.contributions.biases)):
            yield Selection(depth, selection.channels)
        for item in self.items:
            for count in [option.channels for option in item.options]:
                changed = {**chosen, item.layer: count}
                yield self._selection(selection.depth, changed)
                for other in chosen:
                    if other != item.layer:
                        fewer = {k: v for k, v in changed.items() if k != other}
                        yield self._selection(selection.depth, fewer)

    def _selection(self, depth: int, channels: dict[str, int]) -> Selection:
        order = {item.layer: item.position for item in self.items}
        return Selection(depth, tuple(sorted(channels.items(), key=lambda kv: order[kv[0]])))

    # Branch and bound.

    def _branch(self, selection: Selection, index: int) -> None:
        """Tries all completions of ``selection`` by ``items[index:]``, or rules them out."""
        if self.left <= 0 or not self._consider(selection):
            return
        for place in range(index, len(self.items)):
            # The next item that is trained is one of those from `place` on.
            if not self._promises(selection, None, place):
                return
            for option in self.items[place].options:
                if self._promises(selection, option, place + 1):
                    chosen = {**dict(selection.channels), self.items[place].layer: option.channels}
                    self._branch(self._selection(selection.depth, chosen), place + 1)

    def _promises(self, selection: Selection, option: _Option | None, index: int) -> bool:
        """Whether ``selection`` with ``option`` and ``items[index:]`` may beat the incumbent.

        ``selection`` alone has been costed; the rest is judged by what adds up for certain.
        """
        assert self.best is not None
        if self.left <= 0:
            return False
        costs, limits = self.cost(selection), self.limits
        value = value_of(selection, self.contributions)
        rooms = {"state_bytes": limits.sram_bytes - costs.sram_bytes}
        if limits.delta_bytes is not None:
            rooms["delta_bytes"] = limits.delta_bytes - costs.delta_bytes
        if limits.instructions is not None:
            rooms["instructions"] = limits.instructions - costs.instructions
        if option is not None:
            value += option.value
            rooms = {key: room - getattr(option.added, key) for key, room in rooms.items()}
        rest = self.items[index:]
        slack = SLACK_BYTES + len(self.items)  # every part may have been rounded up
        return all(
            room + slack >= 0 and value + _bound(rest, room + slack, key) > self.best.value
            for key, room in rooms.items()
        )


def _contains(selection: Selection, other: Selection) -> bool:
    """Whether ``selection`` trains all that ``other`` does."""
    chosen = dict(selection.channels)
    return selection.depth >= other.depth and all(
        chosen.get(layer, 0) >= count for layer, count in other.channels
    )


def _bound(items: Sequence[_Item], room: int, quantity: str) -> float:
    """Most that ``items`` can add where they share ``room`` of a quantity: fractions allowed.

    The linear relaxation of the multiple-choice knapsack problem; see Kellerer, Pferschy,
    Pisinger, Knapsack Problems (2004), section 11.2.
    """
    pieces: list[tuple[float, float, int]] = []
    for item in items:
        previous = (0, 0.0)
        for weight, value in _hull([(getattr(o.added, quantity), o.value) for o in item.options]):
            width, gain = weight - previous[0], value - previous[1]
            pieces.append((gain / width if width else float("inf"), gain, width))
            previous = (weight, value)
    total = 0.0
    for _, gain, width in sorted(pieces, reverse=True):
        if width > room:
            return total + gain * room / width
        total += gain
        room -= width
    return total


def _hull(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Upper convex hull, from (0, 0) on, of points (weight, value)."""
    hull: list[tuple[int, float]] = [(0, 0.0)]
    for weight, value in sorted(points, key=lambda p: (p[0], -p[1])):
        if value <= hull[-1][1]:
            continue
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (weight - hull[-1][0]) <= (
            value - hull[-1][1]
        ) * (hull[-1][0] - hull[-2][0]):
            hull.pop()
        if hull[-1][0] == weight and len(hull) > 1:
            hull.pop()
        hull.append((weight, value))
    return hull[1:]
