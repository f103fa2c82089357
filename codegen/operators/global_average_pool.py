"""GlobalAveragePool: the mean over height and width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codegen.arithmetic.integers import Error, Ints, mean_codes, round_shift
from codegen.errors import ModelError
from codegen.graph.floats import Values
from codegen.graph.ir import Graph, Unary
from codegen.operators.average_pool import AVERAGE_POOL, AveragePool
from codegen.operators.base import Operator

if TYPE_CHECKING:
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.steps import Step
    from codegen.quantization.quantize import Assembly
    from codegen.reference.interpreter import Interpreter


@dataclass(frozen=True)
class GlobalAveragePool(Unary):
    """Mean over height and width; on the device of its input's scale and zero point.

    One with a scale of its own is an AveragePool there.
    """


@dataclass(frozen=True)
class PoolingArithmetic:
    """What ``tf_pooling`` holds: 1/pixels as a Q14 integer and a power of two."""

    error_multiplier: int
    error_exponent: int


def pooling_arithmetic(graph: Graph, op: GlobalAveragePool) -> PoolingArithmetic:
    """Constants of one pooling; exact where the number of pixels is a power of two."""
    height, width, _ = graph.tensors[op.input].shape
    if height * width > 65535:
        raise ModelError(
            f"layer {op.name}: {height * width} pixels are more than 65535; use a smaller input"
        )
    fraction, exponent = math.frexp(1 / (height * width))
    if fraction == 0.5:
        return PoolingArithmetic(2**14, exponent - 1)
    return PoolingArithmetic(round(fraction * 2**14), exponent)


class _GlobalAveragePoolOperator(Operator[GlobalAveragePool, GlobalAveragePool]):
    real = kind = GlobalAveragePool
    keeps_coding = scales_by_channel = True
    kernel = "pool"
    struct = "tf_pooling"

    def evaluate(self, op: GlobalAveragePool, inputs: Sequence[Values]) -> Values:
        mean: Values = inputs[0].mean(axis=(2, 3), keepdims=True)
        return mean

    def quantize(self, op: GlobalAveragePool, assembly: Assembly) -> None:
        source = assembly.tensors[op.input]
        whole = source.shape[:2]
        pool = AveragePool(op.name, op.input, op.output, whole, whole)
        AVERAGE_POOL.quantize(pool, assembly)
        output = assembly.tensors[op.output]
        if (source.scale, source.zero_point) == (output.scale, output.zero_point):
            assembly.ops[-1] = op

    def forward(self, graph: Graph, op: GlobalAveragePool, inputs: Sequence[Ints]) -> Ints:
        height, width, _ = graph.tensors[op.input].shape
        return mean_codes(inputs[0].sum(axis=(-3, -2), keepdims=True), np.array(height * width), 0)

    def saturates(self, graph: Graph, op: GlobalAveragePool) -> bool:
        return False

    def gradients(
        self, graph: Graph, op: GlobalAveragePool, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        height, width, _ = shape = inputs[0].shape
        return [np.broadcast_to(error / (height * width), shape)]

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        op = self.op_of(step)
        constants = pooling_arithmetic(interpreter.graph, op)
        error = interpreter.error_in(step)
        codes = round_shift(error.codes * constants.error_multiplier, 14)
        spread = np.broadcast_to(codes, interpreter.graph.tensors[op.input].shape).copy()
        exponent = error.exponent + constants.error_exponent
        interpreter.errors[step.buffers["out"]] = Error(spread, exponent)

    def fields(self, graph: Graph, op: GlobalAveragePool, tables: Mapping[str, str]) -> list[str]:
        constants = pooling_arithmetic(graph, op)
        height, width, channels = graph.tensors[op.input].shape
        return [
            f"{height * width}, {channels},",
            f"{constants.error_multiplier}, {constants.error_exponent},",
        ]

    def export(self, writer: ModelWriter, op: GlobalAveragePool, layer: Layer) -> str:
        height, width, _ = writer.graph.tensors[op.input].shape
        wide = layer.wide("wide", writer.codes[op.input])
        axes = layer.constant("axes", [2, 3])
        sums = layer.node("ReduceSum", "sums", wide, axes, keepdims=1)
        return layer.mean(sums, np.array(height * width), 0)


GLOBAL_AVERAGE_POOL = _GlobalAveragePoolOperator()
