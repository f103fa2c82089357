"""Regular plans from contributions, and plans of the user's own."""

from __future__ import annotations

import itertools

import pytest

from codegen.errors import PlanError
from codegen.graph.ir import DepthwiseConv, Graph
from codegen.plan_search.candidates import Selection, channel_counts
from codegen.plan_search.contributions import Contributions
from codegen.plan_search.finalists import given_plans
from codegen.plan_search.handmade import kinds_of, late_of_a_kind, pruned
from codegen.program.plans import LastLayers, PlanSpec, WeightSpec
from tests.codegen.random_graphs import random_graph


def graph_with_depthwise() -> Graph:
    graphs = (random_graph(seed)[0] for seed in range(100))
    return next(
        graph
        for graph in graphs
        if [kind.endswith("first") for kind in kinds_of(graph).values()].count(True) > 1
    )


def contributions(graph: Graph, gains: dict[str, float]) -> Contributions:
    weights = {
        op.name: {count: gains.get(op.name, -0.1) for count in channel_counts(op)}
        for op in graph.convolutions
    }
    return Contributions("finetune", "nats", (0.0,) * (len(weights) + 1), weights)


def test_layers_before_depthwise_ones_are_a_kind() -> None:
    graph = graph_with_depthwise()
    kinds = kinds_of(graph)
    layers = graph.convolutions
    for op, then in itertools.pairwise(layers):
        is_first = isinstance(then, DepthwiseConv) and not isinstance(op, DepthwiseConv)
        assert kinds[op.name].endswith("-first") == is_first


def test_the_last_layers_of_the_best_kind_are_trained_as_far_as_they_fit() -> None:
    graph = graph_with_depthwise()
    kinds = kinds_of(graph)
    leading = [name for name, kind in kinds.items() if kind.endswith("first")]
    kind = kinds[leading[-1]]
    alike = [name for name in kinds if kinds[name] == kind]
    known = contributions(graph, dict.fromkeys(alike, 0.1))
    found = late_of_a_kind(graph, known, lambda selection: True)
    largest = found[f"last-{len(alike)}-{kind}"]
    sizes = {op.name: op.weight.shape[-1] for op in graph.convolutions}
    assert largest.channels == tuple((name, sizes[name]) for name in alike)
    assert largest.depth == len(sizes) - [*sizes].index(alike[0])

    one = late_of_a_kind(graph, known, lambda selection: len(selection.channels) < 2)
    (only,) = one.values()
    assert only.channels == ((alike[-1], sizes[alike[-1]]),)
    assert late_of_a_kind(graph, known, lambda selection: False) == {}


def test_pruning_leaves_out_what_promises_least_until_it_fits() -> None:
    graph, _ = random_graph(4)
    names = [op.name for op in graph.convolutions]
    known = contributions(graph, {name: 0.1 * place for place, name in enumerate(names)})
    order = {name: place for place, name in enumerate(names)}
    everything = pruned(known, order, lambda selection: True)
    assert [layer for layer, _ in everything.channels] == names[1:]
    two = pruned(known, order, lambda selection: len(selection.channels) <= 2)
    assert [layer for layer, _ in two.channels] == names[-2:]
    assert pruned(known, order, lambda selection: not selection.channels) == Selection()


def test_plans_of_the_users_own_get_the_searchs_state_unless_they_name_one() -> None:
    graph, _ = random_graph(4)
    biases = LastLayers(last=1)
    specs = [
        PlanSpec(name="mine", biases=biases),
        PlanSpec(name="mine", biases=biases, state="q8.8"),
        PlanSpec(name="best", biases=biases, state="auto"),
    ]
    given = list(given_plans(specs, graph, "int8-stochastic", ["head-only"]))
    assert [(plan.name, plan.state) for _, plan in given] == [
        ("mine", "int8-stochastic"),
        ("mine-2", "q8.8"),
        ("best-2", "int8-stochastic"),
    ]
    wrong = PlanSpec(name="other", weights=[WeightSpec(layer="elsewhere")])
    with pytest.raises(PlanError, match="'elsewhere'"):
        list(given_plans([wrong], graph, "q8.8", []))
