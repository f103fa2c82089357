"""The forward pass of a quantized graph as ONNX, in integers: what a device computes, bit for bit.

QuantizeLinear and DequantizeLinear can't say it: between them stand float32 sums, a float32 scale
and halves that go to even, while a device has 32-bit sums, a multiplier of 31 bits and halves that
go up (docs/specification/arithmetic.md). So layers are ConvInteger and MatMul over integers here,
and what follows is int64 arithmetic with the constants of `codegen.arithmetic`.

* ConvInteger gets unsigned codes and unsigned weights: of signed weights, kernels for AVX2 without
  VNNI saturate sums of two products to 16 bits.
* ONNX divides towards zero and shifts unsigned integers only. Rounding down is a division of what a
  power of two has lifted above zero before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from codegen.arithmetic.integers import Ints
from codegen.arithmetic.layers import INT32_MAX, SHIFT_BITS, convolution_arithmetic
from codegen.graph.ir import (
    INT8_MAX,
    INT8_MIN,
    Conv,
    DepthwiseConv,
    Graph,
    Head,
    Op,
    Operation,
    TensorOutput,
)
from codegen.operators import operator_of
from codegen.operators.windows import window_attributes

INPUT, OUTPUT = "input", "outputs"
"""Codes (N, height, width, channels) as devices take them; the int32 outputs (N, O)."""

# The oldest whose operators are all here, for runtimes of any age.
_OPSET, _IR_VERSION = 13, 8
_UNSIGNED = 128  # added to a signed code, it is the unsigned one


def stored_layout(op: Conv | DepthwiseConv | Head, weight: NDArray[Any]) -> NDArray[Any]:
    """A weight in the file's layout: [O, I/groups, Kh, Kw] for convolutions; the head's stays."""
    match op:
        case Conv():
            return weight.transpose(0, 3, 1, 2)
        case DepthwiseConv():
            return weight.transpose(2, 0, 1)[:, np.newaxis]
        case Head():
            return weight


def device_layout(op: Conv | DepthwiseConv | Head, weight: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `stored_layout`."""
    match op:
        case Conv():
            return weight.transpose(0, 2, 3, 1)
        case DepthwiseConv():
            return weight[:, 0].transpose(1, 2, 0)
        case Head():
            return weight


def integer_model(graph: Graph, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """``graph`` with its weights and biases as initializers named ``LAYER.weight`` and
    ``LAYER.bias``, int8 and int32 (the head's weight: int16)."""
    writer = ModelWriter(graph)
    for op in graph.ops:
        writer.write(op)
    height, width, channels = graph.tensors[graph.input].shape
    made = helper.make_graph(
        writer.nodes,
        graph.name,
        [helper.make_tensor_value_info(INPUT, TensorProto.INT8, ["N", height, width, channels])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.INT32, ["N", graph.ending.outputs])],
        [numpy_helper.from_array(value, name) for name, value in writer.constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    model.producer_name = "tinyfleet"
    helper.set_model_props(model, dict(metadata or {}))
    return model


class ModelWriter:
    """The nodes and constants of a graph; codes of activations are int8 (N, C, H, W)."""

    def __init__(self, graph: Graph) -> None:
        """Begins with the graph's input, of which operations see (N, C, H, W)."""
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        first = Layer(self, INPUT)
        self.codes = {graph.input: first.node("Transpose", "codes", INPUT, perm=[0, 3, 1, 2])}

    def write(self, op: Op) -> None:
        """Appends ``op``."""
        layer = Layer(self, op.name)
        if isinstance(op, Head):
            self._head(op, layer)
        elif isinstance(op, TensorOutput):
            last = layer.node("Transpose", "channels_last", self.codes[op.input], perm=[0, 2, 3, 1])
            centred = layer.centred("input", last, self.zero(op.input))
            shape = layer.constant("outputs.shape", [-1, op.outputs])
            self._output(op, layer.node("Reshape", "flat", centred, shape))
        elif op.output not in self.codes:  # a tensor that a Concat reads twice is recoded twice
            self.codes[op.output] = self._codes(op, layer)

    def _codes(self, op: Conv | DepthwiseConv | Operation, layer: Layer) -> str:
        if isinstance(op, Conv | DepthwiseConv):
            return self._convolution(op, layer)
        return operator_of(op).export(self, op, layer)

    def zero(self, tensor: str) -> int:
        """The zero point of ``tensor``."""
        return self.graph.tensors[tensor].zero_point

    def _convolution(self, op: Conv | DepthwiseConv, layer: Layer) -> str:
        constants = convolution_arithmetic(self.graph, op)
        weight = self._constant(f"{op.name}.weight", stored_layout(op, op.weight))
        bias = self._constant(f"{op.name}.bias", op.bias)
        group = op.weight.shape[-1] if isinstance(op, DepthwiseConv) else 1
        around = window_attributes(op.stride, op.padding)
        taps = (layer.unsigned("weight", weight), _UNSIGNED)
        source = (self.codes[op.input], self.zero(op.input))
        sums = layer.convolved(*source, *taps, group=group, **around)
        wide = layer.wide("bias", bias)
        shape = layer.constant("bias.shape", [1, -1, 1, 1])
        total = layer.node("Add", "total", sums, layer.node("Reshape", "bias.each", wide, shape))
        words, left = (a.reshape(1, -1, 1, 1) for a in (constants.requantize, constants.pre_shift))
        return layer.requantized(total, left, words, self.zero(op.output))

    def _head(self, op: Head, layer: Layer) -> None:
        last = layer.node("Transpose", "channels_last", self.codes[op.input], perm=[0, 2, 3, 1])
        centred = layer.centred("input", last, self.zero(op.input))
        shape = layer.constant("input.shape", [-1, op.weight.shape[1]])
        flat = layer.node("Reshape", "flat", centred, shape)
        weight = self._constant(f"{op.name}.weight", stored_layout(op, op.weight))
        bias = self._constant(f"{op.name}.bias", op.bias)
        wide = layer.wide("weight", weight)
        columns = layer.node("Transpose", "columns", wide, perm=[1, 0])
        sums = layer.node("MatMul", "sums", flat, columns)
        total = layer.node("Add", "total", sums, layer.wide("bias", bias))
        self._output(op, layer.clipped(total, -INT32_MAX, INT32_MAX, "held"))

    def _output(self, op: Op, wide: str) -> None:
        self.nodes.append(
            helper.make_node("Cast", [wide], [OUTPUT], f"{op.name}/{OUTPUT}", to=TensorProto.INT32)
        )

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        self.constants[name] = np.ascontiguousarray(values)
        return name


class Layer:
    """Nodes of one operation, named ``LAYER/STEP``, with sums and all that follows in int64."""

    def __init__(self, writer: ModelWriter, name: str) -> None:
        """``name`` is that of the operation."""
        self._writer, self._name = writer, name

    def part(self, name: str) -> Layer:
        """Nodes of a part of it, named ``LAYER/NAME/STEP``."""
        return Layer(self._writer, f"{self._name}/{name}")

    def scan(
        self,
        sequence: str,
        states: Sequence[str],
        step: Callable[[Layer, str, Sequence[str]], Sequence[str]],
    ) -> tuple[str, str]:
        """Steps from ``states`` (N, units) over ``sequence`` (steps, N, ...), all of them int64.

        ``step`` appends one step's nodes to a layer, given an entry of the sequence and the states
        before it, and returns the states behind it. Returns the first state behind the last step,
        and behind each (steps, N, units).
        """
        outside, self._writer.nodes = self._writer.nodes, []
        inside = self.part("step")
        entry, before = f"{self._name}/entry", [f"{name}/before" for name in states]
        after = list(step(inside, entry, before))
        after.append(inside.node("Identity", "states.each", after[0]))
        inputs, results = (
            [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in names]
            for names in ([*before, entry], after)
        )
        body = helper.make_graph(self._writer.nodes, f"{self._name}/step", inputs, results)
        self._writer.nodes = outside
        outputs = [*(f"{name}/after" for name in states), f"{self._name}/states"]
        self._writer.nodes.append(
            helper.make_node(
                "Scan", [*states, sequence], outputs, f"{self._name}/scan", body=body,
                num_scan_inputs=1,
            )
        )  # fmt: skip
        return outputs[0], outputs[-1]

    def node(self, operator: str, step: str, *inputs: str, **attributes: Any) -> str:
        """Appends a node; returns its output."""
        output = f"{self._name}/{step}"
        self._writer.nodes.append(
            helper.make_node(operator, list(inputs), [output], output, **attributes)
        )
        return output

    def constant(self, step: str, values: Any, dtype: type[np.integer[Any]] = np.int64) -> str:
        """An initializer; returns its name."""
        name = f"{self._name}/{step}"
        self._writer.constants[name] = np.asarray(values, dtype)
        return name

    def by(self, operator: str, step: str, value: str, constant: int | Ints) -> str:
        """``value`` with a constant of int64 at its right."""
        return self.node(operator, step, value, self.constant(f"{step}.by", constant))

    def wide(self, step: str, value: str) -> str:
        """``value`` in int64."""
        return self.node("Cast", f"{step}.wide", value, to=TensorProto.INT64)

    def unsigned(self, step: str, codes: str) -> str:
        """Signed codes plus 128, as uint8."""
        wide = self.node("Cast", f"{step}.signed", codes, to=TensorProto.INT32)
        offset = self.constant(f"{step}.raised.by", _UNSIGNED, np.int32)
        raised = self.node("Add", f"{step}.raised", wide, offset)
        return self.node("Cast", f"{step}.unsigned", raised, to=TensorProto.UINT8)

    def centred(self, step: str, codes: str, zero: int) -> str:
        """Codes less their zero point."""
        wide = self.wide(step, codes)
        return self.by("Sub", f"{step}.centred", wide, zero)

    def convolved(
        self, codes: str, zero: int, weight: str, weight_zero: int, **attributes: Any
    ) -> str:
        """Sums of products; ``weight`` is unsigned with this zero point."""
        source = self.unsigned("input", codes)
        zeros = [
            self.constant("input.zero", zero + _UNSIGNED, np.uint8),
            self.constant("weight.zero", weight_zero, np.uint8),
        ]
        sums = self.node("ConvInteger", "sums", source, weight, *zeros, **attributes)
        return self.wide("sums", sums)

    def requantized(
        self,
        sums: str,
        pre_shift: Ints,
        words: Ints,
        zero: int,
        ends: tuple[int, int] = (INT8_MIN, INT8_MAX),
    ) -> str:
        """Codes of ``sums``: `codegen.arithmetic.integers.requantized` and the clamp."""
        if pre_shift.any():
            raised = self.by("Mul", "raised", sums, np.left_shift(1, pre_shift))
            sums = self.clipped(raised, -INT32_MAX, INT32_MAX, "held")
        return self.clamped(self.multiplied(sums, words, zero), ends)

    def multiplied(self, sums: str, words: Ints, zero: int = 0) -> str:
        """The same of sums that need no shift to the left, without the clamp."""
        product = self.by("Mul", "product", sums, words)  # less than 2^62 in magnitude
        lifted = self.by("Add", "product.lifted", product, 1 << 62)
        high = self.by("Div", "high.lifted", lifted, 1 << 32)
        high = self.by("Sub", "high", high, 1 << 30)
        shift = words & ((1 << SHIFT_BITS) - 1)
        return self.rounded(high, shift, zero, lift=31)

    def rounded(self, value: str, shift: Ints, zero: int, lift: int) -> str:
        """``value`` / 2^shift with halves up, plus ``zero``; its magnitude is below 2^lift."""
        half = np.left_shift(1, shift - 1)
        lifted = self.by("Add", "lifted", value, half + (1 << lift))
        floor = self.by("Div", "floor", lifted, np.left_shift(1, shift))
        return self.by("Add", "rounded", floor, zero - np.left_shift(1, lift - shift))

    def mean(self, sums: str, counts: Ints, zero: int) -> str:
        """Codes of means, halves to even: `codegen.arithmetic.integers.mean_codes`."""
        raised = self.by("Add", "raised", sums, (zero - INT8_MIN) * counts)  # not negative
        floor = self.by("Div", "floor", raised, counts)
        odd = self.by("Mod", "odd", floor, 2)
        doubled = self.by("Mul", "doubled", raised, 2)
        # One more than a whole number of halves is needed to go up, of an odd floor just as many.
        moved = self.by("Add", "moved", self.node("Add", "even", doubled, odd), counts - 1)
        mean = self.by("Div", "mean.raised", moved, 2 * counts)
        return self.clamped(self.by("Add", "mean", mean, INT8_MIN))

    def clipped(self, value: str, low: int, high: int, step: str) -> str:
        """``value`` within ``low`` … ``high``."""
        ends = [self.constant(f"{step}.low", low), self.constant(f"{step}.high", high)]
        return self.node("Clip", step, value, *ends)

    def clamped(self, value: str, ends: tuple[int, int] = (INT8_MIN, INT8_MAX)) -> str:
        """The codes of the layer."""
        held = self.clipped(value, *ends, "clamped")
        return self.node("Cast", "codes", held, to=TensorProto.INT8)
