"""Transpose: all elements in another order, and as a picture of another shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import Error, Ints
from codegen.errors import ModelError
from codegen.graph.floats import ChannelsFirst, Values
from codegen.graph.ir import Graph, Unary
from codegen.operators.base import Copying, Table

if TYPE_CHECKING:
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.steps import Step
    from codegen.reference.interpreter import Interpreter

_Number = TypeVar("_Number", np.float64, np.int64)

MOST_LOOPS = 8
"""As many axes can be in another order: TF_MOST_LOOPS."""
_LARGEST = 65535


@dataclass(frozen=True)
class Transpose(Unary):
    """The input's elements (rows, columns, channels), counted by axes of ``sizes``, in the order
    ``order`` of these, as a picture of ``shape``. Scale and zero point stay.

    Flattened features that become a picture, channels that become pixels, and mixed dimensions are
    of this kind.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...]
    shape: ChannelsFirst


@dataclass(frozen=True)
class TransposeArithmetic:
    """What ``tf_transposition`` holds: ``run`` elements lie side by side in input and output.

    ``counts`` has the output's axes without them, the outermost first, ``strides`` how far apart
    the entries of each lie in the input.
    """

    run: int
    counts: tuple[int, ...]
    strides: tuple[int, ...]


def transpose_arithmetic(op: Transpose) -> TransposeArithmetic:
    """Constants of one order. Raises ModelError for one that isn't supported."""
    strides = np.cumprod([1, *op.sizes[:0:-1]])[::-1].tolist()
    loops: list[tuple[int, int]] = []
    for axis in op.order:
        size, stride = op.sizes[axis], strides[axis]
        if loops and loops[-1][1] == size * stride:  # goes on where the axis before it does
            size *= loops.pop()[0]
        if size > 1:
            loops.append((size, stride))
    run = loops.pop()[0] if loops and loops[-1][1] == 1 else 1
    loops = loops or [(1, 0)]
    if len(loops) > MOST_LOOPS or max(count for count, _ in loops) > _LARGEST:
        raise ModelError(
            f"layer {op.name}: puts {len(op.sizes)} dimensions {list(op.sizes)} into the order "
            f"{list(op.order)}; more than {MOST_LOOPS} that move, or {_LARGEST:,} entries of one, "
            "aren't supported: use fewer, or smaller ones"
        )
    counts, apart = zip(*loops, strict=True)
    return TransposeArithmetic(run, counts, apart)


def _ordered(op: Transpose, values: NDArray[_Number]) -> NDArray[_Number]:
    """Values (..., H, W, C) in the output's order, (..., H, W, C) of its shape."""
    *batch, _, _, _ = values.shape
    channels, height, width = op.shape
    axes = [*range(len(batch)), *(len(batch) + axis for axis in op.order)]
    moved = values.reshape(*batch, *op.sizes).transpose(axes)
    return moved.reshape(*batch, height, width, channels)


def _sent_back(graph: Graph, op: Transpose, error: NDArray[_Number]) -> NDArray[_Number]:
    """The errors (H, W, C) in the input's order and shape."""
    moved = error.reshape([op.sizes[axis] for axis in op.order])
    return moved.transpose(np.argsort(op.order)).reshape(graph.tensors[op.input].shape)


class _TransposeOperator(Copying[Transpose]):
    real = kind = Transpose
    kernel = "transpose"
    struct = "tf_transposition"

    def evaluate(self, op: Transpose, inputs: Sequence[Values]) -> Values:
        return np.moveaxis(_ordered(op, np.moveaxis(inputs[0], 1, -1)), -1, 1)

    def forward(self, graph: Graph, op: Transpose, inputs: Sequence[Ints]) -> Ints:
        return _ordered(op, inputs[0])

    def gradients(
        self, graph: Graph, op: Transpose, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        return [_sent_back(graph, op, error)]

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        error = interpreter.error_in(step)
        codes = _sent_back(interpreter.graph, self.op_of(step), error.codes)
        interpreter.errors[step.buffers["out"]] = Error(codes, error.exponent)

    def tables(self, graph: Graph, op: Transpose) -> dict[str, Table]:
        by = transpose_arithmetic(op)
        return {
            "counts": Table("uint16_t", by.counts, 12),
            "strides": Table("uint32_t", by.strides, 12),
        }

    def fields(self, graph: Graph, op: Transpose, tables: Mapping[str, str]) -> list[str]:
        by = transpose_arithmetic(op)
        return [f"{by.run}u, {len(by.counts)},", f"{tables['counts']}, {tables['strides']},"]

    def export(self, writer: ModelWriter, op: Transpose, layer: Layer) -> str:
        last = layer.node("Transpose", "last", writer.codes[op.input], perm=[0, 2, 3, 1])
        split = layer.node("Reshape", "split", last, layer.constant("sizes", [-1, *op.sizes]))
        order = [0, *(1 + axis for axis in op.order)]
        moved = layer.node("Transpose", "moved", split, perm=order)
        channels, height, width = op.shape
        shape = layer.constant("shape", [-1, height, width, channels])
        made = layer.node("Reshape", "made", moved, shape)
        return layer.node("Transpose", "codes", made, perm=[0, 3, 1, 2])


TRANSPOSE = _TransposeOperator()
