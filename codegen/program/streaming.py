"""Depth-first execution of chains of layers over a few rows at a time.

The tensors between the stages of a chain live in ring buffers of so many rows as the next stage
still needs; nothing is computed twice. This module has the order of the rows, the sizes of the
rings, and where a chain's output may overlap its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

from codegen.graph.ir import Conv, DepthwiseConv, Graph, Op, Operation, Unary, inputs_of
from codegen.operators import operator_of
from codegen.program.steps import Rows

Stage: TypeAlias = Conv | DepthwiseConv | Operation
"""A layer, or an operation that works elementwise."""


@dataclass(frozen=True)
class Window:
    """Which input rows an output row needs: rows y * stride - before … + height - 1."""

    height: int
    stride: int
    before: int
    input_rows: int

    def low(self, first: int) -> int:
        """The first input row that output rows from ``first`` on need."""
        return min(max(0, first * self.stride - self.before), self.input_rows)

    def high(self, end: int) -> int:
        """One past the last input row that output rows up to ``end`` (exclusive) need."""
        return min(max(0, (end - 1) * self.stride - self.before + self.height), self.input_rows)


def is_stage(op: Op) -> TypeGuard[Stage]:
    """Whether ``op`` can be part of a chain."""
    return isinstance(op, (Conv, DepthwiseConv)) or is_elementwise(op)


def is_elementwise(op: Op) -> TypeGuard[Operation]:
    """Whether an element of the output needs just those in its place."""
    return isinstance(op, Operation) and operator_of(op).elementwise


def passes_rows_on(op: Op) -> TypeGuard[Stage]:
    """Whether ``op`` can be a stage before others: those read one tensor."""
    return is_stage(op) and isinstance(op, (Conv, DepthwiseConv, Unary))


def window_of(graph: Graph, op: Stage) -> Window:
    """The window of ``op`` over the rows of its input."""
    if isinstance(op, Operation):
        return Window(1, 1, 0, graph.tensors[op.output].shape[0])
    kernel = op.weight.shape[1] if isinstance(op, Conv) else op.weight.shape[0]
    rows = graph.tensors[op.input].shape[0]
    return Window(kernel, op.stride[0], op.padding.top, rows)


def schedule(graph: Graph, ops: Sequence[Stage], band: int) -> tuple[Rows, ...]:
    """The order in which the stages make their rows, ``band`` rows of the last one at a time."""
    windows = [window_of(graph, op) for op in ops]
    total = graph.tensors[ops[-1].output].shape[0]
    have = [0] * len(ops)
    rows: list[Rows] = []
    for y in range(0, total, band):
        target = list(have)
        target[-1] = min(total, y + band)
        for stage in range(len(ops) - 1, 0, -1):
            if target[stage] > have[stage]:
                target[stage - 1] = max(have[stage - 1], windows[stage].high(target[stage]))
        for stage, (done, end) in enumerate(zip(have, target, strict=True)):
            if end > done:
                rows.append(Rows(stage, done, end))
        have = target
    return tuple(rows)


def ring_rows(graph: Graph, ops: Sequence[Stage], rows: Sequence[Rows]) -> list[int]:
    """Rows that the ring buffer after each stage but the last must hold."""
    windows = [window_of(graph, op) for op in ops]
    have = [0] * len(ops)
    rings = [1] * (len(ops) - 1)
    for item in rows:
        if item.stage > 0:
            live = have[item.stage - 1] - windows[item.stage].low(item.first)
            rings[item.stage - 1] = max(rings[item.stage - 1], live)
        have[item.stage] = item.end
    return rings


def chain_lead(graph: Graph, ops: Sequence[Stage], rows: Sequence[Rows], source: str) -> int:
    """Bytes before tensor ``source`` at which the chain's output must start to overlap it safely.

    No row may be written over a row of ``source`` that a later part of the schedule reads. What
    works elementwise reads its element before it writes it.
    """
    source_row = _row_bytes(graph, source)
    output_row = _row_bytes(graph, ops[-1].output)
    lead, unread = 0, graph.tensors[source].shape[0]
    for item in reversed(rows):
        op = ops[item.stage]
        if item.stage == len(ops) - 1:
            lead = max(lead, item.end * output_row - unread * source_row)
        if source in inputs_of(op):
            unread = min(unread, window_of(graph, op).low(item.first))
    return lead


def convolution_lead(graph: Graph, op: Conv) -> int:
    """The same for a convolution by itself, in elements; the last row reads while it writes."""
    source, output = graph.tensors[op.input], graph.tensors[op.output]
    if is_pointwise(op):
        pixels = output.shape[0] * output.shape[1]
        return max(0, (output.shape[2] - source.shape[2]) * pixels)
    source_row, output_row = _row_bytes(graph, op.input), _row_bytes(graph, op.output)
    window = window_of(graph, op)
    leads = [(y + 1) * output_row - window.low(y) * source_row for y in range(output.shape[0])]
    return max(0, *leads)


def is_pointwise(op: Conv) -> bool:
    """Whether each output pixel sees just the input pixel in its place."""
    padding = op.padding
    padded = padding.top or padding.left or padding.bottom or padding.right
    return op.weight.shape[1:3] == (1, 1) and op.stride == (1, 1) and not padded


def _row_bytes(graph: Graph, tensor: str) -> int:
    _, width, channels = graph.tensors[tensor].shape
    return width * channels
