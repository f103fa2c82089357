"""What the importer does with comparisons, and with choices by them: products with 0 and 1; with
the larger and the smaller of two.

Softplus, ELU and other activations of two parts are spelled so, in Where or in casts and products;
they become one function of their tensor (`codegen.importer.functions`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from codegen.graph.floats import Clamp
from codegen.importer.nodes import Node
from codegen.importer.scaling import add, constants_last, mul, sub, with_constant
from codegen.importer.state import ImportState
from codegen.operators.base import Handler
from codegen.operators.functions import Function, X, composed
from codegen.operators.lookup import append_function
from codegen.operators.requantize import FloatClamp, bound_by_number

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
    if condition in state.constants:
        state.constants[other] = ~state.constants[condition]
    else:
        not_(state, dataclasses.replace(node, inputs=(condition,), outputs=(other,)))
    for chosen, values, made in ((condition, yes, taken), (other, no, left)):
        if chosen in state.constants and values in state.constants:
            state.constants[made] = state.constants[chosen] * state.constants[values]
        else:
            mul(state, dataclasses.replace(node, inputs=(chosen, values), outputs=(made,)))
    add(state, dataclasses.replace(node, inputs=(taken, left)))


def extremum(state: ImportState, node: Node) -> None:
    """Max or Min, of truths Or: an activation where one of two is a number; else a + relu(b - a),
    or a - relu(a - b), one after the other."""
    if len(node.inputs) == 1:
        state.rename(node)
        return
    node = constants_last(state, node)
    if len(node.inputs) > 2:
        partial = f"{node.outputs[0]}@{len(node.inputs) - 1}"
        extremum(state, dataclasses.replace(node, inputs=node.inputs[:-1], outputs=(partial,)))
        node = dataclasses.replace(node, inputs=(partial, node.inputs[-1]))
    second, first = node.inputs
    if first in state.constants:
        view, value, _ = with_constant(state, node, 1)
        if value.ndim == 0 and len(view.dims) == len(state.view(node).dims):
            bound_by_number(state, node, float(value))
            return
    if state.reads_codes(node):
        node.refuse("compares two tensors in integers; put DequantizeLinear before it")
    least = node.operator == "Min"
    apart, above = (f"{node.outputs[0]}@{what}" for what in ("apart", "above"))
    order = (first, second) if least else (second, first)
    difference = dataclasses.replace(
        node, name=f"{node.name}_apart", inputs=order, outputs=(apart,)
    )
    sub(state, difference)
    positive = dataclasses.replace(difference, inputs=(apart,), outputs=(above,))
    view, name = state.view(positive), state.unique(f"{node.name}_above")
    state.append_elementwise(positive, FloatClamp(name, view.tensor, name, Clamp(low=0.0)), view)
    whole = dataclasses.replace(node, inputs=(first, above))
    (sub if least else add)(state, whole)


_ABOUT = "a table by code, one with what it chooses; of two tensors: of their difference"

COMPARISONS = {
    "And": Handler(mul, "as Mul, of what is 0 or 1"),
    "Greater": Handler(comparison(swapped=False, inverted=False), _ABOUT),
    "GreaterOrEqual": Handler(comparison(swapped=True, inverted=True), _ABOUT),
    "Less": Handler(comparison(swapped=True, inverted=False), _ABOUT),
    "LessOrEqual": Handler(comparison(swapped=False, inverted=True), _ABOUT),
    "Not": Handler(not_, "as 1 less what is 0 or 1"),
    "Or": Handler(extremum, "as Max, of what is 0 or 1"),
    "Where": Handler(where, "as Add of both, times 0 and 1: an activation's parts are one table"),
}
