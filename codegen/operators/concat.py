"""Concat: the channels of several tensors one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codegen.arithmetic.integers import Error, Ints
from codegen.graph.floats import Values
from codegen.graph.ir import Graph, Variadic
from codegen.operators.base import Operator
from codegen.operators.requantize import Requantize

if TYPE_CHECKING:
    from codegen.emit.plan import StepWriter
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.step_builder import StepBuilder
    from codegen.program.steps import Step
    from codegen.quantization.quantize import Assembly
    from codegen.reference.interpreter import Interpreter


@dataclass(frozen=True)
class Concat(Variadic):
    """Channels of several tensors one after another; on the device all of one scale and zero.

    ``one_coding``: its inputs are parts of one layer and nobody else's, coded as the output is.
    """

    one_coding: bool = False


def _slices(graph: Graph, op: Concat) -> list[slice]:
    """The channels that come from each input."""
    ends = np.cumsum([graph.tensors[name].shape[2] for name in op.inputs]).tolist()
    return [slice(first, end) for first, end in zip([0, *ends], ends, strict=False)]


class _ConcatOperator(Operator[Concat, Concat]):
    real = kind = Concat
    one_step_per_input = True
    kernel = "concat"
    struct = "tf_slice"

    def evaluate(self, op: Concat, inputs: Sequence[Values]) -> Values:
        return np.concatenate(inputs, axis=1)

    def quantize(self, op: Concat, assembly: Assembly) -> None:
        assembly.add_tensor(op.output)
        inputs = tuple(self._recoded(source, op, assembly) for source in op.inputs)
        assembly.ops.append(dataclasses.replace(op, inputs=inputs))

    def _recoded(self, source: str, op: Concat, assembly: Assembly) -> str:
        """The tensor ``source`` with the scale and zero point of the output of ``op``."""
        known, wanted = assembly.tensors[source], assembly.tensors[op.output]
        if (known.scale, known.zero_point) == (wanted.scale, wanted.zero_point):
            return source
        name = f"{source}_for_{op.name}"
        assembly.tensors[name] = dataclasses.replace(wanted, name=name, shape=known.shape)
        assembly.ops.append(Requantize(name, source, name))
        return name

    def forward(self, graph: Graph, op: Concat, inputs: Sequence[Ints]) -> Ints:
        return np.concatenate(inputs, axis=-1)

    def saturates(self, graph: Graph, op: Concat) -> bool:
        return False

    def gradients(
        self, graph: Graph, op: Concat, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        return [error[:, :, part] for part in _slices(graph, op)]

    def build_forward(self, builder: StepBuilder, op: Concat, buffers: dict[str, str]) -> None:
        for operand, name in enumerate(op.inputs):
            part = {**buffers, "input": builder.activation(name)}
            builder.step("forward", "concat_forward", op, part, operand=operand)

    def run_forward(self, interpreter: Interpreter, step: Step) -> None:
        op = self.op_of(step)
        empty = np.zeros(interpreter.graph.tensors[op.output].shape, np.int64)
        output = interpreter.arrays.setdefault(step.buffers["output"], empty)
        part = _slices(interpreter.graph, op)[step.operand]
        output[:, :, part] = interpreter.arrays[step.buffers["input"]]

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        error = interpreter.error_in(step)
        part = _slices(interpreter.graph, self.op_of(step))[step.operand]
        codes = error.codes[:, :, part].copy()
        interpreter.errors[step.buffers["out"]] = Error(codes, error.exponent)

    def struct_count(self, op: Concat) -> int | None:
        return len(op.inputs)

    def fields(self, graph: Graph, op: Concat, tables: Mapping[str, str]) -> list[str]:
        height, width, whole = graph.tensors[op.output].shape
        return [
            f"{{{height * width}u, {whole}, {part.start}, {part.stop - part.start}}},"
            for part in _slices(graph, op)
        ]

    def forward_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        codes = [writer.arena(step, name, "int8_t") for name in ("input", "output")]
        return [f"{writer.layer(step)}[{step.operand}]", *codes]

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        layer = f"{writer.layer(step)}[{step.operand}]"
        return [layer, *writer.error_in(step), *writer.error_out(step)]

    def export(self, writer: ModelWriter, op: Concat, layer: Layer) -> str:
        parts = [writer.codes[name] for name in op.inputs]
        return layer.node("Concat", "codes", *parts, axis=1)


CONCAT = _ConcatOperator()
