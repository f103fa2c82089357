"""Channels by norm are those of the published plans, and selections become plans."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from codegen.plan_search.candidates import (
    Selection,
    channel_counts,
    order_by,
    order_by_norm,
    plan_spec,
)
from codegen.program.plans import resolve
from tests.codegen import mcunet
from tests.codegen.mcunet import needs_mcunet
from tests.codegen.random_graphs import random_graph


@needs_mcunet
def test_channels_by_norm_are_those_of_the_published_plans() -> None:
    order = order_by_norm(mcunet.graph())
    compared = 0
    for plan in json.loads(mcunet.PLANS.read_text())["plans"].values():
        for entry in plan.get("weight_layers", []):
            if isinstance(entry["kept_index"], list) and entry["kept"]:
                assert sorted(order[entry["layer"]][: entry["kept"]]) == entry["kept_index"]
                compared += 1
    assert compared > 5


def test_channels_of_equal_norm_keep_their_order() -> None:
    assert order_by(np.array([3, 5, 3, 5, 1])) == (1, 3, 0, 2, 4)


def test_counts_are_the_ratios_each_once_and_at_least_one() -> None:
    graph, _ = random_graph(2)
    op = graph.convolutions[0]
    for channels, counts in ((48, (6, 12, 24, 48)), (3, (1, 3)), (1, (1,))):
        stretched = dataclasses.replace(op, weight=np.zeros((*op.weight.shape[:-1], channels)))
        assert channel_counts(stretched) == counts


def test_a_selection_becomes_the_plan_that_it_stands_for() -> None:
    graph, _ = random_graph(2)
    order = order_by_norm(graph)
    some, whole = graph.convolutions[-1], graph.convolutions[2]
    every = whole.weight.shape[-1]
    selection = Selection(2, ((whole.name, every), (some.name, 2)))
    spec = plan_spec(selection, order, name="mine", choice="contribution")
    plan = resolve(spec, graph)
    assert plan.biases == tuple(op.name for op in graph.convolutions[-2:])
    assert plan.head
    assert {w.layer: w.channels for w in plan.weights} == {
        whole.name: tuple(range(every)),
        some.name: tuple(sorted(order[some.name][:2])),
    }
    # Only where channels were left out has there been a choice.
    assert [weight.chosen_by for weight in spec.weights] == [None, "fisher"]
