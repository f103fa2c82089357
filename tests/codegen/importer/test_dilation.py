"""Dilated convolutions against onnxruntime, and what becomes of them on a device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper

from codegen.graph.floats import FloatConv, FloatGraph, FloatHead
from codegen.graph.ir import Conv, DepthwiseConv, Graph
from codegen.importer.model import import_proto
from codegen.operators.execution import evaluate
from codegen.operators.rearrange import Rearrange
from codegen.program.lowering import lower
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate
from codegen.reference.float_autodiff import cosines
from codegen.reference.interpreter import Interpreter
from tests.codegen import onnxruntime_oracle
from tests.codegen.importer.test_model import Constants, model, normal
from tests.codegen.int8_network import int8_outputs
from tests.codegen.random_graphs import full_plan
from tests.conftest import examples


def ending(nodes: list[onnx.NodeProto], constants: Constants, shape: tuple[int, ...], source: str,
           size: int) -> onnx.ModelProto:  # fmt: skip
    """``nodes``, a Relu, and a head over each of the ``size`` elements of ``source``."""
    behind = [
        helper.make_node("Relu", [source], ["bent"], "relu"),
        helper.make_node("Flatten", ["bent"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "hw"], ["logits"], "head", transB=1),
    ]
    head = normal(4, size, seed=8) / np.float32(np.sqrt(size))
    return model([*nodes, *behind], {**constants, "hw": head}, shape=(1, *shape))


def same_as_onnxruntime(proto: onnx.ModelProto, count: int = 2) -> FloatGraph:
    """Imports ``proto`` and compares outputs."""
    graph = import_proto(proto, loss="cross-entropy")
    x = normal(count, *graph.sample_shape, seed=4)
    expected = onnxruntime_oracle.outputs(proto, x)
    got = evaluate(graph, graph.arrange(x))[graph.head.output]
    np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
    return graph


def trained_gradients_are_exact(graph: Graph, samples: np.ndarray) -> None:
    """Integer gradients of all weights and biases against float64, given the same integers."""
    for index in range(3):
        interpreter = Interpreter(lower(graph, full_plan(graph)))
        interpreter.train_step(samples[index], index % 2, 2**20 // 50, index)
        for name, cosine in cosines(interpreter, index % 2).items():
            assert cosine >= 0.999, name


@st.composite
def dilated(draw: st.DrawFn) -> tuple[onnx.ModelProto, np.ndarray]:
    """A dilated layer of any kind, and its weights."""
    rank = draw(st.sampled_from([1, 2, 2]))
    pairs = st.lists(st.integers(1, 4), min_size=rank, max_size=rank)
    kernel, dilations = draw(pairs), draw(pairs)
    strides = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    size = draw(st.lists(st.integers(1, 12), min_size=rank, max_size=rank))
    pads = draw(st.lists(st.integers(0, 6), min_size=2 * rank, max_size=2 * rank))
    if draw(st.booleans()):  # one row high: phases lie beside each other
        kernel[0], pads[0], pads[rank] = 1, 0, 0
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    spans = [n + a + b - e for n, a, b, e in zip(size, pads, pads[rank:], extents, strict=False)]
    assume(min(spans) >= 0)
    channels = draw(st.integers(1, 3))
    depthwise = channels > 1 and draw(st.booleans())
    outputs = channels if depthwise else draw(st.integers(1, 4))
    weight = normal(outputs, 1 if depthwise else channels, *kernel, seed=1)
    node = helper.make_node(
        "Conv", ["x", "w", "b"], ["y"], "wide", dilations=dilations, strides=strides, pads=pads,
        group=channels if depthwise else 1,
    )  # fmt: skip
    result = outputs * int(np.prod([s // n + 1 for s, n in zip(spans, strides, strict=True)]))
    constants = {"w": weight, "b": normal(outputs, seed=2)}
    return ending([node], constants, (channels, *size), "y", result), weight


@examples(60)
@given(dilated())
def test_a_dilated_layer_keeps_its_weights_and_computes_what_onnxruntime_does(
    case: tuple[onnx.ModelProto, np.ndarray],
) -> None:
    proto, weight = case
    graph = same_as_onnxruntime(proto)
    layer = next(op for op in graph.ops if isinstance(op, FloatConv))
    assert layer.weight.size == weight.size
    np.testing.assert_array_equal(layer.weight.reshape(weight.shape), weight)


def test_phases_beside_each_other_need_no_zeros_between_them() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "wide", dilations=[4], pads=[4, 4])
    graph = same_as_onnxruntime(ending([node], {"w": normal(5, 3, 3)}, (3, 64), "y", 320))
    first = graph.ops[0]
    assert isinstance(first, Rearrange)
    assert first.size == (4, 16)


def causal(steps: int, cut: int = 4) -> onnx.ModelProto:
    """Two layers that are padded on both sides and cut at the end, as TCN has them."""
    nodes = []
    source = "x"
    for name in ("a", "b"):
        nodes += [
            helper.make_node("Conv", [source, "w"], [f"{name}c"], name, dilations=[2], pads=[4, 4]),
            helper.make_node("Slice", [f"{name}c", "first", "end", "axis"], [f"{name}s"]),
            helper.make_node("Relu", [f"{name}s"], [f"{name}r"]),
        ]
        source = f"{name}r"
    constants = {
        "w": normal(3, 3, 3) / 2,
        "first": np.array([0]),
        "end": np.array([-cut]),
        "axis": np.array([2]),
    }
    return ending(nodes, constants, (3, steps), source, 3 * (steps + 2 * (4 - cut)))


def test_causal_layers_make_nothing_that_is_cut_off() -> None:
    graph = same_as_onnxruntime(causal(13))
    kinds = [type(op) for op in graph.ops]
    assert kinds == 2 * [Rearrange, FloatConv, Rearrange] + [FloatHead]
    assert all(op.clamp.low == 0.0 for op in graph.ops if isinstance(op, FloatConv))


def test_layers_of_one_dilation_follow_each_other_without_sorting() -> None:
    graph = same_as_onnxruntime(causal(12))
    kinds = [type(op) for op in graph.ops]
    assert kinds == [Rearrange, FloatConv, FloatConv, Rearrange, FloatHead]


@pytest.mark.parametrize("cut", [3, 5, 7])
def test_any_number_of_steps_may_be_cut_off(cut: int) -> None:
    same_as_onnxruntime(causal(24, cut))


def block(source: str, name: str, channels: int, dilation: int) -> tuple[
    list[onnx.NodeProto], Constants
]:  # fmt: skip
    """A residual block of a temporal network: two dilated layers, the first of them depthwise."""
    n = f"{name}_"
    nodes = [
        helper.make_node("Conv", [source, n + "w1", n + "b1"], [n + "a"], n + "each",
                         dilations=[dilation], pads=[2 * dilation, 0], group=channels),
        helper.make_node("Relu", [n + "a"], [n + "r"], n + "relu"),
        helper.make_node("Conv", [n + "r", n + "w2", n + "b2"], [n + "c"], n + "full",
                         dilations=[dilation], pads=[dilation, dilation]),
        helper.make_node("Add", [n + "c", source], [n + "s"], n + "join"),
        helper.make_node("Relu", [n + "s"], [n + "y"], n + "bend"),
    ]  # fmt: skip
    constants = {
        n + "w1": normal(channels, 1, 3, seed=dilation),
        n + "b1": normal(channels, seed=3),
        n + "w2": normal(channels, channels, 3, seed=dilation) / 4,
        n + "b2": normal(channels, seed=5) / 4,
    }
    return nodes, constants


def temporal_network() -> onnx.ModelProto:
    """Causal and centred layers, dilated by 1, 2, 4 and 8, over 50 steps: 8 doesn't divide them."""
    nodes: list[onnx.NodeProto] = []
    constants: Constants = {}
    source = "x"
    for dilation in (1, 2, 4, 8):
        more, values = block(source, f"block{dilation}", 6, dilation)
        nodes, constants, source = nodes + more, {**constants, **values}, f"block{dilation}_y"
    return ending(nodes, constants, (6, 50), source, 300)


def test_a_temporal_network_trains_on_devices_as_it_does_in_real_numbers() -> None:
    float_graph = same_as_onnxruntime(temporal_network())
    samples = normal(40, 6, 1, 50, seed=6)
    graph = quantize(float_graph, samples)
    assert {type(op) for op in graph.convolutions} == {Conv, DepthwiseConv}
    codes = quantize_input(graph, samples.transpose(0, 2, 3, 1))
    scores = simulate(graph, codes)[graph.head.name]
    exact = evaluate(float_graph, samples)[float_graph.head.output]
    assert (scores.argmax(axis=1) == exact.argmax(axis=1)).mean() >= 0.95
    trained_gradients_are_exact(graph, codes)


def broadcasted() -> onnx.ModelProto:
    """A block of BC-ResNet: along frequency, then dilated along time on the mean over frequency."""
    nodes = [
        helper.make_node("Conv", ["x", "wf"], ["f"], "frequency", pads=[1, 0, 1, 0], group=6),
        helper.make_node("ReduceMean", ["f"], ["m"], "mean", axes=[2]),
        helper.make_node("Conv", ["m", "wt", "bt"], ["t"], "time", pads=[0, 4, 0, 4],
                         dilations=[1, 4], group=6),
        helper.make_node("Relu", ["t"], ["r"], "bend"),
        helper.make_node("Conv", ["r", "wp"], ["p"], "mix"),
        helper.make_node("Add", ["f", "p"], ["s"], "spread"),
        helper.make_node("Add", ["s", "x"], ["y"], "join"),
    ]  # fmt: skip
    constants = {
        "wf": normal(6, 1, 3, 1) / 2, "wt": normal(6, 1, 1, 3), "bt": normal(6) / 4,
        "wp": normal(6, 6, 1, 1) / 2,
    }  # fmt: skip
    return ending(nodes, constants, (6, 5, 19), "y", 6 * 5 * 19)


def test_a_broadcasted_residual_block_trains_on_devices_as_it_does_in_real_numbers() -> None:
    float_graph = same_as_onnxruntime(broadcasted())
    samples = normal(40, 6, 5, 19, seed=6)
    graph = quantize(float_graph, samples)
    codes = quantize_input(graph, samples.transpose(0, 2, 3, 1))
    scores = simulate(graph, codes)[graph.head.name]
    exact = evaluate(float_graph, samples)[float_graph.head.output]
    assert (scores.argmax(axis=1) == exact.argmax(axis=1)).mean() >= 0.95
    trained_gradients_are_exact(graph, codes)


def test_a_quantized_temporal_network_gives_the_classes_of_onnxruntime(tmp_path: Path) -> None:
    proto = temporal_network()
    samples = normal(40, 6, 50, seed=6)
    onnx.save(proto, tmp_path / "float.onnx")
    onnxruntime_oracle.quantize_file(tmp_path / "float.onnx", tmp_path / "int8.onnx", samples)
    quantized = onnx.load(tmp_path / "int8.onnx")
    found = int8_outputs(import_proto(quantized, loss="cross-entropy"), samples)
    expected = onnxruntime_oracle.outputs(quantized, samples)
    assert onnxruntime_oracle.agreement(found, expected) >= 0.95


def side_by_side(size: list[int], phases: list[int], channels: int) -> onnx.ModelProto:
    """A convolution of pictures of each phase in a batch, as TensorFlow's converters write it."""
    rank, kernel = len(size), [3] * len(size)
    wide = [n + 2 * d for n, d in zip(size, phases, strict=True)]  # zeros before, for causality
    parts = [n // d for n, d in zip(wide, phases, strict=True)]
    made = [n - 2 for n in parts]
    split = [each for pair in zip(parts, phases, strict=True) for each in pair]
    axes = list(range(1, rank + 1))
    order = [*(2 * a for a in axes), 0, *(2 * a - 1 for a in axes), 2 * rank + 1]
    back = [rank, *(p for a in axes for p in (rank + a, a - 1)), 2 * rank + 1]
    constants = {
        "pads": np.array([0, *(2 * d for d in phases), 0, *[0] * (rank + 2)]),
        "split": np.array([1, *split, channels]),
        "batch": np.array([-1, *parts, channels]),
        "apart": np.array([*phases, 1, *made, 4]),
        "whole": np.array([1, *size, 4]),
        "w": normal(4, channels, *kernel, seed=1),
        "b": normal(4, seed=2),
    }
    first, last = [0, rank + 1, *axes], [0, *range(2, rank + 2), 1]
    lines: list[tuple[str, str, str, dict[str, object]]] = [
        ("Pad", "x pads", "padded", {}),
        ("Reshape", "padded split", "parted", {}),
        ("Transpose", "parted", "sorted", {"perm": order}),
        ("Reshape", "sorted batch", "batched", {}),
        ("Transpose", "batched", "turned", {"perm": first}),
        ("Conv", "turned w b", "conv", {}),
        ("Transpose", "conv", "last", {"perm": last}),
        ("Reshape", "last apart", "divided", {}),
        ("Transpose", "divided", "merged", {"perm": back}),
        ("Reshape", "merged whole", "y", {}),
    ]
    nodes = [
        helper.make_node(operator, inputs.split(), [output], output, **attributes)
        for operator, inputs, output, attributes in lines
    ]
    return ending(nodes, constants, (*size, channels), "y", int(np.prod(size)) * 4)


@pytest.mark.parametrize(
    ("size", "phases"), [([12], [3]), ([8, 6], [2, 2]), ([6, 8], [3, 1]), ([4, 6], [1, 2])]
)
def test_phases_side_by_side_in_a_batch_are_a_dilation(size: list[int], phases: list[int]) -> None:
    graph = same_as_onnxruntime(side_by_side(size, phases, 3), count=1)
    samples = normal(40, *size, 3, seed=6)
    got = int8_outputs(graph, samples)
    exact = evaluate(graph, graph.arrange(samples))[graph.head.output]
    assert np.abs(got - exact).max() < 0.06 * np.ptp(exact)
