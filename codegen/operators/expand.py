"""Expand: a tensor of one row, column or channel, as often as a larger one needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codegen.arithmetic.integers import Error, Ints, round_shift
from codegen.graph.floats import ChannelsFirst, Values
from codegen.graph.ir import Graph, Unary
from codegen.operators.base import Copying
from codegen.operators.broadcast import (
    ERROR_MAX,
    broadcast_fields,
    sum_shift,
    summed,
    to_codes,
)

if TYPE_CHECKING:
    from codegen.emit.plan import StepWriter
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.step_builder import StepBuilder
    from codegen.program.steps import Step
    from codegen.reference.interpreter import Interpreter


@dataclass(frozen=True)
class Expand(Unary):
    """Its input, repeated along axes of size 1 until it has ``shape`` (channels, height, width)."""

    shape: ChannelsFirst


class _ExpandOperator(Copying[Expand]):
    real = kind = Expand
    kernel = "expand"
    struct = "tf_broadcast"

    def evaluate(self, op: Expand, inputs: Sequence[Values]) -> Values:
        return np.broadcast_to(inputs[0], (len(inputs[0]), *op.shape))

    def forward(self, graph: Graph, op: Expand, inputs: Sequence[Ints]) -> Ints:
        shape = graph.tensors[op.output].shape
        return np.broadcast_to(inputs[0], (*inputs[0].shape[:-3], *shape))

    def gradients(
        self, graph: Graph, op: Expand, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        return [summed(error, graph.tensors[op.input].shape)]

    def build_backward(self, builder: StepBuilder, op: Expand) -> None:
        if op.input in builder.needs_error:
            size = 4 * builder.graph.tensors[op.input].size
            error = {**builder.error(op), "scratch": builder.buffer(f"sums {op.name}", size)}
            builder.propagate(self.gradient_kernel, op, op.input, error)

    def _sum_shift(self, graph: Graph, op: Expand) -> int:
        return sum_shift(graph.tensors[op.input], graph.tensors[op.output], ERROR_MAX)

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        op, graph = self.op_of(step), interpreter.graph
        error = interpreter.error_in(step)
        shift = self._sum_shift(graph, op)
        terms = round_shift(error.codes << error.headroom, shift)
        codes, power = to_codes(summed(terms, graph.tensors[op.input].shape))
        interpreter.errors[step.buffers["out"]] = Error(
            codes, error.exponent - error.headroom + shift + power
        )

    def fields(self, graph: Graph, op: Expand, tables: Mapping[str, str]) -> list[str]:
        shapes = (graph.tensors[op.input].shape, graph.tensors[op.output].shape)
        return [f"{broadcast_fields(*shapes, self._sum_shift(graph, op))},"]

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        scratch = writer.arena(step, "scratch", "int32_t")
        return [*super().input_gradient_arguments(writer, step), scratch]

    def export(self, writer: ModelWriter, op: Expand, layer: Layer) -> str:
        shape = layer.constant("shape", [1, *op.shape])
        return layer.node("Expand", "codes", writer.codes[op.input], shape)


EXPAND = _ExpandOperator()
