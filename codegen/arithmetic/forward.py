"""The forward pass of layers in the device's integers, for one sample or for many at once.

Arrays are int64 codes (..., height, width, channels), and every function is written from
docs/specification/arithmetic.md. `codegen.reference.interpreter` and the quantization report both
compute with these, so that a report can't tell of other numbers than the device's. Operations
without weights have theirs in `codegen.operators`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import TypeAlias

import numpy as np

from codegen.arithmetic.integers import Ints, requantized
from codegen.arithmetic.layers import INT32_MAX, convolution_arithmetic
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head

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


# Layers; convolutions as values before the clamp.


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
