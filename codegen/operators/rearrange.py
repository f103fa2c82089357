"""Rearrange: pixels of the input in other places, more than once or not at all, and zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import Error, Ints, round_shift
from codegen.graph.floats import Values
from codegen.graph.ir import Graph, Unary
from codegen.operators.base import Copying, Table

if TYPE_CHECKING:
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.steps import Step
    from codegen.reference.interpreter import Interpreter

_Number = TypeVar("_Number", np.float64, np.int64)

OUTSIDE = -(2**15)
"""An entry that no other one brings back into a picture."""
LARGEST = 2**15 - 1
"""The most rows or columns of a picture: tables are int16."""

Places: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""What each row of the output, and what each of its columns, adds to a row or column number."""


@dataclass(frozen=True)
class Rearrange(Unary):
    """The output's pixel (y, x) is the input's pixel (rows[0][y] + rows[1][x],
    columns[0][y] + columns[1][x]), or zeros where the input has no such pixel.

    Keeps scale and zero point. Upsampling, crops and zeros between pixels are of this kind, and so
    is what lets an ordinary convolution stand for a dilated or a transposed one.
    """

    rows: Places
    columns: Places

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        return len(self.rows[0]), len(self.rows[1])


def by_axis(rows: Sequence[int], columns: Sequence[int]) -> tuple[Places, Places]:
    """``rows`` and ``columns`` where rows of the output depend on rows alone, as columns do."""
    still = (0,) * len(rows), (0,) * len(columns)
    return (tuple(rows), still[1]), (still[0], tuple(columns))


def pixels(op: Rearrange, height: int, width: int) -> NDArray[np.intp]:
    """[height, width] of the output: which of the input's pixels it is, in the order of rows;
    height * width for zeros."""
    row, column = (
        np.add.outer(np.array(by_y, np.intp), np.array(by_x, np.intp))
        for by_y, by_x in (op.rows, op.columns)
    )
    there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return np.where(there, row * width + column, height * width)


def repeat_bits(op: Rearrange, height: int, width: int) -> int:
    """Bits to keep free in an error so that the sum over all copies of a pixel fits.

    One more than the number of copies needs, for what rounding adds; 0 where there is one.
    """
    copies = np.bincount(pixels(op, height, width).reshape(-1), minlength=height * width + 1)
    most = int(copies[:-1].max())
    return (most - 1).bit_length() + 1 if most > 1 else 0


def _sent_back(
    op: Rearrange, error: NDArray[_Number], shape: tuple[int, int, int]
) -> NDArray[_Number]:
    """For each of the input's pixels, the sum of the errors (H, W, C) of its copies."""
    height, width, channels = shape
    result = np.zeros((height * width + 1, channels), error.dtype)
    np.add.at(result, pixels(op, height, width), error)
    sums: NDArray[_Number] = result[:-1].reshape(shape)
    return sums


class _RearrangeOperator(Copying[Rearrange]):
    real = kind = Rearrange
    scales_by_channel = True
    kernel = "rearrange"
    struct = "tf_rearrangement"

    def evaluate(self, op: Rearrange, inputs: Sequence[Values]) -> Values:
        count, channels, height, width = inputs[0].shape
        flat = np.zeros((count, channels, height * width + 1))
        flat[:, :, :-1] = inputs[0].reshape(count, channels, -1)
        return flat[:, :, pixels(op, height, width)]

    def forward(self, graph: Graph, op: Rearrange, inputs: Sequence[Ints]) -> Ints:
        *batch, height, width, channels = inputs[0].shape
        zero = graph.tensors[op.input].zero_point
        flat = np.full((*batch, height * width + 1, channels), zero, np.int64)
        flat[..., :-1, :] = inputs[0].reshape(*batch, -1, channels)
        return flat[..., pixels(op, height, width), :]

    def gradients(
        self, graph: Graph, op: Rearrange, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        return [_sent_back(op, error, graph.tensors[op.input].shape)]

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        op = self.op_of(step)
        shape = interpreter.graph.tensors[op.input].shape
        error = interpreter.error_in(step)
        shift = max(0, repeat_bits(op, *shape[:2]) - error.headroom)
        codes = _sent_back(op, round_shift(error.codes, shift), shape)
        interpreter.errors[step.buffers["out"]] = Error(codes, error.exponent + shift)

    def tables(self, graph: Graph, op: Rearrange) -> dict[str, Table]:
        return {
            f"{kind}_by_{axis}": Table("int16_t", places[index], 12)
            for kind, places in (("row", op.rows), ("column", op.columns))
            for index, axis in enumerate("yx")
        }

    def fields(self, graph: Graph, op: Rearrange, tables: Mapping[str, str]) -> list[str]:
        source = graph.tensors[op.input]
        height, width, channels = source.shape
        return [
            f"{height}, {width}, {channels}, {op.size[0]}, {op.size[1]},",
            f"{source.zero_point}, {repeat_bits(op, height, width)},",
            f"{tables['row_by_y']}, {tables['row_by_x']},",
            f"{tables['column_by_y']}, {tables['column_by_x']},",
        ]

    def export(self, writer: ModelWriter, op: Rearrange, layer: Layer) -> str:
        height, width, channels = writer.graph.tensors[op.input].shape
        shape = layer.constant("input.shape", [-1, channels, height * width])
        flat = layer.node("Reshape", "flat", writer.codes[op.input], shape)
        behind = layer.constant("one_more", [0, 0, 0, 0, 0, 1])
        zero = layer.constant("zero", writer.zero(op.input), np.int8)
        padded = layer.node("Pad", "padded", flat, behind, zero)
        places = layer.constant("pixels", pixels(op, height, width))
        return layer.node("Gather", "codes", padded, places, axis=2)


REARRANGE = _RearrangeOperator()
