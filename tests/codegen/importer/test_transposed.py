"""Dimensions that a model brings into another order, or mixes, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from codegen.graph.floats import FloatTensorOutput
from codegen.importer.model import import_proto
from codegen.operators.execution import evaluate
from codegen.operators.transpose import Transpose
from tests.codegen.importer.test_model import Constants, model, normal
from tests.codegen.importer.test_normalization import assert_agrees
from tests.codegen.importer.test_pictures import run
from tests.codegen.importer.test_selections import ints, node

PICTURE, SIGNAL = ("batch", 3, 8, 6), ("batch", 3, 16)

CASES: dict[str, tuple[tuple[object, ...], list[onnx.NodeProto], Constants]] = {
    "features become a picture": (
        PICTURE,
        [
            node("Flatten", "x", "flat"),
            node("Gemm", "flat w", "features"),
            node("Relu", "features", "bent"),
            node("Reshape", "bent shape", "small"),
            node("ConvTranspose", "small v", "y", strides=[2, 2]),
        ],
        {"w": normal(144, 24), "shape": ints(-1, 4, 3, 2), "v": normal(4, 5, 2, 2)},
    ),
    "pictures of two sizes are flattened and joined": (
        PICTURE,
        [
            node("Conv", "x w", "a", strides=[2, 2]),
            node("Conv", "x v", "b"),
            node("Flatten", "a", "flat_a"),
            node("Flatten", "b", "flat_b"),
            node("Concat", "flat_a flat_b", "joined", axis=1),
            node("Gemm", "joined u", "z"),
            node("Relu", "z", "bent"),
            node("Reshape", "bent shape", "y"),
        ],
        {"w": normal(4, 3, 2, 2), "v": normal(2, 3, 3, 3), "u": normal(96, 5),
         "shape": ints(-1, 5, 1, 1)},
    ),
    "a matrix along time, and one along channels": (
        SIGNAL,
        [
            node("MatMul", "x along", "mixed"),
            node("Relu", "mixed", "bent"),
            node("Add", "bent x", "sum"),
            node("Transpose", "sum", "turned", perm=[0, 2, 1]),
            node("MatMul", "turned across", "z"),
            node("Transpose", "z", "y", perm=[0, 2, 1]),
        ],
        {"along": normal(16, 16) / 4, "across": normal(3, 5)},
    ),
    "a matrix along time, batch and channels in one dimension": (
        SIGNAL,
        [
            node("Conv", "x w", "a"),
            node("Reshape", "a rows", "pairs"),  # as Keras' Dense behind Permute
            node("MatMul", "pairs along", "z"),
            node("Reshape", "z shape", "y"),
        ],
        {"w": normal(5, 3, 1), "rows": ints(-1, 16), "along": normal(16, 5),
         "shape": ints(-1, 5, 5)},
    ),
    "a transposed picture is added": (
        ("batch", 3, 6, 6),
        [
            node("Conv", "x w", "a"),
            node("Transpose", "a", "turned", perm=[0, 1, 3, 2]),
            node("Add", "a turned", "y"),
        ],
        {"w": normal(5, 3, 3, 3)},
    ),
    "rows are rolled": (
        PICTURE,
        [
            node("Conv", "x w", "a"),
            node("Split", "a sizes", "first rest", axis=2),
            node("Concat", "rest first", "rolled", axis=2),
            node("Conv", "rolled v", "y"),
        ],
        {"w": normal(4, 3, 3, 3), "sizes": ints(2, 4), "v": normal(5, 4, 3, 1)},
    ),
    "columns of pixels are joined, of which one was rows of channels": (
        ("batch", 3, 8, 1),
        [
            node("Conv", "x w", "a"),
            node("Conv", "x v", "b"),
            node("Transpose", "b", "turned", perm=[0, 2, 1, 3]),
            node("Concat", "a turned", "both", axis=1),
            node("Conv", "both u", "y"),
        ],
        {"w": normal(4, 3, 1, 1), "v": normal(8, 3, 1, 1), "u": normal(5, 12, 3, 1)},
    ),
    "a part of the channels is reduced": (
        PICTURE,
        [
            node("Conv", "x w", "a"),
            node("Reshape", "a parts", "split"),
            node("ReduceMean", "split", "small", axes=[2, 4], keepdims=0),
            node("Conv", "small v", "row"),
            node("Unsqueeze", "row last", "y"),
        ],
        {
            "w": normal(6, 3, 3, 3),
            "parts": ints(-1, 3, 2, 6, 4),
            "v": normal(5, 3, 2),
            "last": ints(3),
        },
    ),
    "channels and rows change places before a layer": (
        PICTURE,
        [
            node("Conv", "x w", "a"),
            node("Transpose", "a", "turned", perm=[0, 2, 1, 3]),
            node("Conv", "turned v", "y"),
        ],
        {"w": normal(4, 3, 3, 3), "v": normal(5, 6, 3, 3)},
    ),
    "blocks become channels": (
        PICTURE,
        [
            node("Conv", "x w", "a", pads=[1, 1, 1, 1]),
            node("SpaceToDepth", "a", "deep", blocksize=2),
            node("Conv", "deep v", "y"),
        ],
        {"w": normal(4, 3, 3, 3), "v": normal(5, 16, 3, 3) / 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_mixed_dimensions_are_put_in_order_by_an_operation_of_their_own(case: str) -> None:
    shape, nodes, constants = CASES[case]
    rank = 3 if shape == SIGNAL else 4
    ends = [
        node("ReduceMean", "y", "mean", axes=list(range(2, rank)), keepdims=0),
        node("Gemm", "mean head", "logits"),
    ]
    graph = assert_agrees(model([*nodes, *ends], {**constants, "head": normal(5, 5)}, shape=shape))
    assert any(isinstance(op, Transpose) for op in graph.ops)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_that_become_pixels_are_a_picture_of_the_inputs_shape(mode: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2], kernel_shape=[2, 2]),
        helper.make_node("DepthToSpace", ["a"], ["y"], blocksize=2, mode=mode),
    ]
    proto = picture(nodes, {"w": normal(12, 3, 2, 2)}, *PICTURE)
    graph = import_proto(proto)
    assert isinstance(graph.ending, FloatTensorOutput)
    assert graph.ending.loss == "mse"
    x = normal(9, 3, 8, 6)
    expected = run(picture(nodes, {"w": normal(12, 3, 2, 2)}, *PICTURE), x)[0]
    np.testing.assert_allclose(
        evaluate(graph, x)[graph.ending.output], expected.reshape(9, -1), atol=1e-4
    )


def test_a_state_that_is_repeated_over_time_is_read_by_another_cell() -> None:
    steps, features, units = 12, 3, 6
    nodes = [
        node("Transpose", "x", "first", perm=[1, 0, 2]),
        helper.make_node("GRU", ["first", "w", "r"], ["", "state"], "encoder", hidden_size=units),
        node("Transpose", "state", "last", perm=[1, 0, 2]),
        node("Expand", "last times", "every"),
        node("Transpose", "every", "repeated", perm=[1, 0, 2]),
        helper.make_node("GRU", ["repeated", "v", "q"], ["states"], "decoder", hidden_size=units),
        node("Squeeze", "states direction", "flat"),
        node("Transpose", "flat", "turned", perm=[1, 0, 2]),
        node("MatMul", "turned u", "y"),
    ]
    constants = {
        "w": normal(1, 3 * units, features), "r": normal(1, 3 * units, units) / 2,
        "v": normal(1, 3 * units, units), "q": normal(1, 3 * units, units, seed=1) / 2,
        "times": ints(1, steps, 1), "direction": ints(1), "u": normal(units, features),
    }  # fmt: skip
    proto = picture(nodes, constants, 1, steps, features)
    graph = import_proto(proto)
    assert graph.ending.loss == "mse"
    x = normal(9, steps, features)
    expected = np.stack([run(proto, one[np.newaxis])[0] for one in x])
    found = evaluate(graph, graph.arrange(x))[graph.ending.output]
    wanted = graph.arrange(expected.reshape(x.shape))
    np.testing.assert_allclose(found, wanted.reshape(9, -1), atol=1e-4)


def picture(
    nodes: list[onnx.NodeProto], constants: Constants, *shape: int | str
) -> onnx.ModelProto:
    """From 'x' to 'y' of the same shape."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    values = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "test", ends[:1], ends[1:], values)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    return proto
