"""Codes that stand elsewhere in the file than onnxruntime's quantizer puts them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from codegen.errors import ModelError
from codegen.graph.ir import Graph, inputs_of
from codegen.importer.model import import_proto
from codegen.operators.requantize import Requantize
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate
from tests.codegen.onnxruntime_oracle import outputs

CODES = {  # name → scale, zero point
    "input": (0.03, -3),
    "signed": (0.05, -3),
    "wide": (0.08, -3),
    "positive": (0.05, -128),
    "centred": (0.03, 0),
}


def codes(source: str, output: str, code: str, domain: str = "") -> list[NodeProto]:
    """QuantizeLinear and DequantizeLinear of ``source``."""
    scale = [f"{code} scale", f"{code} zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *scale], [f"{output} q"], domain=domain),
        helper.make_node("DequantizeLinear", [f"{output} q", *scale], [output], domain=domain),
    ]


def network(nodes: list[NodeProto], source: str, code: str) -> onnx.ModelProto:
    """A coded convolution of x, then ``nodes``, then one that reads ``source``, and a classifier.

    ``code`` is that of ``source``: the second convolution's bias is stored in steps of its scale.
    """
    random = np.random.default_rng(3)
    constants: dict[str, NDArray] = {}
    layers = []
    for name, shape, read in (("first", (6, 3, 3, 3), "input"), ("second", (5, 6, 3, 3), code)):
        scale = random.uniform(0.001, 0.004, shape[0]).astype(np.float32)
        bias = random.integers(-5000, 5000, shape[0]).astype(np.int32)
        constants |= {
            f"{name} codes": random.integers(-127, 128, shape).astype(np.int8),
            f"{name} scale": scale,
            f"{name} bias codes": bias,
            f"{name} bias scale": (np.float32(CODES[read][0]) * scale).astype(np.float32),
        }
        for part in (name, f"{name} bias"):
            inputs = [f"{part} codes", f"{part} scale"]
            layers.append(helper.make_node("DequantizeLinear", inputs, [part], axis=0))
    for name, (step, zero) in CODES.items():
        constants |= {f"{name} scale": np.float32(step), f"{name} zero": np.int8(zero)}
    constants |= {"m": random.normal(size=(5, 4)).astype(np.float32)}
    graph = helper.make_graph(
        [
            *layers,
            *nodes,
            helper.make_node("Conv", [source, "second", "second bias"], ["b"], "second"),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "m"], ["logits"], "head"),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 10, 10])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    return model


def assert_gives_onnxruntimes_outputs(model: onnx.ModelProto) -> Graph:
    float_graph = import_proto(model)
    x = np.random.default_rng(5).normal(size=(24, 3, 10, 10)).astype(np.float32)
    graph = quantize(float_graph, x)
    expected = outputs(model, x)
    got = simulate(graph, quantize_input(graph, x.transpose(0, 2, 3, 1)))[graph.head.name]
    assert np.abs(got - expected).max() < 0.04 * np.ptp(expected)
    return graph


CONV = helper.make_node("Conv", ["xd", "first", "first bias"], ["a"], "first")
FIRST = [*codes("x", "xd", "input"), CONV]
RELU = helper.make_node("Relu", ["a"], ["r"], "bend")


def resize(source: str) -> list[NodeProto]:
    return [
        helper.make_node("Constant", [], ["twice"], value_floats=[1.0, 1.0, 2.0, 2.0]),
        helper.make_node("Resize", [source, "", "twice"], ["copied"], "copy", mode="nearest"),
    ]


def shifted(source: str) -> list[NodeProto]:
    return [
        helper.make_node("Constant", [], ["order"], value_ints=[1, 2, 3, 4, 5, 0]),
        helper.make_node("Gather", [source, "order"], ["copied"], "copy", axis=1),
    ]


def mean_everywhere(source: str) -> list[NodeProto]:
    return [
        helper.make_node("GlobalAveragePool", [source], ["average"], "average"),
        helper.make_node("Constant", [], ["whole"], value_ints=[1, 6, 8, 8]),
        helper.make_node("Expand", ["average", "whole"], ["copied"], "copy"),
    ]


def max_pool(source: str) -> list[NodeProto]:
    shape = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    return [helper.make_node("MaxPool", [source], ["copied"], "copy", **shape)]


@pytest.mark.parametrize("copy", [max_pool, resize, shifted, mean_everywhere])
def test_what_copies_codes_and_is_coded_alone_codes_its_input(
    copy: Callable[[str], list[NodeProto]],
) -> None:
    nodes = [*FIRST, RELU, *copy("r"), *codes("copied", "y", "positive")]
    graph = assert_gives_onnxruntimes_outputs(network(nodes, "y", "positive"))
    assert not any(isinstance(op, Requantize) for op in graph.ops)
    (copied,) = (op for op in graph.ops if op.name.startswith("copy"))
    scales = [graph.tensors[name].scale for name in (*inputs_of(copied), copied.output)]
    assert scales == [np.float32(0.05)] * 2


@pytest.mark.parametrize("copy", [max_pool, shifted])
def test_what_copies_codes_and_is_coded_otherwise_than_its_input_is_requantized(
    copy: Callable[[str], list[NodeProto]],
) -> None:
    nodes = [
        *FIRST, *copy("a"), *codes("copied", "p1", "signed"), *codes("a", "p2", "wide"),
        helper.make_node("Add", ["p1", "p2"], ["sum"], "join"), *codes("sum", "y", "wide"),
    ]  # fmt: skip
    graph = assert_gives_onnxruntimes_outputs(network(nodes, "y", "wide"))
    assert [op.name for op in graph.ops if isinstance(op, Requantize)] == ["copy_recoded"]


def tile(source: str) -> list[NodeProto]:
    return [
        helper.make_node("Constant", [], ["times"], value_ints=[1, 1, 2, 2]),
        helper.make_node("Tile", [source, "times"], ["copied"], "copy"),
    ]


@pytest.mark.parametrize("copy", [resize, tile])
def test_codes_that_are_repeated_keep_their_scale(copy: Callable[[str], list[NodeProto]]) -> None:
    nodes = [*FIRST, RELU, *codes("r", "y", "positive")]
    nodes[-1:] = [*copy("y q"), nodes[-1]]
    nodes[-1].input[0] = "copied"
    graph = assert_gives_onnxruntimes_outputs(network(nodes, "y", "positive"))
    copies = [op for op in graph.ops if op.name.startswith("copy")]
    assert copies
    assert all(graph.tensors[op.output].scale == np.float32(0.05) for op in copies)


def test_zeros_around_a_tensor_are_coded_with_it() -> None:
    nodes = [
        helper.make_node("Constant", [], ["around"], value_ints=[0, 0, 1, 1, 0, 0, 1, 1]),
        helper.make_node("Pad", ["x", "around"], ["padded"], "pad"),
        *codes("padded", "xd", "input"), CONV, RELU, *codes("r", "y", "positive"),
    ]  # fmt: skip
    graph = assert_gives_onnxruntimes_outputs(network(nodes, "y", "positive"))
    assert graph.tensors["x"].scale == np.float32(0.03)
    assert [op.name for op in graph.ops][:2] == ["first", "second"]


def test_codes_cast_to_the_type_they_have_stay_as_they_are() -> None:
    # PyTorch's exporter writes the models of torch.ao.quantization so.
    nodes = codes("x", "xd", "input")
    nodes.insert(1, helper.make_node("Cast", ["xd q"], ["xd cast"], to=TensorProto.INT8))
    nodes[2].input[0] = "xd cast"
    nodes += [CONV, RELU, *codes("r", "y", "positive")]
    assert_gives_onnxruntimes_outputs(network(nodes, "y", "positive"))


@pytest.mark.parametrize("zero", ["signed", "centred"])
def test_an_activation_between_two_codes_is_an_operation_of_its_own(zero: str) -> None:
    nodes = [*FIRST, *codes("a", "ad", zero), helper.make_node("Relu", ["ad"], ["r"], "bend")]
    nodes += codes("r", "y", "positive" if zero == "signed" else zero)
    assert_gives_onnxruntimes_outputs(network(nodes, "y", "positive" if zero == "signed" else zero))


def test_codes_of_onnxruntimes_own_operators_are_the_same() -> None:
    nodes = [*codes("x", "xd", "input", "com.microsoft"), CONV, RELU]
    nodes += codes("r", "y", "positive", "com.microsoft")
    assert_gives_onnxruntimes_outputs(network(nodes, "y", "positive"))


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8])
def test_a_zero_point_left_out_is_0_in_the_type_of_the_codes(kind: int) -> None:
    scale = "centred scale"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", scale], ["xq"], output_dtype=kind),
        helper.make_node("DequantizeLinear", ["xq", scale], ["xd"]),
        CONV, RELU, *codes("r", "y", "positive"),
    ]  # fmt: skip
    graph = assert_gives_onnxruntimes_outputs(network(nodes, "y", "positive"))
    assert graph.tensors["x"].zero_point == (0 if kind == TensorProto.INT8 else -128)


def test_a_zero_point_left_out_on_one_side_only_is_refused() -> None:
    nodes = [*FIRST, RELU, *codes("r", "y", "positive")]
    del nodes[-1].input[2]  # 0, where -128 was written
    with pytest.raises(ModelError, match="another scale or zero point than it was written with"):
        import_proto(network(nodes, "y", "positive"))


def test_a_stored_bias_that_gemm_scales_is_scaled() -> None:
    random = np.random.default_rng(7)
    constants = {
        "w codes": random.integers(-127, 128, (6, 4)).astype(np.int8),
        "b codes": random.integers(-3000, 3000, 6).astype(np.int32),
        "w scale": np.float32(0.01),
        "b scale": np.float32(0.03) * np.float32(0.01),
        "m": random.normal(size=(6, 3)).astype(np.float32),
    }
    for name, (step, zero) in CODES.items():
        constants |= {f"{name} scale": np.float32(step), f"{name} zero": np.int8(zero)}
    graph = helper.make_graph(
        [
            *codes("x", "xd", "input"),
            helper.make_node("DequantizeLinear", ["w codes", "w scale"], ["w"]),
            helper.make_node("DequantizeLinear", ["b codes", "b scale"], ["b"]),
            helper.make_node("Gemm", ["xd", "w", "b"], ["a"], "hidden", transB=1, beta=2.0),
            *codes("a", "y", "wide"),
            helper.make_node("MatMul", ["y", "m"], ["logits"], "head"),
        ],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    x = random.normal(size=(24, 4)).astype(np.float32)
    quantized = quantize(import_proto(model), None)
    expected = outputs(model, x)
    got = simulate(quantized, quantize_input(quantized, x[:, None, None]))[quantized.head.name]
    assert np.abs(got - expected).max() < 0.03 * np.ptp(expected)
