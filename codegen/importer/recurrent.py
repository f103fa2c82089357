"""What the importer does with recurrent layers: GRU and LSTM over a fixed window.

A direction of a layer is a convolution, which makes W x + b of all gates, and the cell behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np

from codegen.graph.floats import FloatConv, Values
from codegen.importer.draft import DraftGraph
from codegen.importer.nodes import Node
from codegen.importer.state import Array, ImportState
from codegen.importer.views import Axis, Group, Roles, View, axes_of
from codegen.operators.concat import Concat
from codegen.operators.gather import Gather
from codegen.operators.gru import FloatGru
from codegen.operators.lstm import FloatLstm
from codegen.operators.recurrence import FloatRecurrence

_GATES = {"GRU": 3, "LSTM": 4}
_ACTIVATIONS = {"GRU": ["sigmoid", "tanh"], "LSTM": ["sigmoid", "tanh", "tanh"]}
_DIRECTIONS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}


@dataclass(frozen=True)
class _Weights:
    """Of one direction: input [rows, features], recurrent [rows, units], biases [rows]."""

    input: Array
    recurrent: Array
    input_bias: Array
    recurrent_bias: Array


_Cell: TypeAlias = Callable[[str, str, _Weights], tuple[FloatRecurrence, Values]]
"""Of its name, its input and its weights: the cell, and the bias of the convolution before it."""


def gru(state: ImportState, node: Node) -> None:
    """GRU from a state of zeros, in either direction or both."""
    after = bool(int(node.attributes.get("linear_before_reset", 0)))

    def cell(name: str, source: str, weights: _Weights) -> tuple[FloatRecurrence, Values]:
        units = weights.recurrent.shape[1]
        bias = weights.input_bias + weights.recurrent_bias
        inner = None
        if after:
            inner = weights.recurrent_bias[2 * units :]
            bias[2 * units :] = weights.input_bias[2 * units :]
        return FloatGru(name, source, name, weights.recurrent, inner_bias=inner), bias

    _recurrent(state, node, cell)


def lstm(state: ImportState, node: Node) -> None:
    """LSTM without peepholes, likewise."""
    if int(node.attributes.get("input_forget", 0)):
        node.refuse(
            "attribute input_forget = 1; train an LSTM whose gates have weights of their own"
        )
    if node.input(7) and state.constant(node, 7, "peepholes").any():
        node.refuse("has peepholes; train an LSTM without them")

    def cell(name: str, source: str, weights: _Weights) -> tuple[FloatRecurrence, Values]:
        op = FloatLstm(name, source, name, weights.recurrent)
        return op, weights.input_bias + weights.recurrent_bias

    _recurrent(state, node, cell)


def _recurrent(state: ImportState, node: Node, cell: _Cell) -> None:
    _check_attributes(node)
    view = state.view(node)
    if len(view.dims) != 3 or view.dims[1] != ():
        node.refuse(
            f"its input has shape {list(view.sizes)}; needed is (steps, batch 1, features): export "
            "with batch_first, or transpose the input of (batch, steps, features)"
        )
    _check_states(state, node, view.sizes[0])
    directions = _weights(state, node, view.sizes[2])
    backwards = _DIRECTIONS[_direction(node)]
    every, last = [], []
    for weights, reverse in zip(directions, backwards, strict=True):
        made = _append(state, node, view, weights, cell, reverse=reverse)
        steps = made.sizes[0]
        last.append(state.take(node, made, 0, [steps - 1]))
        every.append(state.take(node, made, 0, range(steps)[::-1]) if reverse else made)
    if node.outputs[0]:
        state.views[node.outputs[0]] = _joined(state, node, every)
    if len(node.outputs) > 1 and node.outputs[1]:
        whole = _joined(state, node, last)
        state.views[node.outputs[1]] = dataclasses.replace(whole, dims=whole.dims[1:])


def _direction(node: Node) -> str:
    return str(node.attributes.get("direction", "forward"))


def _check_attributes(node: Node) -> None:
    """Refuses what the device's cells don't do."""
    direction = _direction(node)
    if direction not in _DIRECTIONS:
        node.refuse(f"attribute direction = {direction}; the model is inconsistent")
    wanted = _ACTIVATIONS[node.operator] * len(_DIRECTIONS[direction])
    named = [_text(name) for name in node.attributes.get("activations", wanted)]
    if [name.lower() for name in named] != wanted:
        node.refuse(
            f"attribute activations = {named}; supported are {wanted}: train the layer with "
            "sigmoid gates and tanh (in Keras recurrent_activation='sigmoid', activation='tanh')"
        )
    if float(node.attributes.get("clip", 0.0)):
        node.refuse("attribute clip limits what its gates see; export the layer without it")
    if int(node.attributes.get("layout", 0)):
        node.refuse("attribute layout = 1; export with layout = 0, steps before the batch")


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _check_states(state: ImportState, node: Node, steps: int) -> None:
    """Refuses a window of another length, states that come in, and a cell state that goes out."""
    if node.input(4):
        lengths = state.constant(node, 4, "sequence_lens")
        if (lengths != steps).any():
            node.refuse(
                f"its sequence_lens are {lengths.astype(int).tolist()} of {steps} steps; export it "
                "for windows of one length"
            )
    for index, role in ((5, "initial_h"), (6, "initial_c")):
        name = node.input(index)
        if name and (name not in state.constants or state.constant(node, index, role).any()):
            _refuse_state(node, role)
    if len(node.outputs) > 2 and node.outputs[2]:
        read = {name for other in state.nodes for name in other.inputs} | set(state.outputs)
        if node.outputs[2] in read:
            node.refuse("its cell state Y_c is read; read its hidden state Y or Y_h instead")


def _refuse_state(node: Node, role: str) -> NoReturn:
    node.refuse(
        f"its {role} isn't zero; a window starts from a state of zeros: export the layer without a "
        "state"
    )


def _weights(state: ImportState, node: Node, features: int) -> list[_Weights]:
    """Those of each direction."""
    w, r = state.constant(node, 1, "weight W"), state.constant(node, 2, "weight R")
    directions, gates = len(_DIRECTIONS[_direction(node)]), _GATES[node.operator]
    units = r.shape[-1]
    rows = gates * units
    b = np.zeros((directions, 2 * rows))
    if node.input(3):
        b = state.constant(node, 3, "bias B")
    wanted = ((directions, rows, features), (directions, rows, units), (directions, 2 * rows))
    if (w.shape, r.shape, b.shape) != wanted:
        node.refuse(
            f"its weights have shapes {list(w.shape)}, {list(r.shape)} and {list(b.shape)} for "
            f"{features} features; the model is inconsistent, export it again"
        )
    return [_Weights(w[i], r[i], b[i, :rows], b[i, rows:]) for i in range(directions)]


def _append(
    state: ImportState, node: Node, view: View, weights: _Weights, cell: _Cell, *, reverse: bool
) -> View:
    """Adds one direction; returns its states (steps, 1, units), the first step's first."""
    time, _, features = view.dims
    state.roles(node, View(view.tensor, ((), time, features)), channels_last=True)
    if reverse:
        view = state.take(node, view, 0, range(view.sizes[0])[::-1])
        time = view.dims[0]
    name = state.unique(f"{node.name}_reverse" if reverse else node.name)
    roles = state.roles_of(view.tensor)
    sides = {"height": (roles.height, roles.width), "width": (roles.width, roles.height)}
    along = next(
        (
            side
            for side, (own, other) in sides.items()
            if time == own and set(features) == {*roles.channels, *other}
        ),
        None,
    )
    if along is None:  # neither rows nor columns are the steps
        roles, along = Roles(features, (), time), "width"
        view = state.transposed(name, view, roles)
        sides = {"height": (roles.height, roles.width), "width": (roles.width, roles.height)}
    other = sides[along][1]
    kernel = tuple(
        1 if side == along else roles.shape[1 + place] for place, side in enumerate(sides)
    )
    rows, units = weights.recurrent.shape
    canonical = [*roles.channels, *other]
    split = weights.input.reshape(rows, *(axis.size for axis in features))
    ordered = split.transpose(0, *(1 + features.index(axis) for axis in canonical))
    source = state.unique(f"{name}_input")
    op, bias = cell(name, source, weights)
    conv = FloatConv(
        source, view.tensor, source, ordered.reshape(rows, roles.shape[0], *kernel), bias
    )
    hidden = axes_of(units)
    for made, channels in ((conv, axes_of(rows)), (op, hidden)):
        spatial = (time, ()) if along == "height" else ((), time)
        state.add(made, Roles(channels, *spatial))
    return View(name, (time, (), (), hidden))


def _joined(state: ImportState, node: Node, parts: list[View]) -> View:
    """States of one or both directions, as (..., directions, 1, units)."""
    if len(parts) == 1:
        return parts[0]
    time, _, _, hidden = parts[0].dims
    direction: Group = (Axis(len(parts)),)
    name = state.unique(f"{node.name}_directions")
    roles = dataclasses.replace(state.roles_of(parts[0].tensor), channels=(*direction, *hidden))
    state.add(Concat(name, tuple(part.tensor for part in parts), name), roles)
    return View(name, (time, direction, (), hidden))


def choose_before_concat(draft: DraftGraph) -> None:
    """Channels that are those of one part of a concatenation are that part."""
    for op in draft.each(Gather):
        joined = draft.ops.get(op.input)
        if op.axis != "channels" or not isinstance(joined, Concat):
            continue
        first = 0
        for part in joined.inputs:
            size = draft.shapes[part][0]
            if op.indices == tuple(range(first, first + size)) and op.output not in draft.codings:
                draft.remove(op, part)
                break
            first += size


def keep_last_states(draft: DraftGraph) -> None:
    """A cell of which the last state alone is read makes no others."""
    for op in draft.each(Gather):
        cell = draft.ops.get(op.input)
        if not isinstance(cell, FloatRecurrence) or not draft.only_reader(cell.output):
            continue
        _, height, width = draft.shapes[cell.output]
        if op.axis != "channels" and op.indices == (height * width - 1,):
            del draft.ops[cell.output]
            draft.codings.pop(cell.output, None)
            draft.ops[op.output] = dataclasses.replace(cell, output=op.output, last=True)
