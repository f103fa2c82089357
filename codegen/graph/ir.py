"""The quantized graph: what import and quantization produce and every later pass reads.

A graph is a list of operations in execution order, each of which makes one tensor that
is never changed afterwards (single assignment). Activations are int8 with one scale and
zero point per tensor and have the shape ``(height, width, channels)``; the batch is one
sample. Weight layouts are those of the device: ``[O, Kh, Kw, I]`` for convolutions,
``[Kh, Kw, C]`` for depthwise ones, ``[O, I]`` for the head.

Real values: activation = scale * (code - zero_point), weight = weight_scale[o] * code,
bias = input scale * weight_scale[o] * code. The output of every convolution and addition is
clamped to [-128, 127]; that clamp *is* the activation function. Pools over the largest value,
global means and concatenations leave codes as they are; where a model asks for another scale,
a Requantize stands behind or before them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

INT8_MIN, INT8_MAX = -128, 127

Shape: TypeAlias = tuple[int, int, int]
Loss: TypeAlias = Literal["cross-entropy", "mse"]
LOSS_UNITS: dict[str, str] = {"cross-entropy": "nats", "mse": "squared units of the input"}


@dataclass(frozen=True)
class Tensor:
    """An int8 activation of shape (height, width, channels)."""

    name: str
    shape: Shape
    scale: float
    zero_point: int

    @property
    def size(self) -> int:
        """Number of elements, which is also the number of bytes."""
        height, width, channels = self.shape
        return height * width * channels


@dataclass(frozen=True)
class Padding:
    """Rows and columns around an input: real zeros for a convolution."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0


@dataclass(frozen=True, eq=False)
class Conv:
    """Full convolution: weight int8 [O, Kh, Kw, I], weight_scale [O], bias int32 [O]."""

    name: str
    input: str
    output: str
    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float64]
    bias: NDArray[np.int32]
    stride: tuple[int, int] = (1, 1)
    padding: Padding = field(default_factory=Padding)


@dataclass(frozen=True, eq=False)
class DepthwiseConv:
    """One filter per channel: weight int8 [Kh, Kw, C], weight_scale [C], bias int32 [C]."""

    name: str
    input: str
    output: str
    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float64]
    bias: NDArray[np.int32]
    stride: tuple[int, int] = (1, 1)
    padding: Padding = field(default_factory=Padding)


@dataclass(frozen=True)
class Add:
    """Elementwise sum of two tensors of one shape, each with its own scale."""

    name: str
    inputs: tuple[str, str]
    output: str


@dataclass(frozen=True)
class GlobalAveragePool:
    """Mean over height and width; on the device of its input's scale and zero point."""

    name: str
    input: str
    output: str


@dataclass(frozen=True)
class MaxPool:
    """Largest value under each window (rows, columns); keeps scale and zero point.

    Padding never wins; no window lies in it altogether.
    """

    name: str
    input: str
    output: str
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = field(default_factory=Padding)


@dataclass(frozen=True)
class AveragePool:
    """Mean under each window (rows, columns); the output may have a scale of its own.

    Padding counts as real zeros as far as ``counted`` goes, and beyond that not at all.
    """

    name: str
    input: str
    output: str
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = field(default_factory=Padding)
    counted: Padding = field(default_factory=Padding)


@dataclass(frozen=True)
class Concat:
    """Channels of several tensors one after another, all of one scale and zero point."""

    name: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Requantize:
    """The same real values in another scale, then clamped to the codes ``low`` … ``high``."""

    name: str
    input: str
    output: str
    low: int = INT8_MIN
    high: int = INT8_MAX


@dataclass(frozen=True, eq=False)
class Head:
    """The last operation: its outputs are wide (int32), never clamped.

    Weights are q8.8, that is int16 [O, I] with real value weight_scale / 256 per step, and one
    scale for all outputs so that they compare; bias int32 [O] with real value
    input scale * weight_scale / 256 per step. I counts the elements of the input in the order
    (height, width, channels).

    With cross entropy the outputs are the logits of a classifier. With the mean squared error
    they reconstruct the graph's input, element by element in the order (height, width, channels),
    and the loss is the mean of the squared differences in real units.
    """

    name: str
    input: str
    weight: NDArray[np.int16]
    weight_scale: float
    bias: NDArray[np.int32]
    loss: Loss = "cross-entropy"


Op: TypeAlias = (
    Conv
    | DepthwiseConv
    | Add
    | GlobalAveragePool
    | MaxPool
    | AveragePool
    | Concat
    | Requantize
    | Head
)


@dataclass(frozen=True, eq=False)
class Graph:
    """A quantized network for one sample, from an int8 input to the head."""

    name: str
    input: str
    tensors: dict[str, Tensor]
    ops: tuple[Op, ...]

    @property
    def head(self) -> Head:
        """The operation at the end."""
        last = self.ops[-1]
        assert isinstance(last, Head)
        return last

    @property
    def convolutions(self) -> list[Conv | DepthwiseConv]:
        """All convolutions in execution order: the layers that a plan can name."""
        return [op for op in self.ops if isinstance(op, (Conv, DepthwiseConv))]


def inputs_of(op: Op) -> tuple[str, ...]:
    """Names of the tensors that ``op`` reads."""
    return op.inputs if isinstance(op, (Add, Concat)) else (op.input,)
