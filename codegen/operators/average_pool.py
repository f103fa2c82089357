"""AveragePool: the mean under each window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import Error, Ints, mean_codes, requantized, round_shift
from codegen.arithmetic.layers import (
    INT32_MAX,
    Multiplier,
    multiplier,
    pre_shift_of,
    relative_q15,
)
from codegen.errors import ModelError
from codegen.graph.floats import Values
from codegen.graph.ir import Graph, Padding, Tensor
from codegen.operators.base import Operator, Table
from codegen.operators.windows import (
    Pool,
    counted_positions,
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
    from codegen.program.steps import Step
    from codegen.quantization.quantize import Assembly
    from codegen.reference.interpreter import Interpreter


@dataclass(frozen=True)
class AveragePool(Pool):
    """Mean under each window (rows, columns); the output may have a scale of its own.

    Padding counts as real zeros as far as ``counted`` goes, and beyond that not at all.
    """

    counted: Padding = field(default_factory=Padding)


@dataclass(frozen=True, eq=False)
class AveragePoolArithmetic:
    """What ``tf_average_pooling`` holds; tables start at windows of ``least_count`` positions.

    ``requantize`` is empty where the output has the input's scale and zero point.
    """

    least_count: int
    requantize: list[Multiplier]
    pre_shift: int
    error_multiplier: NDArray[np.int64]
    error_exponent: int


def average_pool_arithmetic(graph: Graph, op: AveragePool) -> AveragePoolArithmetic:
    """Constants of one average pool."""
    source, output = graph.tensors[op.input], graph.tensors[op.output]
    counts = window_counts(graph, op)
    least, most = int(counts.min()), int(counts.max())
    factors = source.scale / output.scale / np.arange(least, most + 1, dtype=np.float64)
    error, exponent = relative_q15(factors)
    same = (source.scale, source.zero_point) == (output.scale, output.zero_point)
    left = 0 if same else pre_shift_of(op.name, float(factors.max()))
    if (most * 255) << left > INT32_MAX:
        raise ModelError(
            f"layer {op.name}: the sum of {most} codes can overflow 32 bits; use a smaller window"
        )
    return AveragePoolArithmetic(
        least_count=least,
        requantize=[] if same else [multiplier(float(f) / 2**left) for f in factors],
        pre_shift=left,
        error_multiplier=error,
        error_exponent=exponent,
    )


def window_counts(graph: Graph, op: AveragePool) -> Ints:
    """How many positions each window averages over (height, width, 1)."""
    source, output = graph.tensors[op.input].shape, graph.tensors[op.output].shape
    return _counts(op, source[:2], output[:2])[:, :, None]


def _counts(op: AveragePool, size: tuple[int, int], outputs: tuple[int, int]) -> Ints:
    pad, counted = op.padding, op.counted
    rows = counted_positions(
        size[0], op.window[0], op.stride[0], pad.top, (counted.top, counted.bottom), outputs[0]
    )
    columns = counted_positions(
        size[1], op.window[1], op.stride[1], pad.left, (counted.left, counted.right), outputs[1]
    )
    return np.outer(rows, columns)


def average_pool_errors(op: AveragePool, source: Tensor, output: Tensor, parts: Ints) -> Ints:
    """Each output's part added to all input positions under its window."""
    result = np.zeros(source.shape, np.int64)
    for y, x, rows, columns in pool_windows(op, source, output):
        result[rows, columns] += parts[y, x]
    return result


class _AveragePoolOperator(Operator[AveragePool, AveragePool]):
    real = kind = AveragePool
    keeps_coding = scales_by_channel = True
    kernel = "average_pool"
    struct = "tf_average_pooling"

    def evaluate(self, op: AveragePool, inputs: Sequence[Values]) -> Values:
        sums = windows(inputs[0], op.window, op.stride, op.padding).sum(axis=(4, 5))
        counts = _counts(op, inputs[0].shape[2:], sums.shape[2:])
        mean: Values = sums / counts
        return mean

    def quantize(self, op: AveragePool, assembly: Assembly) -> None:
        finer = assembly.finer_coding(op.input, op.output)
        if finer is None:
            super().quantize(op, assembly)
        else:
            assembly.add_tensor(op.output, finer)
            assembly.ops.append(op)

    def forward(self, graph: Graph, op: AveragePool, inputs: Sequence[Ints]) -> Ints:
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        constants, counted = average_pool_arithmetic(graph, op), window_counts(graph, op)
        total = np.zeros((*inputs[0].shape[:-3], *output.shape), np.int64)
        for y, x, rows, columns in pool_windows(op, source, output):
            part = inputs[0][..., rows, columns, :] - source.zero_point
            total[..., y, x, :] = part.sum(axis=(-3, -2))
        if not constants.requantize:
            return mean_codes(total, counted, source.zero_point)
        words = np.array([m.word for m in constants.requantize])[counted - constants.least_count]
        return requantized(total, constants.pre_shift, words) + output.zero_point

    def saturates(self, graph: Graph, op: AveragePool) -> bool:
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        return (source.scale, source.zero_point) != (output.scale, output.zero_point)

    def gradients(
        self, graph: Graph, op: AveragePool, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        height, width, channels = inputs[0].shape
        pad, counted = op.padding, op.counted
        rows, columns = pad.top + height + pad.bottom, pad.left + width + pad.right
        into, is_counted = np.zeros((rows, columns, channels)), np.zeros((rows, columns))
        is_counted[
            pad.top - counted.top : pad.top + height + counted.bottom,
            pad.left - counted.left : pad.left + width + counted.right,
        ] = 1
        scale = graph.tensors[op.input].scale / graph.tensors[op.output].scale
        for y, x, window in padded_windows(op, error):
            into[window] += error[y, x] * scale / is_counted[window].sum()
        return [into[pad.top : pad.top + height, pad.left : pad.left + width]]

    def overlap_lead(self, graph: Graph, op: AveragePool) -> int | None:
        return pool_lead(graph, op)

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        op = self.op_of(step)
        source, output = (interpreter.graph.tensors[name] for name in (op.input, op.output))
        constants = average_pool_arithmetic(interpreter.graph, op)
        error = interpreter.error_in(step)
        left = error.headroom - overlap_bits(op)
        counted = window_counts(interpreter.graph, op)
        factor = constants.error_multiplier[counted - constants.least_count]
        parts = round_shift(error.codes * factor, 15 - left)
        codes = average_pool_errors(op, source, output, parts)
        exponent = error.exponent + constants.error_exponent - left
        interpreter.errors[step.buffers["out"]] = Error(codes, exponent)

    def tables(self, graph: Graph, op: AveragePool) -> dict[str, Table]:
        constants = average_pool_arithmetic(graph, op)
        tables = {"error_multiplier": Table("int16_t", list(constants.error_multiplier), 12)}
        if constants.requantize:
            words = [m.word for m in constants.requantize]
            tables = {"requantize": Table("tf_multiplier", words, 8), **tables}
        return tables

    def fields(self, graph: Graph, op: AveragePool, tables: Mapping[str, str]) -> list[str]:
        constants, counted = average_pool_arithmetic(graph, op), op.counted
        requantize = tables.get("requantize", "0")
        return [
            "{",
            *(f"    {line}" for line in window_fields(graph, op)),
            "},",
            f"{counted.top}, {counted.left}, {counted.bottom}, {counted.right},",
            f"{graph.tensors[op.input].zero_point}, {graph.tensors[op.output].zero_point},",
            f"{constants.least_count}, {requantize}, {constants.pre_shift},",
            f"{tables['error_multiplier']}, {constants.error_exponent},",
        ]

    def forward_arguments(self, writer: StepWriter, step: Step) -> list[str]:
        return [*super().forward_arguments(writer, step), writer.arena(step, "mask", "uint8_t")]

    def export(self, writer: ModelWriter, op: AveragePool, layer: Layer) -> str:
        source, output = (writer.graph.tensors[name] for name in (op.input, op.output))
        constants = average_pool_arithmetic(writer.graph, op)
        counts = window_counts(writer.graph, op)[:, :, 0][np.newaxis, np.newaxis]
        channels, around = source.shape[2], window_attributes(op.stride, op.padding)
        ones = layer.constant("ones", np.ones((channels, 1, *op.window)), np.uint8)
        codes = writer.codes[op.input]
        sums = layer.convolved(codes, source.zero_point, ones, 0, group=channels, **around)
        if not constants.requantize:
            return layer.mean(sums, counts, source.zero_point)
        words = np.array([each.word for each in constants.requantize])
        left = np.array(constants.pre_shift)
        return layer.requantized(
            sums, left, words[counts - constants.least_count], output.zero_point
        )


AVERAGE_POOL = _AveragePoolOperator()
