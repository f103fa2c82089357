"""The nearest plan that fits: it fits, it is part of what was asked, and little is given up."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from codegen.graph.ir import Graph
from codegen.plan_search.nearest import describe, nearest_fitting
from codegen.program.lowering import lower
from codegen.program.plans import Plan, PlanSpec, resolve
from tests.codegen.random_graphs import full_plan, random_graph


def worth(plan: Plan, graph: Graph) -> int:
    """Weights trained, those of a layer for its biases."""
    sizes = {op.name: op.weight.size for op in graph.convolutions}
    channels = {op.name: op.weight.shape[-1] for op in graph.convolutions}
    of_weights = sum(
        sizes[item.layer] // channels[item.layer] * item.count for item in plan.weights
    )
    return of_weights + sum(sizes[name] for name in plan.biases)


@pytest.mark.parametrize("seed", [1, 9])
def test_it_fits_and_is_part_of_the_plan(seed: int) -> None:
    graph, _ = random_graph(seed)
    whole = lower(graph, full_plan(graph))
    head = lower(graph, resolve(PlanSpec(name="head"), graph)).pool_bytes
    before = None
    for part in (0, 2, 8):
        room = head + (whole.pool_bytes - head) * part // 16
        plan = nearest_fitting(whole, room)
        assert plan is not None
        found = lower(graph, plan)
        assert found.pool_bytes <= room
        assert set(plan.biases) <= set(whole.plan.biases)
        asked = {item.layer: set(item.channels) for item in whole.plan.weights}
        for item in plan.weights:
            assert set(item.channels) <= asked[item.layer]
        # More room is worth more.
        assert before is None or worth(plan, graph) >= before
        before = worth(plan, graph)
    assert nearest_fitting(whole, whole.pool_bytes) == whole.plan
    assert nearest_fitting(whole, 0) is None


def test_a_head_that_is_too_much_by_itself_is_left_out() -> None:
    graph, _ = random_graph(4)
    few = graph.head
    weight, bias = np.resize(few.weight, (2_000, few.weight.shape[1])), np.resize(few.bias, 2_000)
    many = dataclasses.replace(few, weight=weight, bias=bias)
    graph = dataclasses.replace(graph, ops=(*graph.ops[:-1], many))
    room = lower(graph, resolve(PlanSpec(name="head"), graph)).pool_bytes - 64
    plan = nearest_fitting(lower(graph, full_plan(graph)), room)
    assert plan is not None
    assert not plan.head
    assert lower(graph, plan).pool_bytes <= room
    assert plan.biases == full_plan(graph).biases


def test_the_room_is_used() -> None:
    graph, _ = random_graph(4)
    whole = lower(graph, full_plan(graph))
    room = whole.pool_bytes - 8
    plan = nearest_fitting(whole, room)
    assert plan is not None
    assert worth(plan, graph) > 0.75 * worth(whole.plan, graph)


def test_a_plan_without_a_head_never_becomes_empty() -> None:
    graph, _ = random_graph(4)
    last = graph.convolutions[-1].name
    spec = PlanSpec(name="one", biases=[last], head=False)
    assert nearest_fitting(lower(graph, resolve(spec, graph)), 0) is None


def test_a_plan_is_described_by_its_parts() -> None:
    graph, _ = random_graph(4)
    last = graph.convolutions[-1].name
    spec = {"name": "p", "biases": {"last": 2}, "weights": [{"layer": last, "count": 3}]}
    plan = resolve(PlanSpec.model_validate(spec), graph)
    assert describe(plan) == f"2 biases, 3 channels of {last}, the head"
