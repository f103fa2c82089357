"""Recurrent cells over a fixed window: what GRU and LSTM have in common.

What a cell makes of its input alone, W x + b of all gates, is a 1x1 convolution before it and
trained as one. What is left has no weights that a plan could name: the recurrent ones are constants
(docs/design/recurrent.md).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import Error, Ints, requantized, round_shift
from codegen.arithmetic.layers import INT32_MAX, WEIGHT_MAX
from codegen.arithmetic.recurrence import (
    LARGEST_STATE,
    MOST_STEPS,
    MOST_UNITS,
    ONE,
    SIGMOID_TABLE,
    RecurrentArithmetic,
    gathered,
    merged,
    recurrent_arithmetic,
)
from codegen.errors import ModelError
from codegen.graph.floats import Values
from codegen.graph.ir import Graph, Unary
from codegen.operators.base import Operator, Table

if TYPE_CHECKING:
    from codegen.emit.plan import StepWriter
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.step_builder import StepBuilder
    from codegen.program.steps import Step
    from codegen.quantization.quantize import Assembly
    from codegen.reference.interpreter import Interpreter


@dataclass(frozen=True, eq=False)
class FloatRecurrence(Unary):
    """A cell whose input has its gates' channels: recurrent [gates · units, units], in the order of
    ONNX's operator; ``last``: the output is the last state, not all of them.

    Time is the order of the pixels; the state before the first is zero.
    """

    recurrent: Values
    last: bool = False


@dataclass(frozen=True)
class Recurrence(Unary):
    """The same in codes: ``recurrent`` are int8 codes row by row, each row of its own scale."""

    recurrent: tuple[int, ...]
    row_scale: tuple[float, ...]
    last: bool

    @property
    def weights(self) -> Ints:
        """[gates · units, units]."""
        return np.array(self.recurrent, np.int64).reshape(len(self.row_scale), -1)

    @property
    def units(self) -> int:
        """Elements of the state."""
        return len(self.recurrent) // len(self.row_scale)


Real = TypeVar("Real", bound=FloatRecurrence)
Kind = TypeVar("Kind", bound=Recurrence)


def quantized_rows(
    op: FloatRecurrence, bias: Values | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Codes and scales of the recurrent weights, such that sums with ``bias`` [rows] fit 32 bits.

    Raises ModelError for a cell that is too large.
    """
    units = op.recurrent.shape[1]
    if units > MOST_UNITS:
        raise ModelError(
            f"layer {op.name}: a state of {units} is more than {MOST_UNITS}, of which sums fit 32 "
            "bits; use a smaller cell"
        )
    scale = np.abs(op.recurrent).max(axis=1) / WEIGHT_MAX
    if bias is not None:
        room = INT32_MAX - units * WEIGHT_MAX * LARGEST_STATE
        scale = np.maximum(scale, np.abs(bias) * ONE / room)
    # Rows of zeros may have any scale.
    scale[scale == 0.0] = scale.max() if scale.any() else 1.0 / WEIGHT_MAX
    return np.rint(op.recurrent / scale[:, np.newaxis]).astype(np.int64), scale


def real_sigmoid(x: Values) -> Values:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray((1 + np.tanh(x / 2)) / 2)


class RecurrentOperator(Operator[Real, Kind]):
    """Rows of both cells: they differ in what a step does, and in what an error does through it."""

    operands = ("input",)
    struct = "tf_recurrence"
    gates: ClassVar[int]
    state_rows: ClassVar[int]
    """Vectors of a state: of a GRU the hidden one, of an LSTM the cell as well."""
    state_bytes: ClassVar[int]
    """Of a unit's state as the forward kernel keeps it for the gradient's."""
    forward_scratch: ClassVar[int]
    """Bytes of scratch per unit."""
    gradient_scratch: ClassVar[int]
    """Bytes of scratch per unit; a step takes 4 more."""

    def arithmetic(self, graph: Graph, op: Kind) -> RecurrentArithmetic:
        """Constants of one cell."""
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        scale = np.array(op.row_scale, np.float64)
        return recurrent_arithmetic(op.name, scale, source.scale, output.scale)

    # Real numbers.

    @abstractmethod
    def real_step(self, op: Real, x: Values, state: Values) -> Values:
        """The state (rows, N, units) after gates ``x`` (N, gates · units)."""

    def evaluate(self, op: Real, inputs: Sequence[Values]) -> Values:
        """The last state or all of them, in the places of the steps."""
        count, channels, height, width = inputs[0].shape
        x = inputs[0].reshape(count, channels, -1)
        state = np.zeros((self.state_rows, count, channels // self.gates))
        states = []
        for time in range(x.shape[2]):
            state = self.real_step(op, x[:, :, time], state)
            states.append(state[0])
        if op.last:
            last: Values = states[-1][:, :, np.newaxis, np.newaxis]
            return last
        return np.stack(states, axis=2).reshape(count, -1, height, width)

    @abstractmethod
    def quantized(self, op: Real) -> Kind:
        """The same in codes."""

    def quantize(self, op: Real, assembly: Assembly) -> None:
        """Appends the cell. Raises ModelError for one that is too large, or has too many steps."""
        height, width, _ = assembly.tensors[op.input].shape
        if height * width > MOST_STEPS:
            raise ModelError(
                f"layer {op.name}: {height * width} steps are more than {MOST_STEPS}; use a "
                "shorter window"
            )
        assembly.add_tensor(op.output)
        assembly.ops.append(self.quantized(op))

    # The device's integers.

    @abstractmethod
    def step(self, by: RecurrentArithmetic, op: Kind, x: Ints, state: Ints) -> Ints:
        """The state (rows, ..., units) after gates ``x`` (..., gates · units) in Q12."""

    def arguments_of_gates(self, graph: Graph, op: Kind, codes: Ints) -> Ints:
        """Q12 of the input's part, (..., steps, gates · units)."""
        by = self.arithmetic(graph, op)
        steps = codes.reshape(*codes.shape[:-3], -1, codes.shape[-1])
        steps = steps - graph.tensors[op.input].zero_point
        return round_shift(steps * by.input_multiplier, by.input_shift)

    def states(self, graph: Graph, op: Kind, codes: Ints) -> list[Ints]:
        """(rows, ..., units) before the first step, and after each."""
        by, x = self.arithmetic(graph, op), self.arguments_of_gates(graph, op, codes)
        states = [np.zeros((self.state_rows, *x.shape[:-2], op.units), np.int64)]
        for time in range(x.shape[-2]):
            states.append(self.step(by, op, x[..., time, :], states[-1]))
        return states

    def forward(self, graph: Graph, op: Kind, inputs: Sequence[Ints]) -> Ints:
        """States in the steps of the output, before the clamp."""
        by, output = self.arithmetic(graph, op), graph.tensors[op.output]
        states = self.states(graph, op, inputs[0])[1:]
        hidden = np.stack([state[0] for state in (states[-1:] if op.last else states)], axis=-2)
        values = requantized(hidden, by.pre_shift, np.array(by.output.word))
        return values.reshape(*inputs[0].shape[:-3], *output.shape) + output.zero_point

    @abstractmethod
    def real_gradients(
        self, op: Kind, x: Values, before: Values, error: Values
    ) -> tuple[Values, Values]:
        """Of one step in real numbers: the errors of its gates, and of the state before it.

        ``x`` are the gates' arguments, ``before`` (rows, units) that state, ``error`` (rows, units)
        that of the state behind it.
        """

    def gradients(
        self, graph: Graph, op: Kind, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        """Through all steps, at the states that the integers have."""
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        x = source.scale * (inputs[0] - source.zero_point).reshape(-1, source.shape[2])
        states = [np.asarray(state / ONE) for state in self.states(graph, op, inputs[0])]
        rows = error.reshape(-1, op.units) / output.scale
        carried, parts = np.zeros((self.state_rows, op.units)), []
        for time in reversed(range(len(x))):
            if not op.last or time == len(x) - 1:
                carried[0] += rows[0 if op.last else time]
            part, carried = self.real_gradients(op, x[time], states[time], carried)
            parts.append(part * source.scale)
        return [np.stack(parts[::-1]).reshape(inputs[0].shape)]

    # Program.

    def _steps(self, graph: Graph, op: Kind) -> int:
        height, width, _ = graph.tensors[op.input].shape
        return height * width

    def macs(self, graph: Graph, op: Kind) -> int:
        """Of the forward pass."""
        return self._steps(graph, op) * len(op.recurrent)

    def build_forward(self, builder: StepBuilder, op: Kind, buffers: dict[str, str]) -> None:
        """A step that keeps the states where an error will go through them."""
        buffers["input"] = builder.activation(op.input)
        if op.output in builder.needs_error:
            size = self.state_bytes * op.units * self._steps(builder.graph, op)
            buffers["states"] = builder.buffer(f"states {op.output}", size)
        size = self.forward_scratch * op.units
        buffers["scratch"] = builder.buffer(f"gates {op.name}", size)
        macs = self.macs(builder.graph, op)
        builder.step("forward", f"{self.kernel}_forward", op, buffers, macs=macs)

    def build_backward(self, builder: StepBuilder, op: Kind) -> None:
        """A step that finds the gates again, from the states."""
        size = self.gradient_scratch * op.units + 4 * self._steps(builder.graph, op)
        buffers = {
            **self.error(builder, op),
            "input": builder.activation(op.input),
            "states": f"states {op.output}",
            "scratch": builder.buffer(f"error gates {op.name}", size),
        }
        macs = 2 * self.macs(builder.graph, op)
        builder.propagate(self.gradient_kernel, op, op.input, buffers, macs=macs)

    # Interpreter.

    @abstractmethod
    def back(
        self, by: RecurrentArithmetic, op: Kind, x: Ints, before: Ints, error: Error
    ) -> tuple[Error, Error]:
        """`real_gradients` in integers: codes of 15 bits, each with an exponent."""

    def input_error(self, graph: Graph, op: Kind, codes: Ints, whole: Error) -> Error:
        """The error of the input, whose codes are ``codes``, due to that of the output."""
        by = self.arithmetic(graph, op)
        x, states = self.arguments_of_gates(graph, op, codes), self.states(graph, op, codes)
        arriving = (whole.codes << whole.headroom).reshape(-1, op.units)
        exponent = whole.exponent - whole.headroom
        carried = Error(np.zeros((self.state_rows, op.units), np.int64), 0)
        parts = []
        for time in reversed(range(len(x))):
            if not op.last or time == len(x) - 1:
                carried = merged(carried, Error(arriving[0 if op.last else time], exponent))
            part, carried = self.back(by, op, x[time], states[time], carried)
            parts.append(part)
        error = gathered(parts[::-1], by)
        return Error(error.codes.reshape(codes.shape), error.exponent)

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        """Stores `input_error`."""
        codes = interpreter.arrays[step.buffers["input"]]
        error = interpreter.error_in(step)
        made = self.input_error(interpreter.graph, self.op_of(step), codes, error)
        interpreter.errors[step.buffers["out"]] = made

    # Emission.

    def tables(self, graph: Graph, op: Kind) -> dict[str, Table]:
        """Recurrent weights, and of their rows the multipliers and scales."""
        by, gradient = self.arithmetic(graph, op), self.gradient_kernel
        return {
            "recurrent": Table("int8_t", op.recurrent, 16),
            "words": Table("tf_multiplier", by.words.tolist(), 8),
            "rows": Table("int16_t", by.row_multiplier.tolist(), 12, gradient),
        }

    def fields(self, graph: Graph, op: Kind, tables: Mapping[str, str]) -> list[str]:
        """Those of ``tf_recurrence``."""
        by = self.arithmetic(graph, op)
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        return [
            f"{self._steps(graph, op)}, {op.units}, {int(op.last)},",
            f"{source.zero_point}, {output.zero_point},",
            f"{tables['recurrent']}, {tables['words']}, {tables.get('inner_bias', '0')},",
            f"{by.input_multiplier}, {by.input_shift},",
            f"{by.output.word}, {by.pre_shift},",
            f"{tables['rows']}, {by.row_exponent}, {by.row_headroom},",
            f"{by.error_multiplier}, {by.error_exponent},",
        ]

    def forward_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        """Struct, input, output, mask, states, scratch."""
        return [
            *super().forward_arguments(writer, step),
            writer.arena(step, "mask", "uint8_t"),
            writer.arena(step, "states", "int32_t"),
            writer.arena(step, "scratch", "int32_t"),
        ]

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        """Struct, error of the output, input, states, error of the input, scratch."""
        return [
            writer.layer(step),
            *writer.error_in(step),
            writer.arena(step, "input", "int8_t"),
            writer.arena(step, "states", "int32_t"),
            *writer.error_out(step),
            writer.arena(step, "scratch", "int32_t"),
        ]

    # Export.

    @abstractmethod
    def export_step(
        self, by: RecurrentArithmetic, op: Kind, layer: Layer, x: str, state: Sequence[str]
    ) -> list[str]:
        """Nodes of a `step`: rows of (N, units) after gates ``x`` (N, gates · units)."""

    def export(self, writer: ModelWriter, op: Kind, layer: Layer) -> str:
        """A Scan over the steps, whose body is `export_step`."""
        by = self.arithmetic(writer.graph, op)
        height, width, _ = writer.graph.tensors[op.output].shape
        codes = layer.centred("input", writer.codes[op.input], writer.zero(op.input))
        shape = layer.constant("input.shape", [0, 0, -1])
        flat = layer.node("Reshape", "input.flat", codes, shape)
        steps = layer.node("Transpose", "input.steps", flat, perm=[2, 0, 1])
        products = layer.by("Mul", "input.products", steps, by.input_multiplier)
        arguments = layer.part("input").rounded(products, np.array(by.input_shift), 0, lift=31)
        first = layer.by("Gather", "first", arguments, 0)
        zeros = layer.by("Mul", "zeros", _columns(layer, "first", first, 0, op.units), 0)
        start = [layer.node("Identity", f"start.{row}", zeros) for row in range(self.state_rows)]

        def step(inside: Layer, entry: str, before: Sequence[str]) -> list[str]:
            return self.export_step(by, op, inside, entry, before)

        final, every = layer.scan(arguments, start, step)
        if op.last:
            hidden = layer.by("Unsqueeze", "hidden", final, np.array([2, 3]))
        else:
            channels = layer.node("Transpose", "channels", every, perm=[1, 2, 0])
            shape = layer.constant("hidden.shape", [0, 0, height, width])
            hidden = layer.node("Reshape", "hidden", channels, shape)
        left, word = np.array(by.pre_shift), np.array(by.output.word)
        return layer.requantized(hidden, left, word, writer.zero(op.output))

    def export_products(self, layer: Layer, name: str, state: str, weights: Ints) -> str:
        """Sums of the state's products with rows of the recurrent weights."""
        columns = layer.constant(f"{name}.weights", weights.T)
        return layer.node("MatMul", f"{name}.sums", state, columns)


def _columns(layer: Layer, name: str, values: str, first: int, end: int) -> str:
    places = [
        layer.constant(f"{name}.{at}", [place]) for at, place in (("from", first), ("to", end))
    ]
    return layer.node("Slice", f"{name}.part", values, *places, layer.constant(f"{name}.axis", [1]))


def export_columns(layer: Layer, values: str, names: Sequence[str], units: int) -> list[str]:
    """``values`` (N, gates · units), a gate each."""
    return [
        _columns(layer, name, values, units * gate, units * (gate + 1))
        for gate, name in enumerate(names)
    ]


def export_sigmoid(layer: Layer, x: str) -> str:
    """`codegen.arithmetic.recurrence.sigmoid`."""
    size = layer.by("Min", "size", layer.node("Abs", "absolute", x), 32767)
    entry, rest = layer.by("Div", "entry", size, 128), layer.by("Mod", "rest", size, 128)
    table = layer.constant("table", SIGMOID_TABLE)
    low = layer.node("Gather", "entry.value", table, entry)
    high = layer.node("Gather", "next.value", table, layer.by("Add", "next", entry, 1))
    rise = layer.node("Mul", "rise", layer.node("Sub", "slope", high, low), rest)
    more = layer.by("Div", "more", layer.by("Add", "rise.half", rise, 64), 128)
    value = layer.node("Add", "value", low, more)
    mirrored = layer.node("Sub", "mirrored", layer.constant("one", ONE), value)
    return layer.node("Where", "sigmoid", layer.by("Less", "negative", x, 0), mirrored, value)


def export_tanh(layer: Layer, twice: str) -> str:
    """`codegen.arithmetic.recurrence.tanh`."""
    doubled = layer.by("Mul", "doubled", export_sigmoid(layer, twice), 2)
    return layer.by("Sub", "tanh", doubled, ONE)


def export_scaled(layer: Layer, a: str, b: str) -> str:
    """`codegen.arithmetic.recurrence.scaled`."""
    return layer.rounded(layer.node("Mul", "scaled", a, b), np.array(15), 0, lift=47)
