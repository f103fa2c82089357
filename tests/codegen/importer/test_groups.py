"""Grouped convolutions against onnxruntime, and what becomes of them on a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from codegen.graph.floats import FloatConv
from codegen.graph.ir import Conv, DepthwiseConv, Graph
from codegen.importer.model import import_proto
from codegen.operators.concat import Concat
from codegen.operators.execution import evaluate
from codegen.operators.requantize import Requantize
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate
from tests.codegen import onnxruntime_oracle
from tests.codegen.importer.test_dilation import (
    ending,
    same_as_onnxruntime,
    trained_gradients_are_exact,
)
from tests.codegen.importer.test_model import Constants, normal


@pytest.mark.parametrize(
    ("operator", "channels", "outputs", "groups"),
    [
        ("Conv", 6, 4, 2),
        ("Conv", 6, 3, 3),
        ("Conv", 4, 8, 4),
        ("Conv", 2, 6, 2),
        ("ConvTranspose", 6, 4, 2),
        ("ConvTranspose", 4, 8, 4),
        ("ConvTranspose", 6, 3, 3),
    ],
)
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_a_grouped_layer_keeps_its_weights_and_computes_what_onnxruntime_does(
    operator: str, channels: int, outputs: int, groups: int, rank: int, dilation: int
) -> None:
    kernel, size = [3, 2][:rank], [7, 6][:rank]
    shape = (outputs, channels // groups) if operator == "Conv" else (channels, outputs // groups)
    weight = normal(*shape, *kernel)
    node = helper.make_node(
        operator, ["x", "w", "b"], ["y"], "g", group=groups, dilations=[dilation] * rank,
        strides=[2] * rank, pads=[1] * 2 * rank,
    )  # fmt: skip
    extents = [(k - 1) * dilation + 1 for k in kernel]
    if operator == "Conv":
        made = [(n + 2 - e) // 2 + 1 for n, e in zip(size, extents, strict=True)]
    else:
        made = [(n - 1) * 2 + e - 2 for n, e in zip(size, extents, strict=True)]
    constants = {"w": weight, "b": normal(outputs, seed=1)}
    proto = ending([node], constants, (channels, *size), "y", outputs * int(np.prod(made)))
    graph = same_as_onnxruntime(proto)
    layers = [op for op in graph.ops if isinstance(op, FloatConv)]
    assert sum(op.weight.size for op in layers) == weight.size
    assert sum(op.bias.size for op in layers) == outputs


def unit() -> onnx.ModelProto:
    """Like ShuffleNet's: grouped 1x1, shuffle, depthwise with two outputs each, grouped 3x3."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "squeeze", group=3),
        helper.make_node("Relu", ["a"], ["b"], "bend"),
        helper.make_node("Reshape", ["b", "s1"], ["c"], "apart"),
        helper.make_node("Transpose", ["c"], ["d"], "turn", perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["d", "s2"], ["e"], "shuffled"),
        helper.make_node("Conv", ["e", "w2"], ["f"], "each", group=9, pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["f", "g", "h", "m", "v"], ["k"], "norm"),
        helper.make_node("Conv", ["k", "w3", "b3"], ["l"], "wide", group=3, pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["l", "x"], ["y"], "join"),
    ]
    constants: Constants = {
        "w1": normal(9, 4, 1, 1) / 2, "b1": normal(9), "w2": normal(18, 1, 3, 3) / 3,
        "g": 1 + normal(18) / 4, "h": normal(18, seed=1), "m": normal(18, seed=2) / 2,
        "v": 1 + normal(18, seed=3) ** 2,
        "w3": normal(12, 6, 3, 3) / 6, "b3": normal(12, seed=4),
        "s1": np.array([1, 3, 3, 6, 5]), "s2": np.array([1, 9, 6, 5]),
    }  # fmt: skip
    return ending(nodes, constants, (12, 6, 5), "y", 12 * 30)


def made(proto: onnx.ModelProto) -> tuple[Graph, np.ndarray, np.ndarray]:
    """The quantized graph, codes of samples, and onnxruntime's outputs for them."""
    float_graph = same_as_onnxruntime(proto)
    samples = normal(40, 12, 6, 5, seed=6)
    graph = quantize(float_graph, samples)
    expected = evaluate(float_graph, samples)[float_graph.head.output]
    return graph, quantize_input(graph, samples.transpose(0, 2, 3, 1)), expected


def test_a_shuffle_unit_trains_on_devices_as_it_does_in_real_numbers() -> None:
    graph, codes, exact = made(unit())
    assert {type(op) for op in graph.convolutions} == {Conv, DepthwiseConv}
    scores = simulate(graph, codes)[graph.head.name]
    assert (scores.argmax(axis=1) == exact.argmax(axis=1)).mean() >= 0.95
    trained_gradients_are_exact(graph, codes)


def test_the_parts_of_a_layer_have_its_coding() -> None:
    graph, _, _ = made(unit())
    assert not [op for op in graph.ops if isinstance(op, Requantize)]
    for op in graph.ops:
        if isinstance(op, Concat):
            codings = {
                (graph.tensors[name].scale, graph.tensors[name].zero_point)
                for name in (*op.inputs, op.output)
            }
            assert len(codings) == 1


def test_a_quantized_shuffle_unit_gives_the_classes_of_onnxruntime(tmp_path: Path) -> None:
    samples = normal(40, 12, 6, 5, seed=6)
    onnx.save(unit(), tmp_path / "float.onnx")
    onnxruntime_oracle.quantize_file(tmp_path / "float.onnx", tmp_path / "int8.onnx", samples)
    quantized = onnx.load(tmp_path / "int8.onnx")
    imported = import_proto(quantized, loss="cross-entropy")
    layers = {op.name: op for op in imported.ops if isinstance(op, FloatConv)}
    assert all(op.stored is not None for name, op in layers.items() if name != "norm")
    graph = quantize(imported, None)
    codes = quantize_input(graph, samples.transpose(0, 2, 3, 1))
    scores = simulate(graph, codes)[graph.head.name]
    expected = onnxruntime_oracle.outputs(quantized, samples)
    assert (scores.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.95
