"""What a version of the weights holds: the tensors that plans train, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.program.blob import all_published, parameters, published_by
from codegen.program.lowering import lower
from codegen.program.plans import Plan, WeightUpdate, trained_tensors
from tests.codegen.random_graphs import full_plan, random_graph, random_plan


@pytest.mark.parametrize("seed", range(6))
def test_each_tensor_is_published_or_frozen_by_what_the_plans_train(seed: int) -> None:
    graph, _ = random_graph(seed)
    plans = [random_plan(graph, seed), random_plan(graph, seed + 100)]
    weights = published_by(graph, plans)
    trained = {segment.tensor for plan in plans for segment in lower(graph, plan).segments}
    published = [tensor.name for tensor in weights.published.tensors]
    frozen = [tensor.name for tensor in weights.frozen.tensors]
    assert set(published) == trained
    order = [tensor.name for tensor in parameters(graph)]
    assert sorted(published + frozen, key=order.index) == order
    assert published == sorted(published, key=order.index)
    everything = published_by(graph, [*plans, full_plan(graph)])
    assert [tensor.name for tensor in everything.published.tensors] == order
    assert everything.frozen.size == 0
    assert weights.published.size + weights.frozen.size == everything.published.size


def test_one_trained_channel_publishes_the_whole_tensor() -> None:
    graph, _ = random_graph(1)
    layer = graph.convolutions[-1]
    plan = Plan("one", (), (WeightUpdate(layer.name, (0,)),), False, "q8.8")
    (tensor,) = published_by(graph, [plan]).published.tensors
    assert tensor.name == f"{layer.name}.weight"
    assert tensor.values.shape == layer.weight.shape


@pytest.mark.parametrize("seed", range(6))
def test_a_plan_trains_tensors_in_the_order_of_its_delta(seed: int) -> None:
    graph, _ = random_graph(seed)
    plan = random_plan(graph, seed)
    found = [segment.tensor for segment in lower(graph, plan).segments]
    assert trained_tensors(graph, plan) == found


@pytest.mark.parametrize("seed", range(4))
def test_what_is_packed_is_unpacked(seed: int) -> None:
    graph, _ = random_graph(seed)
    blob = all_published(graph).published
    data = blob.pack()
    assert len(data) == blob.size
    assert all(offset % 4 == 0 for offset in blob.offsets.values())
    values = blob.unpack(data)
    for tensor in blob.tensors:
        assert np.array_equal(values[tensor.name], tensor.values)
