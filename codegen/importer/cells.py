"""GRU and LSTM cells that a file spells in many nodes, found by what they compute.

Files put the same step together in unlike ways: gates of one matrix or of several, as
z · h + (1 - z) · n or n + z · (h - n), biases before or behind. So a vector of a step is kept as a
`Form`, a sum of products that doesn't depend on the spelling, and a cell is told by the terms of
its state.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from codegen.importer.nodes import Node
from codegen.importer.state import Array, ImportState

_KNOWN = (
    "Add", "Cast", "Gemm", "Identity", "MatMul", "Mul", "Sigmoid", "Slice", "Split", "Sub", "Tanh"
)  # fmt: skip
_MOST_TERMS = 8
_serial = itertools.count()


@dataclasses.dataclass(frozen=True, eq=False)
class Atom:
    """A vector that forms are made of.

    ``leaf``: anything from outside; ``state``: that at the start; ``sigmoid`` and ``tanh``: of the
    form ``of``; ``sum``: that form with matrices, as a factor; ``cell``: an LSTM's c, which is that
    form; ``hidden``: what ``step`` makes.
    """

    kind: Literal["leaf", "state", "sigmoid", "tanh", "sum", "cell", "hidden"]
    of: Form = dataclasses.field(default_factory=dict)
    step: Step | None = None
    serial: int = dataclasses.field(default_factory=lambda: next(_serial))


Form: TypeAlias = Mapping[tuple[Atom, ...], Array]
"""Coefficients by product of atoms, of one vector [n]: of no or one dimension they scale each
element of the product, of two they are matrices [width of the product, n]; () is the constant."""


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step of a cell: what it reads, and its weights as ONNX's operator has them.

    ``hidden`` and ``cell`` are the states before it, ``left`` is the LSTM's c after it. ``after``
    says that the GRU's reset comes after its matrix (linear_before_reset).
    """

    operator: Literal["GRU", "LSTM"]
    input: Atom
    hidden: Atom
    w: Array
    r: Array
    b: Array
    after: bool = False
    cell: Atom | None = None
    left: Atom | None = None

    def is_like(self, other: Step) -> bool:
        """Whether both have the same weights."""
        same = (self.operator, self.after) == (other.operator, other.after)
        pairs = ((self.w, other.w), (self.r, other.r), (self.b, other.b))
        return same and all(np.array_equal(one, two) for one, two in pairs)


def only(atom: Atom) -> Form:
    """``atom`` itself."""
    return {(atom,): np.array(1.0)}


def atom_of(form: Form | None) -> Atom | None:
    """The atom that ``form`` is, if it is one."""
    if form is None or len(form) != 1:
        return None
    (key, factor), *_ = form.items()
    return key[0] if len(key) == 1 and _is(factor, 1) else None


# What operators make of forms.


def forms_of(
    node: Node, form: Callable[[str], Form | None], constant: Callable[[str], Any]
) -> list[Form | None]:
    """The node's outputs as forms, as far as they are some.

    ``form`` and ``constant`` tell what a name stands for, if it is a form or a constant.
    """
    if node.operator not in _KNOWN:
        return [None]
    return [_settled(made) for made in _made(node, form, constant)]


def _made(
    node: Node, form: Callable[[str], Form | None], constant: Callable[[str], Any]
) -> list[Form | None]:
    inputs = [
        form(name) if constant(name) is None else _of_constant(constant(name))
        for name in node.inputs[:2]
    ]
    first, second = (*inputs, None, None)[:2]
    if first is None:
        return [None]
    match node.operator:
        case "Identity" | "Cast":
            return [first]
        case "Sigmoid":
            return [only(Atom("sigmoid", first))]
        case "Tanh":
            return [only(Atom("tanh", first))]
        case "Add" | "Sub" if second is not None:
            return [_sum(first, _scaled(second, np.array(1.0 if node.operator == "Add" else -1.0)))]
        case "Mul" if second is not None:
            return [_product(first, second)]
        case "MatMul":
            return [_times(first, constant(node.input(1)))]
        case "Gemm":
            return [_gemm(node, first, constant)]
        case "Split":
            return _split(node, first, constant)
        case "Slice":
            return [_slice(node, first, constant)]
    return [None]


def _of_constant(value: Any) -> Form | None:
    values = np.asarray(value)
    if values.dtype.kind != "f" or values.size != (values.shape[-1] if values.ndim else 1):
        return None
    return {(): np.asarray(values, np.float64).reshape(-1 if values.size > 1 else ())}


def _is(factor: Array, number: float) -> bool:
    return factor.ndim < 2 and bool(np.all(factor == number))


def _scaled(form: Form, by: Array) -> Form:
    return {key: factor * by for key, factor in form.items()}


def _sum(one: Form, two: Form) -> Form | None:
    result = dict(one)
    for key, factor in two.items():
        before = result.get(key)
        if before is None:
            result[key] = factor
            continue
        if key and before.ndim != factor.ndim and max(before.ndim, factor.ndim) == 2:
            matrix, scale = (before, factor) if before.ndim == 2 else (factor, before)
            if matrix.shape[0] != matrix.shape[1]:
                return None
            factor, before = np.diag(np.broadcast_to(scale, len(matrix))), matrix
        result[key] = before + factor
    return result if len(result) <= _MOST_TERMS else None


def _product(one: Form, two: Form) -> Form | None:
    for constant, other in ((one, two), (two, one)):
        if set(constant) == {()}:
            return _scaled(other, constant[()])
    result: Form | None = {}
    one, two = (
        only(Atom("sum", form)) if any(factor.ndim == 2 for factor in form.values()) else form
        for form in (one, two)
    )
    for key, factor in one.items():
        part = {
            tuple(sorted((*key, *other), key=lambda atom: atom.serial)): factor * by
            for other, by in two.items()
        }
        result = None if result is None else _sum(result, part)
    return result


def _times(form: Form, matrix: Any) -> Form | None:
    if matrix is None or np.ndim(matrix) != 2:
        return None
    rows: Array = np.asarray(matrix, np.float64)
    result = {}
    for key, factor in form.items():
        if factor.ndim == 2:
            if factor.shape[1] != len(rows):
                return None
            result[key] = factor @ rows
        elif factor.ndim == 1 and len(factor) != len(rows):
            return None
        else:
            result[key] = np.broadcast_to(factor, len(rows))[:, np.newaxis] * rows
            result[key] = result[key] if key else result[key].sum(axis=0)
    return result


def _gemm(node: Node, form: Form, constant: Callable[[str], Any]) -> Form | None:
    weight = constant(node.input(1))
    bias = constant(node.input(2)) if node.input(2) else None
    if weight is None or node.attributes.get("transA", 0):
        return None
    turned = np.transpose(weight) if node.attributes.get("transB", 0) else weight
    made = _times(form, turned * float(node.attributes.get("alpha", 1.0)))
    if made is None or not node.input(2):
        return made
    added = None if bias is None else _of_constant(bias)
    if added is None:
        return None
    return _sum(made, _scaled(added, np.array(float(node.attributes.get("beta", 1.0)))))


def _split(node: Node, form: Form, constant: Callable[[str], Any]) -> list[Form | None]:
    width, parts = _width(form), len(node.outputs)
    given = constant(node.input(1)) if node.input(1) else None
    if int(node.attributes.get("axis", 0)) not in (1, -1) or width is None:
        return [None] * parts
    if node.input(1) and given is None:
        return [None] * parts
    sizes = [width // parts] * parts if given is None else [int(size) for size in given]
    if sum(sizes) != width or len(sizes) != parts:
        return [None] * parts
    ends = np.cumsum(sizes).tolist()
    return [_columns(form, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def _slice(node: Node, form: Form, constant: Callable[[str], Any]) -> Form | None:
    width, names = _width(form), [*node.inputs[1:], "", ""][:4]
    given = [constant(name) if name else None for name in names]
    if width is None or any(name and each is None for name, each in zip(names, given, strict=True)):
        return None
    starts, ends, axes, steps = (
        [] if each is None else np.asarray(each).reshape(-1).tolist() for each in given
    )
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    columns = slice(None)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if axis in (1, -1) and step > 0:
            columns = slice(start, end, step)
        elif axis != 0 or start > 0 or end < 1 or step != 1:
            return None
    return _columns(form, slice(*columns.indices(width)))


def _width(form: Form) -> int | None:
    """How many elements the vector has, None where nothing says it."""
    return next((factor.shape[-1] for factor in form.values() if factor.ndim), None)


def _columns(form: Form, columns: slice) -> Form | None:
    if any(key and factor.ndim < 2 for key, factor in form.items()):
        return None
    return {key: factor[..., columns] if factor.ndim else factor for key, factor in form.items()}


# Cells.


def _settled(form: Form | None) -> Form | None:
    """``form``, or the state of a cell that it is."""
    if form is None:
        return None
    if _lstm_gates(form) is not None:
        return only(Atom("cell", form))
    step = _gru(form) or _lstm(form)
    return form if step is None else only(Atom("hidden", step=step))


def _kinds(form: Form) -> dict[str, list[Atom]]:
    """Its atoms: sigmoids, tanhs, and all others, which a step takes as they are."""
    found: dict[str, list[Atom]] = {"other": [], "sigmoid": [], "tanh": []}
    for atom in {atom: None for key in form for atom in key}:
        found[atom.kind if atom.kind in found else "other"].append(atom)
    return found


def _has(form: Form, terms: Mapping[tuple[Atom, ...], float]) -> bool:
    """Whether these are its terms, each with a factor of one number."""
    wanted = {tuple(sorted(key, key=lambda a: a.serial)): number for key, number in terms.items()}
    kept = {key for key, factor in form.items() if not _is(factor, 0)}
    return kept == set(wanted) and all(_is(form[key], number) for key, number in wanted.items())


def _gru(form: Form) -> Step | None:
    """The step that ends in h' = z · h + (1 - z) · n, or with z and 1 - z swapped."""
    kinds = _kinds(form)
    if [len(kinds[kind]) for kind in ("other", "sigmoid", "tanh")] != [1, 1, 1]:
        return None
    (hidden,), (update,), (new,) = kinds["other"], kinds["sigmoid"], kinds["tanh"]
    if _has(form, {(update, hidden): 1, (new,): 1, (update, new): -1}):
        sign = 1.0
    elif _has(form, {(hidden,): 1, (update, hidden): -1, (update, new): 1}):
        sign = -1.0  # 1 - sigmoid(a) is sigmoid(-a)
    else:
        return None
    pairs = [key for key in new.of if len(key) == 2]
    if len(pairs) != 1:
        return None
    (pair,) = pairs
    reset = next((atom for atom in pair if atom.kind == "sigmoid"), None)
    factor = new.of[pair]
    if reset is None:
        return None
    inner: Form | None = None
    if hidden in pair and factor.ndim == 2:
        inner = {(hidden,): factor}
    elif pair[0].kind == "sum" or pair[1].kind == "sum":
        inner = next(atom for atom in pair if atom.kind == "sum").of if _is(factor, 1) else None
    if inner is None or (hidden,) not in inner:
        return None
    outer = {key: factor for key, factor in new.of.items() if key != pair}
    if (hidden,) in outer:
        return None
    gates: list[tuple[Form, Form]] = [
        (_scaled(update.of, np.array(sign)), {}),
        (reset.of, {}),
        (outer, inner),
    ]
    return _step("GRU", hidden, gates, after=hidden not in pair)


def _lstm_gates(form: Form) -> tuple[Atom, Atom, Atom, Atom] | None:
    """(i, f, g, c) where the form is f · c + i · g."""
    kinds = _kinds(form)
    if [len(kinds[kind]) for kind in ("other", "sigmoid", "tanh")] != [1, 2, 1]:
        return None
    (cell,), (one, two), (new,) = kinds["other"], kinds["sigmoid"], kinds["tanh"]
    for forget, gate in ((one, two), (two, one)):
        if _has(form, {(forget, cell): 1, (gate, new): 1}):
            return gate, forget, new, cell
    return None


def _lstm(form: Form) -> Step | None:
    """The step that ends in h' = o · tanh(c')."""
    kinds = _kinds(form)
    if [len(kinds[kind]) for kind in ("other", "sigmoid", "tanh")] != [0, 1, 1]:
        return None
    (out,), (squashed,) = kinds["sigmoid"], kinds["tanh"]
    state = atom_of(squashed.of)
    found = _lstm_gates(state.of) if state is not None and state.kind == "cell" else None
    if found is None or not _has(form, {(out, squashed): 1}):
        return None
    gate, forget, new, cell = found
    gates: list[tuple[Form, Form]] = [(each.of, {}) for each in (gate, out, forget, new)]
    for key in new.of:
        # As wide as the input or not: the state before is the one that came with this c.
        beside = {atom for atom in key if atom.kind == "state" or atom.step is not None}
        for hidden in beside:
            if cell.kind == hidden.kind or (hidden.step is not None and hidden.step.left is cell):
                return _step("LSTM", hidden, gates, cell=cell, left=state)
    return None


def _step(
    operator: Literal["GRU", "LSTM"],
    hidden: Atom,
    gates: Sequence[tuple[Form, Form]],
    **others: Any,
) -> Step | None:
    """A step whose gates are of these forms of input and ``hidden``; the second of each what the
    state adds by itself."""
    inputs = {key[0] for form, _ in gates for key in form if key and key != (hidden,)}
    if len(inputs) != 1 or any(len(key) > 1 for forms in gates for form in forms for key in form):
        return None
    (source,) = inputs
    parts: list[tuple[Array, Array, Array, Array]] = []
    for form, inner in gates:
        w, r = form.get((source,)), (inner or form).get((hidden,))
        if w is None or r is None or w.ndim != 2 or r.ndim != 2 or r.shape[0] != r.shape[1]:
            return None
        units = len(r)
        if set(inner) - {(hidden,), ()} or w.shape[1] != units:
            return None
        biases = [np.broadcast_to(each.get((), np.array(0.0)), units) for each in (form, inner)]
        parts.append((w.T, r.T, biases[0], biases[1]))
    if len({(w.shape, r.shape) for w, r, _, _ in parts}) != 1:
        return None
    w, r, outer, inner_bias = (np.concatenate(each) for each in zip(*parts, strict=True))
    b = np.concatenate([outer, inner_bias])
    return Step(operator, source, hidden, w[None], r[None], b[None], **others)


# What stands for the nodes of a cell.


def as_operator(
    state: ImportState,
    node: Node,
    step: Step,
    source: str,
    steps: int | None = None,
    first: Sequence[str] = (),
    *,
    backwards: bool = False,
) -> Node:
    """GRU or LSTM of a cell over ``source`` (steps, batch, features), in the place of ``node``;
    makes `output_of` it. ``steps`` says how many it takes, which must be all; ``first`` are states
    before it by name, '' for zeros."""
    constants = {"W": step.w, "R": step.r, "B": step.b}
    if steps is not None:
        constants["lengths"] = np.array([steps], np.int32)
    state.constants.update((output_of(node, role), value) for role, value in constants.items())
    names = [output_of(node, role) for role in constants]
    inputs = (source, *names, *([""] if steps is None else []), *first)
    made = ("Y", "Y_h") if step.operator == "GRU" else ("Y", "Y_h", "Y_c")
    attributes: dict[str, Any] = {"direction": "reverse" if backwards else "forward"}
    if step.operator == "GRU":
        attributes["linear_before_reset"] = int(step.after)
    return dataclasses.replace(
        node, operator=step.operator, inputs=inputs, attributes=attributes,
        outputs=tuple(output_of(node, role) for role in made),
    )  # fmt: skip


def output_of(node: Node, role: str) -> str:
    """Name of an output or input of the operator in the place of ``node``."""
    return f"{node.name}@{role}"


def without_direction(state: ImportState, node: Node, role: str, output: str) -> Node:
    """Lets ``output`` be what that operator makes, without the dimension of directions."""
    axis = output_of(node, f"{role}_axis")
    state.constants[axis] = np.array([1 if role == "Y" else 0])
    return dataclasses.replace(
        node, operator="Squeeze", inputs=(output_of(node, role), axis), outputs=(output,),
        attributes={},
    )  # fmt: skip
