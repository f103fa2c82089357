"""What pools have in common: windows over a picture, in real numbers, integers and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.graph.floats import Values
from codegen.graph.ir import Graph, Padding, Tensor, Unary


@dataclass(frozen=True)
class Pool(Unary):
    """An operation on each channel under windows (rows, columns)."""

    window: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = field(default_factory=Padding)


def windows(
    x: Values,
    window: tuple[int, ...],
    stride: tuple[int, int],
    pad: Padding,
    value: float = 0.0,
) -> Values:
    """(N, C, H, W) → (N, C, out rows, out columns, window rows, window columns)."""
    around = ((0, 0), (0, 0), (pad.top, pad.bottom), (pad.left, pad.right))
    padded = np.pad(x, around, constant_values=value)
    views = np.lib.stride_tricks.sliding_window_view(padded, window, axis=(2, 3))
    strided: Values = views[:, :, :: stride[0], :: stride[1]]
    return strided


def pool_windows(
    op: Pool, source: Tensor, output: Tensor
) -> Iterator[tuple[int, int, slice, slice]]:
    """Output row and column, and the input rows and columns under that window: none where it is
    in the padding only."""

    def under(start: int, window: int, size: int) -> slice:
        return slice(max(start, 0), max(min(start + window, size), 0))

    for y in range(output.shape[0]):
        rows = under(y * op.stride[0] - op.padding.top, op.window[0], source.shape[0])
        for x in range(output.shape[1]):
            left = x * op.stride[1] - op.padding.left
            yield y, x, rows, under(left, op.window[1], source.shape[1])


def padded_windows(op: Pool, output: Values) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Output row and column, and what that window covers of the input with its padding."""
    for y, x in np.ndindex(output.shape[0], output.shape[1]):
        top, left = y * op.stride[0], x * op.stride[1]
        yield y, x, np.s_[top : top + op.window[0], left : left + op.window[1]]


def overlap_bits(op: Pool) -> int:
    """Bits to keep free in an error so that the sum over all windows on one pixel fits.

    One more than the number of windows needs, for what rounding adds; 0 where no two overlap.
    """
    most = math.prod(-(-size // step) for size, step in zip(op.window, op.stride, strict=True))
    return (most - 1).bit_length() + 1 if most > 1 else 0


def pool_lead(graph: Graph, op: Pool) -> int:
    """Bytes before its input at which a pool's output may start, whose pixels read while they are
    written."""
    source, output = graph.tensors[op.input].shape, graph.tensors[op.output].shape

    def first(row: int, column: int) -> int:
        """The first input pixel under a window."""
        top = max(0, row * op.stride[0] - op.padding.top)
        return top * source[1] + max(0, column * op.stride[1] - op.padding.left)

    lead = 0
    for y in range(output[0]):
        next_row = first(y + 1, 0) if y + 1 < output[0] else source[0] * source[1]
        for x in range(output[1]):
            written = y * output[1] + x
            lead = max(lead, written - min(first(y, x), next_row))
            if x + 1 < output[1]:
                lead = max(lead, written + 1 - min(first(y, x + 1), next_row))
            else:
                lead = max(lead, written + 1 - next_row)
    return lead * source[2]


def window_fields(graph: Graph, op: Pool) -> list[str]:
    """Lines of the initializer of ``tf_pool_window``."""
    source, output = graph.tensors[op.input].shape, graph.tensors[op.output].shape
    return [
        f"{source[0]}, {source[1]}, {source[2]}, {output[0]}, {output[1]},",
        f"{op.window[0]}, {op.window[1]}, {op.stride[0]}, {op.stride[1]},",
        f"{op.padding.top}, {op.padding.left}, {overlap_bits(op)},",
    ]


def window_attributes(stride: tuple[int, int], padding: Padding) -> dict[str, Any]:
    """ONNX's attributes for strides and pads."""
    pad = [padding.top, padding.left, padding.bottom, padding.right]
    return {"strides": stride, "pads": pad}


def counted_positions(
    size: int, window: int, stride: int, before: int, counted: tuple[int, int], outputs: int
) -> NDArray[np.int64]:
    """How many positions along one axis each of the windows averages over."""
    start = np.arange(outputs) * stride - before
    end = np.minimum(start + window, size + counted[1])
    return end - np.maximum(start, -counted[0])
