"""Quantization: bounds on what it costs, exactness where it promises exactness, refusals."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.errors import CalibrationError
from codegen.graph import ir
from codegen.graph.floats import NO_CLAMP, Clamp, Coding, FloatConv, FloatGraph, FloatHead
from codegen.importer.model import import_model
from codegen.operators.add import FloatAdd
from codegen.operators.average_pool import AveragePool
from codegen.operators.execution import evaluate, execute
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.quantization.calibration import Method, RangeRule, activation_code
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import compare, simulate
from simulator.world import digits

EXAMPLE = Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture(scope="module")
def digit_float() -> FloatGraph:
    return import_model(EXAMPLE / "digits.onnx")


@pytest.fixture(scope="module")
def digit_graph(digit_float: FloatGraph) -> ir.Graph:
    return quantize(digit_float, load_calibration(EXAMPLE / "calibration.npz"))


def small_graph(seed: int = 0, clamp: Clamp = NO_CLAMP) -> FloatGraph:
    """3x5x4 input, convolution, depthwise, residual sum, pool, head."""
    random = np.random.default_rng(seed)
    conv = FloatConv(
        "conv", "x", "conv", random.normal(size=(6, 3, 1, 1)), random.normal(size=6), clamp=clamp
    )
    depthwise = FloatConv(
        "dw", "conv", "dw", random.normal(size=(6, 1, 3, 3)), random.normal(size=6), groups=6,
        padding=ir.Padding(1, 1, 1, 1),
    )  # fmt: skip
    head = FloatHead("head", "pool", "head", random.normal(size=(4, 6)), random.normal(size=4))
    ops = (
        conv,
        depthwise,
        FloatAdd("sum", ("conv", "dw"), "sum"),
        GlobalAveragePool("pool", "sum", "pool"),
        head,
    )
    shapes = dict.fromkeys(("conv", "dw", "sum"), (6, 5, 4))
    return FloatGraph("small", "x", {"x": (3, 5, 4), **shapes, "pool": (6, 1, 1)}, ops)


def inputs(count: int = 40, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, 5, 4)).astype(np.float32)


def test_the_quantized_digit_model_classifies_as_well_as_the_float_one(
    digit_float: FloatGraph, digit_graph: ir.Graph
) -> None:
    x, y = digits.load()
    rest = digits.lab_split()[1]
    logits = simulate(digit_graph, quantize_input(digit_graph, x[rest]))["head"]
    exact = evaluate(digit_float, x[rest].transpose(0, 3, 1, 2))["head"]
    quantized_accuracy = float(np.mean(logits.argmax(1) == y[rest]))
    assert quantized_accuracy >= float(np.mean(exact.argmax(1) == y[rest])) - 0.01
    assert quantized_accuracy >= 0.95


def test_every_layer_keeps_25_decibels_of_signal_to_noise(
    digit_float: FloatGraph, digit_graph: ir.Graph
) -> None:
    x = digits.load()[0][digits.lab_split()[1][:100]].transpose(0, 3, 1, 2)
    layers = compare(digit_float, digit_graph, x).layers
    assert len(layers) == len(digit_graph.ops) + 1
    assert all(layer.accumulated.sqnr_db > 25.0 for layer in layers if layer.accumulated.sqnr_db)


def test_weights_are_within_half_a_step_of_the_real_ones() -> None:
    graph = small_graph()
    quantized = quantize(graph, inputs())
    conv, depthwise = quantized.convolutions
    real, real_depthwise = graph.ops[0].weight, graph.ops[1].weight  # type: ignore[union-attr]
    error = conv.weight * conv.weight_scale[:, None, None, None] - real.transpose(0, 2, 3, 1)
    assert (np.abs(error) <= conv.weight_scale[:, None, None, None] * 0.5001).all()
    error = depthwise.weight * depthwise.weight_scale - real_depthwise[:, 0].transpose(1, 2, 0)
    assert (np.abs(error) <= depthwise.weight_scale * 0.5001).all()
    assert (np.abs(conv.weight).max(axis=(1, 2, 3)) == 127).all()
    head = graph.head
    step = quantized.head.weight_scale / 256
    assert np.abs(quantized.head.weight * step - head.weight).max() <= step * 0.5001
    # A quarter of the range: a head that is trained can grow.
    assert np.abs(quantized.head.weight).max() == 127 * 256 // 4


def test_shapes_are_those_that_the_device_uses() -> None:
    quantized = quantize(small_graph(), inputs())
    assert quantized.tensors["x"].shape == (5, 4, 3)
    conv, depthwise = quantized.convolutions
    assert conv.weight.shape == (6, 1, 1, 3)
    assert isinstance(depthwise, ir.DepthwiseConv)
    assert depthwise.weight.shape == (3, 3, 6)
    assert all(op.bias.dtype == np.int32 for op in (conv, depthwise, quantized.head))


def test_a_mean_of_many_pixels_has_a_scale_of_its_own_where_its_inputs_would_waste_its_codes() -> (
    None
):
    graph, size = small_graph(), (20, 20)
    shapes = {name: (shape[0], *size) for name, shape in graph.shapes.items()}
    graph = dataclasses.replace(graph, shapes={**shapes, "pool": (6, 1, 1)})
    x = np.random.default_rng(1).normal(size=(40, 3, *size)).astype(np.float32)
    quantized = quantize(graph, x)
    source, mean = (quantized.tensors[name] for name in ("sum", "pool"))
    assert mean.scale < source.scale / 4
    assert any(isinstance(op, AveragePool) for op in quantized.ops)
    (exact,) = (values for op, _, values in execute(graph, x) if op.output == "pool")
    found = simulate(quantized, quantize_input(quantized, x.transpose(0, 2, 3, 1)))["pool"]
    assert np.abs(found.reshape(exact.shape) - exact).mean() < source.scale / 8
    # A file that codes what the mean is of, and not the mean, has chosen for both.
    coded = dataclasses.replace(graph, codings={"sum": Coding(source.scale, source.zero_point)})
    kept = quantize(coded, x).tensors["pool"]
    assert (kept.scale, kept.zero_point) == (source.scale, source.zero_point)


def test_the_pool_keeps_scale_and_zero_point_of_its_input() -> None:
    tensors = quantize(small_graph(), inputs()).tensors
    assert (tensors["pool"].scale, tensors["pool"].zero_point) == (
        tensors["sum"].scale,
        tensors["sum"].zero_point,
    )


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 6.0), (-1.0, 1.0), (-3.0, 0.0), (2.0, 5.0), (-1e-9, 1e6), (-7.0, -2.0)]
)
def test_activation_codes_hold_the_range_and_an_exact_zero(low: float, high: float) -> None:
    scale, zero_point = activation_code(low, high)
    assert -128 <= zero_point <= 127
    bottom, top = scale * (-128 - zero_point), scale * (127 - zero_point)
    assert bottom <= min(low, 0.0) + scale * 0.501
    assert top >= max(high, 0.0) - scale * 0.501


def test_a_tensor_that_is_always_zero_gets_a_finite_scale() -> None:
    scale, zero_point = activation_code(0.0, 0.0)
    assert scale > 0
    assert -128 <= zero_point <= 127


def test_after_a_relu_the_lowest_code_is_real_zero_and_the_range_ends_at_the_clip() -> None:
    graph = small_graph(clamp=Clamp(0.0, 0.5))
    tensor = quantize(graph, inputs()).tensors["conv"]
    assert tensor.zero_point == -128
    assert math.isclose(tensor.scale * 255, 0.5)


@pytest.mark.parametrize("clamp", [Clamp(low=0.0), Clamp(high=0.0), Clamp(0.0, 6.0)])
def test_an_activation_that_calibration_never_wakes_gives_zeros_as_in_float(clamp: Clamp) -> None:
    away = -100.0 if clamp.low == 0.0 else 100.0
    graph = with_first_conv(bias=np.full(6, away), clamp=clamp)
    made = quantize(graph, inputs())
    codes = quantize_input(made, inputs(seed=2).transpose(0, 2, 3, 1))
    assert not simulate(made, codes)["conv"].any()


def test_a_clip_that_calibration_never_reaches_does_not_widen_the_range() -> None:
    graph = small_graph(clamp=Clamp(0.0, 1000.0))
    largest = evaluate(graph, inputs())["conv"].max()
    scale = quantize(graph, inputs()).tensors["conv"].scale
    assert math.isclose(scale * 255, largest, rel_tol=2.0**-24)


def with_first_conv(**changes: object) -> FloatGraph:
    graph = small_graph()
    first = dataclasses.replace(graph.ops[0], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(graph, ops=(first, *graph.ops[1:]))


def test_channels_of_zeros_get_a_scale_in_which_their_bias_is_still_right() -> None:
    first = small_graph().ops[0]
    assert isinstance(first, FloatConv)
    weight, bias = first.weight.copy(), np.array([1e-3, 2.0, -300.0, 0.0, 5.0, 1.0])
    weight[1:4] = 0.0
    graph = with_first_conv(weight=weight, bias=bias)
    quantized = quantize(graph, inputs())
    conv = quantized.convolutions[0]
    assert (conv.weight[1:4] == 0).all()
    real = conv.bias * conv.weight_scale * quantized.tensors["x"].scale
    np.testing.assert_allclose(real, bias, atol=1e-3)


def test_biases_of_tiny_weights_do_not_overflow() -> None:
    first = small_graph().ops[0]
    assert isinstance(first, FloatConv)
    graph = with_first_conv(weight=first.weight * 1e-15, bias=np.full(6, 4.0))
    quantized = quantize(graph, inputs())
    conv = quantized.convolutions[0]
    real = conv.bias * conv.weight_scale * quantized.tensors["x"].scale
    np.testing.assert_allclose(real, 4.0, rtol=1e-4)
    assert np.abs(conv.bias.astype(np.int64)).max() <= 2**30


def test_biases_far_beyond_what_the_output_codes_do_not_overflow() -> None:
    first = small_graph().ops[0]
    assert isinstance(first, FloatConv)
    graph = with_first_conv(weight=first.weight, bias=np.full(6, -1e9), clamp=Clamp(0.0, 6.0))
    conv = quantize(graph, inputs()).convolutions[0]
    assert (conv.bias < 0).all()
    assert np.abs(conv.bias.astype(np.int64)).max() <= 2**30


def test_dead_channels_of_batch_normalization_get_a_scale_that_training_can_use() -> None:
    """Weights of 1e-9 that a bias of -0.4 keeps below a Relu, as pretrained networks have them."""
    first = small_graph().ops[0]
    assert isinstance(first, FloatConv)
    weight, bias = first.weight.copy(), first.bias.copy()
    weight[2], bias[2] = 4e-9, -0.4
    graph = with_first_conv(weight=weight, bias=bias, clamp=Clamp(low=0.0))
    quantized = quantize(graph, inputs())
    conv = quantized.convolutions[0]
    assert (conv.weight[2] == 0).all()
    assert conv.weight_scale[2] == np.median(np.delete(conv.weight_scale, 2))
    step = conv.weight_scale[2] * quantized.tensors["x"].scale
    assert abs(conv.bias[2] * step + 0.4) <= step / 2


def test_weights_that_move_the_output_by_more_than_half_a_step_keep_their_scale() -> None:
    first = small_graph().ops[0]
    assert isinstance(first, FloatConv)
    plain = quantize(small_graph(), inputs())
    half_step = plain.tensors["conv"].scale / 2
    reach = plain.tensors["x"].scale * 128 * np.abs(first.weight[2]).sum()
    for share, kept in ((1.5, True), (0.5, False)):
        weight = first.weight.copy()
        weight[2] *= share * half_step / reach
        quantized = quantize(with_first_conv(weight=weight), inputs())
        assert (np.abs(quantized.convolutions[0].weight[2]).max() == 127) == kept


def test_quantize_input_inverts_to_within_half_a_step_and_saturates_outside() -> None:
    graph = quantize(small_graph(), inputs())
    tensor = graph.tensors["x"]
    x = inputs(3).transpose(0, 2, 3, 1)
    codes = quantize_input(graph, x)
    assert codes.dtype == np.int8
    assert codes.shape == x.shape
    low, high = (tensor.scale * (end - tensor.zero_point) for end in (-128, 127))
    back = tensor.scale * (codes.astype(float) - tensor.zero_point)
    assert np.abs(back - np.clip(x, low, high)).max() <= tensor.scale * 0.5001
    assert (quantize_input(graph, np.full((5, 4, 3), 1e9)) == 127).all()
    assert (quantize_input(graph, np.full((5, 4, 3), -1e9)) == -128).all()


def test_quantize_input_refuses_channels_first() -> None:
    graph = quantize(small_graph(), inputs())
    with pytest.raises(ValueError, match="last three dimensions"):
        quantize_input(graph, inputs(3))


def test_a_calibration_set_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CalibrationError, match="--calibration FILE"):
        quantize(small_graph(), None)
    with pytest.raises(CalibrationError, match=r"needs \(samples, 3, 5, 4\)"):
        quantize(small_graph(), inputs().transpose(0, 2, 3, 1))


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_methods_that_saturate_narrow_the_ranges_of_tensors_with_outliers(method: Method) -> None:
    samples = inputs(400)
    samples[0] *= 30.0
    wide = quantize(small_graph(), samples).tensors
    narrow = quantize(small_graph(), samples, RangeRule(method, 99.5)).tensors
    assert narrow["x"].scale < 0.95 * wide["x"].scale
    assert all(narrow[name].scale <= wide[name].scale for name in wide)
