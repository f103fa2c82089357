"""MaxPool: the largest value under each window."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codegen.arithmetic.integers import Error, Ints, round_shift
from codegen.graph.floats import Values
from codegen.graph.ir import Graph, Tensor
from codegen.operators.base import Copying
from codegen.operators.windows import (
    Pool,
    overlap_bits,
    padded_windows,
    pool_lead,
    pool_windows,
    window_attributes,
    window_fields,
    windows,
)

if TYPE_CHECKING:
    from codegen.emit.plan import StepWriter
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.step_builder import StepBuilder
    from codegen.program.steps import Step
    from codegen.reference.interpreter import Interpreter


@dataclass(frozen=True)
class MaxPool(Pool):
    """Largest value under each window (rows, columns); keeps scale and zero point.

    Padding never wins; no window lies in it altogether.
    """


def max_pool(graph: Graph, op: MaxPool, codes: Ints) -> tuple[Ints, Ints]:
    """Largest codes, and the flat input position (row * width + column) of the first of each."""
    source, output = graph.tensors[op.input], graph.tensors[op.output]
    shape = (*codes.shape[:-3], *output.shape)
    largest, places = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for y, x, rows, columns in pool_windows(op, source, output):
        part = codes[..., rows, columns, :]
        flat = part.reshape(*part.shape[:-3], -1, part.shape[-1])
        down, right = np.divmod(flat.argmax(axis=-2), part.shape[-2])
        largest[..., y, x, :] = flat.max(axis=-2)
        places[..., y, x, :] = (rows.start + down) * source.shape[1] + columns.start + right
    return largest, places


def max_pool_errors(source: Tensor, errors: Ints, places: Ints) -> Ints:
    """Each output's error added to the input position that it came from."""
    height, width, channels = source.shape
    result = np.zeros((height * width, channels), np.int64)
    every = np.broadcast_to(np.arange(channels), errors.shape)
    np.add.at(result, (places, every), errors)
    return result.reshape(source.shape)


class _MaxPoolOperator(Copying[MaxPool]):
    real = kind = MaxPool
    scales_by_channel = True
    kernel = "max_pool"
    struct = "tf_pool_window"

    def evaluate(self, op: MaxPool, inputs: Sequence[Values]) -> Values:
        under = windows(inputs[0], op.window, op.stride, op.padding, -np.inf)
        largest: Values = under.max(axis=(4, 5))
        return largest

    def forward(self, graph: Graph, op: MaxPool, inputs: Sequence[Ints]) -> Ints:
        return max_pool(graph, op, inputs[0])[0]

    def gradients(
        self, graph: Graph, op: MaxPool, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        height, width, channels = inputs[0].shape
        pad = op.padding
        around = ((pad.top, pad.bottom), (pad.left, pad.right), (0, 0))
        padded = np.pad(inputs[0], around, constant_values=-1000)
        into = np.zeros(padded.shape)
        for y, x, window in padded_windows(op, error):
            part = padded[window]
            for channel in range(channels):
                row, column = np.unravel_index(part[:, :, channel].argmax(), part.shape[:2])
                into[window][row, column, channel] += error[y, x, channel]
        return [into[pad.top : pad.top + height, pad.left : pad.left + width]]

    def build_forward(self, builder: StepBuilder, op: MaxPool, buffers: dict[str, str]) -> None:
        if op.output in builder.needs_error:
            width = 2 if math.prod(op.window) > 256 else 1
            size = width * builder.graph.tensors[op.output].size
            buffers["places"] = builder.buffer(f"places {op.output}", size)
        super().build_forward(builder, op, buffers)

    def overlap_lead(self, graph: Graph, op: MaxPool) -> int | None:
        return pool_lead(graph, op)

    def error(self, builder: StepBuilder, op: MaxPool) -> dict[str, str]:
        return {**builder.error(op), "places": f"places {op.output}"}

    def run_forward(self, interpreter: Interpreter, step: Step) -> None:
        largest, places = max_pool(
            interpreter.graph, self.op_of(step), interpreter.arrays[step.buffers["input"]]
        )
        interpreter.store(step, largest)
        if "places" in step.buffers:
            interpreter.arrays[step.buffers["places"]] = places

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        op = self.op_of(step)
        error = interpreter.error_in(step)
        shift = max(0, overlap_bits(op) - error.headroom)
        codes = max_pool_errors(
            interpreter.graph.tensors[op.input],
            round_shift(error.codes, shift),
            interpreter.arrays[step.buffers["places"]],
        )
        interpreter.errors[step.buffers["out"]] = Error(codes, error.exponent + shift)

    def fields(self, graph: Graph, op: MaxPool, tables: Mapping[str, str]) -> list[str]:
        return window_fields(graph, op)

    def forward_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        return [*super().forward_arguments(writer, step), writer.arena(step, "places", "uint8_t")]

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        places = writer.arena(step, "places", "uint8_t")
        return [writer.layer(step), *writer.error_in(step), places, *writer.error_out(step)]

    def export(self, writer: ModelWriter, op: MaxPool, layer: Layer) -> str:
        around = window_attributes(op.stride, op.padding)
        source = writer.codes[op.input]
        return layer.node("MaxPool", "codes", source, kernel_shape=op.window, **around)


MAX_POOL = _MaxPoolOperator()
