"""What a version of the weights holds: the tensors that plans train, every integer as it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from codegen.errors import ModelError
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head
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


def with_integers(graph: Graph, kind: type, **changed: np.ndarray) -> tuple[Graph, str]:
    """The graph with other integers in its first layer of a kind, and that layer's name."""
    name = next(op.name for op in graph.ops if isinstance(op, kind))
    ops = tuple(
        dataclasses.replace(op, **changed) if op.name == name else op  # type: ignore[arg-type]
        for op in graph.ops
    )
    return dataclasses.replace(graph, ops=ops), name


def test_unpacking_gives_the_graphs_integers() -> None:
    graph, _ = random_graph(3)
    blob = all_published(graph).published
    values = blob.unpack(blob.pack())
    for op in (*graph.convolutions, graph.head):
        assert np.array_equal(values[f"{op.name}.weight"], op.weight)
        assert np.array_equal(values[f"{op.name}.bias"], op.bias)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", [Conv, DepthwiseConv, Head])
def test_a_bias_beyond_its_limit_is_an_error_with_the_layers_and_the_channels_name(
    kind: type, sign: int
) -> None:
    graph, _ = random_graph(2)
    op = next(op for op in graph.ops if isinstance(op, kind))
    limit = next(t.limit for t in parameters(graph) if t.name == f"{op.name}.bias")
    bias = op.bias.copy()  # type: ignore[union-attr]
    bias[1] = sign * limit
    parameters(with_integers(graph, kind, bias=bias)[0])
    if sign * limit != 2**31 - 1:
        bias[1] += sign
        broken, name = with_integers(graph, kind, bias=bias)
        with pytest.raises(ModelError, match=rf"layer {name}: a bias of channel 1 is {bias[1]} "):
            parameters(broken)


def test_a_weight_beyond_its_limit_is_an_error_with_the_layers_and_the_channels_name() -> None:
    graph, _ = random_graph(2)
    places = {Conv: (2, 0, 0, 0), DepthwiseConv: (0, 0, 2), Head: (1, 0)}
    for kind, place in places.items():
        op = next(op for op in graph.ops if isinstance(op, kind))
        weight = op.weight.copy()  # type: ignore[union-attr]
        weight[place] = np.iinfo(weight.dtype).min
        broken, name = with_integers(graph, kind, weight=weight)
        channel = place[-1] if kind is DepthwiseConv else place[0]
        with pytest.raises(ModelError, match=rf"layer {name}: a weight of channel {channel} is -"):
            parameters(broken)
