"""Bytes of scratch that kernels ask for, as the kernels themselves say.

Scratch belongs to one step: it shares the arena with everything that isn't live at that step. The
sizes come from the C functions ``tf_…_scratch_bytes`` (kernels.h), called in a host library of the
kernels that is kept with the compiler's objects.
"""

from __future__ import annotations

import ctypes
from functools import cache

from codegen.graph.ir import Conv, DepthwiseConv, Tensor
from codegen.host_toolchain import host_toolchain
from device_runtime import include_directories, kernel_sources


def round_up(value: int, to: int) -> int:
    """The next multiple of ``to``."""
    return -(-value // to) * to


class _Layer(ctypes.Structure):
    """The sizes with which tf_convolution begins; scratch depends on nothing else of it."""

    _fields_ = (
        ("in_height", ctypes.c_uint16),
        ("in_width", ctypes.c_uint16),
        ("in_channels", ctypes.c_uint16),
        ("out_height", ctypes.c_uint16),
        ("out_width", ctypes.c_uint16),
        ("out_channels", ctypes.c_uint16),
        ("kernel_height", ctypes.c_uint8),
        ("kernel_width", ctypes.c_uint8),
        ("stride_height", ctypes.c_uint8),
        ("stride_width", ctypes.c_uint8),
        ("pad_top", ctypes.c_uint8),
        ("pad_left", ctypes.c_uint8),
    )


def convolution_forward_bytes(op: Conv, source: Tensor, output: Tensor, at_once: int) -> int:
    """For the forward step, ``at_once`` pixels at a time."""
    return _ask("tf_convolution_forward_scratch_bytes", op, source, output, at_once)


def convolution_input_gradient_bytes(
    op: Conv, source: Tensor, output: Tensor, trained_channels: int, at_once: int
) -> int:
    """For the error of the input; ``trained_channels`` is 0 where none are trained, or all.

    Pointwise layers take ``at_once`` pixels at a time.
    """
    counts = trained_channels, at_once
    return _ask("tf_convolution_input_gradient_scratch_bytes", op, source, output, *counts)


def convolution_weight_update_bytes(op: Conv, source: Tensor, output: Tensor) -> int:
    """For the step of the weights."""
    return _ask("tf_convolution_weight_update_scratch_bytes", op, source, output)


def depthwise_forward_bytes(op: DepthwiseConv, source: Tensor, output: Tensor, rows: int) -> int:
    """For at most ``rows`` rows of the output at a time."""
    return _ask("tf_depthwise_forward_scratch_bytes", op, source, output, rows)


def depthwise_input_gradient_bytes(op: DepthwiseConv, source: Tensor, output: Tensor) -> int:
    """For the error of the input."""
    return _ask("tf_depthwise_input_gradient_scratch_bytes", op, source, output)


def depthwise_weight_update_bytes(op: DepthwiseConv, source: Tensor, output: Tensor) -> int:
    """For the step of the weights."""
    return _ask("tf_depthwise_weight_update_scratch_bytes", op, source, output)


def _ask(
    function: str, op: Conv | DepthwiseConv, source: Tensor, output: Tensor, *counts: int
) -> int:
    kernel = op.weight.shape[1:3] if isinstance(op, Conv) else op.weight.shape[:2]
    sizes = (*source.shape, *output.shape, *kernel, *op.stride, op.padding.top, op.padding.left)
    return _asked(function, sizes, *counts)


@cache
def _asked(function: str, sizes: tuple[int, ...], *counts: int) -> int:
    called = _kernels()[function]
    called.restype = ctypes.c_uint32
    return int(called(ctypes.byref(_Layer(*sizes)), *map(ctypes.c_uint32, counts)))


@cache
def _kernels() -> ctypes.CDLL:
    """Raises ToolchainError where this machine has no C compiler."""
    library = host_toolchain().library(kernel_sources(), include_dirs=include_directories())
    return ctypes.CDLL(str(library))
