"""The host's vector kernels read nothing behind their buffers, which they take in wide pieces."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.program.scratch import (
    convolution_forward_bytes,
    convolution_input_gradient_bytes,
    convolution_weight_update_bytes,
    depthwise_forward_bytes,
    depthwise_input_gradient_bytes,
    depthwise_weight_update_bytes,
)
from simulator.machines import kernel_call
from simulator.machines.kernel_call import HostKernels, Struct
from tests.device_runtime.kernels.calls import (
    FIRST_VALUE,
    Scratch,
    on_vector_units,
    update,
    whole,
)
from tests.device_runtime.kernels.convolution_case import Case, packed
from tests.device_runtime.kernels.convolution_layers import Depthwise
from tests.device_runtime.kernels.test_head import head, operands

Arguments = list[Any]
KEPT: list[Any] = []
"""What keeps memory from being given back."""
RATE = 26214
SCALE = (("i", -9), ("i", 32767))
FULL = Case(5, 7, 21, 19, (3, 3), (1, 1), (1, 1, 1, 1), (0, 1, 2, 5, 20), seed=3)
POINTWISE = Case(5, 7, 19, 21, (1, 1), (1, 1), (0, 0, 0, 0), (), seed=3)
DEPTHWISE = Depthwise(6, 5, 19, (3, 3), (1, 1), (1, 1, 1, 1), -128, 5, False, 9, 0, 2)
STRIDED = Depthwise(9, 8, 21, (5, 5), (2, 2), (2, 2, 2, 2), -128, 5, False, 9, 0, 5)


def place_before_a_hole(frame: Any, array: NDArray[Any]) -> int:
    """Instead of ``Frame._place_array``: memory that can't be read begins behind the array."""
    if id(array) not in frame._arrays:
        content = array.tobytes()
        exact = array.dtype.itemsize <= 2 and not isinstance(array, Scratch)
        size = len(content) if exact else -(-len(content) // 8) * 8
        pages = -(-size // mmap.PAGESIZE) + 1
        memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
        content_of = ctypes.c_uint8.from_buffer(memory)
        KEPT.append(content_of)
        first = ctypes.addressof(content_of)
        hole = first + (pages - 1) * mmap.PAGESIZE
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(hole), mmap.PAGESIZE, 0) == 0
        ctypes.memmove(hole - size, content, len(content))
        frame._arrays[id(array)] = array, hole - size
    return int(frame._arrays[id(array)][1])


def status_of(engine: HostKernels, function: str, arguments: Arguments) -> int:
    """How a process ends that calls ``function``: 0, or what ``os.waitpid`` says of a failure."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            faulthandler.disable()
            kernel_call.Frame._place_array = place_before_a_hole  # type: ignore[method-assign,assignment]
            engine.call(function, *arguments)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def convolution_forward(case: Case) -> Arguments:
    size = convolution_forward_bytes(case.op, case.source, case.target, case.at_once)
    codes, mask = np.zeros(case.out_shape, np.int8), np.zeros(-(-case.output.size // 8), np.uint8)
    span = case.span(0, case.out_shape[0])
    return [
        case.layer, span, case.input, case.tf_weights, case.bias, codes, mask, Scratch(size),
        case.at_once,
    ]  # fmt: skip


def convolution_input_gradient(case: Case) -> Arguments:
    counts = case.count, case.at_once
    size = convolution_input_gradient_bytes(case.op, case.source, case.target, *counts)
    out = np.zeros(case.input.shape, np.int16)
    scales = Struct(*SCALE), Struct(*SCALE)
    return [
        case.layer, case.error(), scales[0], case.tf_weights, out, scales[1], Scratch(size),
        case.at_once,
    ]  # fmt: skip


def convolution_weight_update(case: Case) -> Arguments:
    size = convolution_weight_update_bytes(case.op, case.source, case.target)
    channels = case.trained or tuple(range(case.channels))
    state = [packed(case.weights[..., list(channels)]) for _ in range(2)]
    trained = trained_of(state, np.array(channels, np.uint16), case.channels)
    return [
        case.layer, case.error(), Struct(*SCALE), case.input, trained, update(RATE), Scratch(size),
    ]  # fmt: skip


def trained_of(
    state: list[NDArray[np.int8]], channels: NDArray[np.uint16], in_channels: int
) -> Struct:
    """A tf_trained of weights with fractions."""
    parts = [("P", state[0]), ("P", state[1]), ("P", None), ("I", FIRST_VALUE)]
    return Struct(*parts, ("P", channels), ("H", len(channels)), ("H", in_channels))


def depthwise_forward(layer: Depthwise) -> Arguments:
    codes = layer.codes(layer.height, layer.width).astype(np.int8)
    output = np.zeros((layer.out_height, layer.out_width, layer.channels), np.int8)
    mask = np.zeros(-(-output.size // 8), np.uint8)
    rows = (0, layer.out_height, layer.height, layer.out_height)
    size = depthwise_forward_bytes(layer.op, layer.source, layer.target, layer.out_height)
    return [
        layer.struct(), Struct(*(("H", n) for n in rows)), codes, layer.weights_struct(),
        layer.biases().astype(np.int32), output, mask, Scratch(size),
    ]  # fmt: skip


def depthwise_input_gradient(layer: Depthwise) -> Arguments:
    size = depthwise_input_gradient_bytes(layer.op, layer.source, layer.target)
    out = np.zeros((layer.height, layer.width, layer.channels), np.int16)
    return [
        layer.struct(), layer.errors().astype(np.int16), Struct(*SCALE), layer.weights_struct(),
        out, Struct(*SCALE), Scratch(size),
    ]  # fmt: skip


def depthwise_weight_update(layer: Depthwise) -> Arguments:
    size = depthwise_weight_update_bytes(layer.op, layer.source, layer.target)
    state = [layer.weights().astype(np.int8) for _ in range(2)]
    trained = trained_of(state, np.arange(layer.channels, dtype=np.uint16), layer.channels)
    codes = layer.codes(layer.height, layer.width).astype(np.int8)
    errors = layer.errors().astype(np.int16)
    return [
        layer.struct(), errors, Struct(*SCALE), codes, trained, update(RATE), Scratch(size),
    ]  # fmt: skip


def head_update(inputs: int) -> Arguments:
    codes, weights, bias, errors = operands(1, inputs, 3)
    return [
        head(inputs, 3, 5), errors.astype(np.int16), Struct(*SCALE), codes.astype(np.int8),
        weights.astype(np.int16), whole(), bias.astype(np.int32), whole(), update(RATE),
    ]  # fmt: skip


def error_mask(size: int) -> Arguments:
    mask = np.full(-(-size // 8), 0x5A, np.uint8)
    return [np.full(size, 77, np.int16), Struct(*SCALE), mask, size]


@pytest.mark.parametrize(
    ("make", "of"),
    [
        (convolution_forward, FULL),
        (convolution_forward, POINTWISE),
        (convolution_input_gradient, FULL),
        (convolution_input_gradient, POINTWISE),
        (convolution_weight_update, FULL),
        (convolution_weight_update, POINTWISE),
        (depthwise_forward, DEPTHWISE),
        (depthwise_forward, STRIDED),
        (depthwise_input_gradient, DEPTHWISE),
        (depthwise_input_gradient, STRIDED),
        (depthwise_weight_update, DEPTHWISE),
        (depthwise_weight_update, STRIDED),
        (head_update, 37),
        (error_mask, 75),
    ],
)
def test_nothing_is_read_behind_a_buffer(make: Callable[[Any], Arguments], of: Any) -> None:
    for engine in on_vector_units():
        assert status_of(engine, f"tf_{make.__name__}", make(of)) == 0


def test_a_read_behind_a_buffer_would_be_noticed() -> None:
    arguments = error_mask(64)
    arguments[0] = arguments[0][:32].copy()
    for engine in on_vector_units():
        assert os.WIFSIGNALED(status_of(engine, "tf_error_mask", arguments))
