"""Files as tools leave them that cut models or write them: what onnxruntime takes goes in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from codegen.errors import ModelError
from codegen.importer.model import import_proto
from codegen.operators.execution import evaluate
from tests.codegen.onnxruntime_oracle import run


def model(opset: int = 13, bend: str = "Relu", domain: str = "") -> onnx.ModelProto:
    """A convolution, the operator ``bend`` and a classifier."""
    draw = np.random.default_rng(3)
    constants = {"w": draw.normal(size=(4, 3, 1, 1)), "m": draw.normal(size=(4, 5))}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
            helper.make_node(bend, ["y"], ["a"], "bend", domain=domain),
            helper.make_node("GlobalAveragePool", ["a"], ["pooled"], "pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
            helper.make_node("MatMul", ["flat", "m"], ["logits"], "head"),
            helper.make_node("Softmax", ["logits"], ["p"], "end"),
        ],
        "loose",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 6, 5])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = 8
    return proto


def without_shape(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.ClearField("shape")


def without_type(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].ClearField("type")


def without_name(proto: onnx.ModelProto) -> None:
    proto.graph.name = ""


def of_open_batch(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1


def in_reverse(proto: onnx.ModelProto) -> None:
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize(
    "loosen", [without_shape, without_type, without_name, of_open_batch, in_reverse]
)
def test_what_nothing_needs_may_be_missing(
    loosen: Callable[[onnx.ModelProto], None], opset: int
) -> None:
    proto = model(opset)
    loosen(proto)
    graph = import_proto(proto)
    x = np.random.default_rng(1).normal(size=(4, 3, 6, 5)).astype(np.float32)
    (expected,) = run(proto, x)
    powers = np.exp(evaluate(graph, x)[graph.head.output])
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), expected, atol=1e-5)


def test_an_input_without_a_shape_is_asked_for_one() -> None:
    proto = model()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match=r"input 'x' has shape \[\]; needed are 2 or more dimen"):
        import_proto(proto)


def test_an_operator_of_a_domain_that_the_file_does_not_import_is_refused_by_its_node() -> None:
    with pytest.raises(ModelError, match=r"node 'bend' \(finn\.MultiThreshold\): .*not supported"):
        import_proto(model(bend="MultiThreshold", domain="finn"))


def test_an_operator_of_a_later_opset_is_refused_with_one_that_works() -> None:
    with pytest.raises(ModelError, match=r"Gelu.* export it again with opset 20 or later"):
        import_proto(model(bend="Gelu"))
    import_proto(model(20, bend="Gelu"))


def test_a_file_of_other_domains_only_is_refused_by_its_node() -> None:
    proto = model(bend="TreeEnsembleRegressor", domain="ai.onnx.ml")
    del proto.graph.node[2:], proto.graph.node[0], proto.opset_import[:]
    tree = proto.graph.node[0]
    tree.input[0], tree.output[0] = "x", "p"
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    with pytest.raises(ModelError, match=r"\(ai\.onnx\.ml\.TreeEnsembleRegressor\): .*not supp"):
        import_proto(proto)


def test_what_cannot_be_converted_for_its_shapes_is_refused() -> None:
    proto = model(11)
    given = [
        helper.make_tensor_value_info("n", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("c", TensorProto.FLOAT, [4, 5]),
        helper.make_tensor_value_info("i", TensorProto.FLOAT, [4, 5]),
    ]
    result = [helper.make_tensor_value_info("o", TensorProto.FLOAT, [4, 5])]
    body = helper.make_graph([helper.make_node("Add", ["c", "i"], ["o"])], "body", given, result)
    loop = helper.make_node("Loop", ["", "", "y", "y"], ["a"], "bend", body=body)
    proto.graph.node[1].CopyFrom(loop)
    with pytest.raises(ModelError, match=r"opset 11, which can't be converted \(.*Loop"):
        import_proto(proto)
