"""Integer constants of pools, of changes of scale, and of the squared error.

As in `codegen.arithmetic.layers`, real scales become integers here and nowhere else;
docs/specification/arithmetic.md derives them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import (
    INT32_MAX,
    Gain,
    Multiplier,
    gain,
    logit_scale,
    multiplier,
    relative_q15,
)
from codegen.errors import ModelError
from codegen.graph.floats import counted_positions
from codegen.graph.ir import AveragePool, Graph, Head, MaxPool, Requantize

LARGEST_PRE_SHIFT = 22  # 255 << 22 fits 31 bits


@dataclass(frozen=True, eq=False)
class AveragePoolArithmetic:
    """What ``tf_average_pooling`` holds; tables start at windows of ``least_count`` positions.

    ``requantize`` is empty where the output has the input's scale and zero point.
    """

    least_count: int
    requantize: list[Multiplier]
    pre_shift: int
    error_multiplier: NDArray[np.int64]
    error_exponent: int


@dataclass(frozen=True)
class RequantizeArithmetic:
    """What ``tf_requantization`` holds."""

    requantize: Multiplier
    pre_shift: int
    error_multiplier: int
    error_exponent: int


@dataclass(frozen=True)
class ReconstructionArithmetic:
    """What ``tf_reconstruction`` holds: steps of the input, and of the error, in output units."""

    input_scale: Gain
    error_scale: Gain


def overlap_bits(op: MaxPool | AveragePool) -> int:
    """Bits to keep free in an error so that the sum over all windows on one pixel fits.

    One more than the number of windows needs, for what rounding adds; 0 where no two overlap.
    """
    windows = math.prod(-(-size // step) for size, step in zip(op.window, op.stride, strict=True))
    return (windows - 1).bit_length() + 1 if windows > 1 else 0


def counts(graph: Graph, op: AveragePool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns that the windows average over: one entry per output row and column."""
    source, output = graph.tensors[op.input].shape, graph.tensors[op.output].shape
    pad, counted = op.padding, op.counted
    rows = counted_positions(
        source[0], op.window[0], op.stride[0], pad.top, (counted.top, counted.bottom), output[0]
    )
    columns = counted_positions(
        source[1], op.window[1], op.stride[1], pad.left, (counted.left, counted.right), output[1]
    )
    return rows, columns


def average_pool_arithmetic(graph: Graph, op: AveragePool) -> AveragePoolArithmetic:
    """Constants of one average pool."""
    source, output = graph.tensors[op.input], graph.tensors[op.output]
    rows, columns = counts(graph, op)
    least, most = int(rows.min() * columns.min()), int(rows.max() * columns.max())
    factors = source.scale / output.scale / np.arange(least, most + 1, dtype=np.float64)
    error, exponent = relative_q15(factors)
    same = (source.scale, source.zero_point) == (output.scale, output.zero_point)
    left = 0 if same else _pre_shift(op.name, float(factors.max()))
    if (most * 255) << left > INT32_MAX:
        raise ModelError(
            f"layer {op.name}: the sum of {most} codes can overflow 32 bits; use a smaller window"
        )
    return AveragePoolArithmetic(
        least_count=least,
        requantize=[] if same else [multiplier(float(f) / 2**left) for f in factors],
        pre_shift=left,
        error_multiplier=error,
        error_exponent=exponent,
    )


def requantize_arithmetic(graph: Graph, op: Requantize) -> RequantizeArithmetic:
    """Constants of one change of scale."""
    factor = graph.tensors[op.input].scale / graph.tensors[op.output].scale
    left = _pre_shift(op.name, factor)
    error, exponent = relative_q15(np.array([factor]))
    return RequantizeArithmetic(multiplier(factor / 2**left), left, int(error[0]), exponent)


def _pre_shift(name: str, factor: float) -> int:
    """Bits by which sums go left first, so that the factor is below one quarter."""
    _, exponent = math.frexp(factor)
    left = max(0, exponent + 2)
    if left > LARGEST_PRE_SHIFT:
        raise ModelError(
            f"layer {name}: one step of its input is {factor:.3g} steps of its output; calibrate "
            "or quantize the model again"
        )
    return left


def reconstruction_arithmetic(graph: Graph, op: Head) -> ReconstructionArithmetic:
    """Constants of the mean squared error of ``op`` against the graph's input."""
    unit = logit_scale(graph)
    steps = graph.tensors[graph.input].scale / unit
    if not 2.0**-8 <= steps < 2.0**22:
        raise ModelError(
            f"layer {op.name}: one step of the model's input is {steps:.3g} units of its output; "
            "calibrate with typical inputs"
        )
    return ReconstructionArithmetic(gain(steps), gain(2 * unit / op.bias.size))
