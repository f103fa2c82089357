"""Layers that a file applies to each step by itself, as Keras' TimeDistributed does.

Where all steps of a sequence go through the same operators with the same constants, which work
along the last dimension alone, and are put together again, the operators work on the whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.importer.constants import Constants
from codegen.importer.nodes import Node
from codegen.importer.parts import Entry, Parts, turned
from codegen.importer.state import ImportState

_ALONG_THE_LAST = (
    "Add", "Cast", "Clip", "Div", "Dropout", "Elu", "Erf", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "MatMul", "Mul", "Relu", "Selu", "Sigmoid", "Softplus", "Sub", "Tanh",
)  # fmt: skip


def find_distributed(state: ImportState, constants: Constants) -> None:
    """Puts operators of whole sequences in the place of what puts their steps together."""
    if any(node.operator == "Concat" for node in state.nodes):
        found = _Distributed(Parts(state.nodes, constants), constants)
        state.nodes = [made for node in state.nodes for made in found.replaced(node)]


class _Distributed:
    """Steps of sequences, as a file's nodes make them."""

    def __init__(self, parts: Parts, constants: Constants) -> None:
        self._parts, self._constants = parts, constants

    def replaced(self, node: Node) -> Iterator[Node]:
        """``node``, or if it puts steps together, what works on all of them."""
        axis, names = self._parts.stacked(node)
        layers: list[tuple[Node, int]] = []
        source = self._source(names)
        while names and source is None:
            layer = self._layer(names)
            if layer is None:
                break
            layers.append(layer)
            names = [self._parts.makers[name].inputs[layer[1]] for name in names]
            source = self._source(names)
        if source is None or axis not in (0, 1) or not layers:
            yield node
            return
        tensor = source.tensor
        for step, at in reversed(layers):
            output = f"{step.outputs[0]}@all"
            inputs = tuple(tensor if i == at else name for i, name in enumerate(step.inputs))
            yield dataclasses.replace(step, inputs=inputs, outputs=(output,))
            tensor = output
        if source.axis == axis:
            yield dataclasses.replace(node, operator="Identity", inputs=(tensor,), attributes={})
        else:
            yield turned(node, tensor, node.outputs[0])

    def _source(self, names: list[str]) -> Entry | None:
        """The first entry where these are those of one dimension from its start."""
        entries = [self._parts.entry(name) for name in names]
        first = entries[0] if entries else None
        if first is None or first.axis not in (0, 1):
            return None
        wanted = [Entry(first.tensor, first.axis, place) for place in range(len(names))]
        return first if entries == wanted else None

    def _layer(self, names: list[str]) -> tuple[Node, int] | None:
        """The operator that makes each of these, as the first one's node, and its input."""
        nodes = [self._parts.makers.get(name) for name in names]
        first = nodes[0]
        if first is None or first.operator not in _ALONG_THE_LAST or len(first.outputs) != 1:
            return None
        open_ = [i for i, name in enumerate(first.inputs) if name and self._value(name) is None]
        if len(open_) != 1 or (first.operator == "MatMul" and open_ != [0]):
            return None
        known = [value for name in first.inputs if (value := self._value(name)) is not None]
        if first.operator != "MatMul" and any(value.size > max(value.shape[-1:], default=1)
                                              for value in known):  # fmt: skip
            return None  # more than one for each feature
        for node in nodes:
            if node is None or (node.operator, len(node.inputs)) != (
                first.operator, len(first.inputs)
            ):  # fmt: skip
                return None
            if node.attributes != first.attributes:
                return None
            for index, (name, own) in enumerate(zip(first.inputs, node.inputs, strict=True)):
                if index != open_[0] and not self._is_same(name, own):
                    return None
        return first, open_[0]

    def _is_same(self, one: str, other: str) -> bool:
        first, second = self._value(one), self._value(other)
        if first is None or second is None:
            return one == other
        return one == other or np.array_equal(first, second)

    def _value(self, name: str) -> NDArray[Any] | None:
        return self._constants.value(name)
