"""Constants along any axes, against onnxruntime: where they lie decides what they become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from codegen.errors import ModelError
from codegen.graph.floats import FloatConv, FloatGraph
from codegen.importer.model import import_proto
from codegen.operators.execution import evaluate
from codegen.operators.lookup import Lookup
from codegen.operators.scaling import FloatScaling
from tests.codegen.importer.test_model import (
    Constants,
    assert_equals_onnxruntime,
    model,
    normal,
    with_head,
)
from tests.codegen.importer.test_selections import conv, ints, node
from tests.codegen.int8_network import int8_outputs
from tests.codegen.onnxruntime_oracle import agreement, outputs, quantize_file


def assert_evaluates(graph: FloatGraph, proto: onnx.ModelProto, x: np.ndarray) -> None:
    found = evaluate(graph, graph.arrange(x))[graph.head.output]
    np.testing.assert_allclose(found, outputs(proto, x), atol=1e-4)


def scalings(graph: FloatGraph) -> list[FloatScaling]:
    return [op for op in graph.ops if isinstance(op, FloatScaling)]


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "PRelu"])
@pytest.mark.parametrize(
    "shape", [(6, 1, 1), (1, 7, 1), (6,), (1, 1, 7, 6), (6, 7, 6), (1, 6, 7, 1)]
)
def test_constants_along_any_axes_evaluate_as_onnxruntime_does(
    operator: str, shape: tuple[int, ...]
) -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [stem, node("Tanh", "stem", "t"), node(operator, "t by", "end")]
    by = np.abs(normal(*shape)) + 0.2
    proto = with_head(nodes, {**weights, "by": by}, "end", 6)
    assert_equals_onnxruntime(proto)
    graph = import_proto(proto)
    per_channel = shape == (6, 1, 1) and operator != "PRelu"
    assert bool(scalings(graph)) != per_channel


def test_a_constant_less_a_tensor_evaluates_as_onnxruntime_does() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [stem, node("Sub", "by stem", "end")]
    assert_equals_onnxruntime(with_head(nodes, {**weights, "by": normal(7, 1)}, "end", 6))


@pytest.mark.parametrize("shape", [(), (1, 1, 1, 1), (6, 1, 1), (7, 1), (6, 7, 6)])
def test_a_constant_divided_by_a_tensor_evaluates_as_onnxruntime_does(
    shape: tuple[int, ...],
) -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [stem, node("Softplus", "stem", "above"), node("Add", "above one", "t"),
             node("Div", "by t", "end")]  # fmt: skip
    constants = {**weights, "by": normal(*shape), "one": np.ones(1, np.float32)}
    assert_equals_onnxruntime(with_head(nodes, constants, "end", 6))


@pytest.mark.parametrize("operator", ["Add", "Max", "Mul"])
def test_a_constant_of_more_dimensions_adds_them_to_the_tensor(operator: str) -> None:
    nodes = [
        node("Gemm", "x w", "a"),
        node(operator, "a by", "b"),
        node("ReduceMax", "b", "c", axes=[2], keepdims=0),
        node("Gemm", "c hw", "logits"),
    ]
    constants = {"w": normal(7, 7), "by": np.full((1, 1, 1), 0.25, np.float32), "hw": normal(1, 4)}
    proto = model(nodes, constants, shape=(1, 7))
    assert_evaluates(import_proto(proto), proto, normal(5, 7))


@pytest.mark.parametrize("operator", ["Sum", "Mean", "Max", "Min"])
def test_several_constants_among_tensors_evaluate_as_in_onnxruntime(operator: str) -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [stem, node("Tanh", "stem", "t"), node(operator, "low by t stem", "end")]
    constants = {**weights, "low": np.float32(-0.2), "by": normal(6, 1, 1)}
    assert_equals_onnxruntime(with_head(nodes, constants, "end", 6))


def over_rows(tail: list[onnx.NodeProto], constants: Constants) -> onnx.ModelProto:
    """BatchNormalization over the rows of the input, between two Transposes."""
    nodes = [
        node("Transpose", "x", "turned", perm=[0, 2, 1, 3]),
        node("BatchNormalization", "turned g s m v", "normal"),
        node("Transpose", "normal", "back", perm=[0, 2, 1, 3]),
        *tail,
    ]
    statistics = {name: normal(7, seed=i) for i, name in enumerate("gsm")}
    statistics["v"] = np.abs(normal(7)) + 0.3
    return with_head(nodes, {**statistics, **constants}, "stem", 6)


def test_batch_normalization_over_another_axis_evaluates_as_onnxruntime_does() -> None:
    stem, weights = conv("back", "stem", 3, 6)
    proto = over_rows([stem], weights)
    assert_equals_onnxruntime(proto)
    (op,) = scalings(import_proto(proto))
    assert op.gain.shape == (1, 7, 1)


def test_batch_normalization_in_training_is_refused_until_it_is_exported_for_inference() -> None:
    stem, weights = conv("back", "stem", 3, 6)
    proto = over_rows([stem], weights)
    (normalization,) = (n for n in proto.graph.node if n.op_type == "BatchNormalization")
    normalization.output.extend(["mean_of_batch", "variance_of_batch"])
    normalization.attribute.append(onnx.helper.make_attribute("training_mode", 1))
    with pytest.raises(
        ModelError, match=r"'normal' \(BatchNormalization\).*batch; .*model\.eval\(\)"
    ):
        import_proto(proto)
    normalization.attribute[0].i = 0
    del normalization.output[1:]
    assert_equals_onnxruntime(proto)


def channels_last(constant: tuple[int, ...], *names: str) -> onnx.ModelProto:
    """A signal (length, channels) that is normalized before it is turned."""
    nodes = [
        node("Sub", "x mean", "centred"),
        node("Div", "centred spread", "normal"),
        node("Transpose", "normal", "turned", perm=[0, 2, 1]),
        node("Conv", "turned w", "y"),
        node("ReduceMean", "y", "mean_of", axes=[2], keepdims=0),
        node("Gemm", "mean_of hw", "logits"),
    ]
    constants = {
        "mean": normal(*constant), "spread": np.abs(normal(*constant, seed=1)) + 0.3,
        "w": normal(5, 3, 3), "hw": normal(5, 4),
    }  # fmt: skip
    return model(nodes, constants, shape=("batch", 20, 3))


@pytest.mark.parametrize(
    ("constant", "kind"), [((3,), FloatConv), ((1, 1, 3), FloatConv), ((20, 1), FloatScaling)]
)
def test_constants_of_channels_last_belong_to_what_the_layers_take_for_channels(
    constant: tuple[int, ...], kind: type
) -> None:
    proto = channels_last(constant)
    graph = import_proto(proto)
    assert type(graph.ops[0]) is kind
    x = normal(5, 20, 3)
    found = graph.arrange(x)
    assert found.shape == (5, 3, 1, 20)
    assert_evaluates(graph, proto, x)


def test_a_reshape_behind_constants_takes_them_along() -> None:
    nodes = [
        node("Mul", "x by", "scaled"),
        node("Reshape", "scaled shape", "picture"),
        node("Conv", "picture w", "stem"),
    ]
    constants = {"by": normal(42), "shape": ints(-1, 3, 7, 6), "w": normal(6, 3, 1, 1)}
    proto = with_head(nodes, constants, "stem", 6, shape=("batch", 3, 42))
    graph = import_proto(proto)
    assert scalings(graph)[0].gain.shape == (1, 7, 6)
    x = normal(5, 3, 42)
    assert_evaluates(graph, proto, x)


def test_slopes_as_keras_spells_them_evaluate_as_onnxruntime_does() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    nodes = [
        stem,
        node("Relu", "stem", "above"),
        node("Neg", "stem", "negative"),
        node("Relu", "negative", "below"),
        node("Mul", "below slopes", "sloped"),
        node("Add", "above sloped", "end"),
    ]
    slopes = -np.abs(normal(6, 1, 1))
    assert_equals_onnxruntime(with_head(nodes, {**weights, "slopes": slopes}, "end", 6))


def test_slopes_of_one_value_are_a_table() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    slope = np.full((6, 1, 1), 0.25, np.float32)
    proto = with_head([stem, node("PRelu", "stem a", "end")], {**weights, "a": slope}, "end", 6)
    assert any(isinstance(op, Lookup) for op in import_proto(proto).ops)
    assert_equals_onnxruntime(proto)


def test_scalings_agree_with_onnxruntime_in_int8(tmp_path: Path) -> None:
    tail = [
        node("Conv", "back w0", "first"),
        node("PRelu", "first slopes", "bent"),
        node("Mul", "bent rows", "scaled"),
        node("Conv", "scaled w1", "stem"),
    ]
    constants = {
        "w0": normal(6, 3, 1, 1), "slopes": np.abs(normal(6, 1, 1)) * 0.4,
        "rows": np.abs(normal(7, 1)) + 0.3, "w1": normal(6, 6, 1, 1),
    }  # fmt: skip
    proto = over_rows(tail, constants)
    x = normal(96, 3, 7, 6)
    assert agreement(int8_outputs(import_proto(proto), x), outputs(proto, x)) >= 0.95
    onnx.save(proto, tmp_path / "float.onnx")
    quantize_file(tmp_path / "float.onnx", tmp_path / "qdq.onnx", x)
    coded = onnx.load(tmp_path / "qdq.onnx")
    assert agreement(int8_outputs(import_proto(coded), x), outputs(coded, x)) >= 0.95


def test_a_constant_larger_than_the_tensor_is_refused_and_the_remedy_works() -> None:
    stem, weights = conv("x", "stem", 3, 6)
    mean = node("GlobalAveragePool", "stem", "mean")
    constants = {**weights, "by": normal(6, 7, 6), "shape": ints(1, 6, 7, 6)}
    refused = with_head([stem, mean, node("Mul", "mean by", "end")], constants, "end", 6)
    with pytest.raises(ModelError, match=r"'end' \(Mul\).*\[1, 6, 1, 1\].*\[6, 7, 6\].*Expand"):
        import_proto(refused)
    nodes = [stem, mean, node("Expand", "mean shape", "large"), node("Mul", "large by", "end")]
    assert_equals_onnxruntime(with_head(nodes, constants, "end", 6))
