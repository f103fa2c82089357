"""Models in onnxruntime's QOperator format: each is its QDQ form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic

from codegen.errors import ModelError
from codegen.graph.ir import Graph
from codegen.importer.model import import_model, import_proto
from codegen.importer.qoperator import QOPERATORS
from codegen.quantization.checks import check_integers
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate
from tests.codegen.exported import MODELS, exported
from tests.codegen.models.patterns import patterns
from tests.codegen.onnxruntime_oracle import agreement, outputs, quantize_file, run

FAMILIES = ("ds_cnn", "fire", "inertial", "lenet", "mobilenet_v2", "resnet8")


def assert_same_integers(one: Graph, other: Graph) -> None:
    """Two graphs with the same operations, scales, zero points, weights and biases."""
    assert [type(op) for op in one.ops] == [type(op) for op in other.ops]
    codes = [[(t.shape, t.scale, t.zero_point) for t in g.tensors.values()] for g in (one, other)]
    assert codes[0] == codes[1]
    for layer, same in zip(one.convolutions, other.convolutions, strict=True):
        assert np.array_equal(layer.weight, same.weight)
        assert np.array_equal(layer.bias, same.bias)
        assert np.array_equal(layer.weight_scale, same.weight_scale)
    assert np.array_equal(one.head.weight, other.head.weight)


def share_of_same_classes(model: onnx.ModelProto, graph: Graph, x: NDArray) -> float:
    expected = outputs(model, x)
    got = simulate(graph, quantize_input(graph, np.moveaxis(x, 1, -1)))[graph.head.name]
    return agreement(got, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_in_integer_operators_gives_onnxruntimes_classes(
    family: str, tmp_path: Path
) -> None:
    source, target = MODELS / f"{family}_script.onnx", tmp_path / "quantized.onnx"
    shape = exported(source.name).sample_shape
    samples = np.random.default_rng(3).normal(size=(24, *shape)).astype(np.float32)
    quantize_file(
        source, target, samples, activation=QuantType.QUInt8, per_channel=False,
        quant_format=QuantFormat.QOperator,
    )  # fmt: skip
    float_graph, model = import_model(target), onnx.load(target)
    operators = {n.op_type for n in model.graph.node}
    assert "QLinearConv" in operators
    graph = quantize(float_graph, None)
    pictures = float_graph.arrange(samples)
    codes = quantize_input(graph, np.moveaxis(pictures, 1, -1))
    expected, got = outputs(model, samples), simulate(graph, codes)[graph.head.name]
    if "QLinearSoftmax" not in operators:
        within = got.clip(expected.min(), expected.max())  # the file's outputs have 8 bits
        assert np.abs(within - expected).max() < 0.03 * np.ptp(expected)
    assert agreement(got, expected) >= 0.95


def linear(nodes: list[NodeProto], constants: dict[str, NDArray]) -> onnx.ModelProto:
    """A file from x (n, 3, 8, 8) to y with nodes named after their outputs."""
    for node in nodes:
        node.name = node.output[0]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "classes"])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return model


def node(operator: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    domain = "com.microsoft" if operator in _MICROSOFT else ""
    return helper.make_node(operator, inputs.split(), [output], domain=domain, **attributes)


_MICROSOFT = set(QOPERATORS) - {"QLinearConv", "QLinearMatMul"}


def every_operator() -> tuple[list[NodeProto], dict[str, NDArray]]:
    """A network with every integer operator, its scales chosen for normal samples."""
    random = np.random.default_rng(25)
    constants: dict[str, NDArray] = {
        "w": random.integers(-127, 128, (6, 3, 3, 3)).astype(np.int8),
        "w.s": random.uniform(0.002, 0.004, 6).astype(np.float32),
        "w.z": np.zeros(6, np.int8),
        "b": random.integers(-9000, 9000, 6).astype(np.int32),
        "m": random.integers(-127, 128, (12, 8)).astype(np.int8),
        "m.s": random.uniform(0.004, 0.006, 8).astype(np.float32),
        "m.z": np.zeros(8, np.int8),
        "mb": random.integers(100, 156, 8).astype(np.uint8),
        "g": random.integers(-127, 128, (5, 8)).astype(np.int8),
        "g.s": np.float32(0.01),
        "g.z": np.int8(0),
        "gb": random.integers(-600, 600, 5).astype(np.int32),
        "double": np.uint8(200),
        "shape": np.array([-1, 12]),
    }
    codes = {
        "in": (0.03, 128), "conv": (0.03, 120), "leaky": (0.0313, 30), "sig": (1 / 256, 0),
        "sum": (0.0331, 90), "scaled": (0.0671, 90), "pool": (0.0573, 92), "all": (0.0629, 95),
        "mean": (0.0213, 110), "out": (0.03, 128), "add": (0.031, 120), "two": (0.01, 0),
    }  # fmt: skip
    for name, (scale, zero) in codes.items():
        constants |= {f"{name}.s": np.float32(scale), f"{name}.z": np.uint8(zero)}
    nodes = [
        node("QuantizeLinear", "x in.s in.z", "xq"),
        node("QLinearConv", "xq in.s in.z w w.s w.z conv.s conv.z b", "c", pads=[1, 1, 1, 1]),
        node("QLinearLeakyRelu", "c conv.s conv.z leaky.s leaky.z", "l", alpha=0.2),
        node("QLinearSigmoid", "c conv.s conv.z sig.s sig.z", "s"),
        node("QLinearAdd", "l leaky.s leaky.z s sig.s sig.z sum.s sum.z", "a"),
        node("QLinearMul", "a sum.s sum.z double two.s two.z scaled.s scaled.z", "d"),
        node("QLinearAveragePool", "d scaled.s scaled.z pool.s pool.z", "p",
             kernel_shape=[2, 2], strides=[2, 2]),
        node("MaxPool", "d", "mp", kernel_shape=[2, 2], strides=[2, 2]),
        node("QLinearConcat", "all.s all.z p pool.s pool.z mp scaled.s scaled.z", "cat", axis=1),
        node("QLinearGlobalAveragePool", "cat all.s all.z mean.s mean.z", "gp", channels_last=0),
        node("Reshape", "gp shape", "flat"),
        node("QLinearMatMul", "flat mean.s mean.z m m.s m.z out.s out.z", "mm"),
        node("QLinearAdd", "mm out.s out.z mb out.s out.z add.s add.z", "ma"),
        node("QGemm", "ma add.s add.z g g.s g.z gb", "y", transB=1, alpha=0.5),
    ]  # fmt: skip
    return nodes, constants


def test_every_integer_operator_gives_onnxruntimes_classes() -> None:
    nodes, constants = every_operator()
    model = linear(nodes, constants)
    graph = quantize(import_proto(model), None)
    x = np.random.default_rng(19).normal(0, 1.2, (150, 3, 8, 8)).astype(np.float32)
    x += np.random.default_rng(21).normal(0, 1.0, (150, 3, 1, 1)).astype(np.float32)
    expected = outputs(model, x)
    made = simulate(graph, quantize_input(graph, np.moveaxis(x, 1, -1)))
    got = made[graph.head.name]
    assert len(np.unique(expected.argmax(axis=1))) >= 3
    assert agreement(got, expected) >= 0.95
    assert np.abs(got - expected).max() < 0.03 * np.ptp(expected)
    names = [n.output[0] for n in nodes if n.output[0] in graph.tensors]
    assert len(names) >= 10
    for name, codes in zip(names, run(model, x, names), strict=True):
        tensor = graph.tensors[name]
        rounded = np.rint(made[name] / tensor.scale) + tensor.zero_point + 128
        difference = np.abs(rounded.reshape(codes.shape) - codes)
        assert difference.max() <= 1, name
        assert (difference > 0).mean() < 0.001, name
    known = {n.op_type for n in nodes}
    assert set(QOPERATORS) - known == {"NhwcMaxPool", "QLinearReduceMean", "QLinearSoftmax"}


def test_a_softmax_and_a_mean_of_codes_end_a_network() -> None:
    nodes, constants = every_operator()
    mean = "QLinearReduceMean"
    at = next(i for i, n in enumerate(nodes) if n.op_type == "QLinearGlobalAveragePool")
    nodes[at] = node(mean, "cat all.s all.z mean.s mean.z", "gp", axes=[2, 3], keepdims=1)
    nodes[-1] = node("QGemm", "ma add.s add.z g g.s g.z gb out.s out.z", "logits", transB=1)
    nodes += [
        node("QLinearSoftmax", "logits out.s out.z sig.s sig.z", "probabilities", opset=13),
        node("DequantizeLinear", "probabilities sig.s sig.z", "y"),
    ]
    float_graph = import_proto(linear(nodes, constants))
    assert float_graph.loss_choice.because == "the model ends in a Softmax"
    same, _ = every_operator()
    same[-1] = node("QGemm", "ma add.s add.z g g.s g.z gb", "y", transB=1)
    assert_same_integers(
        quantize(float_graph, None), quantize(import_proto(linear(same, constants)), None)
    )


def test_operators_on_channels_last_are_those_on_channels_first() -> None:
    nodes, constants = every_operator()
    plain = linear(nodes, constants)
    by_output = {n.output[0]: n for n in nodes}
    for name in ("c", "p", "gp"):
        last = [a for a in by_output[name].attribute if a.name != "channels_last"]
        del by_output[name].attribute[:]
        by_output[name].attribute.extend([*last, helper.make_attribute("channels_last", 1)])
        by_output[name].domain = "com.microsoft"
    by_output["mp"].op_type, by_output["mp"].domain = "NhwcMaxPool", "com.microsoft"
    by_output["cat"].attribute[0].i = 3
    by_output["c"].input[0] = "xq.last"
    nodes.insert(1, node("Transpose", "xq", "xq.last", perm=[0, 2, 3, 1]))
    nodes.insert(
        nodes.index(by_output["flat"]), node("Transpose", "gp", "turned", perm=[0, 3, 1, 2])
    )
    by_output["flat"].input[0] = "turned"
    turned = linear(nodes, constants)
    x = np.random.default_rng(19).normal(0, 1.2, (20, 3, 8, 8)).astype(np.float32)
    assert np.array_equal(outputs(turned, x), outputs(plain, x))
    assert_same_integers(*(quantize(import_proto(model), None) for model in (plain, turned)))


def test_a_dynamically_quantized_model_is_refused_and_taken_as_the_remedy_says(
    tmp_path: Path,
) -> None:
    source, target = MODELS / "lenet_script.onnx", tmp_path / "quantized.onnx"
    quantize_dynamic(str(source), str(target))
    with pytest.raises(ModelError, match=r"DynamicQuantizeLinear\).*\(quantize_static"):
        import_model(target)
    shape = exported(source.name).sample_shape
    samples = np.random.default_rng(3).normal(size=(8, *shape)).astype(np.float32)
    quantize_file(source, target, samples, quant_format=QuantFormat.QOperator)
    import_model(target)


def test_what_onnxruntimes_optimizer_fused_is_refused_and_taken_as_it_was_before() -> None:
    codes = np.random.default_rng(3).integers(-127, 128, (6, 3, 3, 3)).astype(np.int8)
    nodes, constants = weights(codes, np.int8(0))
    fused = next(n for n in nodes if n.op_type == "Conv")
    fused.op_type, fused.domain = "FusedConv", "com.microsoft"
    fused.attribute.append(helper.make_attribute("activation", "Relu"))
    with pytest.raises(ModelError, match=r"'conv' .*FusedConv.*give the model as it was before"):
        import_proto(linear(nodes, constants))
    nodes[nodes.index(fused)] = node("Conv", "xd w", "sum")
    nodes.insert(4, node("Relu", "sum", "conv"))
    import_proto(linear(nodes, constants))


# Weights that aren't symmetric int8.


def weights(codes: NDArray, zero: NDArray, axis: int = 0) -> tuple[list[NodeProto], dict]:
    """A QDQ network whose convolution has these codes, in steps of 0.01."""
    random = np.random.default_rng(23)
    constants = {
        "in.s": np.float32(0.03), "in.z": np.uint8(128), "mid.s": np.float32(0.02),
        "mid.z": np.uint8(0), "w.q": codes, "w.s": np.full(zero.shape, 0.01, np.float32),
        "w.z": zero, "m": random.normal(size=(len(codes), 4)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x in.s in.z", "xq"),
        node("DequantizeLinear", "xq in.s in.z", "xd"),
        node("DequantizeLinear", "w.q w.s w.z", "w", axis=axis),
        node("Conv", "xd w", "conv"),
        node("QuantizeLinear", "conv mid.s mid.z", "cq"),
        node("DequantizeLinear", "cq mid.s mid.z", "c"),
        node("GlobalAveragePool", "c", "mean"),
        node("Flatten", "mean", "flat"),
        node("MatMul", "flat m", "y"),
    ]
    return nodes, constants


def test_unsigned_weights_about_128_are_the_signed_ones_about_0() -> None:
    codes = np.random.default_rng(3).integers(-127, 128, (6, 3, 3, 3))
    signed = linear(*weights(codes.astype(np.int8), np.int8(0)))
    moved = linear(*weights((codes + 128).astype(np.uint8), np.uint8(128)))
    assert_same_integers(*(quantize(import_proto(model), None) for model in (signed, moved)))


def test_weights_about_another_zero_point_are_exact_where_their_channels_fit() -> None:
    random = np.random.default_rng(3)
    zero = np.array([5, 100, 128, 200, 250, 90], np.uint8)
    steps = random.integers(-5, 6, (6, 3, 3, 3))
    codes = (zero.reshape(-1, 1, 1, 1).astype(int) + steps).astype(np.uint8)
    model = linear(*weights(codes, zero))
    graph = quantize(import_proto(model), None)
    assert np.array_equal(graph.convolutions[0].weight, steps.transpose(0, 2, 3, 1))
    x = random.normal(0, 1.5, (60, 3, 8, 8)).astype(np.float32)
    assert share_of_same_classes(model, graph, x) >= 0.95


def test_weights_beyond_the_devices_are_coded_again_in_coarser_steps() -> None:
    random = np.random.default_rng(3)
    codes = random.integers(0, 256, (6, 3, 3, 3)).astype(np.uint8)
    codes[:, 0, 0, 0] = 255
    codes[1] = random.integers(128 - 20, 128 + 20, codes[1].shape)  # fits as it is
    model = linear(*weights(codes, np.uint8(100)))
    float_graph = import_proto(model)
    graph = quantize(float_graph, None)
    (layer,) = graph.convolutions
    step = layer.weight_scale
    assert step[1] == pytest.approx(0.01, rel=1e-6)
    made = layer.weight * step.reshape(-1, 1, 1, 1)
    wanted = 0.01 * (codes.transpose(0, 2, 3, 1).astype(float) - 100)
    off = np.abs(made - wanted).max(axis=(1, 2, 3))
    assert (off <= np.abs(wanted).max(axis=(1, 2, 3)) * 0.0041).all()
    x = random.normal(0, 1.5, (60, 3, 8, 8)).astype(np.float32)
    assert share_of_same_classes(model, graph, x) >= 0.95
    found = check_integers(graph, float_graph)
    assert [(f.check, f.layer, f.value) for f in found] == [("coarser-weights", "conv", 5.0)]


@pytest.mark.parametrize("quant_format", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_onnxruntimes_unsigned_weights_give_its_classes(
    quant_format: QuantFormat, tmp_path: Path
) -> None:
    source, target = MODELS / "resnet8_script.onnx", tmp_path / "quantized.onnx"
    original = exported(source.name)
    samples, _ = patterns(original.sample_shape, original.head.bias.size, 124, seed=3)
    quantize_file(
        source, target, samples[:24], activation=QuantType.QUInt8, weight=QuantType.QUInt8,
        per_channel=False, quant_format=quant_format,
    )  # fmt: skip
    float_graph = import_model(target)
    graph = quantize(float_graph, None)
    assert "coarser-weights" in {f.check for f in check_integers(graph, float_graph)}
    assert share_of_same_classes(onnx.load(target), graph, samples[24:]) >= 0.95


def test_a_head_of_any_zero_point_is_exact_to_its_16_bits() -> None:
    nodes, constants = weights(np.zeros((6, 3, 3, 3), np.int8), np.int8(0))
    codes = np.random.default_rng(5).integers(0, 256, (6, 4)).astype(np.uint8)
    constants |= {"m.q": codes, "m.s": np.float32(0.01), "m.z": np.uint8(20)}
    nodes.insert(0, node("DequantizeLinear", "m.q m.s m.z", "m"))
    del constants["m"]
    head = quantize(import_proto(linear(nodes, constants)), None).head
    step = head.weight_scale / 256
    real = 0.01 * (codes.astype(float) - 20).T
    assert np.abs(head.weight * step - real).max() <= step / 2 * (1 + 1e-6)
    assert step < 0.01 / 8


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
def test_weights_of_4_bits_are_exact(kind: int) -> None:
    low = -8 if kind == TensorProto.INT4 else 0
    codes = np.random.default_rng(3).integers(low, low + 16, (6, 3, 3, 3))
    zero = 0 if kind == TensorProto.INT4 else 7
    nodes, constants = weights(np.zeros(1, np.int8), np.int8(0))
    constants["m"] = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
    del constants["w.q"], constants["w.z"]
    model = linear(nodes, constants)
    model.graph.initializer.extend(
        [
            helper.make_tensor("w.q", kind, codes.shape, codes.reshape(-1)),
            helper.make_tensor("w.z", kind, (), [zero]),
        ]
    )
    model.opset_import[0].version, model.ir_version = 21, 10
    graph = quantize(import_proto(model), None)
    assert np.array_equal(graph.convolutions[0].weight, (codes - zero).transpose(0, 2, 3, 1))
    x = np.random.default_rng(7).normal(0, 1.5, (60, 3, 8, 8)).astype(np.float32)
    assert share_of_same_classes(model, graph, x) >= 0.95


def test_a_scale_for_each_block_of_weights_is_refused() -> None:
    codes = np.random.default_rng(3).integers(-127, 128, (6, 3, 3, 3)).astype(np.int8)
    nodes, constants = weights(codes, np.int8(0))
    constants |= {
        "w.s": np.full((6, 1, 3, 3), 0.01, np.float32), "w.z": np.zeros((6, 1, 3, 3), np.int8)
    }  # fmt: skip
    nodes[2].attribute.append(helper.make_attribute("block_size", 3))
    nodes[2].attribute[0].i = 1
    model = linear(nodes, constants)
    model.opset_import[0].version, model.ir_version = 21, 10
    with pytest.raises(ModelError, match=r"'w' .* a scale for each block .* per output channel"):
        import_proto(model)
    import_proto(linear(*weights(codes, np.zeros(6, np.int8))))
