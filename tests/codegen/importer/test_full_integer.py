"""Models whose inputs and outputs are integers, and codes that are clipped, padded or pooled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from codegen.errors import CalibrationError, ModelError
from codegen.graph.floats import FloatGraph
from codegen.graph.ir import Graph
from codegen.importer.model import import_proto
from codegen.operators.requantize import Requantize
from codegen.quantization.model import quantize_model
from codegen.quantization.quantize import quantize
from codegen.quantization.report import simulate
from tests.codegen.exported import MODELS
from tests.codegen.onnxruntime_oracle import agreement, outputs, run


def model(
    nodes: Sequence[NodeProto],
    constants: dict[str, NDArray],
    *,
    kind: int,
    shape: Sequence[int],
    result: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A file from x to y, with its nodes named after their outputs."""
    for node in nodes:
        node.name = node.output[0]
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("x", kind, ["n", *shape])],
        [helper.make_tensor_value_info("y", result, ["n", "classes"])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made


def node(operator: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


def coded(source: str, output: str, code: str) -> list[NodeProto]:
    """QuantizeLinear and DequantizeLinear of ``source``."""
    return [
        node("QuantizeLinear", f"{source} {code}.s {code}.z", f"{output}.q"),
        node("DequantizeLinear", f"{output}.q {code}.s {code}.z", output),
    ]


def as_converted(dtype: type, end: Sequence[NodeProto]) -> onnx.ModelProto:
    """A convolution and a classifier as tf2onnx writes full-integer TFLite files.

    Pictures have their channels last, are turned as codes, and the weights are turned behind their
    DequantizeLinear. ``end`` makes y of the codes "logits".
    """
    random = np.random.default_rng(9)
    low = np.iinfo(dtype).min
    constants = {
        "in.s": np.float32(0.02), "in.z": dtype(low + 120),
        "mid.s": np.float32(0.03), "mid.z": dtype(low),
        "out.s": np.float32(0.15), "out.z": dtype(low + 131),
        "half.s": np.float32(1 / 256), "half.z": dtype(low),
        "w.q": random.integers(-127, 128, (6, 3, 3, 2)).astype(np.int8),
        "w.s": random.uniform(0.002, 0.006, 6).astype(np.float32),
        "w.z": np.zeros(6, np.int8),
        "b.q": random.integers(-8000, 8000, 6).astype(np.int32),
        "m.q": random.integers(-127, 128, (5, 6)).astype(np.int8),
        "m.s": np.float32(0.02), "m.z": np.int8(0),
        "mb.q": random.integers(-2000, 2000, 5).astype(np.int32),
        "mb.s": np.float32(0.03) * np.float32(0.02),
        "flat": np.array([-1, 6]),
    }  # fmt: skip
    constants["b.s"] = (constants["in.s"] * constants["w.s"]).astype(np.float32)
    nodes = [
        node("Transpose", "x", "turned", perm=[0, 3, 1, 2]),
        node("DequantizeLinear", "turned in.s in.z", "real"),
        node("DequantizeLinear", "w.q w.s w.z", "w.last", axis=0),
        node("Transpose", "w.last", "w", perm=[0, 3, 1, 2]),
        node("DequantizeLinear", "b.q b.s", "b", axis=0),
        node("Conv", "real w b", "conv"),
        node("Relu", "conv", "relu"),
        *coded("relu", "r", "mid"),
        node("ReduceMean", "r", "mean", axes=[2, 3], keepdims=0),
        node("QuantizeLinear", "mean mid.s mid.z", "mean.q"),
        node("Reshape", "mean.q flat", "mean.flat"),
        node("DequantizeLinear", "mean.flat mid.s mid.z", "mean.r"),
        node("DequantizeLinear", "m.q m.s m.z", "m.last"),
        node("Transpose", "m.last", "m", perm=[1, 0]),
        node("DequantizeLinear", "mb.q mb.s", "mb"),
        node("MatMul", "mean.r m", "product"),
        node("Add", "product mb", "sum"),
        node("QuantizeLinear", "sum out.s out.z", "logits"),
        *end,
    ]
    kind = TensorProto.INT8 if dtype is np.int8 else TensorProto.UINT8
    return model(nodes, constants, kind=kind, shape=(9, 9, 2), result=kind)


LOGITS = [node("Identity", "logits", "y")]
PROBABILITIES = [
    node("DequantizeLinear", "logits out.s out.z", "logits.r"),
    node("Softmax", "logits.r", "p"),
    node("QuantizeLinear", "p half.s half.z", "y"),
]


def pictures(dtype: type, *shape: int) -> NDArray:
    """Codes, of pictures of unlike brightness and contrast."""
    random = np.random.default_rng(5)
    middle = random.uniform(60, 190, (shape[0], *[1] * (len(shape) - 2), shape[-1]))
    numbers = middle + random.uniform(10, 90, (shape[0], *[1] * (len(shape) - 1))) * random.normal(
        size=shape
    )
    codes = np.clip(np.rint(numbers), 0, 255) + np.iinfo(dtype).min
    return codes.astype(dtype)


def device_logits(float_graph: FloatGraph, graph: Graph, codes: NDArray) -> NDArray[np.float64]:
    """Outputs for codes as the file takes them; on the device they are int8."""
    on_device = codes.astype(np.int64) - (128 if codes.dtype == np.uint8 else 0)
    picture = float_graph.arrange(on_device)
    picture = picture.reshape(len(codes), *float_graph.shapes[float_graph.input])
    return simulate(graph, np.moveaxis(picture, 1, -1).astype(np.int8))[graph.head.name]


@pytest.mark.parametrize("end", [LOGITS, PROBABILITIES], ids=["logits", "probabilities"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_full_integer_model_gives_onnxruntimes_classes(dtype: type, end: list[NodeProto]) -> None:
    proto = as_converted(dtype, end)
    float_graph = import_proto(proto)
    graph = quantize(float_graph, None)
    x = pictures(dtype, 200, 9, 9, 2)
    logits, y = run(proto, x, ["logits", "y"])
    got = device_logits(float_graph, graph, x)
    assert len(np.unique(logits.argmax(axis=1))) >= 3
    assert agreement(got, logits) >= 0.99
    zero = np.iinfo(dtype).min + 131
    real = np.float32(0.15) * (logits.astype(np.float64) - zero)
    assert np.abs(np.clip(got, real.min(), real.max()) - real).max() < 0.15  # one code
    assert agreement(got, y) >= 0.99
    assert float_graph.loss_choice.guessed == (end is LOGITS)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_keras_model_through_tflite_and_tf2onnx_gives_onnxruntimes_classes(dtype: type) -> None:
    proto = onnx.load(MODELS / f"full_integer_{np.dtype(dtype)}.onnx")
    float_graph = import_proto(proto)
    graph = quantize(float_graph, None)
    stored = [numpy_helper.to_array(entry) for entry in proto.graph.initializer]
    kernels = [np.sort(array.ravel()) for array in stored if array.dtype == np.int8]
    for op in graph.convolutions:
        weight = np.sort(op.weight.ravel())
        assert any(np.array_equal(weight, kernel) for kernel in kernels), op.name
    x = pictures(dtype, 120, *float_graph.sample_shape)
    (expected,) = run(proto, x)
    assert (np.bincount(expected.argmax(axis=1)) >= 10).sum() >= 2
    assert agreement(device_logits(float_graph, graph, x), expected) >= 0.95


def test_weights_turned_behind_their_dequantization_keep_their_integers() -> None:
    proto = as_converted(np.int8, LOGITS)
    constants = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    (conv,) = quantize(import_proto(proto), None).convolutions
    assert np.array_equal(conv.weight, constants["w.q"])
    assert np.array_equal(conv.bias, constants["b.q"])


def test_depthwise_weights_reshaped_behind_their_dequantization_keep_their_integers() -> None:
    # TFLite has them as [1, height, width, channels], with a scale per channel.
    random = np.random.default_rng(7)
    codes = random.integers(-90, 91, (1, 3, 3, 4)).astype(np.int8)
    scale = random.uniform(0.002, 0.006, 4).astype(np.float32)
    constants = {
        "in.s": np.float32(0.02), "in.z": np.int8(-5), "mid.s": np.float32(0.01),
        "mid.z": np.int8(3), "w.q": codes, "w.s": scale, "shape": np.array([3, 3, 4, 1]),
        "m": random.normal(size=(4, 3)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        node("DequantizeLinear", "x in.s in.z", "real"),
        node("DequantizeLinear", "w.q w.s", "w.last", axis=3),
        node("Reshape", "w.last shape", "w.split"),
        node("Transpose", "w.split", "w", perm=[2, 3, 0, 1]),
        node("Conv", "real w", "conv", group=4),
        *coded("conv", "c", "mid"),
        node("GlobalAveragePool", "c", "mean"),
        node("Flatten", "mean", "flat"),
        node("MatMul", "flat m", "y"),
    ]
    proto = model(nodes, constants, kind=TensorProto.INT8, shape=(4, 6, 6))
    (conv,) = quantize(import_proto(proto), None).convolutions
    assert np.array_equal(conv.weight, codes[0])
    assert np.array_equal(conv.weight_scale, scale)


def pixels() -> onnx.ModelProto:
    """A float model that takes pixels as uint8 and scales them itself."""
    random = np.random.default_rng(9)
    constants = {
        "full": np.float32(255), "w": random.normal(0, 0.4, (6, 3, 3, 3)).astype(np.float32),
        "m": random.normal(size=(6, 4)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        node("Cast", "x", "numbers", to=TensorProto.FLOAT), node("Div", "numbers full", "scaled"),
        node("Conv", "scaled w", "conv"), node("Relu", "conv", "r"),
        node("GlobalAveragePool", "r", "mean"), node("Flatten", "mean", "flat"),
        node("MatMul", "flat m", "y"),
    ]  # fmt: skip
    return model(nodes, constants, kind=TensorProto.UINT8, shape=(3, 8, 8))


def test_pixels_calibrate_a_model_that_takes_them_as_codes_or_as_real_numbers(
    tmp_path: Path,
) -> None:
    proto, x = pixels(), pictures(np.uint8, 64, 3, 8, 8)
    float_graph = import_proto(proto)
    graphs = []
    for name, samples in {"codes": x, "real": x.astype(np.float32)}.items():
        np.savez(tmp_path / f"{name}.npz", x=samples)
        made = quantize_model(float_graph, tmp_path / f"{name}.npz")
        assert not any("not scaled" in note for note in made.notes)
        graphs.append(made.graph)
    assert graphs[0].tensors == graphs[1].tensors
    source = graphs[0].tensors["x"]
    assert (source.scale, source.zero_point) == (1.0, -128)
    got = device_logits(float_graph, graphs[0], x)
    assert agreement(got, run(proto, x)[0]) >= 0.95


def test_codes_saved_as_floats_are_refused_and_taken_with_their_type(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", "x s z", "real"), node("MatMul", "real m", "y")]
    constants = {
        "s": np.float32(1 / 255), "z": np.int8(-128),
        "m": np.random.default_rng(3).normal(size=(8, 3)).astype(np.float32),
    }  # fmt: skip
    hidden = [*nodes[:1], node("MatMul", "real h", "hidden"), node("MatMul", "hidden m", "y")]
    constants["h"] = np.eye(8, dtype=np.float32)
    proto = model(hidden, constants, kind=TensorProto.INT8, shape=(8,))
    float_graph = import_proto(proto)
    x = pictures(np.int8, 40, 8)
    np.savez(tmp_path / "floats.npz", x=x.astype(np.float32))
    with pytest.raises(CalibrationError, match=r"codes stand for 0 to 1; save codes with the type"):
        quantize_model(float_graph, tmp_path / "floats.npz")
    np.savez(tmp_path / "codes.npz", x=x)
    graph = quantize_model(float_graph, tmp_path / "codes.npz").graph
    assert agreement(device_logits(float_graph, graph, x), run(proto, x)[0]) >= 0.95


def test_codes_of_the_input_without_a_meaning_are_refused_and_so_are_sums_of_codes() -> None:
    proto = as_converted(np.int8, LOGITS)
    clipped = [node("Relu", "x", "positive"), *proto.graph.node]
    clipped[1].input[0] = "positive"
    constants = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    arguments = {"kind": TensorProto.INT8, "shape": (9, 9, 2), "result": TensorProto.INT8}
    with pytest.raises(ModelError, match=r"'positive' \(Relu\).* put DequantizeLinear before it"):
        import_proto(model(clipped, constants, **arguments))
    summed = [node("Add", "x x", "twice"), *as_converted(np.int8, LOGITS).graph.node]
    summed[1].input[0] = "twice"
    with pytest.raises(ModelError, match=r"'twice' \(Add\): computes with an activation in integ"):
        import_proto(model(summed, constants, **arguments))
    # The remedy: a sum of real numbers.
    summed[0] = node("Add", "real real", "twice")
    order = [summed[1], summed[2], summed[0], *coded("twice", "doubled", "in"), *summed[3:]]
    order[0].input[0] = "x"
    next(n for n in order if n.op_type == "Conv").input[0] = "doubled"
    import_proto(model(order, constants, **arguments))


def clipped_network(codes: NDArray, low: int, high: int, dtype: type) -> onnx.ModelProto:
    """A convolution and a classifier as Brevitas writes them, with its code for activations."""
    random = np.random.default_rng(11)
    bits = high - low
    constants = {
        "in.s": np.float32(0.03), "in.z": np.int8(0), "act.s": np.float32(8 / bits),
        "act.z": dtype(0), "low": np.int8(-127), "high": np.int8(127),
        "act.low": dtype(low), "act.high": dtype(high),
        "w.s": np.float32(0.01), "w.float": (codes * 0.01).astype(np.float32),
        "m": random.normal(size=(6, 4)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x in.s in.z", "x.q"),
        node("Clip", "x.q low high", "x.c"),
        node("DequantizeLinear", "x.c in.s in.z", "xd"),
        node("QuantizeLinear", "w.float w.s in.z", "w.q"),
        node("Clip", "w.q low high", "w.c"),
        node("DequantizeLinear", "w.c w.s in.z", "w"),
        node("Conv", "xd w", "conv"),
        node("Relu", "conv", "relu"),
        node("QuantizeLinear", "relu act.s act.z", "r.q"),
        node("Clip", "r.q act.low act.high", "r.c"),
        node("MaxPool", "r.c", "pool.c", kernel_shape=[2, 2]),
        node("DequantizeLinear", "pool.c act.s act.z", "pool"),
        node("GlobalAveragePool", "pool", "mean"),
        node("Flatten", "mean", "flat"),
        node("MatMul", "flat m", "y"),
    ]
    return model(nodes, constants, kind=TensorProto.FLOAT, shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("low", "high", "dtype", "steps"),
    [(0, 255, np.uint8, 0), (0, 15, np.uint8, 1), (-8, 7, np.int8, 1)],
    ids=["8 bits", "4 bits", "signed 4 bits"],
)
def test_codes_clipped_by_the_model_are_clipped_on_the_device(
    low: int, high: int, dtype: type, steps: int
) -> None:
    random = np.random.default_rng(13)
    weight = random.integers(-127, 128, (6, 3, 3, 3))
    proto = clipped_network(weight, low, high, dtype)
    x = random.normal(0, 1.2, (60, 3, 8, 8)).astype(np.float32)
    float_graph = import_proto(proto)
    graph = quantize(float_graph, None)
    # The range of all codes is free, as is one without the lowest.
    assert sum(isinstance(op, Requantize) for op in graph.ops) == steps
    assert np.array_equal(graph.convolutions[0].weight, weight.transpose(0, 2, 3, 1))
    inputs = np.clip(np.rint(x / np.float32(0.03)), -127, 127)
    made = simulate(graph, np.moveaxis(inputs, 1, -1).astype(np.int8))
    (expected,) = run(proto, x, ["pool.c"])
    step = graph.tensors["pool.c"].scale
    codes = np.rint(made["pool.c"] / step)
    assert (expected.min(), expected.max()) == (max(low, 0), high)
    assert np.abs(codes - expected).max() <= 1
    assert (codes != expected).mean() < 0.01
    assert agreement(made[graph.head.name], run(proto, x)[0]) >= 0.95


@pytest.mark.parametrize("twice", [False, True], ids=["one mean", "a mean of means"])
@pytest.mark.parametrize(
    ("low", "high", "dtype", "finer"),
    [(0, 255, np.uint8, 1), (0, 15, np.uint8, 17), (-8, 7, np.int8, 36)],
    ids=["8 bits", "4 bits", "signed 4 bits behind a Relu"],
)
def test_means_of_few_codes_keep_what_lies_between_two_of_them(
    low: int, high: int, dtype: type, finer: int, twice: bool
) -> None:
    random = np.random.default_rng(13)
    proto = clipped_network(random.integers(-127, 128, (6, 3, 3, 3)), low, high, dtype)
    if twice:
        mean = next(made for made in proto.graph.node if made.op_type == "GlobalAveragePool")
        mean.input[0] = "means"
        before = node("AveragePool", "pool", "means", kernel_shape=[2, 2], strides=[2, 2])
        before.name = "means"
        proto.graph.node.insert(list(proto.graph.node).index(mean), before)
    x = random.normal(0, 1.2, (60, 3, 8, 8)).astype(np.float32)
    graph = quantize(import_proto(proto), None)
    step = graph.tensors["pool.c"].scale
    assert graph.tensors["mean"].scale == pytest.approx(step / finer)
    codes = np.clip(np.rint(x / np.float32(0.03)), -127, 127)
    made = simulate(graph, np.moveaxis(codes, 1, -1).astype(np.int8))
    (expected,) = run(proto, x, ["mean"])
    # Half a step for each mean, and what a code makes that lands on the other side of a half.
    assert np.abs(made["mean"] - expected).max() < 1.1 * step / min(finer, 10)


def test_constants_coded_by_onnxruntimes_own_operator_are_those_that_onnx_s_own_makes() -> None:
    weight = np.random.default_rng(13).integers(-127, 128, (6, 3, 3, 3))
    proto = clipped_network(weight, 0, 255, np.uint8)
    for made in proto.graph.node:
        if made.op_type in ("QuantizeLinear", "DequantizeLinear"):
            made.domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    (conv,) = quantize(import_proto(proto), None).convolutions
    assert np.array_equal(conv.weight, weight.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_zeros_around_codes_are_their_zero_point(dtype: type) -> None:
    proto = as_converted(dtype, LOGITS)
    around = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "around")
    proto.graph.initializer.append(around)
    nodes = list(proto.graph.node)
    real = nodes[1]
    nodes[1:2] = [
        real,
        *coded("real", "again", "in"),
        node("Pad", "again.q around in.z", "padded"),
        node("DequantizeLinear", "padded in.s in.z", "padded.r"),
    ]
    next(n for n in nodes if n.op_type == "Conv").input[0] = "padded.r"
    del nodes[3]  # the DequantizeLinear of what isn't padded
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    float_graph = import_proto(proto)
    graph = quantize(float_graph, None)
    assert graph.convolutions[0].padding.top == 1
    x = pictures(dtype, 100, 9, 9, 2)
    assert agreement(device_logits(float_graph, graph, x), run(proto, x)[0]) >= 0.99
    zero = next(entry for entry in proto.graph.initializer if entry.name == "mid.z")
    nodes[3].input[2] = zero.name
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    with pytest.raises(ModelError, match=r"use the zero point, or pad before QuantizeLinear"):
        import_proto(proto)


def joined(nodes: Sequence[NodeProto], size: int) -> onnx.ModelProto:
    """A classifier of ``size`` features behind ``nodes``, which make the codes "joined" of "r.q"
    and "twice.q": a convolution's and their double, of one scale."""
    random = np.random.default_rng(4)
    constants = {
        "in.s": np.float32(0.02), "in.z": np.int8(-8), "mid.s": np.float32(0.03),
        "mid.z": np.int8(-100), "other.z": np.int8(-90), "two": np.float32(2),
        "w": random.normal(0, 0.2, (6, 3, 3, 3)).astype(np.float32),
        "m": random.normal(size=(size, 4)).astype(np.float32),
        "all": np.array([1, 6, 6, 12]), "steps": np.array([6]), "last": np.array([0, 3, 1, 2]),
    }  # fmt: skip
    nodes = [
        node("DequantizeLinear", "x in.s in.z", "real"),
        node("Conv", "real w", "conv"),
        *coded("conv", "r", "mid"),
        node("Mul", "r two", "double"),
        *coded("double", "twice", "mid"),
        *nodes,
        node("DequantizeLinear", "joined mid.s mid.z", "joined.r"),
        node("GlobalAveragePool", "joined.r", "mean"),
        node("Flatten", "mean", "flat"),
        node("MatMul", "flat m", "y"),
    ]
    return model(nodes, constants, kind=TensorProto.INT8, shape=(3, 8, 8))


LAST = [
    node("Transpose", "r.q", "r.last", perm=[0, 2, 3, 1]),
    node("Transpose", "twice.q", "twice.last", perm=[0, 2, 3, 1]),
    node("Concat", "r.last twice.last", "both", axis=3),
    node("Transpose", "both", "joined", perm=[0, 3, 1, 2]),
]


@pytest.mark.parametrize(
    ("nodes", "size"),
    [
        ([node("Concat", "r.q twice.q", "joined", axis=1)], 12),
        (LAST, 12),
        ([node("Concat", "r.q twice.q", "joined", axis=2)], 6),
        ([node("DepthToSpace", "r.q", "wide", blocksize=1),
          node("ReverseSequence", "wide steps", "joined", batch_axis=0, time_axis=1)], 6),
        ([node("SpaceToDepth", "r.q", "joined", blocksize=2)], 24),
        ([node("MaxPool", "r.q", "top", kernel_shape=[6, 6]), node("Expand", "top all", "wide"),
          node("Concat", "wide wide", "joined", axis=1)], 12),
    ],
    ids=["channels", "channels last", "rows", "reversed", "depth", "repeated"],
)  # fmt: skip
def test_codes_that_are_joined_and_moved_as_they_are_keep_their_scale(
    nodes: list[NodeProto], size: int
) -> None:
    """tf2onnx brings QuantizeLinear and DequantizeLinear to the other side of such operators."""
    proto = joined(nodes, size)
    float_graph = import_proto(proto)
    graph = quantize(float_graph, None)
    assert not any(isinstance(op, Requantize) for op in graph.ops)
    x = pictures(np.int8, 60, 3, 8, 8)
    got, expected = device_logits(float_graph, graph, x), outputs(proto, x)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    assert agreement(got, expected) >= 0.95


def test_codes_of_two_scales_that_are_joined_as_if_they_had_one_are_refused() -> None:
    proto = joined([node("Concat", "r.q twice.q", "joined", axis=1)], 12)
    for made in proto.graph.node:
        if made.name in ("twice.q", "twice"):
            made.input[2] = "other.z"
    with pytest.raises(ModelError, match=r"'joined' \(Concat\): .* put DequantizeLinear before it"):
        import_proto(proto)
    # The remedy.
    nodes = [*coded("double", "twice.b", "other"), node("Concat", "r twice", "both", axis=1)]
    nodes = [nodes[-1], node("QuantizeLinear", "both mid.s mid.z", "joined")]
    import_proto(joined(nodes, 12))


def test_codes_and_constants_are_joined_as_real_numbers_only() -> None:
    def with_more(nodes: list[NodeProto], dtype: type) -> onnx.ModelProto:
        proto = joined(nodes, 7)
        more = np.ones((1, 1, 6, 6), dtype)
        proto.graph.initializer.append(numpy_helper.from_array(more, "more"))
        return proto

    codes = node("Concat", "r.q more", "joined", axis=1)
    with pytest.raises(ModelError, match=r"'joined' \(Concat\): joins codes with constants"):
        import_proto(with_more([codes], np.int8))
    # The remedy.
    reals = node("Concat", "r more", "both", axis=1)
    import_proto(
        with_more([reals, node("QuantizeLinear", "both mid.s mid.z", "joined")], np.float32)
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_an_input_dequantized_in_three_nodes_is_coded_as_the_file_says(dtype: type) -> None:
    """As tf2onnx's --dequantize writes full-integer TFLite files."""
    random = np.random.default_rng(6)
    zero = np.iinfo(dtype).min + 100
    constants = {
        "zero": np.float32(zero), "scale": np.float32(0.02),
        "w": random.normal(0, 0.3, (6, 3, 3, 3)).astype(np.float32),
        "m": random.normal(size=(6, 4)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        node("Transpose", "x", "turned", perm=[0, 3, 1, 2]),
        node("Cast", "turned", "cast", to=TensorProto.FLOAT),
        node("Sub", "cast zero", "less"),
        node("Mul", "less scale", "real"),
        node("Conv", "real w", "conv", pads=[1, 1, 1, 1]),
        node("Relu", "conv", "relu"),
        node("GlobalAveragePool", "relu", "mean"),
        node("Flatten", "mean", "flat"),
        node("MatMul", "flat m", "y"),
    ]
    kind = TensorProto.INT8 if dtype is np.int8 else TensorProto.UINT8
    proto = model(nodes, constants, kind=kind, shape=(9, 9, 3), result=TensorProto.FLOAT)
    float_graph = import_proto(proto)
    assert [op.name for op in float_graph.ops] == ["conv", "mean", "y"]
    x = pictures(dtype, 80, 9, 9, 3)
    reals = (x.astype(np.float64) - zero) * 0.02
    graph = quantize(float_graph, float_graph.arrange(reals))
    source = graph.tensors[graph.input]
    assert source.scale == pytest.approx(0.02)
    assert source.zero_point == zero - (128 if dtype is np.uint8 else 0)
    assert agreement(device_logits(float_graph, graph, x), run(proto, x)[0]) >= 0.95
