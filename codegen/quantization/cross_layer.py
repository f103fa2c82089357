"""Cross-layer equalization: channels of a tensor brought to like ranges, the function unchanged.

An int8 tensor has one scale, that of its widest channel; narrow channels get few of the 255 steps.
Where a convolution makes the tensor and one layer reads it, channel i can be divided by any s_i > 0
in the first layer's weights and bias and multiplied by it in the second's weights, since
relu(x / s) = relu(x) / s (Nagel et al., arXiv 1906.04721). An upper end of the activation, as in
ReLU6, breaks this: channels that reach it on the calibration set keep s_i = 1, and no other channel
is stretched so far that it would reach it.

Nagel et al. balance the ranges of both layers' weights. Ours have one scale per output channel, so
the first layer's don't suffer from imbalance, but the tensor between does. Its measured ranges a_i
therefore stand in the place of the first weights': s_i = a_i^p / r_i^(1-p), where r_i is the range
of input channel i of the second weights, relative to what shares its scale. p = 1/2 is the paper's
balance, the general form that of Xiao et al., arXiv 2211.10438. Of several p, and of no change,
each pair takes what gives the least predicted noise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from codegen.graph.floats import (
    Coding,
    FloatConv,
    FloatGraph,
    FloatHead,
    FloatOp,
    StoredIntegers,
    inputs_of,
)
from codegen.graph.ir import Operation
from codegen.operators import operator_of
from codegen.quantization.calibration import TensorStatistics, round_bits

Channels = NDArray[np.float64]

# Stronger ones give more of the int8 steps to the tensor, weaker ones to the second weights.
STRENGTHS = (0.5, 0.75, 1.0)

LARGEST_FACTOR = 64.0
"""Channels are stretched and shrunk by at most this: SGD moves a weight that was divided by s as if
its learning rate had been multiplied by s^2, and one that was multiplied as if divided by it."""

HEADROOM = 2.0
"""A channel is stretched to half of the widest one's range at most. Beyond its own range of the
calibration set it would saturate on new samples, which channels otherwise have room for."""

# A pair is left alone unless its noise falls to this share of what it was. Less, as in networks
# that are balanced by themselves, isn't worth other learning rates.
_LEAST_GAIN = 0.5
_WEIGHT_STEPS = 127.0
_CODES = 255.0


class Equalization(BaseModel):
    """What was done to the tensor between two layers.

    ``strength`` is the exponent p, None where no change is best. ``imbalance`` is the range of the
    widest channel over that of the median one. ``predicted_noise`` is after over before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    first: str
    second: str
    strength: float | None
    imbalance_before: float
    imbalance_after: float
    predicted_noise: float
    fixed_channels: int


@dataclass(frozen=True)
class Pair:
    """A convolution and the one layer that its output reaches, at most through pooling."""

    first: FloatConv
    second: FloatConv | FloatHead


def pairs(graph: FloatGraph) -> list[Pair]:
    """All pairs between which channels can be rescaled, in execution order."""
    readers: dict[str, list[FloatOp]] = {}
    for op in graph.ops:
        for name in inputs_of(op):
            readers.setdefault(name, []).append(op)
    found = []
    for op in graph.ops:
        if isinstance(op, FloatConv):
            second = _only_reader(op.output, readers, graph.codings)
            if isinstance(second, (FloatConv, FloatHead)):
                found.append(Pair(op, second))
    return found


def _only_reader(
    name: str, readers: Mapping[str, list[FloatOp]], codings: Mapping[str, Coding]
) -> FloatOp | None:
    """The layer that reads ``name`` alone; pooling of any kind scales with its input: passed.

    None where the file codes a tensor in between, which then can't be rescaled.
    """
    while name not in codings and len(readers.get(name, ())) == 1:
        reader = readers[name][0]
        if not isinstance(reader, Operation) or not operator_of(reader).scales_by_channel:
            return reader
        name = reader.output
    return None


def imbalance(magnitudes: Channels) -> float:
    """Largest magnitude over the median of those that aren't 0; 1 where there are none."""
    alive = magnitudes[magnitudes > 0]
    return float(alive.max() / np.median(alive)) if alive.size else 1.0


def equalize(
    graph: FloatGraph, statistics: Mapping[str, TensorStatistics]
) -> tuple[FloatGraph, tuple[Equalization, ...]]:
    """The same function with channels of like ranges, and what was done for each pair.

    ``statistics`` are those of ``graph`` over the calibration set (`calibration.observe`); they
    don't hold for the result. On samples of the set the result differs from ``graph`` by the
    rounding of float64 only. So it does on any input where activations have no upper end; where
    they have one, a stretched channel now reaches it at twice its largest value of the set or more.
    """
    layers = {op.output: op for op in graph.ops}
    done = []
    for pair in pairs(graph):
        first, second = layers[pair.first.output], layers[pair.second.output]
        assert isinstance(first, FloatConv)
        assert isinstance(second, (FloatConv, FloatHead))
        tensor = statistics[first.output]
        before = _predicted_noise(second, tensor, np.ones_like(tensor.high))
        noise, strength, factors = before, None, np.ones_like(tensor.high)
        for candidate in STRENGTHS:
            tried = _factors(first, second, tensor, candidate)
            predicted = _predicted_noise(second, tensor, tried)
            if predicted < min(noise, _LEAST_GAIN * before):
                noise, strength, factors = predicted, candidate, tried
        if strength is not None:
            layers[first.output], layers[second.output] = _rescaled(first, second, factors)
        magnitude = tensor.channel_magnitude
        done.append(
            Equalization(
                first=first.name,
                second=second.name,
                strength=strength,
                imbalance_before=imbalance(magnitude),
                imbalance_after=imbalance(magnitude / factors),
                predicted_noise=noise / before if before else 1.0,
                fixed_channels=int(_fixed(first, tensor).sum()),
            )
        )
    ops = tuple(layers[op.output] for op in graph.ops)
    return dataclasses.replace(graph, ops=ops), tuple(done)


def _factors(
    first: FloatConv, second: FloatConv | FloatHead, tensor: TensorStatistics, strength: float
) -> Channels:
    """s_i by which channels are divided; the tensor's widest channel stays as wide as it is."""
    magnitude = tensor.channel_magnitude
    relative = _relative_ranges(second, len(magnitude))
    usable = (magnitude > 0) & (relative > 0)
    if not usable.any():
        return np.ones_like(magnitude)
    factors = np.ones_like(magnitude)
    # A depthwise filter has a scale of its own: only the tensor gains from its factor.
    exponent = 1.0 if _depthwise(second) else strength
    factors[usable] = magnitude[usable] ** exponent / relative[usable] ** (1.0 - exponent)
    factors[usable] *= (magnitude[usable] / factors[usable]).max() / magnitude.max()
    factors = np.clip(factors, 1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
    factors = np.maximum(factors, np.minimum(HEADROOM * magnitude / magnitude.max(), 1.0))
    for end, reached in ((first.clamp.high, tensor.high), (first.clamp.low, tensor.low)):
        if end != 0.0 and math.isfinite(end):
            factors = np.maximum(factors, reached / end)
    factors[_fixed(first, tensor) | ~usable] = 1.0
    return round_bits(factors)  # the same on every CPU, as `TensorStatistics.range`


def _fixed(first: FloatConv, tensor: TensorStatistics) -> NDArray[np.bool_]:
    """Channels that reach an end of the activation other than 0, where scaling isn't exact."""
    low, high = first.clamp.low, first.clamp.high
    fixed = tensor.high >= high if high != 0.0 else np.zeros(tensor.high.shape, dtype=bool)
    return np.asarray(fixed | (tensor.low <= low) if low != 0.0 else fixed)


def _depthwise(layer: FloatConv | FloatHead) -> bool:
    return isinstance(layer, FloatConv) and layer.depthwise


def _taps(layer: FloatConv | FloatHead, channels: int) -> NDArray[np.float64]:
    """Weights as [rows, input channels, weights per pair]; depthwise ones as [channels, 1, ...]."""
    inputs = 1 if _depthwise(layer) else channels
    return np.asarray(layer.weight.reshape(len(layer.weight), inputs, -1))


def _relative_ranges(layer: FloatConv | FloatHead, channels: int) -> Channels:
    """Of each input channel the largest |weight|, relative to the largest that shares its scale."""
    largest = np.abs(_taps(layer, channels)).max(axis=2)
    if _depthwise(layer):
        return np.asarray(largest[:, 0] > 0, dtype=np.float64)
    rows = largest.max(axis=1, keepdims=True)
    if isinstance(layer, FloatHead):  # one scale for all
        rows = np.full_like(rows, rows.max())
    relative = np.divide(largest, rows, out=np.zeros_like(largest), where=rows > 0)
    return np.asarray(relative.max(axis=0))


def _predicted_noise(
    second: FloatConv | FloatHead, tensor: TensorStatistics, factors: Channels
) -> float:
    """Noise energy in the second layer's output: rounding of the tensor and of its weights.

    Of the sum of products w x each factor's error is seen through the other. The tensor's counts as
    uniform over its step d, with the variance d^2 / 12. The weights' is known: it is 0 for weights
    that come from an int8 model, and next to nothing for the head's 16 bits.
    """
    # [rows, channels, taps], where depthwise rows are the channels: [channels, 1, taps].
    along = (factors[:, np.newaxis] if _depthwise(second) else factors)[..., np.newaxis]
    power = tensor.mean_square[:, np.newaxis] if _depthwise(second) else tensor.mean_square
    weight = _taps(second, len(factors)) * along
    step = np.abs(weight).max(axis=(1, 2), keepdims=True) / _WEIGHT_STEPS
    step[step == 0.0] = 1.0
    rounding = ((weight - step * np.rint(weight / step)) ** 2).sum(axis=2)
    weight_noise = (rounding * power / along[..., 0] ** 2).sum(axis=1)
    if isinstance(second, FloatHead):
        weight_noise = np.zeros_like(weight_noise)
    through = (weight**2).sum(axis=(1, 2))
    high, low = (tensor.high / factors).max(), (tensor.low / factors).min()
    tensor_step = (max(high, 0.0) - min(low, 0.0)) / _CODES
    return float((tensor_step**2 / 12.0 * through + weight_noise).sum())


def _rescaled(
    first: FloatConv, second: FloatConv | FloatHead, factors: Channels
) -> tuple[FloatConv, FloatConv | FloatHead]:
    by_output = factors[:, np.newaxis, np.newaxis, np.newaxis]
    divided = dataclasses.replace(
        first,
        weight=first.weight / by_output,
        bias=first.bias / factors,
        stored=_times(first.stored, 1.0 / factors),
    )
    along = factors[:, np.newaxis, np.newaxis] if _depthwise(second) else factors[:, np.newaxis]
    weight = (_taps(second, len(factors)) * along).reshape(second.weight.shape)
    if isinstance(second, FloatHead):
        return divided, dataclasses.replace(second, weight=weight)
    stored = _times(second.stored, factors) if second.depthwise else None
    return divided, dataclasses.replace(second, weight=weight, stored=stored)


def _times(stored: StoredIntegers | None, factors: Channels) -> StoredIntegers | None:
    """The same integers in other steps by output channel."""
    if stored is None:
        return None
    return dataclasses.replace(stored, weight_scale=stored.weight_scale * factors, bias=None)
