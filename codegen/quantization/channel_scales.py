"""Weights and biases of convolutions as integers, and the scale of each output channel.

A float layer gets scales of its own: a channel's largest weight is 127, unless its bias wouldn't
fit. A layer that came quantized keeps what it has, except for channels that the device can't hold
(weights that aren't symmetric int8, or a bias that leaves no room for products in 32 bits), and
for filters of zeros, to which quantizers give any scale. Nothing is clamped silently: where a
channel's numbers would change by more than rounding, the model is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import WEIGHT_MAX, bias_limit
from codegen.errors import ModelError
from codegen.graph import ir
from codegen.graph.floats import FloatConv, StoredIntegers

BIAS_MAX = 2**30
"""A bias that the quantizer makes may take up half of int32, which leaves the other half to the
accumulated products: 255 * 127 * K fits for every kernel of up to K = 33,000 weights per output."""

# Below this share of an output step per accumulator step, products no longer show: 2^-30 times the
# largest accumulator of the line above is less than one step.
_SMALLEST_MULTIPLIER = 2.0**-30
# So many output steps away from the zero point, an output saturates whatever that is.
_SATURATED = 256.0
# Products that move an output by less are lost in the float32 of the file's own arithmetic.
_NO_REACH = 2.0**-20
# A bias in steps of an eighth of an output step makes any code that is wanted.
_COARSEST_BIAS = 1 / 8


@dataclass(frozen=True, eq=False)
class Channels:
    """Integers of a convolution: weight int8 [O, I/groups, Kh, Kw], one scale and bias each."""

    weight: NDArray[np.int8]
    scale: NDArray[np.float64]
    bias: NDArray[np.int32]


def quantize_channels(op: FloatConv, source: ir.Tensor, result: ir.Tensor) -> Channels:
    """The integers of ``op`` between activations coded as ``source`` and ``result``.

    Raises ModelError, which names layer and channel, for what the device can't hold.
    """
    limit = bias_limit(op.name, int(np.prod(op.weight.shape[1:])))
    if op.stored is not None:
        return _kept(op, op.stored, source, result, limit)
    scale = _weight_scales(op, source, result, limit)
    codes = np.rint(op.weight / _per_channel(scale))
    bias = np.rint(op.bias / (source.scale * scale))
    return _integers(codes, scale, bias, limit)


def _integers(
    codes: NDArray[np.float64], scale: NDArray[np.float64], bias: NDArray[np.float64], limit: int
) -> Channels:
    """Rounded values, beyond their ends by rounding only, or as a stored weight of -128 is."""
    return Channels(
        np.clip(codes, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8),
        scale,
        np.clip(bias, -limit, limit).astype(np.int32),
    )


def _per_channel(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[:, np.newaxis, np.newaxis, np.newaxis]


def _largest_code(tensor: ir.Tensor) -> int:
    """Of an input's codes, less the zero point."""
    return max(tensor.zero_point - ir.INT8_MIN, ir.INT8_MAX - tensor.zero_point)


def _weight_scales(
    op: FloatConv, source: ir.Tensor, result: ir.Tensor, limit: int
) -> NDArray[np.float64]:
    """Scale per output channel: max|w| / 127, raised where bias or multiplier would not fit.

    A channel whose products can't move its output by half a step is dead: training with batch
    normalization leaves such channels, with weights down to 1e-9. It takes the median scale of the
    others, in which its bias is exact and from which training can bring it to life.
    """
    scale: NDArray[np.float64] = np.abs(op.weight).max(axis=(1, 2, 3)) / WEIGHT_MAX
    reach = np.abs(op.weight).sum(axis=(1, 2, 3)) * source.scale * _largest_code(source)
    alive = reach > result.scale / 2
    scale[~alive] = _useful_scale(scale[alive], source, result)
    for_bias = np.abs(op.bias) / (source.scale * min(BIAS_MAX, limit))
    for_multiplier = _SMALLEST_MULTIPLIER * result.scale / source.scale
    return np.maximum(np.maximum(scale, for_bias), for_multiplier)


def _useful_scale(others: NDArray[np.float64], source: ir.Tensor, result: ir.Tensor) -> float:
    """A scale for channels that are dead: the median of the ``others``.

    Where there are none, a weight of 127 steps carries one step of the input to one of the output.
    """
    if others.size:
        return float(np.median(others))
    return result.scale / (source.scale * WEIGHT_MAX)


def _kept(
    op: FloatConv, stored: StoredIntegers, source: ir.Tensor, result: ir.Tensor, limit: int
) -> Channels:
    """The integers of a layer that came quantized: its own wherever they can be held."""
    codes, scale = stored.weight.astype(np.float64), stored.weight_scale.copy()
    if stored.bias is None:
        bias = op.bias / (source.scale * scale)
    else:
        bias = stored.bias.astype(np.float64)
    # About a zero point off the middle weights reach further than about 0: as many steps as int8
    # has for the float weights.
    share = coarser_steps(stored)
    codes, scale, bias = np.rint(codes / _per_channel(share)), scale * share, bias / share
    unit = source.scale / result.scale
    reach = np.abs(codes).sum(axis=(1, 2, 3)) * _largest_code(source) * scale * unit
    others = scale[reach > 0.5]
    useful = min(_useful_scale(others, source, result), _COARSEST_BIAS / unit)
    # Out of proportion: above the others, or so small that no weight is one step of theirs.
    low, high = (others.min() / 256, others.max()) if others.size else (useful, useful)
    for channel in np.flatnonzero(reach < _NO_REACH):
        real = bias[channel] * scale[channel] * source.scale
        if not low <= scale[channel] <= high:
            codes[channel] = 0.0
            scale[channel] = max(useful, abs(real) / (source.scale * min(BIAS_MAX, limit)))
        bias[channel] = _bias_for(real, scale[channel] * source.scale, result.scale)
    # What the device can't hold: coarser steps.
    for channel in np.flatnonzero(np.abs(np.rint(bias)) > limit):
        share = abs(bias[channel]) / limit
        factor, height = scale[channel] * unit, abs(bias[channel]) * scale[channel] * unit
        coarser = np.rint(codes[channel] / share)
        lost = np.abs(codes[channel] - coarser * share).sum() * _largest_code(source) * factor
        if lost > 0.5 and height - reach[channel] - lost < _SATURATED:
            raise ModelError(
                f"layer {op.name}: the bias of channel {channel} is {bias[channel]:.0f} steps, "
                f"beyond ±{limit}, where its sums can overflow 32 bits, and in coarser steps its "
                f"weights would be off by up to {lost:.1f} steps of the output; quantize the "
                f"channel with a larger scale than {scale[channel]:.3g}"
            )
        codes[channel], bias[channel] = coarser, bias[channel] / share
        scale[channel] *= share
    return _integers(codes, scale, np.rint(bias), limit)


def coarser_steps(stored: StoredIntegers) -> NDArray[np.float64]:
    """How much larger each channel's steps are on the device, whose weights are symmetric int8.

    A weight of -128 alone isn't worth it: it becomes -127.
    """
    largest = np.abs(stored.weight.astype(np.float64)).max(axis=(1, 2, 3))
    return np.where(largest > WEIGHT_MAX + 1, largest / WEIGHT_MAX, 1.0)


def _bias_for(real: float, step: float, output_step: float) -> float:
    """The real bias of a channel without products in steps of ``step``.

    It alone decides the output, so that one that lies near to a half must not be carried over to
    the next code, neither by steps nor because the device rounds halves up. The file's code is
    that of float32, halves to even.
    """
    wanted = np.rint(np.float32(real) / np.float32(output_step))
    steps = np.rint(real / step)
    for moved in (steps, steps - 1.0, steps + 1.0):
        if np.floor(moved * step / output_step + 0.5) == wanted:
            return float(moved)
    return float(steps)
