"""Bytes of scratch that kernels ask for (device_runtime/include/tinyfleet/kernels.h).

Scratch belongs to one step: it shares the arena with everything that isn't live at that step.
"""

from __future__ import annotations

import math

from codegen.graph.ir import Conv, DepthwiseConv, Tensor


def round_up(value: int, to: int) -> int:
    """The next multiple of ``to``."""
    return -(-value // to) * to


MERGED_BYTES = 4096
"""TF_MERGED_BYTES in device_runtime/kernels/merge.h."""


def convolution_forward_bytes(op: Conv, trained_channels: int) -> int:
    """Columns of four pixels; with trained channels, rows in which these take their places."""
    rows = op.weight.shape[0]
    length = round_up(math.prod(op.weight.shape[1:]), 4)
    columns = 8 * length
    if trained_channels == 0:
        return columns
    at_once = max(8, MERGED_BYTES // length // 8 * 8)
    return columns + round_up(min(rows, at_once), 2) * length


def convolution_input_gradient_bytes(op: Conv, trained_channels: int) -> int:
    """Scaled errors of four pixels for every tap that meets one, and where their weights are.

    With trained channels, also the rows' weights for some of all input channels.
    """
    outputs, kernel_height, kernel_width, inputs = op.weight.shape
    taps = math.ceil(kernel_height / op.stride[0]) * math.ceil(kernel_width / op.stride[1])
    pairs = round_up(outputs, 2) // 2
    stream = taps * 20 * pairs + 2 * round_up(taps, 2)
    if trained_channels == 0:
        return int(stream)
    all_taps = kernel_height * kernel_width
    at_once = max(4, MERGED_BYTES // (2 * all_taps * pairs) // 4 * 4)
    return int(stream + 2 * pairs * round_up(all_taps * min(inputs, at_once), 4))


def convolution_weight_update_bytes(output: Tensor) -> int:
    """Inputs of four channels at all output pixels, in pairs."""
    height, width, _ = output.shape
    return 8 * round_up(height * width, 2)


# As in device_runtime/kernels/planes.h, where they start with TF_.
_SLIDE_BLOCK = 8
_SUMS_AT_ONCE = 64
_WINDOW_BYTES = 12


def _sliding_bytes(windows: int, columns: int, kernel_rows: int, kernel_columns: int) -> int:
    # Windows of rows of outputs, sums of some of them, and the table of taps.
    sums = 4 * (max(columns, _SUMS_AT_ONCE) + _SLIDE_BLOCK)
    return _WINDOW_BYTES * windows + sums + 2 * kernel_rows * (2 * kernel_columns + 4)


def depthwise_forward_bytes(op: DepthwiseConv, source: Tensor, output: Tensor, rows: int) -> int:
    """Planes of two channels that cover ``rows`` output rows, with their padding."""
    kernel_height, kernel_width, _ = op.weight.shape
    out_width = output.shape[1]
    used = (out_width - 1) * op.stride[1] + kernel_width
    line = round_up(max(used, op.padding.left + source.shape[1]), 2)
    lines = min(source.shape[0], (rows - 1) * op.stride[0] + kernel_height)
    planes: int = 2 * (2 * lines * line + _SLIDE_BLOCK * (op.stride[1] + 1))
    return _sliding_bytes(rows, out_width, kernel_height, kernel_width) + planes


def depthwise_input_gradient_bytes(op: DepthwiseConv, source: Tensor, output: Tensor) -> int:
    """Errors of two channels, with room for the kernel."""
    kernel_height, kernel_width, _ = op.weight.shape
    height, width, _ = output.shape
    reach = (source.shape[1] - 1 + op.padding.left) // op.stride[1] + 1
    line = round_up((kernel_width - 1) // op.stride[1] + max(width, reach), 2)
    planes: int = 2 * (2 * height * line + 2 * _SLIDE_BLOCK)
    in_height, in_width, _ = source.shape
    kernel_rows = kernel_height + op.stride[0]
    windows = in_height * min(op.stride[1], in_width)
    return _sliding_bytes(windows, in_width, kernel_rows, kernel_width) + planes


def depthwise_weight_update_bytes(op: DepthwiseConv, source: Tensor, output: Tensor) -> int:
    """One channel's errors, and its inputs with a row of their own for each step of the stride."""
    height, width, _ = output.shape
    stride = op.stride[1]
    line = round_up(width, 2)
    reach = round_up((op.weight.shape[1] - 1) // stride, 2)
    return 2 * (height * line + source.shape[0] * stride * (line + reach))
