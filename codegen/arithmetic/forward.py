"""The forward pass in the device's integers, for one sample or for many at once.

Arrays are int64 codes (..., height, width, channels), and every function is written from
docs/specification/arithmetic.md. `codegen.reference.interpreter` and the quantization report both
compute with these, so that a report can't tell of other numbers than the device's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import TypeAlias

import numpy as np

from codegen.arithmetic.integers import Ints, requantized, round_shift
from codegen.arithmetic.layers import INT32_MAX, addition_arithmetic, convolution_arithmetic
from codegen.arithmetic.pools import average_pool_arithmetic, counts, requantize_arithmetic
from codegen.graph.ir import (
    INT8_MAX,
    INT8_MIN,
    Add,
    AveragePool,
    Concat,
    Conv,
    DepthwiseConv,
    GlobalAveragePool,
    Graph,
    Head,
    MaxPool,
    Op,
    Requantize,
    Tensor,
)

Window: TypeAlias = tuple[EllipsisType, slice, slice, slice]
"""Positions (…, rows, columns, all channels) of an array."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """Weights and biases of one layer, as its operation has them or as training left them."""

    weight: Ints
    bias: Ints

    @classmethod
    def of(cls, op: Conv | DepthwiseConv | Head) -> Parameters:
        """Those that the layer is compiled with."""
        return cls(op.weight.astype(np.int64), op.bias.astype(np.int64))


def output_of(graph: Graph, op: Op, inputs: Sequence[Ints]) -> Ints:
    """What ``op`` makes of its inputs as it is compiled: codes; of the head its wide outputs."""
    match op:
        case Conv() | DepthwiseConv():
            return clamped(op, convolution(graph, op, inputs[0], Parameters.of(op)))
        case Add():
            return clamped(op, addition(graph, op, inputs[0], inputs[1]))
        case GlobalAveragePool():
            return global_average(inputs[0])
        case MaxPool():
            return max_pool(graph, op, inputs[0])[0]
        case AveragePool():
            return clamped(op, average_pool(graph, op, inputs[0]))
        case Concat():
            return np.concatenate(inputs, axis=-1)
        case Requantize():
            return clamped(op, requantization(graph, op, inputs[0]))
        case Head():
            return head(graph, op, inputs[0], Parameters.of(op))


def clamped(op: Op, values: Ints) -> Ints:
    """Values of ``op`` as codes: the clamp is the activation function."""
    ends = (op.low, op.high) if isinstance(op, Requantize) else (INT8_MIN, INT8_MAX)
    return np.clip(values, *ends)


# Operations, as values before the clamp.


def convolution(
    graph: Graph, op: Conv | DepthwiseConv, codes: Ints, parameters: Parameters
) -> Ints:
    """Full or depthwise convolution."""
    constants = convolution_arithmetic(graph, op)
    source, weight = padded(graph, op, codes), parameters.weight
    if isinstance(op, Conv):
        # Every sum fits 32 bits, so that float64 makes it exactly, and many times faster.
        real, factors = source.astype(np.float64), weight.astype(np.float64)
        parts = (
            real[window] @ factors[:, row, column].T for row, column, window in taps(graph, op)
        )
        sums = np.asarray(sum(parts)).astype(np.int64)
    else:
        sums = np.asarray(sum(source[window] * weight[row, column]
                              for row, column, window in taps(graph, op)))  # fmt: skip
    total = sums + parameters.bias
    assert np.abs(total).max() <= INT32_MAX, "accumulator overflow"
    values = requantized(total, constants.pre_shift, constants.requantize)
    return values + graph.tensors[op.output].zero_point


def addition(graph: Graph, op: Add, a: Ints, b: Ints) -> Ints:
    """Elementwise sum."""
    constants = addition_arithmetic(graph, op)
    first, second = (graph.tensors[name].zero_point for name in op.inputs)
    total = (a - first) * constants.a_multiplier + (b - second) * constants.b_multiplier
    return round_shift(total, constants.shift) + graph.tensors[op.output].zero_point


def global_average(codes: Ints) -> Ints:
    """Mean over height and width."""
    pixels = np.array(codes.shape[-3] * codes.shape[-2])
    return mean_codes(codes.sum(axis=(-3, -2), keepdims=True), pixels, 0)


def max_pool(graph: Graph, op: MaxPool, codes: Ints) -> tuple[Ints, Ints]:
    """Largest codes, and the flat input position (row * width + column) of the first of each."""
    source, output = graph.tensors[op.input], graph.tensors[op.output]
    shape = (*codes.shape[:-3], *output.shape)
    largest, places = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for y, x, rows, columns in pool_windows(op, source, output):
        part = codes[..., rows, columns, :]
        flat = part.reshape(*part.shape[:-3], -1, part.shape[-1])
        down, right = np.divmod(flat.argmax(axis=-2), part.shape[-2])
        largest[..., y, x, :] = flat.max(axis=-2)
        places[..., y, x, :] = (rows.start + down) * source.shape[1] + columns.start + right
    return largest, places


def average_pool(graph: Graph, op: AveragePool, codes: Ints) -> Ints:
    """Mean under each window."""
    source, output = graph.tensors[op.input], graph.tensors[op.output]
    constants, counted = average_pool_arithmetic(graph, op), window_counts(graph, op)
    total = np.zeros((*codes.shape[:-3], *output.shape), np.int64)
    for y, x, rows, columns in pool_windows(op, source, output):
        part = codes[..., rows, columns, :] - source.zero_point
        total[..., y, x, :] = part.sum(axis=(-3, -2))
    if not constants.requantize:
        return mean_codes(total, counted, source.zero_point)
    words = np.array([m.word for m in constants.requantize])[counted - constants.least_count]
    return requantized(total, constants.pre_shift, words) + output.zero_point


def requantization(graph: Graph, op: Requantize, codes: Ints) -> Ints:
    """The same real values in another scale."""
    constants = requantize_arithmetic(graph, op)
    shifted = codes - graph.tensors[op.input].zero_point
    values = requantized(shifted, constants.pre_shift, np.array(constants.requantize.word))
    return values + graph.tensors[op.output].zero_point


def head(graph: Graph, op: Head, codes: Ints, parameters: Parameters) -> Ints:
    """The wide outputs (..., O): logits, or a reconstruction of the input."""
    flat = codes.reshape(*codes.shape[:-3], -1) - graph.tensors[op.input].zero_point
    total: Ints = flat @ parameters.weight.T + parameters.bias
    return np.clip(total, -INT32_MAX, INT32_MAX)


# Windows.


def padded(graph: Graph, op: Conv | DepthwiseConv, codes: Ints) -> Ints:
    """Codes less their zero point, with zeros around."""
    pad = op.padding
    around = [(0, 0)] * (codes.ndim - 3) + [(pad.top, pad.bottom), (pad.left, pad.right), (0, 0)]
    return np.pad(codes - graph.tensors[op.input].zero_point, around)


def taps(graph: Graph, op: Conv | DepthwiseConv) -> Iterator[tuple[int, int, Window]]:
    """Kernel row, column, and the padded input positions that the tap sees."""
    rows, columns = op.weight.shape[1:3] if isinstance(op, Conv) else op.weight.shape[:2]
    height, width, _ = graph.tensors[op.output].shape
    for row in range(rows):
        down = slice(row, row + (height - 1) * op.stride[0] + 1, op.stride[0])
        for column in range(columns):
            right = slice(column, column + (width - 1) * op.stride[1] + 1, op.stride[1])
            yield row, column, (..., down, right, slice(None))


def pool_windows(
    op: MaxPool | AveragePool, source: Tensor, output: Tensor
) -> Iterator[tuple[int, int, slice, slice]]:
    """Output row and column, and the input rows and columns under that window."""
    for y in range(output.shape[0]):
        top = y * op.stride[0] - op.padding.top
        rows = slice(max(top, 0), min(top + op.window[0], source.shape[0]))
        for x in range(output.shape[1]):
            left = x * op.stride[1] - op.padding.left
            yield y, x, rows, slice(max(left, 0), min(left + op.window[1], source.shape[1]))


def window_counts(graph: Graph, op: AveragePool) -> Ints:
    """How many positions each window averages over (height, width, 1)."""
    rows, columns = counts(graph, op)
    return np.outer(rows, columns)[:, :, None]


def mean_codes(total: Ints, count: Ints, zero: int) -> Ints:
    """Means of codes, halves to even; ``total`` is the sum of the codes less ``zero``."""
    raised = total + (zero + 128) * count
    mean = raised // count
    rest = 2 * (raised - mean * count)
    up = (rest > count) | ((rest == count) & (mean % 2 == 1))
    return np.asarray(mean + up - 128)
