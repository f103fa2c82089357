"""Integers of convolutions: the file's own arithmetic, whatever scales its channels have."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from codegen.arithmetic.layers import bias_limit, convolution_arithmetic, logit_scale
from codegen.compile import build_host_engine
from codegen.errors import ModelError
from codegen.firmware.host_engine import HostEngine
from codegen.graph.floats import FloatConv, StoredIntegers
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Tensor, inputs_of
from codegen.importer.model import import_proto
from codegen.operators.add import Add
from codegen.operators.execution import output_of
from codegen.program.lowering import lower
from codegen.quantization.channel_scales import quantize_channels
from codegen.quantization.checks import check_integers
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate
from tests.codegen.onnxruntime_oracle import codes_of, outputs
from tests.codegen.quantized_network import Channels, Code, QuantizedNetwork, random_quantized
from tests.codegen.random_graphs import full_plan
from tests.conftest import examples


def assert_computes_as_the_file(model: onnx.ModelProto, x: NDArray[np.float32]) -> Graph:
    """Every layer, on the codes that the file's arithmetic gives it, makes the file's codes.

    Single codes may be off by one, where float32 falls on the other side of a half, and the one
    code that a channel of zeros has everywhere, whose bias is rounded.
    """
    graph = quantize(import_proto(model), None)
    coded = {name: codes.transpose(0, 2, 3, 1) for name, codes in codes_of(model, x).items()}
    tensor_of = {graph.input: "x"}
    tensor_of |= {
        op.output: name
        for op in graph.ops[:-1]
        for name in (op.name, f"{op.name}.relu")
        if name in coded
    }
    checked = 0
    for op in graph.ops:
        if not isinstance(op, (Conv, DepthwiseConv, Add)):
            continue
        made = output_of(graph, op, [coded[tensor_of[name]] for name in inputs_of(op)])
        difference = np.abs(made - coded[tensor_of[op.output]])
        assert difference.max() <= 1, (op.name, difference.max(axis=(0, 1, 2)))
        constant = np.ptp(made.reshape(-1, made.shape[-1]), axis=0) == 0
        assert (difference[..., ~constant] > 0).sum() < 0.02 * difference.size, op.name
        checked += 1
    assert checked > 0
    return graph


# A dead channel of scale 1 beside a tiny one, whose bias is at the end of int32.
ZERO_AND_TINY = Channels(
    np.array([[127, 5], [0, 0], [1, -1], [-38, 127]])[:, :, None, None],
    [1.8e-3, 1.0, 3.4928e-8, 3.77e-3],
    [2771, 40, 2147268971, -1327],
)
HEAD = Channels(
    np.array([[39, -115, -54, 73], [-127, -16, 44, 12], [9, -60, 17, 101]]), [0.0057] * 3, [0] * 3
)
SIGNAL = np.random.default_rng(7).normal(0, 1, (16, 2, 4, 4)).astype(np.float32)


def zero_and_tiny() -> onnx.ModelProto:
    network = QuantizedNetwork((2, 4, 4), Code(0.02, 0, np.int8))
    network.conv("conv", ZERO_AND_TINY, Code(0.01))
    return network.finish(HEAD)


def test_a_dead_channel_of_scale_1_changes_nothing_for_a_tiny_one(tmp_path: Path) -> None:
    model = zero_and_tiny()
    graph = assert_computes_as_the_file(model, SIGNAL)
    program = lower(graph, full_plan(graph))
    library = build_host_engine((graph, [program]), tmp_path / "engine.so")
    engine = HostEngine(library, program.plan.id)
    expected = outputs(model, SIGNAL)
    codes = quantize_input(graph, np.moveaxis(SIGNAL, 1, -1))
    for sample, logits in zip(codes, expected, strict=True):
        engine.score(sample, 0)
        np.testing.assert_allclose(engine.logits * logit_scale(graph), logits, atol=0.02)
    # The tiny channel's output is 1.5, of a range of 2.55.
    np.testing.assert_allclose(simulate(graph, codes)["conv"][:, 2], 1.5, atol=0.011)


def test_a_filter_of_zeros_over_raw_pixels_compiles_and_is_right() -> None:
    random = np.random.default_rng(2)
    weight = random.integers(-127, 128, (4, 3, 7, 7))
    weight[3] = 0
    network = QuantizedNetwork((3, 16, 16), Code(1.0))
    channels = Channels(weight, [1.07e-4, 1e-4, 1.14e-4, 1.0], np.zeros(4))
    network.conv("conv", channels, Code(0.01), stride=2)
    x = random.integers(0, 256, (8, 3, 16, 16)).astype(np.float32)
    graph = assert_computes_as_the_file(network.finish(HEAD), x)
    scale = graph.convolutions[0].weight_scale
    assert scale[3] == np.median(scale[:3])


@examples(100)
@given(seed=st.integers(0, 100_000))
@example(seed=0)
@example(seed=3881)
def test_channels_of_any_scales_compute_as_the_file_does(seed: int) -> None:
    assert_computes_as_the_file(*random_quantized(seed))


@examples(8)
@given(seed=st.integers(0, 100_000))
def test_a_layer_of_any_scales_trains_with_errors_that_fit(seed: int) -> None:
    graph = quantize(import_proto(random_quantized(seed)[0]), None)
    for op in graph.convolutions:
        constants = convolution_arithmetic(graph, op)
        assert (constants.pre_shift <= 23).all()
        assert np.abs(op.bias.astype(np.int64)).max() <= constants.bias_limit


def stored(
    weight: NDArray[np.int64], scale: list[float], bias: list[float], *, real_bias: bool = False
) -> FloatConv:
    """A quantized layer without its file."""
    scales, biases = np.array(scale), np.array(bias)
    integers = None if real_bias else biases.astype(np.int32)
    shaped = weight.reshape(len(scale), -1, 1, 1)
    return FloatConv(
        "layer", "x", "y", shaped * scales[:, None, None, None],
        biases if real_bias else biases * scales * SOURCE.scale,
        stored=StoredIntegers(shaped.astype(np.int16), scales, integers),
    )  # fmt: skip


SOURCE, RESULT = Tensor("x", (1, 1, 2), 0.02, 0), Tensor("y", (1, 1, 4), 0.01, -128)


def test_integers_that_can_be_held_stay_as_they_are() -> None:
    weight = np.array([[127, 3], [0, 0], [1, -1], [0, 0]])
    scale, bias = [0.004, 0.003, 1e-8, 0.001], [100, -300, 2**31 - 1 - 2 * 127 * 255, 7]
    kept = quantize_channels(stored(weight, scale, bias), SOURCE, RESULT)
    assert np.array_equal(kept.weight[:, :, 0, 0], weight)
    assert kept.scale.tolist() == scale
    assert kept.bias.tolist() == bias


@pytest.mark.parametrize("dead_scale", [1.0, 37.5, 1e-9, 1e-30])
@pytest.mark.parametrize("height", [0.8, 0.805, -0.2, 1e4])
def test_a_filter_of_zeros_gets_the_median_scale_and_keeps_its_output(
    dead_scale: float, height: float
) -> None:
    weight = np.array([[127, 3], [0, 0], [5, -127], [127, 127]])
    bias = [0.1, height, 0.2, 0.3]
    layer = stored(weight, [0.004, dead_scale, 0.003, 0.007], bias, real_bias=True)
    made = quantize_channels(layer, SOURCE, RESULT)
    step = made.scale[1] * SOURCE.scale
    if abs(height) < 100:
        assert made.scale[1] == 0.004
    assert made.bias[1] * step == pytest.approx(height, abs=step)
    code = np.floor(made.bias[1] * step / RESULT.scale + 0.5)
    assert code == np.rint(np.float32(height) / np.float32(RESULT.scale)) or code > 256
    assert not made.weight[1].any()


def test_where_all_filters_are_zeros_an_input_step_can_become_an_output_step() -> None:
    made = quantize_channels(stored(np.zeros((2, 2)), [1.0, 1e-9], [4, 5]), SOURCE, RESULT)
    np.testing.assert_allclose(made.scale, RESULT.scale / (SOURCE.scale * 127))
    assert made.bias[0] * made.scale[0] * SOURCE.scale == pytest.approx(0.08, abs=RESULT.scale / 8)


@pytest.mark.parametrize("real_bias", [False, True])
def test_a_bias_beyond_int32_is_held_in_coarser_steps(real_bias: bool) -> None:
    scale, height = 4e-10 if real_bias else 3.7e-8, 1.59
    bias = height if real_bias else -(2**31)
    if not real_bias:
        height = bias * scale * SOURCE.scale
    weight = np.array([[127, 3], [90, -127]])
    layer = stored(weight, [0.004, scale], [0.0, bias], real_bias=real_bias)
    made = quantize_channels(layer, SOURCE, RESULT)
    assert made.bias[1] * made.scale[1] * SOURCE.scale == pytest.approx(height, rel=1e-6)
    assert np.abs(made.bias.astype(np.int64)).max() <= bias_limit("layer", 2)
    lost = weight[1] * scale - made.weight[1, :, 0, 0] * made.scale[1]
    assert np.abs(lost).max() <= made.scale[1] / 2


def test_a_bias_that_cannot_be_held_without_spoiling_its_weights_is_refused_by_name() -> None:
    terms = 60_000  # which leave a bias a tenth of int32
    weight = np.full((2, terms), 1)
    weight[0] = 127
    layer = stored(weight, [1e-5, 3.7e-8], [0.0, 2.0e9])
    with pytest.raises(ModelError, match=r"layer layer: the bias of channel 1 is 2000000000 steps"):
        quantize_channels(layer, SOURCE, RESULT)


def test_float_layers_of_many_products_leave_them_room() -> None:
    terms = 60_000
    weight = np.zeros((2, terms, 1, 1))
    weight[:, 0] = 1e-4
    layer = FloatConv("layer", "x", "y", weight, np.array([0.0, 90.0]))
    made = quantize_channels(layer, SOURCE, RESULT)
    assert np.abs(made.bias).max() <= bias_limit("layer", terms)
    assert made.bias[1] * made.scale[1] * SOURCE.scale == pytest.approx(90.0)


def test_weights_of_minus_128_are_held_as_minus_127_and_noted() -> None:
    weight = np.array([[-128, 3], [5, -128]])
    layer = stored(weight, [0.004, 0.003], [0, 0])
    assert quantize_channels(layer, SOURCE, RESULT).weight.min() == -127
    network = QuantizedNetwork((2, 4, 4), Code(0.02, 0, np.int8))
    lowest = ZERO_AND_TINY.weight.copy()
    lowest[0, 0] = -128
    network.conv("conv", dataclasses.replace(ZERO_AND_TINY, weight=lowest), Code(0.01))
    float_graph = import_proto(network.finish(HEAD))
    found = check_integers(quantize(float_graph, None), float_graph)
    assert [(f.layer, f.value) for f in found if f.check == "lowest-weights"] == [("conv", 1.0)]
