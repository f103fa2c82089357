"""The search finds what brute force finds, within all limits, and says when it was cut short."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from codegen.plan_search.candidates import Selection, channel_counts, order_by_norm
from codegen.plan_search.contributions import Contributions
from codegen.plan_search.costs import CostModel, Costs, DeltaBits, Increment, Limits
from codegen.plan_search.search import Increments, search, value_of
from tests.codegen.random_graphs import random_graph

Cost = Callable[[Selection], Costs]
COUNTS = (2, 4, 8, 16)


def all_selections(contributions: Contributions) -> Iterator[Selection]:
    layers = list(contributions.weights)
    choices = [[0, *contributions.weights[layer]] for layer in layers]
    for depth in range(len(contributions.biases)):
        for counts in itertools.product(*choices):
            chosen = zip(layers, counts, strict=True)
            yield Selection(depth, tuple((layer, count) for layer, count in chosen if count))


def brute_force(contributions: Contributions, cost: Cost, limits: Limits) -> float | None:
    return max(
        (
            value_of(selection, contributions)
            for selection in all_selections(contributions)
            if limits.allow(cost(selection))
        ),
        default=None,
    )


def random_contributions(rng: np.random.Generator, layers: int, depths: int) -> Contributions:
    """Some of them negative, as measurements are."""
    return Contributions(
        "finetune",
        "points",
        (0.0, *np.cumsum(rng.normal(0.4, 0.5, depths - 1)).tolist()),
        {
            f"layer {i}": dict(
                zip(COUNTS, np.cumsum(rng.normal(0.5, 0.6, 4)).tolist(), strict=True)
            )
            for i in range(layers)
        },
    )


def peaked_cost(rng: np.random.Generator, layers: int) -> tuple[Cost, Increments]:
    """State adds up; the arena is the largest of several sums, as live sets at several steps are.

    Everything is in multiples of 8 bytes, as in a pool.
    """
    state = {f"layer {i}": 8 * int(rng.integers(1, 20)) for i in range(layers)}
    live = {f"layer {i}": 8 * rng.integers(0, 30, 3) for i in range(layers)}
    work = {layer: int(rng.integers(10, 200)) for layer in state}
    floor = 8 * rng.integers(50, 150, 3)

    def cost(selection: Selection) -> Costs:
        steps = floor + 8 * selection.depth * np.array([1, 3, 0])
        held = 8 * selection.depth
        values = 10 * selection.depth
        instructions = 5_000 + 300 * selection.depth
        for layer, count in selection.channels:
            steps = steps + live[layer]
            held += state[layer] * count
            values += state[layer] * count // 2
            instructions += work[layer] * count + 7
        return Costs(
            sram_bytes=1_000 + int(steps.max()) + held,
            delta_bytes=100 + values,
            instructions=instructions,
        )

    increments = {
        (layer, count): Increment(size * count, size * count // 2, work[layer] * count)
        for layer, size in state.items()
        for count in COUNTS
    }
    return cost, increments


@pytest.mark.parametrize("seed", range(25))
def test_the_search_finds_what_brute_force_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    contributions = random_contributions(rng, layers=4, depths=4)
    cost, increments = peaked_cost(rng, layers=4)
    for _ in range(4):
        limits = Limits(
            sram_bytes=int(rng.integers(1_000, 6_000)),
            delta_bytes=int(rng.integers(100, 2_500)) if rng.random() < 0.5 else None,
            instructions=int(rng.integers(5_000, 12_000)) if rng.random() < 0.5 else None,
        )
        expected = brute_force(contributions, cost, limits)
        found = search(contributions, cost, increments, limits, 10_000)
        if expected is None:
            assert found is None
            continue
        assert found is not None
        assert found.optimal
        assert found.value == pytest.approx(expected)
        assert value_of(found.selection, contributions) == pytest.approx(found.value)
        assert limits.allow(found.costs)
        assert cost(found.selection) == found.costs


@pytest.mark.parametrize("seed", [1, 5])
def test_the_search_finds_what_brute_force_finds_with_costs_of_compiled_programs(
    seed: int,
) -> None:
    graph, _ = random_graph(seed)
    model = CostModel(graph, order_by_norm(graph), 5_000, DeltaBits(5.0, 6.0, 4.0))
    rng = np.random.default_rng(seed)
    layers = graph.convolutions[2:5]
    contributions = Contributions(
        "finetune",
        "points",
        (0.0, 0.4, 0.7),
        {
            op.name: {count: float(rng.uniform(0.1, 1.0)) * count for count in channel_counts(op)}
            for op in layers
        },
    )
    increments = model.increments([op.name for op in layers])
    costs = [model.of(selection) for selection in all_selections(contributions)]
    sram = sorted({cost.sram_bytes for cost in costs})
    for limit in sram[:: max(1, len(sram) // 6)]:
        found = search(contributions, model.of, increments, Limits(limit))
        assert found is not None
        assert found.value == pytest.approx(brute_force(contributions, model.of, Limits(limit)))


def test_nothing_is_found_where_the_head_alone_is_too_much() -> None:
    rng = np.random.default_rng(3)
    contributions = random_contributions(rng, 2, 2)
    cost, increments = peaked_cost(rng, 2)
    needed = cost(Selection()).sram_bytes
    assert search(contributions, cost, increments, Limits(needed - 1)) is None
    assert search(contributions, cost, increments, Limits(needed)) is not None
    assert search(contributions, cost, increments, Limits(10**9, delta_bytes=99)) is None


def test_what_only_does_harm_is_not_trained() -> None:
    harmful = Contributions("finetune", "points", (0.0, -0.1), {"layer 0": {2: -0.2, 16: -0.1}})
    found = search(harmful, *peaked_cost(np.random.default_rng(0), 1), Limits(10**9))
    assert found is not None
    assert found.selection == Selection()
    assert found.value == 0.0


def test_a_search_that_is_cut_short_says_so_and_keeps_to_the_limits() -> None:
    rng = np.random.default_rng(8)
    contributions = random_contributions(rng, 8, 8)
    cost, increments = peaked_cost(rng, 8)
    limits = Limits(5_000)
    whole, short = (search(contributions, cost, increments, limits, most) for most in (20_000, 15))
    assert whole is not None
    assert short is not None
    assert whole.optimal
    assert not short.optimal
    assert short.value <= whole.value
    assert limits.allow(short.costs)
