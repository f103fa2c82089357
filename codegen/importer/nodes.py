"""Nodes of an ONNX file, as the importer reads them."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import onnx

from codegen.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the file with its attributes decoded; '' stands for an input left out."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    proto: onnx.NodeProto

    def input(self, index: int) -> str:
        """Name of input ``index``, '' where there is none."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def place(self, axis: float, rank: int) -> int:
        """Dimension ``axis`` of ``rank``, counted from 0; refuses one that isn't there."""
        if not -rank <= axis < rank:
            self.refuse(f"names axis {axis:g} of {rank}; the model is inconsistent")
        return int(axis) % rank

    @property
    def is_foreign(self) -> bool:
        """Whether the operator is none of ONNX's own."""
        return "." in self.operator

    @property
    def subgraphs(self) -> tuple[onnx.GraphProto, ...]:
        """Bodies and branches of control flow."""
        values = self.attributes.values()
        return tuple(value for value in values if isinstance(value, onnx.GraphProto))

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of all that it reads, with what its subgraphs take from outside."""
        return (*self.inputs, *(name for graph in self.subgraphs for name in _captured(graph)))

    def refuse(self, reason: str) -> NoReturn:
        """Raises ModelError with the node's name, its operator and ``reason``."""
        raise ModelError(f"node '{self.name}' ({self.operator}): {reason}")


def named_nodes(graph: onnx.GraphProto) -> list[Node]:
    """All nodes, each with a name: its own, or one made of operator and place."""
    nodes = []
    for index, proto in enumerate(graph.node):
        # onnxruntime's option UseQDQContribOps writes its own QuantizeLinear, which is the same.
        same = proto.domain == "com.microsoft" and proto.op_type in (
            "QuantizeLinear",
            "DequantizeLinear",
        )
        domain = "" if proto.domain in ("", "ai.onnx") or same else f"{proto.domain}."
        name = proto.name or f"{proto.op_type.lower()}_{index}"
        nodes.append(read_node(proto, name, domain + proto.op_type))
    return nodes


def read_node(proto: onnx.NodeProto, name: str, operator: str) -> Node:
    """The node of the file under a name of its own."""
    attributes = {entry.name: _attribute(entry) for entry in proto.attribute}
    return Node(name, operator, tuple(proto.input), tuple(proto.output), attributes, proto)


def _captured(graph: onnx.GraphProto) -> list[str]:
    """Names that a subgraph reads, but neither is given nor makes."""
    nodes = named_nodes(graph)
    own = {entry.name for entry in (*graph.input, *graph.initializer)}
    own.update(name for node in nodes for name in node.outputs)
    read = [name for node in nodes for name in node.reads]
    return [name for name in (*read, *(entry.name for entry in graph.output)) if name not in own]


def _attribute(entry: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(entry)
    return value.decode(errors="replace") if isinstance(value, bytes) else value
