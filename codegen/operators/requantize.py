"""Requantize: the same real values in another scale, clamped; activations that stand alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from codegen.arithmetic.integers import Ints, requantized
from codegen.arithmetic.layers import Multiplier, multiplier, pre_shift_of, relative_q15
from codegen.graph.floats import Clamp, Values
from codegen.graph.ir import INT8_MAX, INT8_MIN, Graph, Tensor, Unary
from codegen.operators.base import Handler, Linear, activated
from codegen.operators.functions import X
from codegen.operators.lookup import append_function

if TYPE_CHECKING:
    from codegen.export.integer_model import Layer, ModelWriter
    from codegen.importer.nodes import Node
    from codegen.importer.state import ImportState
    from codegen.quantization.quantize import Assembly


@dataclass(frozen=True)
class FloatClamp(Unary):
    """An activation that can't be part of the operation before it.

    Either other operations read that one's output as well, or a quantized model codes it in
    between; without bounds it is a change of coding and nothing else.
    """

    clamp: Clamp


@dataclass(frozen=True)
class Requantize(Unary):
    """The same real values in another scale, then clamped to the codes ``low`` … ``high``."""

    low: int = INT8_MIN
    high: int = INT8_MAX


@dataclass(frozen=True)
class RequantizeArithmetic:
    """What ``tf_requantization`` holds."""

    requantize: Multiplier
    pre_shift: int
    error_multiplier: int
    error_exponent: int


def requantize_arithmetic(graph: Graph, op: Requantize) -> RequantizeArithmetic:
    """Constants of one change of scale."""
    factor = graph.tensors[op.input].scale / graph.tensors[op.output].scale
    left = pre_shift_of(op.name, factor)
    error, exponent = relative_q15(np.array([factor]))
    return RequantizeArithmetic(multiplier(factor / 2**left), left, int(error[0]), exponent)


def _clamp_codes(clamp: Clamp, tensor: Tensor) -> tuple[int, int]:
    """The codes of ``tensor`` that a clamp lets through."""
    ends = np.array([clamp.low, clamp.high]) / tensor.scale + tensor.zero_point
    low, high = np.clip(np.rint(ends), INT8_MIN, INT8_MAX).astype(int).tolist()
    return low, high


# Import.


def _relu(state: ImportState, node: Node) -> None:
    _append(state, node, Clamp(low=state.real_value(node, 0.0)))


def _clip(state: ImportState, node: Node) -> None:
    limits = [
        state.real_value(
            node, float(state.constant(node, index, role, finite=False).reshape(-1)[0])
        )
        if node.input(index)
        else default
        for index, role, default in ((1, "min", -np.inf), (2, "max", np.inf))
    ]
    if limits[0] >= limits[1]:
        node.refuse(f"clips to {limits[0]} … {limits[1]}, which is one number; leave it out")
    _bound(state, node, Clamp(*limits))


def bound_by_number(state: ImportState, node: Node, number: float) -> None:
    """Max (of truths: Or) or Min of a tensor and ``number``, which one of its inputs is."""
    _bound(state, node, Clamp(high=number) if node.operator == "Min" else Clamp(low=number))


def _bound(state: ImportState, node: Node, clamp: Clamp) -> None:
    """A clamp; one to a range without 0, which codes of activations must hold, is a table."""
    tensor = next(name for name in node.inputs if name not in state.constants)
    node = dataclasses.replace(node, inputs=(tensor,))
    if clamp.low <= 0.0 <= clamp.high:
        _append(state, node, clamp)
        return
    if state.reads_codes(node):
        node.refuse(
            f"keeps codes within real values of {clamp.low:g} … {clamp.high:g}; the range must "
            "hold 0"
        )
    ends = (None if np.isinf(end) else end for end in (clamp.low, clamp.high))
    append_function(state, node, ("clip", X, *ends))


def _append(state: ImportState, node: Node, clamp: Clamp) -> None:
    view = state.view(node)
    name = state.unique(node.name)
    if not state.reads_codes(node):
        state.append_elementwise(node, FloatClamp(name, view.tensor, name, clamp), view)
        return
    coding = state.codings[name] = state.codings[view.tensor]
    # Values that saturate at the lowest code may as well saturate at the one above it, as in models
    # that keep codes symmetric: it isn't worth a step of its own.
    low = -np.inf if clamp.low < coding.range.low + 1.5 * coding.scale else clamp.low
    clamp = Clamp(low, clamp.high)
    state.append_elementwise(node, FloatClamp(name, view.tensor, name, clamp), view)


class _RequantizeOperator(Linear[FloatClamp, Requantize]):
    real = FloatClamp
    kind = Requantize
    kernel = "requantize"
    struct = "tf_requantization"
    handlers: ClassVar[Mapping[str, Handler]] = {
        "Clip": Handler(_clip, "an activation: part of the layer before it where nothing else "
                        "reads that one; to a range without 0: a table by code"),
        "Relu": Handler(_relu, "an activation: part of the layer before it where nothing else "
                        "reads that one"),
    }  # fmt: skip

    def evaluate(self, op: FloatClamp, inputs: Sequence[Values]) -> Values:
        return activated(inputs[0], op.clamp)

    def quantize(self, op: FloatClamp, assembly: Assembly) -> None:
        ends = _clamp_codes(op.clamp, assembly.add_tensor(op.output))
        assembly.ops.append(Requantize(op.name, op.input, op.output, *ends))

    def forward(self, graph: Graph, op: Requantize, inputs: Sequence[Ints]) -> Ints:
        constants = requantize_arithmetic(graph, op)
        shifted = inputs[0] - graph.tensors[op.input].zero_point
        values = requantized(shifted, constants.pre_shift, np.array(constants.requantize.word))
        return values + graph.tensors[op.output].zero_point

    def ends(self, op: Requantize) -> tuple[int, int]:
        return op.low, op.high

    def error_factor(self, graph: Graph, op: Requantize, operand: int) -> tuple[int, int]:
        constants = requantize_arithmetic(graph, op)
        return constants.error_multiplier, constants.error_exponent

    def fields(self, graph: Graph, op: Requantize, tables: Mapping[str, str]) -> list[str]:
        constants = requantize_arithmetic(graph, op)
        source, output = graph.tensors[op.input], graph.tensors[op.output]
        return [
            f"{source.zero_point}, {output.zero_point}, {op.low}, {op.high},",
            f"{constants.requantize.word}, {constants.pre_shift},",
            f"{constants.error_multiplier}, {constants.error_exponent},",
        ]

    def export(self, writer: ModelWriter, op: Requantize, layer: Layer) -> str:
        constants = requantize_arithmetic(writer.graph, op)
        centred = layer.centred("input", writer.codes[op.input], writer.zero(op.input))
        left, word = np.array(constants.pre_shift), np.array(constants.requantize.word)
        return layer.requantized(centred, left, word, writer.zero(op.output), self.ends(op))


REQUANTIZE = _RequantizeOperator()
