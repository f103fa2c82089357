"""Bytes of scratch that kernels ask for.

Scratch belongs to one step: it shares the arena with everything that isn't live at that step.
"""

from __future__ import annotations

import math

from codegen.ir import Conv, DepthwiseConv, Tensor


def round_up(value: int, to: int) -> int:
    """The next multiple of ``to``."""
    return -(-value // to) * to


def convolution_forward_bytes(op: Conv, trained_channels: int) -> int:
    """Columns of four pixels, and of their trained channels."""
    taps = math.prod(op.weight.shape[1:3])
    length = taps * op.weight.shape[3]
    return 8 * (round_up(length, 4) + round_up(taps * trained_channels, 4))


def convolution_input_gradient_bytes(op: Conv) -> int:
    """Scaled errors of four pixels."""
    return 8 * round_up(op.weight.shape[0], 4)


def convolution_weight_update_bytes(output: Tensor) -> int:
    """Inputs of four channels at all output pixels, in pairs."""
    height, width, _ = output.shape
    return 8 * round_up(height * width, 2)


def _plane_bytes(rows: int, width: int) -> int:
    # Up to four outputs are made in one go, from words of two elements.
    return 2 * rows * round_up(width, 2)


def depthwise_forward_bytes(op: DepthwiseConv, source: Tensor, output: Tensor, rows: int) -> int:
    """A plane of one channel that covers ``rows`` output rows, with its padding."""
    kernel_height, kernel_width, _ = op.weight.shape
    width = round_up(output.shape[1], 4) * op.stride[1] + kernel_width + 1
    return _plane_bytes((rows - 1) * op.stride[0] + kernel_height, width)


def depthwise_input_gradient_bytes(op: DepthwiseConv, source: Tensor) -> int:
    """Errors of one channel spread over the input's positions, with room for the kernel."""
    kernel_height, kernel_width, _ = op.weight.shape
    height, width, _ = source.shape
    return _plane_bytes(height + kernel_height, round_up(width, 4) + kernel_width + 1)


def depthwise_weight_update_bytes(op: DepthwiseConv, source: Tensor, output: Tensor) -> int:
    """The input's plane as in the forward pass, and the errors of that channel."""
    height, width, _ = output.shape
    inputs = depthwise_forward_bytes(op, source, output, height)
    return inputs + _plane_bytes(height, round_up(width, 2))
