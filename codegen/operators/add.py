"""Add: the elementwise sum of two tensors, or their difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codegen.arithmetic.integers import Ints, round_shift
from codegen.arithmetic.layers import relative_q15
from codegen.errors import ModelError
from codegen.graph.floats import NO_CLAMP, Clamp, Values
from codegen.graph.ir import Graph, Variadic
from codegen.operators.base import Linear, activated

if TYPE_CHECKING:
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.quantization.quantize import Assembly


@dataclass(frozen=True)
class FloatAdd(Variadic):
    """Elementwise sum of two tensors of one shape, or the first less the second."""

    clamp: Clamp = NO_CLAMP
    subtracts: bool = False


@dataclass(frozen=True)
class Add(Variadic):
    """Elementwise sum (or difference) of two tensors of one shape, each with its own scale.

    Its output is clamped to [-128, 127]; that clamp *is* the activation function.
    """

    subtracts: bool = False


@dataclass(frozen=True)
class AdditionArithmetic:
    """What ``tf_addition`` holds."""

    a_multiplier: int
    b_multiplier: int
    shift: int
    a_error_multiplier: int
    a_error_exponent: int
    b_error_multiplier: int
    b_error_exponent: int


def addition_arithmetic(graph: Graph, op: Add) -> AdditionArithmetic:
    """Constants of one addition."""
    a, b = (graph.tensors[name].scale for name in op.inputs)
    out = graph.tensors[op.output].scale
    ratios = np.array([a / out, b / out])
    _, exponent = math.frexp(float(ratios.max()))
    # Factors up to 2^22 and a rounding bit of 2^22 at most: 255 * 2^23 + 2^22 fits 32 bits.
    shift = min(22 - exponent, 23)
    if shift < 1:
        raise ModelError(f"addition {op.name}: its output scale is too small for its inputs")
    a_error, a_exponent = relative_q15(ratios[:1])
    b_error, b_exponent = relative_q15(ratios[1:])
    sign = -1 if op.subtracts else 1
    return AdditionArithmetic(
        round(a / out * 2**shift),
        sign * round(b / out * 2**shift),
        shift,
        int(a_error[0]),
        a_exponent,
        sign * int(b_error[0]),
        b_exponent,
    )


class _AddOperator(Linear[FloatAdd, Add]):
    real = FloatAdd
    kind = Add
    kernel = "add"
    operands = ("a", "b")
    struct = "tf_addition"

    def evaluate(self, op: FloatAdd, inputs: Sequence[Values]) -> Values:
        second = -inputs[1] if op.subtracts else inputs[1]
        return activated(inputs[0] + second, op.clamp)

    def quantize(self, op: FloatAdd, assembly: Assembly) -> None:
        assembly.add_tensor(op.output)
        assembly.ops.append(Add(op.name, op.inputs, op.output, op.subtracts))

    def forward(self, graph: Graph, op: Add, inputs: Sequence[Ints]) -> Ints:
        constants = addition_arithmetic(graph, op)
        first, second = (
            codes - graph.tensors[name].zero_point
            for codes, name in zip(inputs, op.inputs, strict=True)
        )
        total = first * constants.a_multiplier + second * constants.b_multiplier
        return round_shift(total, constants.shift) + graph.tensors[op.output].zero_point

    def gradients(
        self, graph: Graph, op: Add, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        first, second = super().gradients(graph, op, inputs, error)
        return [first, -second if op.subtracts else second]

    def error_factor(self, graph: Graph, op: Add, operand: int) -> tuple[int, int]:
        constants = addition_arithmetic(graph, op)
        if operand == 0:
            return constants.a_error_multiplier, constants.a_error_exponent
        return constants.b_error_multiplier, constants.b_error_exponent

    def error_field(self, operand: int) -> str:
        return "ab"[operand] + "_"

    def fields(self, graph: Graph, op: Add, tables: Mapping[str, str]) -> list[str]:
        constants = addition_arithmetic(graph, op)
        a, b = (graph.tensors[name] for name in op.inputs)
        out = graph.tensors[op.output]
        return [
            f"{a.zero_point}, {b.zero_point}, {out.zero_point},",
            f"{constants.a_multiplier}, {constants.b_multiplier}, {constants.shift},",
            f"{constants.a_error_multiplier}, {constants.b_error_multiplier},",
            f"{constants.a_error_exponent}, {constants.b_error_exponent},",
        ]

    def export(self, writer: ModelWriter, op: Add, layer: Layer) -> str:
        constants = addition_arithmetic(writer.graph, op)
        factors = (constants.a_multiplier, constants.b_multiplier)
        parts = []
        for side, name, factor in zip(self.operands, op.inputs, factors, strict=True):
            centred = layer.centred(side, writer.codes[name], writer.zero(name))
            parts.append(layer.by("Mul", f"{side}.scaled", centred, factor))
        total = layer.node("Add", "total", *parts)
        shift = np.array(constants.shift)
        return layer.clamped(layer.rounded(total, shift, writer.zero(op.output), lift=33))


ADD = _AddOperator()
