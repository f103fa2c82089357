"""The network as the model file means it: real numbers, before quantization.

A float graph is already normal in the ways that the device knows: batch normalization is folded
into the convolution before it, an activation is a clamp on the operation that makes the tensor, and
the classifier is one matrix at the end. Weights keep ONNX's layouts (``[O, I/groups, Kh, Kw]``) and
tensors are ``(channels, height, width)``; quantization turns both into the device's.

`evaluate` is the reference for everything after it: plain numpy in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from codegen.ir import Padding

ChannelsFirst: TypeAlias = tuple[int, int, int]
"""(channels, height, width) of one sample."""


@dataclass(frozen=True)
class Clamp:
    """The activation function min(max(x, low), high)."""

    low: float = -math.inf
    high: float = math.inf

    def then(self, other: Clamp) -> Clamp:
        """The clamp that equals this one followed by ``other``."""
        return Clamp(*(min(max(end, other.low), other.high) for end in (self.low, self.high)))


NO_CLAMP = Clamp()


@dataclass(frozen=True)
class Coding:
    """How a quantized model stores a tensor: real = scale * (code - zero_point), code int8."""

    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class StoredIntegers:
    """The integers of a layer of a quantized model, exactly as stored.

    weight int8 [O, I/groups, Kh, Kw] with one scale per output channel; bias int32 [O] in steps
    of input scale * weight scale, or None where the bias is stored as real numbers.
    """

    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float64]
    bias: NDArray[np.int32] | None


@dataclass(frozen=True, eq=False)
class FloatConv:
    """Convolution: weight [O, I/groups, Kh, Kw], bias [O]; groups is 1 or the channel count.

    ``stored`` has the integers where the model came quantized; weight and bias are then their
    real values.
    """

    name: str
    input: str
    output: str
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    groups: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: Padding = field(default_factory=Padding)
    clamp: Clamp = NO_CLAMP
    stored: StoredIntegers | None = None

    @property
    def depthwise(self) -> bool:
        """One filter per channel (and more than one channel)."""
        return self.groups > 1


@dataclass(frozen=True)
class FloatAdd:
    """Elementwise sum of two tensors of one shape."""

    name: str
    inputs: tuple[str, str]
    output: str
    clamp: Clamp = NO_CLAMP


@dataclass(frozen=True)
class FloatPool:
    """Mean over height and width."""

    name: str
    input: str
    output: str


@dataclass(frozen=True, eq=False)
class FloatHead:
    """The classifier: weight [O, I], bias [O]; its output, named ``output``, are the logits."""

    name: str
    input: str
    output: str
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]


FloatOp: TypeAlias = FloatConv | FloatAdd | FloatPool | FloatHead


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """Operations in execution order, the head last; shapes of all tensors but the logits.

    ``codings`` says how a quantized model codes its tensors; a float model has none.
    """

    name: str
    input: str
    shapes: dict[str, ChannelsFirst]
    ops: tuple[FloatOp, ...]
    codings: Mapping[str, Coding] = field(default_factory=dict)

    @property
    def head(self) -> FloatHead:
        """The classifier at the end."""
        last = self.ops[-1]
        assert isinstance(last, FloatHead)
        return last


def inputs_of(op: FloatOp) -> tuple[str, ...]:
    """Names of the tensors that ``op`` reads."""
    return op.inputs if isinstance(op, FloatAdd) else (op.input,)


def conv_output_shape(conv: FloatConv, shape: ChannelsFirst) -> ChannelsFirst:
    """Shape that ``conv`` makes of ``shape``; sizes below 1 mean that the kernel doesn't fit."""
    outputs, _, kernel_h, kernel_w = conv.weight.shape
    pad, (stride_h, stride_w) = conv.padding, conv.stride
    height = (shape[1] + pad.top + pad.bottom - kernel_h) // stride_h + 1
    width = (shape[2] + pad.left + pad.right - kernel_w) // stride_w + 1
    return outputs, height, width


def parameter_count(graph: FloatGraph) -> int:
    """Weights and biases of all layers: the values that a dense fp32 update would carry."""
    return sum(
        op.weight.size + op.bias.size for op in graph.ops if isinstance(op, (FloatConv, FloatHead))
    )


def forward_macs(graph: FloatGraph) -> int:
    """Multiply-accumulates of one forward pass (convolutions and head)."""
    total = 0
    for op in graph.ops:
        if isinstance(op, FloatConv):
            _, height, width = graph.shapes[op.output]
            total += op.weight.size * height * width
        elif isinstance(op, FloatHead):
            total += op.weight.size
    return total


def evaluate(graph: FloatGraph, x: NDArray[np.floating]) -> dict[str, NDArray[np.float64]]:
    """All tensors of a batch ``x`` (N, C, H, W): name → (N, C, H, W), logits (N, classes)."""
    values = {graph.input: np.asarray(x, dtype=np.float64)}
    values.update({op.output: result for op, _, result in execute(graph, x)})
    return values


def execute(
    graph: FloatGraph, x: NDArray[np.floating]
) -> Iterator[tuple[FloatOp, list[NDArray[np.float64]], NDArray[np.float64]]]:
    """Each operation with its inputs and its output for a batch ``x`` (N, C, H, W), in order.

    Holds no tensor longer than until its last reader, for callers that don't either.
    """
    last_reader = {name: op.output for op in graph.ops for name in inputs_of(op)}
    values: dict[str, NDArray[np.float64]] = {graph.input: np.asarray(x, dtype=np.float64)}
    for op in graph.ops:
        inputs = [values[name] for name in inputs_of(op)]
        values[op.output] = evaluate_op(op, inputs)
        yield op, inputs, values[op.output]
        for name in set(inputs_of(op)):
            if last_reader[name] == op.output:
                del values[name]


def evaluate_op(op: FloatOp, inputs: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """What ``op`` makes of its inputs (N, C, H, W), in the order of `inputs_of`."""
    first = inputs[0]
    match op:
        case FloatConv():
            result = convolve(first, op.weight, op.groups, op.stride, op.padding)
            return _clamped(result + op.bias[:, np.newaxis, np.newaxis], op.clamp)
        case FloatAdd():
            return _clamped(first + inputs[1], op.clamp)
        case FloatPool():
            pooled: NDArray[np.float64] = first.mean(axis=(2, 3), keepdims=True)
            return pooled
        case FloatHead():
            flat = first.reshape(len(first), -1)
            return np.asarray(flat @ op.weight.T + op.bias, dtype=np.float64)


def _clamped(values: NDArray[np.float64], clamp: Clamp) -> NDArray[np.float64]:
    return np.minimum(np.maximum(values, clamp.low), clamp.high)


def convolve(
    x: NDArray[np.float64],
    weight: NDArray[np.float64],
    groups: int,
    stride: tuple[int, int],
    padding: Padding,
) -> NDArray[np.float64]:
    """Cross-correlation of x (N, C, H, W) with weight [O, C/groups, Kh, Kw], zeros around x."""
    pad = padding
    padded = np.pad(x, ((0, 0), (0, 0), (pad.top, pad.bottom), (pad.left, pad.right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1]]
    count, channels, height, width = windows.shape[:4]
    outputs = weight.shape[0]
    result = np.empty((count, outputs, height, width))
    inputs_each, outputs_each = channels // groups, outputs // groups
    if inputs_each == 1 and outputs_each == 1:
        return np.asarray(np.einsum("nchwij,cij->nchw", windows, weight[:, 0]))
    for group in range(groups):
        part = windows[:, group * inputs_each : (group + 1) * inputs_each]
        rows = slice(group * outputs_each, (group + 1) * outputs_each)
        columns = part.transpose(0, 2, 3, 1, 4, 5).reshape(count, height, width, -1)
        filters = weight[rows].reshape(outputs_each, -1)
        result[:, rows] = (columns @ filters.T).transpose(0, 3, 1, 2)
    return result
