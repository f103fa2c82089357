"""Means and maxima of the channels of each pixel, as spatial attention has them (CBAM)."""

from __future__ import annotations

import onnx
import pytest

from codegen.operators.channel_max import ChannelMax
from tests.codegen.importer.test_model import Constants, normal, with_head
from tests.codegen.importer.test_normalization import assert_agrees
from tests.codegen.importer.test_selections import conv, ints, node


def attention(axis: int) -> onnx.ModelProto:
    """A picture times what a convolution makes of its channels' mean and maximum."""
    stem, weights = conv("x", "stem", 3, 6)
    order = [0, 2, 3, 1] if axis != 1 else [0, 1, 2, 3]
    back = [0, 3, 1, 2] if axis != 1 else [0, 1, 2, 3]
    nodes = [
        stem,
        node("Relu", "stem", "bent"),
        node("Transpose", "bent", "turned", perm=order),
        node("ReduceMean", "turned", "mean", axes=[axis]),
        node("ReduceMax", "turned", "most", axes=[axis]),
        node("Concat", "mean most", "both", axis=axis),
        node("Transpose", "both", "seen", perm=back),
        node("Conv", "seen w", "look", pads=[1, 1, 1, 1]),
        node("Sigmoid", "look", "gate"),
        node("Mul", "bent gate", "end"),
    ]
    return with_head(nodes, {**weights, "w": normal(1, 2, 3, 3)}, "end", 6)


@pytest.mark.parametrize("axis", [1, 3, -1])
def test_spatial_attention_agrees_with_onnxruntime(axis: int) -> None:
    graph = assert_agrees(attention(axis))
    assert sum(isinstance(op, ChannelMax) for op in graph.ops) == 1


def test_channels_are_reduced_without_their_dimension() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [
        stem,
        node("ReduceMax", "stem", "most", axes=[1], keepdims=0),
        node("Unsqueeze", "most one", "back"),
        node("Conv", "back w", "end"),
    ]
    constants: Constants = {**weights, "one": normal(1).astype("int64") * 0 + 1}
    assert_agrees(with_head(nodes, {**constants, "w": normal(6, 1, 3, 3)}, "end", 6))


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceMax", "ReduceMin"])
def test_channels_and_rows_are_reduced_together(operator: str) -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [stem, node(operator, "stem", "r", axes=[1, 2]), node("Conv", "r w", "end")]
    assert_agrees(with_head(nodes, {**weights, "w": normal(6, 1, 1, 1)}, "end", 6))


def test_sums_are_means_times_how_many_there_are() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [
        stem,
        node("ReduceSum", "stem channels", "pixels"),
        node("Conv", "pixels w", "wide"),
        node("ReduceSum", "wide rows", "columns", keepdims=0),
        node("ReduceSum", "columns last", "all", keepdims=0),
        node("Reshape", "all shape", "end"),
    ]
    weights = {name: value / 8 for name, value in weights.items()} | {"w": normal(6, 1, 3, 3)}
    constants = {"channels": ints(1), "rows": ints(2), "last": ints(-1), "shape": ints(-1, 6, 1, 1)}
    assert_agrees(with_head(nodes, {**weights, **constants}, "end", 6))
