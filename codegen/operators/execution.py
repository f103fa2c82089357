"""Graphs executed: in real numbers, and operation by operation in the device's integers.

The real ones are the reference for everything after import: plain numpy in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.forward import Parameters, convolution, head
from codegen.arithmetic.integers import Ints
from codegen.graph import ir
from codegen.graph.floats import (
    FloatConv,
    FloatGraph,
    FloatHead,
    FloatOp,
    FloatTensorOutput,
    Values,
    inputs_of,
)
from codegen.graph.ir import Padding
from codegen.operators import operator_of
from codegen.operators.base import activated
from codegen.operators.windows import windows


def evaluate(graph: FloatGraph, x: NDArray[np.floating]) -> dict[str, Values]:
    """All tensors of a batch ``x`` (N, C, H, W): name → (N, C, H, W), outputs (N, O)."""
    values = {graph.input: np.asarray(x, dtype=np.float64)}
    values.update({op.output: result for op, _, result in execute(graph, x)})
    return values


def execute(
    graph: FloatGraph, x: NDArray[np.floating]
) -> Iterator[tuple[FloatOp, list[Values], Values]]:
    """Each operation with its inputs and its output for a batch ``x`` (N, C, H, W), in order.

    Holds no tensor longer than until its last reader, for callers that don't either.
    """
    last_reader = {name: op.output for op in graph.ops for name in inputs_of(op)}
    values: dict[str, Values] = {graph.input: np.asarray(x, dtype=np.float64)}
    for op in graph.ops:
        inputs = [values[name] for name in inputs_of(op)]
        values[op.output] = evaluate_op(op, inputs)
        yield op, inputs, values[op.output]
        for name in set(inputs_of(op)):
            if last_reader[name] == op.output:
                del values[name]


def evaluate_op(op: FloatOp, inputs: list[Values]) -> Values:
    """What ``op`` makes of its inputs (N, C, H, W), in the order of `inputs_of`."""
    if isinstance(op, FloatConv):
        result = convolve(inputs[0], op.weight, op.groups, op.stride, op.padding)
        return activated(result + op.bias[:, np.newaxis, np.newaxis], op.clamp)
    if isinstance(op, FloatTensorOutput):
        return inputs[0].reshape(len(inputs[0]), -1)
    if isinstance(op, FloatHead):
        flat = inputs[0].reshape(len(inputs[0]), -1)
        return np.asarray(flat @ op.weight.T + op.bias, dtype=np.float64)
    return operator_of(op).evaluate(op, inputs)


def convolve(
    x: Values,
    weight: Values,
    groups: int,
    stride: tuple[int, int],
    padding: Padding,
) -> Values:
    """Cross-correlation of x (N, C, H, W) with weight [O, C/groups, Kh, Kw], zeros around x."""
    under = windows(x, weight.shape[2:], stride, padding)
    count, channels, height, width = under.shape[:4]
    outputs = weight.shape[0]
    result = np.empty((count, outputs, height, width))
    inputs_each, outputs_each = channels // groups, outputs // groups
    if inputs_each == 1 and outputs_each == 1:
        return np.asarray(np.einsum("nchwij,cij->nchw", under, weight[:, 0]))
    for group in range(groups):
        part = under[:, group * inputs_each : (group + 1) * inputs_each]
        rows = slice(group * outputs_each, (group + 1) * outputs_each)
        columns = part.transpose(0, 2, 3, 1, 4, 5).reshape(count, height, width, -1)
        filters = weight[rows].reshape(outputs_each, -1)
        result[:, rows] = (columns @ filters.T).transpose(0, 3, 1, 2)
    return result


def output_of(graph: ir.Graph, op: ir.Op, inputs: Sequence[Ints]) -> Ints:
    """What ``op`` makes of its inputs as it is compiled: codes; of the ending the outputs.

    Arrays are int64 codes (..., height, width, channels).
    """
    if isinstance(op, ir.TensorOutput):
        zero = graph.tensors[op.input].zero_point
        return inputs[0].reshape(*inputs[0].shape[:-3], -1) - zero
    if isinstance(op, ir.Head):
        return head(graph, op, inputs[0], Parameters.of(op))
    if isinstance(op, (ir.Conv, ir.DepthwiseConv)):
        return clamped(op, convolution(graph, op, inputs[0], Parameters.of(op)))
    return clamped(op, operator_of(op).forward(graph, op, inputs))


def clamped(op: ir.Op, values: Ints) -> Ints:
    """Values of ``op`` as codes: the clamp is the activation function."""
    ends = (ir.INT8_MIN, ir.INT8_MAX)
    if isinstance(op, ir.Operation):
        ends = operator_of(op).ends(op)
    return np.clip(values, *ends)
