"""GRU and LSTM layers that a file spells step by step, as Keras' ``unroll=True`` does.

Each step is told by what it computes (`codegen.importer.cells`). Steps of the same weights, each
from the state that the one before leaves, over entries of one dimension, are a layer.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.importer.cells import (
    Atom,
    Form,
    as_operator,
    atom_of,
    forms_of,
    only,
    output_of,
    without_direction,
)
from codegen.importer.constants import Constants
from codegen.importer.nodes import Node
from codegen.importer.parts import Parts, turned
from codegen.importer.state import ImportState


def find_unrolled(state: ImportState, constants: Constants) -> None:
    """Puts one GRU or LSTM in the place of the steps of each layer, and of what stacks them up."""
    if _may_be_unrolled(state.nodes):
        _Chains(state, constants).replace()


def _may_be_unrolled(nodes: Sequence[Node]) -> bool:
    """Whether several nodes share weights and there is a Tanh, as in the steps of a cell."""
    weights = Counter(node.input(1) for node in nodes if node.operator in ("Gemm", "MatMul"))
    operators = {node.operator for node in nodes}
    return {"Sigmoid", "Tanh"} <= operators and any(count > 1 for count in weights.values())


class _Chains:
    """Steps of cells in a file, and the layers that they are."""

    def __init__(self, state: ImportState, constants: Constants) -> None:
        self._state, self._constants = state, constants
        self._parts = Parts(state.nodes, constants)
        self._zeros = {
            name
            for node in state.nodes
            if node.operator in ("Gemm", "MatMul", "Mul")
            for name in node.inputs[:2]
            if name and constants.is_zero(name)
        }
        self._forms: dict[str, Form] = {}
        self._names: dict[Atom, str] = {}
        self._nodes: dict[Atom, Node] = {}  # by what a step leaves, the node that makes it
        for node in state.nodes:
            made = forms_of(node, self._form, self._constant)
            for output, form in zip(node.outputs, made, strict=False):
                if form is None or set(form) == {()}:
                    continue
                self._forms[output] = form
                atom = atom_of(form)
                if atom is not None and atom.step is not None and atom not in self._nodes:
                    self._nodes[atom], self._names[atom] = node, output

    def replace(self) -> None:
        """Gives the state its nodes with layers in the place of chains."""
        placed: dict[int, list[Node]] = {}
        taken: set[int] = set()
        for chain in self._found():
            entries = [
                self._parts.entry(self._names[atom.step.input]) for atom in chain if atom.step
            ]
            sources = {(entry.tensor, entry.axis) for entry in entries if entry is not None}
            taken_up = [entry.place for entry in entries if entry is not None]
            order = sorted(set(taken_up))
            if len(sources) != 1 or taken_up not in (order, order[::-1]):
                continue
            (source,) = sources
            names = {
                self._names[atom]: order.index(at) for atom, at in zip(chain, taken_up, strict=True)
            }
            placed[id(self._nodes[chain[0]])] = list(self._layer(chain, *source, order, names))
            for node in self._state.nodes:
                stacked = self._stacked(node, names)
                if stacked is not None:
                    placed[id(node)] = list(self._restacked(chain, node, *stacked))
            taken.update(id(self._nodes[atom]) for atom in chain)
        nodes = []
        for node in self._state.nodes:
            nodes += placed.get(id(node), [] if id(node) in taken else [node])
        self._state.nodes = nodes

    def _found(self) -> Iterator[list[Atom]]:
        """What the steps of each chain leave, the first from zeros."""
        after: dict[Atom, list[Atom]] = {}
        for atom in self._nodes:
            if atom.step is not None:
                after.setdefault(atom.step.hidden, []).append(atom)
        for before, firsts in after.items():
            if before.kind != "state":
                continue
            for first in firsts:
                chain = [first]
                while first.step and (following := after.get(chain[-1])):
                    same = [a for a in following if a.step and a.step.is_like(first.step)]
                    if len(same) != 1:
                        break
                    chain += same
                yield chain

    def _layer(
        self,
        chain: list[Atom],
        sequence: str,
        axis: int,
        order: list[int],
        names: Mapping[str, int],
    ) -> Iterator[Node]:
        """The operator over entries ``order``, and the state at each of them under its name."""
        state, first, node = self._state, chain[0].step, self._nodes[chain[-1]]
        assert first is not None
        yield self._picked(node, sequence, output_of(node, "steps"), np.array(order), axis)
        sequence = output_of(node, "steps")
        if axis == 1:
            yield turned(node, sequence, output_of(node, "X"))
            sequence = output_of(node, "X")
        backwards = next(iter(names.values())) > 0
        yield as_operator(state, node, first, sequence, backwards=backwards)
        every = output_of(node, "every")
        yield without_direction(state, node, "Y", every)
        for name, index in names.items():
            yield self._picked(node, every, name, np.array(index))

    def _restacked(
        self, chain: list[Atom], stack: Node, axis: int, order: list[int]
    ) -> Iterator[Node]:
        """All states in this order, along dimension ``axis``."""
        every = output_of(self._nodes[chain[-1]], "every")
        steps = stack.outputs[0] if axis == 0 else output_of(stack, "steps")
        yield self._picked(stack, every, steps, np.array(order))
        if axis == 1:
            yield turned(stack, steps, stack.outputs[0])

    def _picked(
        self, node: Node, source: str, output: str, index: NDArray[np.int64], axis: int = 0
    ) -> Node:
        place = f"{output}@place"
        self._state.constants[place] = index
        return dataclasses.replace(
            node, operator="Gather", inputs=(source, place), outputs=(output,),
            attributes={"axis": axis},
        )  # fmt: skip

    def _stacked(self, node: Node, names: Mapping[str, int]) -> tuple[int, list[int]] | None:
        """Along which new dimension a Concat puts states together, and in which order."""
        axis, parts = self._parts.stacked(node)
        if axis not in (0, 1) or not set(parts) <= names.keys():
            return None
        return axis, [names[name] for name in parts]

    def _form(self, name: str) -> Form:
        if name not in self._forms:
            atom = Atom("state" if name in self._zeros else "leaf")
            self._names[atom] = name
            self._forms[name] = only(atom)
        return self._forms[name]

    def _constant(self, name: str) -> NDArray[Any] | None:
        """What ``name`` is, unless it is made of the zeros from which steps start: a state."""
        made = name in self._zeros or name in self._forms
        return None if made else self._constants.value(name)
