"""Scaling: gain · x + shift by constants along any axes, with another gain below 0 if need be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import Error, Ints, round_shift
from codegen.arithmetic.layers import relative_q15
from codegen.errors import ModelError
from codegen.graph.floats import NO_CLAMP, Clamp, Values
from codegen.graph.ir import Graph, Shape, Unary
from codegen.operators.base import Operator, Table, activated
from codegen.operators.broadcast import broadcast_fields

if TYPE_CHECKING:
    from codegen.emit.plan import StepWriter
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.step_builder import StepBuilder
    from codegen.program.steps import Step
    from codegen.quantization.quantize import Assembly
    from codegen.reference.interpreter import Interpreter


@dataclass(frozen=True, eq=False)
class FloatScaling(Unary):
    """gain · x + shift, where x < 0 below · x + shift.

    Constants are (channels, height, width), all of one shape, with size 1 where they don't vary.
    """

    gain: Values
    shift: Values
    below: Values | None = None
    clamp: Clamp = NO_CLAMP


@dataclass(frozen=True)
class Scaling(Unary):
    """The same in codes; the clamp to [-128, 127] is the activation function.

    Constants are in the order of ``shape``, (height, width, channels).
    """

    shape: Shape
    gain: tuple[float, ...]
    shift: tuple[float, ...]
    below: tuple[float, ...] | None


@dataclass(frozen=True, eq=False)
class ScalingArithmetic:
    """What ``tf_scaling`` holds; arrays have the shape of the constants."""

    multiplier: Ints
    offset: Ints
    below: Ints | None
    shift: int
    error_multiplier: Ints
    error_below: Ints | None
    error_exponent: int


def scaling_arithmetic(graph: Graph, op: Scaling) -> ScalingArithmetic:
    """Constants of one scaling. Raises ModelError where its output's scale can't hold them."""
    source, output = graph.tensors[op.input], graph.tensors[op.output]
    gains = [np.array(op.gain)] if op.below is None else [np.array(op.gain), np.array(op.below)]
    factors = np.stack(gains) * (source.scale / output.scale)
    offsets = np.array(op.shift) / output.scale
    # 255 factors of 2^22, an offset of 2^29 and a rounding bit of 2^22 fit 32 bits.
    room = [
        bits - math.frexp(float(np.abs(values).max()))[1]
        for bits, values in ((22, factors), (29, offsets))
    ]
    shift = min(*room, 23)
    if shift < 1:
        raise ModelError(
            f"layer {op.name}: its constants are {np.abs(factors).max():.3g} and "
            f"{np.abs(offsets).max():.3g} steps of its output; calibrate with typical inputs"
        )
    magnitudes, exponent = relative_q15(np.abs(factors))
    errors = magnitudes * np.sign(factors).astype(np.int64)
    steps = np.rint(factors * 2.0**shift).astype(np.int64)

    def shaped(values: NDArray[np.int64]) -> Ints:
        return values.reshape(op.shape)

    return ScalingArithmetic(
        multiplier=shaped(steps[0]),
        offset=shaped(np.rint(offsets * 2.0**shift).astype(np.int64)),
        below=None if op.below is None else shaped(steps[1]),
        shift=shift,
        error_multiplier=shaped(errors[0]),
        error_below=None if op.below is None else shaped(errors[1]),
        error_exponent=exponent,
    )


def _flat(values: Values) -> tuple[float, ...]:
    return tuple(np.moveaxis(values, 0, -1).reshape(-1).tolist())


class _ScalingOperator(Operator[FloatScaling, Scaling]):
    real = FloatScaling
    kind = Scaling
    kernel = "scaling"
    struct = "tf_scaling"

    def evaluate(self, op: FloatScaling, inputs: Sequence[Values]) -> Values:
        gain = op.gain if op.below is None else np.where(inputs[0] < 0, op.below, op.gain)
        return activated(gain * inputs[0] + op.shift, op.clamp)

    def quantize(self, op: FloatScaling, assembly: Assembly) -> None:
        assembly.add_tensor(op.output)
        channels, height, width = op.gain.shape
        below = None if op.below is None else _flat(op.below)
        shape = (height, width, channels)
        assembly.ops.append(
            Scaling(op.name, op.input, op.output, shape, _flat(op.gain), _flat(op.shift), below)
        )

    def forward(self, graph: Graph, op: Scaling, inputs: Sequence[Ints]) -> Ints:
        by = scaling_arithmetic(graph, op)
        codes = inputs[0] - graph.tensors[op.input].zero_point
        factors = (
            by.multiplier if by.below is None else np.where(codes < 0, by.below, by.multiplier)
        )
        total = round_shift(codes * factors + by.offset, by.shift)
        return total + graph.tensors[op.output].zero_point

    def gradients(
        self, graph: Graph, op: Scaling, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        gain = np.array(op.gain).reshape(op.shape)
        if op.below is not None:
            below = np.array(op.below).reshape(op.shape)
            gain = np.where(inputs[0] < source.zero_point, below, gain)
        return [error * gain * source.scale / output.scale]

    def overlap_lead(self, graph: Graph, op: Scaling) -> int:
        return 0

    def error(self, builder: StepBuilder, op: Scaling) -> dict[str, str]:
        error = builder.masked(op)
        return error if op.below is None else {**error, "input": builder.activation(op.input)}

    def build_backward(self, builder: StepBuilder, op: Scaling) -> None:
        if op.input in builder.needs_error:
            error = self.error(builder, op)
            builder.propagate(self.gradient_kernel, op, op.input, error, in_place=True)

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        op = self.op_of(step)
        by = scaling_arithmetic(interpreter.graph, op)
        error = interpreter.error_in(step)
        factors = by.error_multiplier
        if by.error_below is not None:
            zero = interpreter.graph.tensors[op.input].zero_point
            negative = interpreter.arrays[step.buffers["input"]] < zero
            factors = np.where(negative, by.error_below, factors)
        interpreter.errors[step.buffers["out"]] = Error(
            round_shift(error.codes * factors, 15 - error.headroom),
            error.exponent + by.error_exponent - error.headroom,
        )

    def tables(self, graph: Graph, op: Scaling) -> dict[str, Table]:
        by, gradient = scaling_arithmetic(graph, op), self.gradient_kernel
        tables = {
            "multiplier": Table("int32_t", by.multiplier.reshape(-1).tolist(), 8),
            "offset": Table("int32_t", by.offset.reshape(-1).tolist(), 8),
            "errors": Table("int16_t", by.error_multiplier.reshape(-1).tolist(), 12, gradient),
        }
        if by.below is not None and by.error_below is not None:
            errors = by.error_below.reshape(-1).tolist()
            tables["below"] = Table("int32_t", by.below.reshape(-1).tolist(), 8)
            tables["errors_below"] = Table("int16_t", errors, 12, gradient)
        return tables

    def fields(self, graph: Graph, op: Scaling, tables: Mapping[str, str]) -> list[str]:
        by = scaling_arithmetic(graph, op)
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        return [
            f"{{{broadcast_fields(op.shape, output.shape)}}},",
            f"{tables['multiplier']}, {tables['offset']}, {tables.get('below', '0')},",
            f"{tables['errors']}, {tables.get('errors_below', '0')},",
            f"{source.zero_point}, {output.zero_point}, {by.shift}, {by.error_exponent},",
        ]

    def forward_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        return [*super().forward_arguments(writer, step), writer.arena(step, "mask", "uint8_t")]

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        codes = writer.arena(step, "input", "int8_t")
        return [writer.layer(step), *writer.error_in(step), codes, *writer.error_out(step)]

    def export(self, writer: ModelWriter, op: Scaling, layer: Layer) -> str:
        by = scaling_arithmetic(writer.graph, op)

        def laid_out(values: Ints) -> Ints:
            return np.moveaxis(values, -1, 0)[np.newaxis]

        codes = layer.centred("input", writer.codes[op.input], writer.zero(op.input))
        above = codes if by.below is None else layer.by("Max", "above", codes, 0)
        total = layer.by("Mul", "products", above, laid_out(by.multiplier))
        if by.below is not None:
            negative = layer.by("Min", "below", codes, 0)
            others = layer.by("Mul", "below.products", negative, laid_out(by.below))
            total = layer.node("Add", "both", total, others)
        total = layer.by("Add", "total", total, laid_out(by.offset))
        shift = np.array(by.shift)
        return layer.clamped(layer.rounded(total, shift, writer.zero(op.output), lift=33))


SCALING = _ScalingOperator()
