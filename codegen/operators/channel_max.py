"""ChannelMax: the largest channel of each pixel, as spatial attention asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from codegen.arithmetic.integers import Error, Ints
from codegen.errors import ModelError
from codegen.graph.floats import Values
from codegen.graph.ir import Graph, Unary
from codegen.operators.base import Copying
from codegen.operators.max_pool import MaxPool
from codegen.operators.windows import window_fields

if TYPE_CHECKING:
    from codegen.emit.plan import StepWriter
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.step_builder import StepBuilder
    from codegen.program.steps import Step
    from codegen.reference.interpreter import Interpreter

_MOST_PIXELS = 65535  # what tf_pool_window holds


@dataclass(frozen=True)
class ChannelMax(Unary):
    """The largest channel of each pixel: one channel, of its input's scale and zero point.

    To the kernels it is a max pool of a picture of one channel, whose rows are pixels and whose
    columns are their channels: the same bytes.
    """


class _ChannelMaxOperator(Copying[ChannelMax]):
    real = kind = ChannelMax
    kernel = "max_pool"
    struct = "tf_pool_window"

    def evaluate(self, op: ChannelMax, inputs: Sequence[Values]) -> Values:
        largest: Values = inputs[0].max(axis=1, keepdims=True)
        return largest

    def forward(self, graph: Graph, op: ChannelMax, inputs: Sequence[Ints]) -> Ints:
        largest: Ints = inputs[0].max(axis=-1, keepdims=True)
        return largest

    def gradients(
        self, graph: Graph, op: ChannelMax, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        first = np.arange(inputs[0].shape[-1]) == inputs[0].argmax(axis=-1)[..., np.newaxis]
        return [first * error]

    def build_forward(self, builder: StepBuilder, op: ChannelMax, buffers: dict[str, str]) -> None:
        if op.output in builder.needs_error:
            channels = builder.graph.tensors[op.input].shape[2]
            size = builder.graph.tensors[op.output].size * (2 if channels > 256 else 1)
            buffers["places"] = builder.buffer(f"places {op.output}", size)
        super().build_forward(builder, op, buffers)

    def error(self, builder: StepBuilder, op: ChannelMax) -> dict[str, str]:
        return {**builder.error(op), "places": f"places {op.output}"}

    def run_forward(self, interpreter: Interpreter, step: Step) -> None:
        super().run_forward(interpreter, step)
        if "places" in step.buffers:
            codes = interpreter.arrays[step.buffers["input"]]
            interpreter.arrays[step.buffers["places"]] = codes.argmax(axis=-1, keepdims=True)

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        channels = interpreter.graph.tensors[self.op_of(step).input].shape[2]
        error, places = interpreter.error_in(step), interpreter.arrays[step.buffers["places"]]
        codes = error.codes * (np.arange(channels) == places)
        interpreter.errors[step.buffers["out"]] = Error(codes, error.exponent)

    def fields(self, graph: Graph, op: ChannelMax, tables: Mapping[str, str]) -> list[str]:
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        height, width, channels = source.shape
        if height * width > _MOST_PIXELS:
            raise ModelError(
                f"layer {op.name}: {height * width} pixels are more than {_MOST_PIXELS}; pool "
                "before it"
            )
        window = (1, channels)
        turned = {
            op.input: replace(source, shape=(height * width, channels, 1)),
            op.output: replace(output, shape=(height * width, 1, 1)),
        }
        pool = MaxPool(op.name, op.input, op.output, window, window)
        return window_fields(replace(graph, tensors=turned), pool)

    def forward_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        return [*super().forward_arguments(writer, step), writer.arena(step, "places", "uint8_t")]

    def input_gradient_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        places = writer.arena(step, "places", "uint8_t")
        return [writer.layer(step), *writer.error_in(step), places, *writer.error_out(step)]

    def export(self, writer: ModelWriter, op: ChannelMax, layer: Layer) -> str:
        return layer.node("ReduceMax", "codes", writer.codes[op.input], axes=[1])


CHANNEL_MAX = _ChannelMaxOperator()
