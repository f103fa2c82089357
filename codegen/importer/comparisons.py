"""What the importer does with comparisons, and with choices by them: products with 0 and 1.

Softplus, ELU and other activations of two parts are spelled so, in Where or in casts and products;
they become one function of their tensor (`codegen.importer.functions`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from codegen.importer.nodes import Node
from codegen.importer.scaling import add, mul, sub
from codegen.importer.state import ImportState
from codegen.operators.base import Handler
from codegen.operators.functions import Function, X, composed
from codegen.operators.lookup import append_function

_NOT: Function = ("affine", X, -1.0, 1.0)


def comparison(*, swapped: bool, inverted: bool) -> Callable[[ImportState, Node], None]:
    """Greater; with the inputs ``swapped`` Less, and ``inverted`` the opposite of either."""
    above: Function = ("above", X)
    function = composed(_NOT, above) if inverted else above

    def read(state: ImportState, node: Node) -> None:
        inputs = node.inputs[::-1] if swapped else node.inputs
        difference = f"{node.outputs[0]}@difference"
        sub(state, dataclasses.replace(node, inputs=inputs, outputs=(difference,)))
        append_function(state, dataclasses.replace(node, inputs=(difference,)), function)

    return read


def not_(state: ImportState, node: Node) -> None:
    """Not: 1 less what is 0 or 1."""
    append_function(state, node, _NOT)


def where(state: ImportState, node: Node) -> None:
    """Where: the sum of both, times the condition and its opposite."""
    condition, yes, no = node.inputs
    taken, other, left = (f"{node.outputs[0]}@{role}" for role in ("yes", "not", "no"))
    mul(state, dataclasses.replace(node, inputs=(condition, yes), outputs=(taken,)))
    not_(state, dataclasses.replace(node, inputs=(condition,), outputs=(other,)))
    mul(state, dataclasses.replace(node, inputs=(other, no), outputs=(left,)))
    add(state, dataclasses.replace(node, inputs=(taken, left)))


_ABOUT = "a table by code, one with what it chooses; of two tensors: of their difference"

COMPARISONS = {
    "And": Handler(mul, "as Mul, of what is 0 or 1"),
    "Greater": Handler(comparison(swapped=False, inverted=False), _ABOUT),
    "GreaterOrEqual": Handler(comparison(swapped=True, inverted=True), _ABOUT),
    "Less": Handler(comparison(swapped=True, inverted=False), _ABOUT),
    "LessOrEqual": Handler(comparison(swapped=False, inverted=True), _ABOUT),
    "Not": Handler(not_, "as 1 less what is 0 or 1"),
    "Where": Handler(where, "as Add of both, times 0 and 1: an activation's parts are one table"),
}
