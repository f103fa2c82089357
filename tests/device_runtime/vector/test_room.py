"""Layers for which panels, rings or sums of the host's vector kernels have no room."""

import numpy as np
import pytest

from simulator.machines.kernel_call import Struct, View
from tests.device_runtime.kernels.calls import on_vector_units
from tests.device_runtime.kernels.convolution_case import Case
from tests.device_runtime.kernels.convolution_layers import Depthwise
from tests.device_runtime.kernels.error_case import scale_of
from tests.device_runtime.kernels.test_convolution import forward, scratch_of
from tests.device_runtime.kernels.test_convolution_update import check as check_update
from tests.device_runtime.kernels.test_depthwise import scratch_for


@pytest.mark.parametrize("trained", [(), (1, 2, 700)])
@pytest.mark.parametrize(("inputs", "outputs"), [(1100, 203), (7000, 3)])
def test_codes_of_weights_that_fill_no_panels_are_those_of_numpy(
    inputs: int, outputs: int, trained: tuple[int, ...]
) -> None:
    case = Case(1, 6, inputs, outputs, (1, 1), (1, 1), (0, 0, 0, 0), trained, seed=inputs)
    for engine in on_vector_units():
        output, mask = forward(engine, case)
        np.testing.assert_array_equal(output, case.output)
        np.testing.assert_array_equal(mask, case.mask)


def test_such_codes_may_lie_over_their_input() -> None:
    case = Case(3, 5, 900, 900, (1, 1), (1, 1), (0, 0, 0, 0), (), seed=4)
    for engine in on_vector_units():
        place = case.input.copy()
        span, weights = case.span(0, 3), case.tf_weights
        arguments = [place, weights, case.bias, View(place, 0), None, scratch_of(case), 4]
        engine.call("tf_convolution_forward", case.layer, span, *arguments)
        np.testing.assert_array_equal(place, case.output)


@pytest.mark.parametrize("pixels", [31, 32, 33, 67])
def test_codes_of_many_pixels_are_made_in_several_goes(pixels: int) -> None:
    for kernel, edge in (((1, 1), 0), ((3, 3), 1)):
        case = Case(2, pixels, 12, 19, kernel, (1, 1), (edge,) * 4, (), seed=pixels)
        for engine in on_vector_units():
            output, mask = forward(engine, case)
            np.testing.assert_array_equal(output, case.output)
            np.testing.assert_array_equal(mask, case.mask)


def test_rows_too_long_for_a_ring_have_the_codes_and_errors_of_numpy() -> None:
    layer = Depthwise(8, 700, 3, (7, 7), (1, 1), (3, 3, 3, 3), -128, 5, False, 9, 0, 2)
    codes, errors = layer.codes(layer.height, layer.width), layer.errors()
    values = np.clip(layer.values_before_clamp(codes), -128, 127)
    wanted, exponent = layer.input_gradient(errors)
    for engine in on_vector_units():
        output = np.zeros(values.shape, np.int8)
        span = Struct(*(("H", n) for n in (0, 8, 8, 8)))
        weights, biases = layer.weights_struct(), layer.biases().astype(np.int32)
        scratch = scratch_for(layer, layer.out_height)
        arguments = [codes.astype(np.int8), weights, biases, output, None, scratch]
        engine.call("tf_depthwise_forward", layer.struct(), span, *arguments)
        np.testing.assert_array_equal(output, values)
        out, scale = np.zeros(wanted.shape, np.int16), Struct(("i", 0), ("i", 0))
        scratch = np.zeros(1 << 18, np.int16)
        arguments = [errors.astype(np.int16), scale_of(errors, -9), weights, out, scale, scratch]
        engine.call("tf_depthwise_input_gradient", layer.struct(), *arguments)
        np.testing.assert_array_equal(out, wanted)
        assert scale.values == [-9 + exponent, int(np.abs(wanted).max())]


@pytest.mark.parametrize("pad", [(0, 0, 6, 6), (3, 3, 3, 3), (6, 6, 0, 0)])
def test_strides_whose_output_has_the_size_of_the_input_work_in_its_place(
    pad: tuple[int, int, int, int],
) -> None:
    layer = Depthwise(5, 5, 21, (3, 3), (2, 2), pad, -7, 5, False, 9, 0, 2)
    assert (layer.out_height, layer.out_width) == (5, 5)
    codes, errors = layer.codes(5, 5), layer.errors()
    span = Struct(*(("H", 5 * (i > 0)) for i in range(4)))
    wanted, _ = layer.input_gradient(errors)
    for engine in on_vector_units():
        place, weights = codes.astype(np.int8), layer.weights_struct()
        biases, scratch = layer.biases().astype(np.int32), scratch_for(layer, 5)
        arguments = [place, weights, biases, place, None, scratch]
        engine.call("tf_depthwise_forward", layer.struct(), span, *arguments)
        np.testing.assert_array_equal(place, np.clip(layer.values_before_clamp(codes), -128, 127))
        error, scale = errors.astype(np.int16), scale_of(errors, -9)
        arguments = [error, scale, weights, error, scale, np.zeros(1 << 14, np.int16)]
        engine.call("tf_depthwise_input_gradient", layer.struct(), *arguments)
        np.testing.assert_array_equal(error, wanted)


@pytest.mark.parametrize("outputs", [128, 140])
def test_errors_that_find_no_room_leave_the_weights_of_numpy(outputs: int) -> None:
    case = Case(16, 16, 18, outputs, (1, 1), (1, 1), (0, 0, 0, 0), tuple(range(17)), seed=9)
    check_update(on_vector_units(), case, case.error(900), -6, exact=True)
