"""Entries of one dimension that a file takes out one by one, and puts together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from codegen.importer.constants import Constants
from codegen.importer.nodes import Node


class Entry(NamedTuple):
    """An entry of one dimension of a tensor, without that dimension."""

    tensor: str
    axis: int
    place: int


class Parts:
    """What of a file's names is an entry of a longer tensor, or entries together."""

    def __init__(self, nodes: Sequence[Node], constants: Constants) -> None:
        """Of ``nodes`` in their order."""
        self.makers = {name: node for node in nodes for name in node.outputs if name}
        self._constants = constants

    def entry(self, name: str) -> Entry | None:
        """The entry that ``name`` is."""
        node = self.makers.get(name)
        if node is None:
            return None
        axis = int(node.attributes.get("axis", 0))
        if node.operator == "Gather":
            index = self._constants.value(node.input(1))
            if index is None or index.ndim:
                return None
            return Entry(node.input(0), axis, int(index))
        part, along = self.makers.get(node.input(0)), self._number(node.input(1))
        if node.operator != "Squeeze" or part is None or along is None:
            return None
        if part.operator == "Split" and int(part.attributes.get("axis", 0)) == along:
            sizes = self._constants.value(part.input(1))
            if sizes is None or (sizes == 1).all():
                return Entry(part.input(0), along, part.outputs.index(node.input(0)))
        if part.operator == "Slice":
            first, end, of, step = map(self._number, (*part.inputs[1:], "")[:4])
            if first is not None and of == along and end == first + 1 and step in (None, 1):
                return Entry(part.input(0), along, first)
        return None

    def stacked(self, node: Node) -> tuple[int | None, list[str]]:
        """Along which new dimension a Concat puts things together, and which; else None."""
        axis, parts = int(node.attributes.get("axis", 0)), []
        for source in node.inputs if node.operator == "Concat" else ():
            maker = self.makers.get(source)
            if maker is None or maker.operator != "Unsqueeze":
                return None, []
            if self._number(maker.input(1)) != axis:
                return None, []
            parts.append(maker.input(0))
        return (axis, parts) if parts else (None, [])

    def _number(self, name: str) -> int | None:
        value = self._constants.value(name) if name else None
        return None if value is None or value.size != 1 else int(value.reshape(-1)[0])


def turned(node: Node, source: str, output: str) -> Node:
    """In the place of ``node``: the first two of three dimensions in the other order."""
    return dataclasses.replace(
        node, operator="Transpose", inputs=(source,), outputs=(output,),
        attributes={"perm": [1, 0, 2]},
    )  # fmt: skip
