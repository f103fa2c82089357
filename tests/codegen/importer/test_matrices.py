"""Matrices and reshapes of any dimensions, against onnxruntime."""

from __future__ import annotations

import onnx
import pytest

from codegen.errors import ModelError
from codegen.importer.model import import_proto
from codegen.operators.transpose import Transpose
from tests.codegen.importer.test_model import (
    Constants,
    assert_equals_onnxruntime,
    model,
    normal,
    with_head,
)
from tests.codegen.importer.test_normalization import assert_agrees
from tests.codegen.importer.test_selections import conv, ints, node


def rows(nodes: list[onnx.NodeProto], constants: Constants, features: int) -> onnx.ModelProto:
    """``nodes`` make 'y' of a convolution's output 'a' (batch, 4, 7, 6); then a classifier."""
    stem, weights = conv("x", "a", 3, 4)
    ends = [node("Relu", "y", "bent"), node("Flatten", "bent", "row"), node("Gemm", "row h", "o")]
    return model([stem, *nodes, *ends], {**weights, "h": normal(features, 5), **constants},
                 output="o")  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "shape", "features"),
    [
        ("a m", (6, 5), 140),
        ("a m", (1, 1, 6, 5), 140),
        ("a m", (6,), 28),
        ("m a", (5, 7), 120),
        ("m a", (1, 5, 7), 120),
    ],
)
def test_a_matrix_works_along_rows_or_columns(
    inputs: str, shape: tuple[int, ...], features: int
) -> None:
    assert_agrees(rows([node("MatMul", inputs, "y")], {"m": normal(*shape)}, features))


def test_a_graph_of_joints_multiplies_what_they_have_in_common() -> None:
    nodes = [
        node("MatMul", "x w", "features"),
        node("MatMul", "joined features", "a"),
        node("Relu", "a", "b"),
        node("ReduceMean", "b", "c", axes=[1], keepdims=0),
        node("Gemm", "c h", "logits"),
    ]
    constants = {"w": normal(4, 6), "joined": normal(9, 9), "h": normal(6, 5)}
    assert_agrees(model(nodes, constants, shape=("batch", 9, 4)))


@pytest.mark.parametrize(
    ("inputs", "shape", "reason"),
    [
        ("a m", (4, 6, 5), "one matrix for all .*split the tensor, and use a MatMul for each"),
        ("m a", (7,), "of which the batch is a dimension; write the activation first"),
    ],
)
def test_other_products_are_refused(inputs: str, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ModelError, match=rf"'y' \(MatMul\): .*{reason}"):
        import_proto(rows([node("MatMul", inputs, "y")], {"m": normal(*shape)}, 140))


def test_a_matrix_for_each_part_of_a_tensor_is_one_for_each_part_of_a_split() -> None:
    nodes = [
        node("Split", "a", "p q", axis=1),
        node("MatMul", "p m", "s"),
        node("MatMul", "q n", "t"),
        node("Concat", "s t", "y", axis=1),
    ]
    assert_agrees(rows(nodes, {"m": normal(6, 5), "n": normal(6, 5, seed=1)}, 140))


@pytest.mark.parametrize("shape", [(0, 7, 4, 6), (0, 3, 56), (0, 8, 21), (0, 12, 2, 7), (0, 168)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_a_reshape_may_end_dimensions_anywhere(
    shape: tuple[int, ...], order: tuple[int, ...]
) -> None:
    nodes = [
        node("Transpose", "a", "turned", perm=list(order)),
        node("Reshape", "turned shape", "y"),
    ]
    assert_agrees(rows(nodes, {"shape": ints(*shape)}, 168))


def test_a_reshape_that_ends_within_an_axis_is_a_copy() -> None:
    nodes = [node("Flatten", "a", "flat"), node("Reshape", "flat shape", "y")]
    graph = import_proto(rows(nodes, {"shape": ints(0, 3, 56)}, 168))
    assert sum(isinstance(op, Transpose) for op in graph.ops) == 1
    assert not any(
        isinstance(op, Transpose)
        for op in import_proto(rows(nodes, {"shape": ints(0, 28, 6)}, 168)).ops
    )


@pytest.mark.parametrize(
    ("first", "second", "order"),
    [
        ((12, 5), (4, 5, 3), (0, 3, 1, 2)),  # of 12 a part is taken before 5 ends within the rest
        ((2, 5, 6), (3, 4, 5), (0, 2, 3, 1)),
        ((10, 6), (2, 3, 10), (0, 3, 1, 2)),
        ((12, 5), (2, 30), (0, 2, 1)),
    ],
)
def test_a_reshape_of_a_reshape_may_end_dimensions_anywhere(
    first: tuple[int, ...], second: tuple[int, ...], order: tuple[int, ...]
) -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("Reshape", "a first", "b"),
        node("Reshape", "b second", "c"),
        node("Transpose", "c", "d", perm=list(order)),
        node("Flatten", "d", "e"),
        node("Relu", "e", "f"),
        node("Gemm", "f h", "logits"),
    ]
    shapes = {"first": ints(0, *first), "second": ints(0, *second)}
    constants = {"w": normal(20, 60), "h": normal(60, 5), **shapes}
    assert_agrees(model(nodes, constants, shape=("batch", 20)))


def test_entries_of_channels_and_rows_together_can_be_picked() -> None:
    stem, weights = conv("x", "a", 3, 4)
    nodes = [
        stem,
        node("SpaceToDepth", "a", "deep", blocksize=2),
        node("Gather", "deep which", "some", axis=1),
        node("Conv", "some v", "b"),
    ]
    constants = {**weights, "which": ints(15, 3, 3, 0, 8), "v": normal(6, 5, 2, 2)}
    proto = with_head(nodes, constants, "b", 6, shape=("batch", 3, 8, 6))
    assert_equals_onnxruntime(proto)


def test_a_grey_picture_is_picked_as_each_of_three_colours() -> None:
    nodes = [node("Gather", "x which", "three", axis=1), node("Conv", "three v", "b")]
    constants = {"which": ints(0, 0, -1), "v": normal(6, 3, 2, 2)}
    assert_equals_onnxruntime(with_head(nodes, constants, "b", 6, shape=("batch", 1, 8, 6)))


@pytest.mark.parametrize("operator", ["Mul", "Add", "Sub"])
def test_two_views_of_one_tensor_are_multiplied_dimension_by_dimension(operator: str) -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Transpose", "a", "b", perm=[0, 2, 1, 3]),
        node(operator, "b a", "c"),
        node("Flatten", "c", "d"),
        node("Gemm", "d h", "logits"),
    ]
    constants = {"w": normal(4, 4, 1, 1), "h": normal(4 * 4 * 7, 5)}
    assert_equals_onnxruntime(model(nodes, constants, shape=("batch", 4, 1, 7)))
