"""Constants of the device's integer arithmetic, computed once per layer.

docs/specification/arithmetic.md derives them. Real scales become integers here and
nowhere else, so that generated C and interpreter can't disagree about them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codegen.errors import ModelError
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head, Tensor, TensorOutput

INT32_MAX = 2**31 - 1
WEIGHT_MAX = 127
LARGEST_SHIFT = 22
LARGEST_PRE_SHIFT = 22  # 255 << 22 fits 31 bits
# From here on a sum of 1 is far outside of the output's codes, as it is with any larger factor.
LARGEST_FACTOR = 2.0**20
# Sums of |error| <= 32767 times |input - zero| <= 255 over this many pixels fit 32 bits.
PIXELS_IN_32_BITS = INT32_MAX // (32767 * 255)
# Of the squared error's differences in one step of outputs that are codes.
CODE_UNITS = 256


@dataclass(frozen=True)
class Gain:
    """Real factor mantissa * 2**exponent with mantissa in [2**23, 2**24), or 0."""

    mantissa: int
    exponent: int

    @property
    def word(self) -> int:
        """As ``tf_gain`` holds it: the exponent in the lowest 8 bits, the mantissa above."""
        return self.mantissa << 8 | (self.exponent & 0xFF)


def gain(value: float) -> Gain:
    """The nearest gain to a non-negative real ``value`` (relative error below 6e-8)."""
    if value == 0.0:
        return Gain(0, 0)
    fraction, exponent = math.frexp(value)
    mantissa = round(fraction * 2**24)
    if mantissa == 2**24:
        mantissa, exponent = 2**23, exponent + 1
    if not -128 <= exponent - 24 <= 127:
        raise ModelError(
            f"a gradient's factor of {value:.3g} is outside 2^-105 … 2^151: the model's scales are "
            "far beyond any use; calibrate it anew"
        )
    return Gain(mantissa, exponent - 24)


SHIFT_BITS = 5


@dataclass(frozen=True)
class Multiplier:
    """Real factor word * 2**-(32 + shift), 1 <= shift <= 22.

    The shift is the word's lowest five bits, which are part of the factor as well: one word holds
    both. The factor is rounded to a word that ends in its shift (relative error below 2**-25).
    """

    word: int

    @property
    def shift(self) -> int:
        """Bits dropped from the high word of the product."""
        return self.word & ((1 << SHIFT_BITS) - 1)


def multiplier(value: float) -> Multiplier:
    """The nearest multiplier to a requantization factor below one quarter."""
    _, exponent = math.frexp(value)
    # A shift above 22 would leave no room for the zero point beside the sum; factors that small
    # make nothing but zeros, and 22 bits of mantissa are plenty.
    shift = min(-exponent - 1, LARGEST_SHIFT)
    assert shift >= 1, "pre_shift brings every factor below one quarter"
    steps = round((value * 2.0 ** (32 + shift) - shift) / 2**SHIFT_BITS)
    word = min(steps, (INT32_MAX >> SHIFT_BITS)) * 2**SHIFT_BITS + shift
    return Multiplier(word)


def relative_q15(values: NDArray[np.float64]) -> tuple[NDArray[np.int64], int]:
    """Factors as Q15 integers below 2**15 relative to the power of two above the largest."""
    _, exponent = math.frexp(float(np.max(values)))
    scaled = np.rint(values / 2.0**exponent * 2**15).astype(np.int64)
    return np.minimum(scaled, 32767), exponent


@dataclass(frozen=True, eq=False)
class ConvolutionArithmetic:
    """What ``tf_convolution`` holds; arrays have one entry per output channel."""

    requantize: NDArray[np.int64]
    """Words of multipliers."""
    pre_shift: NDArray[np.int64]
    bias_limit: int
    error_multiplier: NDArray[np.int64]
    error_exponent: int
    error_headroom: int
    error_shift: int
    gradient_shift: int
    weight_gain: list[Gain]
    bias_gain: list[Gain]


@dataclass(frozen=True)
class HeadArithmetic:
    """What ``tf_head`` holds."""

    loss: Gain
    error_multiplier: int
    error_exponent: int
    weight_gain: Gain
    bias_gain: Gain


@dataclass(frozen=True)
class TargetArithmetic:
    """What ``tf_target`` holds: steps of the target, and of the error, in output units.

    ``loss_scale`` is None but for outputs that are a tensor's codes (``tf_coded_target``).
    """

    target_scale: Gain
    error_scale: Gain
    loss_scale: Gain | None = None


def terms_per_output(op: Conv | DepthwiseConv) -> int:
    """Products that are summed for one output element."""
    if isinstance(op, Conv):
        return int(np.prod(op.weight.shape[1:]))
    return int(np.prod(op.weight.shape[:2]))


def requantization_factors(graph: Graph, op: Conv | DepthwiseConv) -> NDArray[np.float64]:
    """Output steps per accumulator step, one per output channel."""
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    factors: NDArray[np.float64] = source.scale * op.weight_scale / target.scale
    return factors


def requantization(
    factors: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Words of multipliers for ``factors``, and the bits by which sums go left first.

    These bring every factor below one quarter, each channel by what it needs: 0 but for channels
    of very few products per output, or with a scale out of all proportion.
    """
    bounded = np.minimum(factors, LARGEST_FACTOR)
    _, exponents = np.frexp(bounded)
    left = np.maximum(0, exponents.astype(np.int64) + 2)
    words = [multiplier(float(factor)).word for factor in bounded / 2.0**left]
    return np.array(words, np.int64), left


def bias_limit(name: str, terms: int) -> int:
    """Largest |bias| that leaves room in 32 bits for every possible sum of ``terms`` products.

    Raises ModelError, which names the layer ``name``, where there is none.
    """
    limit = INT32_MAX - terms * WEIGHT_MAX * 255
    if limit <= 0:
        raise ModelError(
            f"layer {name}: {terms} products per output can overflow 32 bits; pool or convolve "
            "with a stride before it, or split the layer"
        )
    return limit


def _bits(value: int) -> int:
    return int(value).bit_length()


def pre_shift_of(name: str, factor: float) -> int:
    """Bits by which sums go left first, so that the factor is below one quarter."""
    _, exponent = math.frexp(factor)
    left = max(0, exponent + 2)
    if left > LARGEST_PRE_SHIFT:
        raise ModelError(
            f"layer {name}: one step of its input is {factor:.3g} steps of its output; calibrate "
            "or quantize the model again"
        )
    return left


def _error_sum_limits(op: Conv | DepthwiseConv, factors: NDArray[np.int64]) -> tuple[int, int]:
    """Headroom of the scaled error and shift of the sums, from the weights' L1 norms.

    No int8 weights at all may overflow the 32-bit sum (headroom); the shift is sized for
    the norms that the weights have at compile time, and saturates beyond.
    """
    magnitude = np.abs(op.weight.astype(np.int64))
    if isinstance(op, Conv):
        terms = op.weight.shape[0] * op.weight.shape[1] * op.weight.shape[2]
        headroom = max(0, _bits(32767 * 127 * terms) - 31)
        largest = int(magnitude.sum(axis=(0, 1, 2)).max()) * (32767 >> headroom)
    else:
        headroom = 0
        largest = int(((magnitude.sum(axis=(0, 1)) * factors) >> 15).max() + 1) * 32767
    return headroom, max(0, _bits(largest) - 15)


def _check_sizes(op: Conv | DepthwiseConv, source: Tensor, target: Tensor) -> None:
    """Refuses what the fields of tf_convolution and 32-bit sums of errors can't hold."""
    kernel = op.weight.shape[1:3] if isinstance(op, Conv) else op.weight.shape[:2]
    if max(*kernel, *op.stride, op.padding.top, op.padding.left) > 255:
        raise ModelError(
            f"layer {op.name}: kernel {list(kernel)}, stride {list(op.stride)} or padding above "
            "255; pool before it (before a fully connected layer, until the picture is smaller)"
        )
    pixels = target.shape[0] * target.shape[1]
    if pixels > INT32_MAX // 32767:
        raise ModelError(
            f"layer {op.name}: {pixels} output pixels are more than {INT32_MAX // 32767}, of which "
            "the errors' sum fits 32 bits; use a smaller input"
        )
    largest = max(*source.shape, *target.shape)
    if largest > 65535:
        raise ModelError(
            f"layer {op.name}: a height, width or number of channels of {largest} is more than "
            "65535; use a smaller input"
        )
    taps, most = kernel[0] * kernel[1], INT32_MAX // (32767 * 127)
    if isinstance(op, DepthwiseConv) and taps > most:
        raise ModelError(
            f"layer {op.name}: {taps} taps of a depthwise kernel are more than {most}, of which "
            "the errors' sum fits 32 bits; pool before it"
        )


def convolution_arithmetic(graph: Graph, op: Conv | DepthwiseConv) -> ConvolutionArithmetic:
    """Constants of one convolution."""
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    factors = requantization_factors(graph, op)
    requantize, left = requantization(factors)
    error_multiplier, error_exponent = relative_q15(factors)
    headroom, error_shift = _error_sum_limits(op, error_multiplier)
    _check_sizes(op, source, target)
    height, width, _ = target.shape
    pixels = height * width
    wide = pixels > PIXELS_IN_32_BITS
    bias_scale = source.scale * op.weight_scale
    try:
        weight_gain = [gain(source.scale / (target.scale * float(s))) for s in op.weight_scale]
        bias_gain = [gain(1 / (target.scale * float(s))) for s in bias_scale]
    except ModelError as error:
        raise ModelError(f"layer {op.name}: {error}") from error
    return ConvolutionArithmetic(
        requantize=requantize,
        pre_shift=left,
        bias_limit=bias_limit(op.name, terms_per_output(op)),
        error_multiplier=error_multiplier,
        error_exponent=error_exponent,
        error_headroom=headroom,
        error_shift=error_shift,
        gradient_shift=_bits(pixels * 32767 * 255) - 31 if wide else 0,
        weight_gain=weight_gain,
        bias_gain=bias_gain,
    )


def logit_scale(graph: Graph) -> float:
    """Real value of one unit of the int32 logits, or of one step of outputs that are codes."""
    ending = graph.ending
    scale = graph.tensors[ending.input].scale
    return scale if isinstance(ending, TensorOutput) else scale * ending.weight_scale / 256


def head_arithmetic(graph: Graph) -> HeadArithmetic:
    """Constants of the head and of its loss."""
    unit = logit_scale(graph)
    weight_step = graph.head.weight_scale / 256
    error_multiplier, error_exponent = relative_q15(np.array([unit]))
    return HeadArithmetic(
        loss=gain(unit * math.log2(math.e) * 2**16),
        error_multiplier=int(error_multiplier[0]),
        error_exponent=error_exponent,
        weight_gain=gain(unit / weight_step**2),
        bias_gain=gain(1 / unit),
    )


def target_arithmetic(graph: Graph, op: Head | TensorOutput) -> TargetArithmetic:
    """Constants of the mean squared error of ``op`` against the input, or a sample's targets."""
    coded = isinstance(op, TensorOutput)
    scale = logit_scale(graph)
    unit = scale / CODE_UNITS if coded else scale
    if op.target_scale is None:
        what, remedy, least = "the model's input", "calibrate with typical inputs", 2.0**-8
        steps = graph.tensors[graph.input].scale / unit
    else:
        what, least = "the targets", 2.0**-12  # they have 8 bits more
        remedy = "give targets of the size of the model's outputs"
        steps = op.target_scale / unit
    if not least <= steps < 2.0**22:
        raise ModelError(
            f"layer {op.name}: one step of {what} is {steps:.3g} units of its output; {remedy}"
        )
    size = op.outputs
    if coded:
        return TargetArithmetic(
            gain(steps), gain(2 * unit * scale / size), gain(size / (2 * scale) ** 2)
        )
    return TargetArithmetic(gain(steps), gain(2 * unit / size))
