"""The quantized graph: what import and quantization produce and every later pass reads.

A graph is a list of operations in execution order, each of which makes one tensor that
is never changed afterwards (single assignment). Activations are int8 with one scale and
zero point per tensor and have the shape ``(height, width, channels)``; the batch is one
sample. Weight layouts are those of the device: ``[O, Kh, Kw, I]`` for convolutions,
``[Kh, Kw, C]`` for depthwise ones, ``[O, I]`` for the head.

Real values: activation = scale * (code - zero_point), weight = weight_scale[o] * code,
bias = input scale * weight_scale[o] * code. The output of every convolution is clamped to
[-128, 127]; that clamp *is* the activation function. Operations without weights are those of
`codegen.operators`. The last operation makes no tensor: it says what the outputs are (`Ending`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

INT8_MIN, INT8_MAX = -128, 127

Shape: TypeAlias = tuple[int, int, int]
Loss: TypeAlias = Literal["cross-entropy", "binary", "mse", "none"]
LOSS_UNITS: dict[str, str] = {
    "cross-entropy": "nats",
    "binary": "nats",
    "mse": "squared units of the target",
    "none": "nothing",
}
MOST_OUTPUTS = 2**16 - 1
MOST_BINARY_OUTPUTS = 16
"""A sample's label has a bit for each."""


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
class Unary:
    """An operation without weights that reads one tensor: base of those in `codegen.operators`."""

    name: str
    input: str
    output: str


@dataclass(frozen=True)
class Variadic:
    """An operation without weights that reads several tensors, as `Unary` reads one."""

    name: str
    inputs: tuple[str, ...]
    output: str


Operation: TypeAlias = Unary | Variadic


class Ending:
    """The last operation: what the outputs are and what they are trained with.

    With the mean squared error they stand for a sample's targets, int16 codes of ``target_scale``
    each and zero point 0; where that is None, for the graph's input, element by element in the
    order (height, width, channels). The loss is the mean of the squared differences in real units.
    """

    name: str
    input: str
    loss: Loss
    target_scale: float | None

    @property
    def outputs(self) -> int:
        """How many there are."""
        raise NotImplementedError

    @property
    def reconstructs(self) -> bool:
        """Whether the outputs stand for the graph's input."""
        return self.loss == "mse" and self.target_scale is None


@dataclass(frozen=True, eq=False)
class Head(Ending):
    """A matrix at the end: its outputs are wide (int32), never clamped.

    Weights are q8.8, that is int16 [O, I] with real value weight_scale / 256 per step, and one
    scale for all outputs so that they compare; bias int32 [O] with real value
    input scale * weight_scale / 256 per step. I counts the elements of the input in the order
    (height, width, channels).

    With cross entropy the outputs are the logits of a classifier. With the binary loss each of
    them is the logit of a yes or no, and the loss is the mean of their cross entropies.
    """

    name: str
    input: str
    weight: NDArray[np.int16]
    weight_scale: float
    bias: NDArray[np.int32]
    loss: Loss = "cross-entropy"
    target_scale: float | None = None

    @property
    def outputs(self) -> int:
        """How many there are."""
        return self.bias.size


@dataclass(frozen=True)
class TensorOutput(Ending):
    """No matrix at the end: the outputs are the elements of ``input``, int8 codes as they are.

    They reconstruct the graph's input, whose shape they have, or nothing is trained.
    """

    name: str
    input: str
    size: int
    loss: Loss = "mse"
    target_scale: None = None

    @property
    def outputs(self) -> int:
        """How many there are."""
        return self.size


Op: TypeAlias = Conv | DepthwiseConv | Operation | Head | TensorOutput


@dataclass(frozen=True, eq=False)
class Graph:
    """A quantized network for one sample, from an int8 input to the ending."""

    name: str
    input: str
    tensors: dict[str, Tensor]
    ops: tuple[Op, ...]

    @property
    def ending(self) -> Head | TensorOutput:
        """The operation at the end."""
        last = self.ops[-1]
        assert isinstance(last, (Head, TensorOutput))
        return last

    @property
    def head(self) -> Head:
        """The same, of a graph that ends in a matrix."""
        last = self.ending
        assert isinstance(last, Head)
        return last

    @property
    def convolutions(self) -> list[Conv | DepthwiseConv]:
        """All convolutions in execution order: the layers that a plan can name."""
        return [op for op in self.ops if isinstance(op, (Conv, DepthwiseConv))]


def inputs_of(op: Op) -> tuple[str, ...]:
    """Names of the tensors that ``op`` reads."""
    return op.inputs if isinstance(op, Variadic) else (op.input,)


def sample_bytes(graph: Graph) -> int:
    """Of a sample on a device: the input's codes, and int16 targets where the loss has them."""
    ending = graph.ending
    targets = 0 if ending.target_scale is None else ending.outputs
    return graph.tensors[graph.input].size + 2 * targets


def label_count(loss: Loss, outputs: int) -> int:
    """Labels of samples are below it; where they play no part, they may be any 16 bits."""
    match loss:
        case "cross-entropy":
            return outputs
        case "binary":
            return 1 << outputs
        case "mse" | "none":
            return 1 << 16


def with_targets(
    codes: NDArray[np.int8], targets: NDArray[np.floating], scale: float
) -> NDArray[np.int8]:
    """Samples (n, sample_bytes) as a device logs them: flat ``codes`` (n, …), and behind them
    real ``targets`` (n, outputs) as int16 of ``scale``, little-endian; beyond its ends saturate."""
    steps = np.rint(targets.astype(np.float64) / scale)
    behind = np.clip(steps, -32768, 32767).astype("<i2")
    return np.concatenate([codes.reshape(len(codes), -1), behind.view(np.int8)], axis=1)
