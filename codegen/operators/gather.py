"""Gather: chosen entries of an axis, in any order; splits, slices, crops, shuffled channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from codegen.arithmetic.integers import Error, Ints, round_shift
from codegen.errors import ModelError
from codegen.graph.floats import Values
from codegen.graph.ir import Graph, Unary
from codegen.operators.base import Copying, Table

if TYPE_CHECKING:
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.program.steps import Step
    from codegen.reference.interpreter import Interpreter

PictureAxis: TypeAlias = Literal["channels", "height", "width"]

_REAL_AXIS: Mapping[PictureAxis, int] = {"channels": 1, "height": 2, "width": 3}
_CODES_AXIS: Mapping[PictureAxis, int] = {"height": -3, "width": -2, "channels": -1}
_LARGEST = 65535


@dataclass(frozen=True)
class Gather(Unary):
    """The entries ``indices`` of ``axis``, one after another; scale and zero point stay."""

    axis: PictureAxis
    indices: tuple[int, ...]


@dataclass(frozen=True)
class GatherArithmetic:
    """What ``tf_selection`` holds: entries that lie side by side in the input go together.

    ``first`` has the first index of each run of ``run`` entries.
    """

    outer: int
    inner: int
    size: int
    run: int
    first: tuple[int, ...]
    overlap_bits: int


def gather_arithmetic(graph: Graph, op: Gather) -> GatherArithmetic:
    """Constants of one choice. Raises ModelError for an axis that is too long."""
    shape, axis = graph.tensors[op.input].shape, _CODES_AXIS[op.axis] + 3
    if max(shape[axis], len(op.indices)) > _LARGEST:
        raise ModelError(
            f"layer {op.name}: chooses {len(op.indices)} of {shape[axis]} entries; more than "
            f"{_LARGEST} aren't supported, use a smaller input"
        )
    breaks = np.flatnonzero(np.diff(op.indices) != 1) + 1
    run = int(np.gcd.reduce([len(op.indices), *breaks]))
    most = max(Counter(op.indices).values())
    return GatherArithmetic(
        outer=int(np.prod(shape[:axis])),
        inner=int(np.prod(shape[axis + 1 :])),
        size=shape[axis],
        run=run,
        first=op.indices[::run],
        overlap_bits=most.bit_length() if most > 1 else 0,
    )


def _sums(graph: Graph, op: Gather, error: np.ndarray) -> np.ndarray:
    """Each entry of the input with the sum of the errors (H, W, C) of its copies."""
    into = np.zeros(graph.tensors[op.input].shape, error.dtype)
    axis = _CODES_AXIS[op.axis]
    np.add.at(np.moveaxis(into, axis, 0), list(op.indices), np.moveaxis(error, axis, 0))
    return into


class _GatherOperator(Copying[Gather]):
    real = kind = Gather
    kernel = "gather"
    struct = "tf_selection"

    def evaluate(self, op: Gather, inputs: Sequence[Values]) -> Values:
        return np.take(inputs[0], op.indices, axis=_REAL_AXIS[op.axis])

    def forward(self, graph: Graph, op: Gather, inputs: Sequence[Ints]) -> Ints:
        return np.take(inputs[0], op.indices, axis=_CODES_AXIS[op.axis])

    def gradients(
        self, graph: Graph, op: Gather, inputs: Sequence[Ints], error: Values
    ) -> list[Values]:
        return [_sums(graph, op, error)]

    def run_input_gradient(self, interpreter: Interpreter, step: Step) -> None:
        op = self.op_of(step)
        error = interpreter.error_in(step)
        bits = gather_arithmetic(interpreter.graph, op).overlap_bits
        shift = max(0, bits - error.headroom)
        codes = _sums(interpreter.graph, op, round_shift(error.codes, shift))
        interpreter.errors[step.buffers["out"]] = Error(codes, error.exponent + shift)

    def tables(self, graph: Graph, op: Gather) -> dict[str, Table]:
        return {"first": Table("uint16_t", gather_arithmetic(graph, op).first, 16)}

    def fields(self, graph: Graph, op: Gather, tables: Mapping[str, str]) -> list[str]:
        by = gather_arithmetic(graph, op)
        return [
            f"{by.outer}u, {by.inner}u,",
            f"{by.size}, {by.run}, {len(by.first)}, {tables['first']}, {by.overlap_bits},",
        ]

    def export(self, writer: ModelWriter, op: Gather, layer: Layer) -> str:
        indices = layer.constant("indices", op.indices)
        axis = _REAL_AXIS[op.axis]
        return layer.node("Gather", "codes", writer.codes[op.input], indices, axis=axis)


GATHER = _GatherOperator()
