"""Passes that bring what a model file spells in many operations into one function of a tensor.

x · sigmoid(x), GELU by Erf or Tanh, a HardSwish of sums and clips: products of what is computed
from one tensor, element by element, are functions of that tensor. Other products
stay what they are. What a quantized model codes in between is rounded in the
function, so that its codes are those of the model.
"""

from __future__ import annotations

import math

from codegen.graph.floats import NO_CLAMP, Clamp, FloatOp
from codegen.importer.draft import DraftGraph, remove_unused
from codegen.importer.state import Affine
from codegen.operators.add import FloatAdd
from codegen.operators.functions import Function, X, composed
from codegen.operators.lookup import Lookup
from codegen.operators.product import FloatProduct
from codegen.operators.requantize import FloatClamp


def fuse_products(draft: DraftGraph) -> None:
    """A product of two functions of one tensor is one of it, and so is a sum with a table."""
    sources: dict[str, dict[str, Function]] = {}
    for output, op in list(draft.ops.items()):
        if isinstance(op, FloatProduct) or (isinstance(op, FloatAdd) and _adds_table(draft, op)):
            found = _common(sources, op)
            if found:
                base, function = next(iter(found.items()))
                op = draft.ops[output] = Lookup(op.name, base, output, function)
        sources[output] = _sources(sources, draft, op)
    remove_unused(draft)


def _adds_table(draft: DraftGraph, op: FloatAdd) -> bool:
    """Whether ``op`` adds what a table makes, which then may as well make the sum.

    What a quantized model codes in between stays an addition of codes.
    """
    tables = [isinstance(draft.ops.get(name), Lookup) for name in op.inputs]
    coded = any(name in draft.codings for name in op.inputs)
    return op.clamp == NO_CLAMP and any(tables) and not coded


def _sources(
    sources: dict[str, dict[str, Function]], draft: DraftGraph, op: FloatOp
) -> dict[str, Function]:
    """Tensors of which the output is a function, the nearest first, with that function."""
    found: dict[str, Function] = {}
    read = _function(op)
    if isinstance(op, FloatAdd) and op.clamp == NO_CLAMP:
        found = _common(sources, op)
    elif read is not None:
        source, own = read
        before = sources.get(source, {source: X})
        found = {name: composed(own, inner) for name, inner in before.items()}
    return {op.output: X, **{name: _coded(draft, op, function) for name, function in found.items()}}


def _coded(draft: DraftGraph, op: FloatOp, function: Function) -> Function:
    """``function``, which makes the output of ``op``, as what reads that sees it."""
    coding = draft.codings.get(op.output)
    return function if coding is None else ("coded", function, coding.scale, coding.zero_point)


def _common(
    sources: dict[str, dict[str, Function]], op: FloatAdd | FloatProduct
) -> dict[str, Function]:
    """The same for a sum or product of two tensors."""
    one, other = (sources.get(name, {name: X}) for name in op.inputs)
    kind = "add" if isinstance(op, FloatAdd) else "mul"
    if isinstance(op, FloatAdd) and op.subtracts:
        other = {name: ("affine", function, -1.0, 0.0) for name, function in other.items()}
    return {name: (kind, one[name], other[name]) for name in one if name in other}


def _function(op: FloatOp) -> tuple[str, Function] | None:
    """The tensor that ``op`` reads, and what it makes of each element, if that is all it does."""
    match op:
        case Lookup():
            return op.input, op.function
        case FloatClamp():
            return op.input, _clip(op.clamp)
        case Affine() if op.below is None and op.gain.size == op.shift.size == 1:
            return op.input, ("affine", X, float(op.gain.item()), float(op.shift.item()))
        case _:
            return None


def _clip(clamp: Clamp) -> Function:
    return ("clip", X, *(None if math.isinf(end) else end for end in (clamp.low, clamp.high)))


def merge_functions(draft: DraftGraph) -> None:
    """Functions one behind the other are one, with the sums and products with a number behind."""
    for output, op in list(draft.ops.items()):
        read = _function(op)
        first = None if read is None else draft.ops.get(read[0])
        if read is None or not isinstance(first, Lookup):
            continue
        if draft.only_reader(first.output):
            whole = composed(read[1], _coded(draft, first, first.function))
            draft.ops[output] = Lookup(first.name, first.input, output, whole)
            del draft.ops[first.output]
