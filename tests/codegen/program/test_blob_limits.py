"""The blob holds the graph's integers, every one as it is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from codegen.errors import ModelError
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head
from codegen.program import blob
from tests.codegen.random_graphs import random_graph


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
    values = blob.unpack(graph, blob.pack(graph))
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
    limit = next(t.limit for t in blob.layout(graph) if t.name == f"{op.name}.bias")
    bias = op.bias.copy()  # type: ignore[union-attr]
    bias[1] = sign * limit
    blob.pack(with_integers(graph, kind, bias=bias)[0])
    if sign * limit != 2**31 - 1:
        bias[1] += sign
        broken, name = with_integers(graph, kind, bias=bias)
        with pytest.raises(ModelError, match=rf"layer {name}: a bias of channel 1 is {bias[1]} "):
            blob.pack(broken)


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
            blob.pack(broken)
