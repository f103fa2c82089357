"""Loops that are GRU or LSTM layers, as tf2onnx writes those of Keras that it doesn't know.

A body that takes a step of a sequence by its number and leaves the state that one of the cells of
`codegen.importer.cells` makes of it is the operator of that cell over the sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from codegen.errors import ModelError
from codegen.importer.cells import (
    Atom,
    Form,
    Step,
    as_operator,
    atom_of,
    forms_of,
    only,
    without_direction,
)
from codegen.importer.constants import Constants, computed
from codegen.importer.nodes import Node, named_nodes
from codegen.importer.state import ImportState
from codegen.operators.rearrange import LARGEST

_ON_NUMBERS = ("Add", "And", "Cast", "Equal", "Identity", "Less", "LessOrEqual", "Not", "Sub")
"""Operators of single numbers that say whether the loop goes on."""

REMEDY = (
    "train GRU or LSTM layers with sigmoid gates and tanh, whose windows start from zeros and are "
    "of one length, or convolutions over time"
)


class _OtherLoop(Exception):
    """What keeps a loop from being a layer."""


def find_loops(state: ImportState, constants: Constants) -> None:
    """Puts GRU, LSTM and views of what they make in the place of loops that are such layers."""
    state.nodes = [made for node in state.nodes for made in _replaced(state, constants, node)]


def refuse_loop(node: Node, constants: Constants) -> NoReturn:
    """Says of a loop that `find_loops` has left why."""
    reason = "it stands in a branch of an If"
    try:
        _layer(node, constants)
    except _OtherLoop as other:
        reason = str(other)
    node.refuse(f"isn't a GRU's or LSTM's: {reason}; {REMEDY}")


def _replaced(state: ImportState, constants: Constants, node: Node) -> Iterator[Node]:
    if node.operator != "Loop":
        yield node
        return
    try:
        layer = _layer(node, constants)
    except (_OtherLoop, ModelError):  # said where the network needs it
        yield node
        return
    yield as_operator(state, node, layer.step, layer.sequence, layer.steps, layer.first)
    for output, role in layer.made.items():
        if output:
            yield without_direction(state, node, role, output)


@dataclasses.dataclass(frozen=True)
class _Layer:
    """The cell of a loop, its sequence and first states by name ('': zeros), and what its outputs
    are of the operator's."""

    step: Step
    sequence: str
    steps: int
    first: tuple[str, ...]
    made: Mapping[str, str]


def _layer(node: Node, constants: Constants) -> _Layer:
    """The layer that a loop is. Raises _OtherLoop for one that is none."""
    body = _Body(node, constants)
    states = {body.atom_left(variable): variable for variable in body.states}
    hidden = next((atom for atom in states if atom.step is not None), None)
    if hidden is None or hidden.step is None:
        raise _OtherLoop("it keeps no state that a GRU or LSTM has")
    step = hidden.step
    ends = {hidden: (step.hidden, "Y_h")}
    if step.cell is not None and step.left is not None:
        ends[step.left] = (step.cell, "Y_c")
    sequence = body.sequences.get(step.input)
    if sequence is None or set(states) != set(ends) or len(states) != len(body.states):
        raise _OtherLoop("its states aren't those of one cell over one sequence")
    made, first = {}, []
    for atom, (before, role) in ends.items():
        variable = states[atom]
        if variable.start != before:
            raise _OtherLoop("its states change places from step to step")
        first.append("" if constants.is_zero(variable.initial) else variable.initial)
        made[variable.output] = role
    for output, given in body.given_out():
        if given is not hidden:
            raise _OtherLoop("it gives out more than the cell's states")
        made[output] = "Y"
    return _Layer(step, sequence, body.steps, tuple(first), made)


@dataclasses.dataclass(frozen=True, eq=False)
class _Variable:
    """What a loop carries from step to step, by its names in the body and outside; a state is the
    atom ``start`` before a step."""

    initial: str
    before: str
    after: str
    output: str
    start: Atom = dataclasses.field(default_factory=lambda: Atom("state"))


class _Body:
    """A loop's body, run once for all steps: numbers as arrays over the steps, vectors as forms."""

    def __init__(self, node: Node, outer: Constants) -> None:
        body: onnx.GraphProto = node.attributes["body"]
        self._outer = outer
        limit = outer.value(node.input(0))
        if limit is None or limit.size != 1 or limit.reshape(-1)[0] > LARGEST:
            raise _OtherLoop("how many steps it takes isn't said by a constant")
        self.steps = int(limit.reshape(-1)[0])
        self.sequences: dict[Atom, str] = {}
        self.states: list[_Variable] = []
        self._values = {entry.name: numpy_helper.to_array(entry) for entry in body.initializer}
        self._forms: dict[str, Form] = {}
        self._numbers: dict[str, NDArray[Any]] = {}  # by name, over all steps
        self._names = {}  # outside, of what each step sees alike
        number, going, *inputs = (entry.name for entry in body.input)
        condition, *outputs = (entry.name for entry in body.output)
        if len(node.inputs) != 2 + len(inputs) or len(node.outputs) != len(outputs):
            raise _OtherLoop("its body has other inputs and outputs than it")
        self._numbers[number] = np.arange(self.steps)
        self._numbers[going] = np.ones(self.steps, bool)
        variables = [
            _Variable(*names)
            for names in zip(node.inputs[2:], inputs, outputs, node.outputs, strict=False)
        ]
        same = {
            entry.input[0]: entry.output[0] for entry in body.node if entry.op_type == "Identity"
        }
        for variable in variables:
            if variable.after in (variable.before, same.get(variable.before)):
                self._names[variable.before] = variable.initial
                continue
            value = outer.value(variable.initial)
            if value is not None and value.dtype.kind in "iu" and value.size == 1:
                steps = np.arange(self.steps, dtype=value.dtype)
                self._numbers[variable.before] = value.reshape(()) + steps
                continue
            self._forms[variable.before] = only(variable.start)
            self.states.append(variable)
        for inner in named_nodes(body):
            self._run(inner)
        self._given_out = list(
            zip(node.outputs[len(variables) :], outputs[len(variables) :], strict=True)
        )
        self._check(variables, condition, node.input(1))

    def atom_left(self, variable: _Variable) -> Atom:
        """The state that a step leaves in ``variable``."""
        atom = atom_of(self._forms.get(variable.after))
        if atom is None or atom.kind not in ("hidden", "cell"):
            raise _OtherLoop(self._told(atom))
        return atom

    def _told(self, state: Atom | None) -> str:
        """What a state is that no step of a cell leaves."""
        if len(self.sequences) > 1:
            names = " and ".join(f"'{name}'" for name in self.sequences.values())
            return f"each step reads {names}, as behind Masking: leave that out"
        if state is not None and state.kind == "tanh":
            return "its state is the tanh of a sum, as in a SimpleRNN"
        return "a step computes something else, as with another activation"

    def given_out(self) -> Iterator[tuple[str, Atom | None]]:
        """By output that has an entry for each step, what it is."""
        for output, name in self._given_out:
            yield output, atom_of(self._forms.get(name))

    def _check(self, variables: list[_Variable], condition: str, going: str) -> None:
        """Refuses a loop that may end before its last step, or counts otherwise than one by one."""
        numbers = self._numbers
        for variable in variables:
            count, after = (numbers.get(name) for name in (variable.before, variable.after))
            if count is not None and (after is None or not np.array_equal(after, count + 1)):
                raise _OtherLoop("it doesn't count its steps one by one")
        goes_on = numbers.get(condition, self._value(condition))
        first = self._outer.value(going) if going else np.array(True)
        if first is None or not first.all() or self.steps < 1:
            raise _OtherLoop("whether it starts isn't a constant")
        if goes_on is None or not np.all(np.broadcast_to(goes_on, self.steps)[:-1]):
            raise _OtherLoop("it may end before its last step")

    def _value(self, name: str) -> NDArray[Any] | None:
        if name in self._values or name in self._numbers or name in self._forms:
            return self._values.get(name)
        return self._outer.value(self._names.get(name, name))

    def _run(self, node: Node) -> None:
        """The node's outputs: constants, numbers or forms. What is none of these is unknown."""
        names = [name for name in node.inputs if name]
        values = {name: self._value(name) for name in names}
        known = {name: value for name, value in values.items() if value is not None}
        numbers = {name: self._numbers[name] for name in names if name in self._numbers}
        if node.subgraphs:
            raise _OtherLoop(f"it holds another {node.operator}")
        if node.operator == "Constant" or (names and len(known) == len(names)):
            self._values.update(computed(node, known, self._outer.opset))
        elif len(known) + len(numbers) == len(names) and node.operator in _ON_NUMBERS:
            if all(value.size == 1 for value in known.values()):
                self._numbers.update(computed(node, {**known, **numbers}, self._outer.opset))
        elif node.operator == "Gather" and node.input(1) in numbers:
            self._take_step(node)
        else:
            for output, form in zip(
                node.outputs, forms_of(node, self._forms.get, self._value), strict=False
            ):
                if form is not None:
                    self._forms[output] = form

    def _take_step(self, node: Node) -> None:
        steps = self._numbers[node.input(1)]
        axis = int(node.attributes.get("axis", 0))
        source = self._names.get(node.input(0), node.input(0))
        if axis != 0 or not np.array_equal(steps, np.arange(self.steps)):
            raise _OtherLoop("it doesn't take the steps of its sequence one by one")
        atom = next((atom for atom, name in self.sequences.items() if name == source), None)
        atom = atom or Atom("leaf")
        self.sequences[atom] = source
        self._forms[node.outputs[0]] = only(atom)
