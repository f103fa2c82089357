"""The network as the model file means it: real numbers, before quantization.

A float graph is already normal in the ways that the device knows: batch normalization is folded
into the convolution before it, an activation is a clamp on the operation that makes the tensor,
fully connected layers are convolutions whose kernel covers the whole picture, and the output is
made by one matrix at the end, or is the last tensor. Weights keep ONNX's layouts (``[O, I/groups,
Kh, Kw]``) and tensors are ``(channels, height, width)`` (1-D signals have height 1, vectors 1x1);
quantization turns both into the device's. Operations without weights are those of
`codegen.operators`, whose `execution.evaluate` is the reference for everything after it: plain
numpy in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from codegen.graph.ir import INT8_MAX, INT8_MIN, Ending, Loss, Operation, Padding, Variadic

ChannelsFirst: TypeAlias = tuple[int, int, int]
"""(channels, height, width) of one sample."""
Values: TypeAlias = NDArray[np.float64]
_Any = TypeVar("_Any", bound=np.generic)


@dataclass(frozen=True)
class Clamp:
    """The activation function min(max(x, low), high)."""

    low: float = -math.inf
    high: float = math.inf

    def then(self, other: Clamp) -> Clamp:
        """The clamp that equals this one followed by ``other``."""
        return Clamp(*(min(max(end, other.low), other.high) for end in (self.low, self.high)))


NO_CLAMP = Clamp()


@runtime_checkable
class Clamped(Protocol):
    """An operation that ends in an activation."""

    @property
    def clamp(self) -> Clamp:
        """What its result is clamped to."""


@dataclass(frozen=True)
class Coding:
    """How a quantized model stores a tensor: real = scale * (code - zero_point), code int8."""

    scale: float
    zero_point: int

    @property
    def range(self) -> Clamp:
        """The real values that have codes: what lies beyond saturates."""
        ends = (self.scale * (code - self.zero_point) for code in (INT8_MIN, INT8_MAX))
        return Clamp(*ends)


@dataclass(frozen=True, eq=False)
class StoredIntegers:
    """The integers of a layer of a quantized model, exactly as stored.

    weight [O, I/groups, Kh, Kw], -128 … 127 (128 where a negative factor was folded in), with one
    scale per output channel; bias int32 [O] in steps of input scale * weight scale, or None where
    the bias is stored as real numbers.
    """

    weight: NDArray[np.int16]
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


class FloatEnding:
    """The last operation, whose result, named ``output``, is the graph's: see `ir.Ending`."""

    name: str
    input: str
    output: str
    loss: Loss
    target_scale: float | None

    @property
    def reconstructs(self) -> bool:
        """Whether the outputs stand for the graph's input."""
        return self.loss == "mse" and self.target_scale is None


@dataclass(frozen=True, eq=False)
class FloatHead(FloatEnding):
    """The last layer: weight [O, I], bias [O]; its output, named ``output``, is the graph's.

    The inputs are the elements (channels, height, width) of its input tensor in that order. What
    the outputs are with each loss, `codegen.graph.ir.Head` says; those that reconstruct the
    graph's input have its elements in the order (channels, height, width).
    """

    name: str
    input: str
    output: str
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    loss: Loss = "cross-entropy"
    target_scale: float | None = None


@dataclass(frozen=True)
class FloatTensorOutput(FloatEnding):
    """The outputs are the elements (channels, height, width) of ``input`` in that order."""

    name: str
    input: str
    output: str
    loss: Loss = "mse"
    target_scale: None = None


FloatOp: TypeAlias = FloatConv | Operation | FloatHead | FloatTensorOutput


@dataclass(frozen=True)
class SampleLayout:
    """How the model file wants a sample, and how that becomes (channels, height, width).

    ``shape`` is the sample's shape without the batch. Its axes split into axes of the sizes
    ``split``, which taken in ``order`` are those of channels, then height, then width.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]

    def arrange(self, samples: NDArray[_Any], target: ChannelsFirst) -> NDArray[_Any]:
        """Samples (N, *shape) as (N, *target); ones that have that shape already stay."""
        if samples.shape[1:] == target and self.shape != target:
            return samples
        split = samples.reshape(len(samples), *self.split)
        ordered = split.transpose(0, *(axis + 1 for axis in self.order))
        return ordered.reshape(len(samples), *target)


@dataclass(frozen=True)
class LossChoice:
    """The loss that a model is trained with, why, and whether that is a guess.

    ``target_scale`` is the real value of one step of the targets, where the loss has any.
    ``output`` is the file's name for what is trained, ``output_because`` why it is that one, where
    there were others. ``class_names`` are what the file calls its classes, where these aren't their
    numbers: of no and yes for a binary loss.
    """

    loss: Loss
    because: str
    guessed: bool = False
    target_scale: float | None = None
    output: str = ""
    output_because: str = ""
    class_names: tuple[str, ...] = ()


def loss_of(ending: Ending) -> LossChoice:
    """The loss of a compiled model, for another file of its network."""
    return LossChoice(ending.loss, "the bundle says so", target_scale=ending.target_scale)


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """Operations in execution order, the ending last; shapes of all tensors but its output.

    ``codings`` says how a quantized model codes its tensors; a float model has none, and one that
    is quantized in parts has those of the parts.
    ``sample_layout`` is that of the input in the model file, where it differs from ``shapes``.
    ``loss_choice`` is why the ending has its loss, where the importer chose it. ``notes`` are what
    the importer did that should be known.
    ``integer_input``: the model file takes codes, int8 or uint8, not real numbers.
    """

    name: str
    input: str
    shapes: dict[str, ChannelsFirst]
    ops: tuple[FloatOp, ...]
    codings: Mapping[str, Coding] = field(default_factory=dict)
    sample_layout: SampleLayout | None = None
    loss_choice: LossChoice | None = None
    notes: tuple[str, ...] = ()
    integer_input: bool = False

    @property
    def ending(self) -> FloatHead | FloatTensorOutput:
        """The operation at the end."""
        last = self.ops[-1]
        assert isinstance(last, (FloatHead, FloatTensorOutput))
        return last

    @property
    def head(self) -> FloatHead:
        """The same, of a graph that ends in a matrix."""
        last = self.ending
        assert isinstance(last, FloatHead)
        return last

    @property
    def output_order(self) -> NDArray[np.intp]:
        """Places of the outputs when put in the order of the device."""
        ending = self.ending
        if isinstance(ending, FloatTensorOutput):
            return channels_last(self.shapes[ending.input])
        if ending.reconstructs:
            return channels_last(self.shapes[self.input])
        return np.arange(len(ending.bias))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample in the model file, without the batch."""
        return self.sample_layout.shape if self.sample_layout else self.shapes[self.input]

    def arrange(self, samples: NDArray[_Any]) -> NDArray[_Any]:
        """Samples (N, *sample_shape) as (N, channels, height, width)."""
        if self.sample_layout is None:
            return samples
        return self.sample_layout.arrange(samples, self.shapes[self.input])


def inputs_of(op: FloatOp) -> tuple[str, ...]:
    """Names of the tensors that ``op`` reads."""
    return op.inputs if isinstance(op, Variadic) else (op.input,)


def channels_last(shape: ChannelsFirst) -> NDArray[np.intp]:
    """Places of the elements (channels, height, width) when put in the order of the device.

    That is (height, width, channels), for a flattened tensor of ``shape``.
    """
    places: NDArray[np.intp] = np.arange(math.prod(shape), dtype=np.intp).reshape(shape)
    return places.transpose(1, 2, 0).reshape(-1)


def window_output_shape(
    window: tuple[int, int], stride: tuple[int, int], pad: Padding, size: tuple[int, int]
) -> tuple[int, int]:
    """(height, width) of what a window sees; below 1 where it doesn't fit."""
    return (
        (size[0] + pad.top + pad.bottom - window[0]) // stride[0] + 1,
        (size[1] + pad.left + pad.right - window[1]) // stride[1] + 1,
    )


def conv_output_shape(conv: FloatConv, shape: ChannelsFirst) -> ChannelsFirst:
    """Shape that ``conv`` makes of ``shape``; sizes below 1 mean that the kernel doesn't fit."""
    outputs, _, kernel_h, kernel_w = conv.weight.shape
    size = window_output_shape((kernel_h, kernel_w), conv.stride, conv.padding, shape[1:])
    return outputs, *size


def parameter_count(graph: FloatGraph) -> int:
    """Weights and biases of all layers: the values that a dense fp32 update would carry."""
    return sum(
        op.weight.size + op.bias.size for op in graph.ops if isinstance(op, (FloatConv, FloatHead))
    )
