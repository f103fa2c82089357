"""tf_depthwise_forward against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codegen.program.scratch import depthwise_forward_bytes
from simulator.machines.kernel_call import Struct, View
from tests.conftest import examples
from tests.device_runtime.kernels.calls import Ints, Scratch, call_all
from tests.device_runtime.kernels.convolution_layers import Depthwise, depthwise_layers

PLAIN = Depthwise(8, 8, 4, (3, 3), (1, 1), (1, 1, 1, 1), -128, -128, False, 9, 0, 1)
SEVEN = Depthwise(8, 8, 3, (7, 7), (2, 2), (3, 3, 3, 3), -128, 5, False, 9, 0, 2)
UNSEEN = Depthwise(1, 1, 5, (3, 3), (3, 3), (7, 7, 0, 0), 9, -128, False, 4, 0, 2)
"""No window meets the image."""
ONE_TAP = Depthwise(5, 4, 4, (1, 1), (1, 1), (0, 0, 1, 2), 9, -128, False, 4, 0, 3)
"""Padding at the bottom and the right only."""
SPEECH = Depthwise(12, 9, 2, (10, 4), (2, 2), (4, 1, 5, 1), 0, -128, True, 9, 0, 3)


def scratch_for(layer: Depthwise, rows: int) -> Scratch:
    """As much as the compiler plans for."""
    return Scratch(depthwise_forward_bytes(layer.op, layer.source, layer.target, rows))


def in_ring(rows: Ints, height: int, ring: int, first: int, end: int) -> Ints:
    """Rows first … end - 1 at their places in a ring; garbage elsewhere."""
    held = np.full((ring, *rows.shape[1:]), 77, np.int64)
    for y in range(max(first, 0), min(end, height)):
        held[y % ring] = rows[y]
    return held


@examples(150)
@given(depthwise_layers())
@example(PLAIN)
@example(SEVEN)
@example(SPEECH)
@example(UNSEEN)
@example(ONE_TAP)
def test_output_and_mask_are_those_of_the_specification(layer: Depthwise) -> None:
    codes = layer.codes(layer.height, layer.width)
    values = layer.values_before_clamp(codes)
    output = np.zeros(values.shape, np.int8)
    mask = np.full(-(-values.size // 8), 0x55, np.uint8)
    span = Struct(*(("H", n) for n in (0, layer.out_height, layer.height, layer.out_height)))
    call_all(
        "tf_depthwise_forward",
        [
            layer.struct(),
            span,
            codes.astype(np.int8),
            layer.weights_struct(),
            layer.biases().astype(np.int32),
            output,
            mask,
            scratch_for(layer, layer.out_height),
        ],
    )
    clamped = np.clip(values, -128, 127)
    np.testing.assert_array_equal(output, clamped)
    passed = np.packbits((clamped == values).ravel(), bitorder="little")
    np.testing.assert_array_equal(mask, passed)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_codes_may_lie_anywhere(first: int) -> None:
    layer = PLAIN
    codes = layer.codes(layer.height, layer.width)
    values = layer.values_before_clamp(codes)
    source = np.concatenate([np.zeros(first), codes.ravel()]).astype(np.int8)
    output = np.zeros(first + values.size, np.int8)
    span = Struct(*(("H", n) for n in (0, layer.out_height, layer.height, layer.out_height)))
    call_all(
        "tf_depthwise_forward",
        [
            layer.struct(),
            span,
            View(source, first),
            layer.weights_struct(),
            layer.biases().astype(np.int32),
            View(output, first),
            None,
            scratch_for(layer, layer.out_height),
        ],
    )
    np.testing.assert_array_equal(output[first:], np.clip(values, -128, 127).ravel())


@examples(80)
@given(depthwise_layers())
@example(PLAIN)
def test_output_may_begin_where_the_input_begins(layer: Depthwise) -> None:
    codes = layer.codes(layer.height, layer.width)
    wanted = np.clip(layer.values_before_clamp(codes), -128, 127)
    place = np.zeros(max(codes.size, wanted.size), np.int8)
    place[: codes.size] = codes.ravel()
    rows = (0, layer.out_height, layer.height, layer.out_height)
    span = Struct(*(("H", n) for n in rows))
    call_all(
        "tf_depthwise_forward",
        [
            layer.struct(),
            span,
            place,
            layer.weights_struct(),
            layer.biases().astype(np.int32),
            place,
            None,
            scratch_for(layer, layer.out_height),
        ],
    )
    np.testing.assert_array_equal(place[: wanted.size].reshape(wanted.shape), wanted)


@examples(150)
@given(depthwise_layers(), st.data())
def test_spans_of_rows_read_and_write_rings(layer: Depthwise, data: st.DataObject) -> None:
    codes = layer.codes(layer.height, layer.width)
    first = data.draw(st.integers(0, layer.out_height - 1))
    end = data.draw(st.integers(first + 1, layer.out_height))
    low = first * layer.stride[0] - layer.pad[0]
    high = (end - 1) * layer.stride[0] - layer.pad[0] + layer.kernel[0]
    needed = max(1, min(high, layer.height) - max(low, 0))
    ring = data.draw(st.integers(needed, max(needed, layer.height)))
    out_ring = data.draw(st.integers(end - first, max(end - first, layer.out_height)))
    output = np.full((out_ring, layer.out_width, layer.channels), 55, np.int8)
    span = Struct(*(("H", n) for n in (first, end, ring, out_ring)))
    call_all(
        "tf_depthwise_forward",
        [
            layer.struct(),
            span,
            in_ring(codes, layer.height, ring, low, high).astype(np.int8),
            layer.weights_struct(),
            layer.biases().astype(np.int32),
            output,
            None,
            scratch_for(layer, end - first),
        ],
    )
    expected = np.full(output.shape, 55, np.int64)
    values = np.clip(layer.values_before_clamp(codes), -128, 127)
    for y in range(first, end):
        expected[y % out_ring] = values[y]
    np.testing.assert_array_equal(output, expected)
