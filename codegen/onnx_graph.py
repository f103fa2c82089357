"""An ONNX file as the importer's handlers see it: nodes, constants, tensors made so far."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from codegen.errors import ModelError
from codegen.float_graph import ChannelsFirst, Coding, FloatOp

Array = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the file with its attributes decoded; '' stands for an input left out."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def input(self, index: int) -> str:
        """Name of input ``index``, '' where there is none."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def refuse(self, reason: str) -> NoReturn:
        """Raises ModelError with the node's name, its operator and ``reason``."""
        raise ModelError(f"node '{self.name}' ({self.operator}): {reason}")


@dataclasses.dataclass(frozen=True, eq=False)
class Integers:
    """A constant that is stored as integers with one scale, or one per entry of axis 0."""

    codes: NDArray[Any]
    scale: Array
    zero_point: NDArray[Any]


class ImportState:
    """State of one import: constants by name, aliases of tensors, operations made so far."""

    def __init__(self, graph: onnx.GraphProto, name: str) -> None:
        """Raises ModelError where inputs and outputs aren't those of a classifier."""
        self.name = name
        self.constants: dict[str, NDArray[Any]] = {
            entry.name: numpy_helper.to_array(entry) for entry in graph.initializer
        }
        self.shapes: dict[str, ChannelsFirst] = {}
        self.ops: dict[str, FloatOp] = {}  # by output tensor, in execution order
        self.alias: dict[str, str] = {}  # ONNX tensor → tensor of the float graph
        self.nodes = named_nodes(graph)
        self.taken: set[str] = set()
        self.uses = Counter(name for node in self.nodes for name in node.inputs)
        self.graph_outputs = [output.name for output in graph.output]
        self.uses.update(self.graph_outputs)
        self.input = self._read_input(graph)
        self.logits: str | None = None
        self.codings: dict[str, Coding] = {}
        self.integers: dict[str, Integers] = {}  # by the name of their real values

    def _read_input(self, graph: onnx.GraphProto) -> str:
        inputs = [entry for entry in graph.input if entry.name not in self.constants]
        if len(inputs) != 1 or len(self.graph_outputs) != 1:
            raise ModelError(
                f"the model has {len(inputs)} inputs and {len(self.graph_outputs)} outputs; "
                "export a classifier with one image input and one logits output"
            )
        entry = inputs[0]
        if entry.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            kind = onnx.TensorProto.DataType.Name(entry.type.tensor_type.elem_type)
            raise ModelError(f"input '{entry.name}' is {kind}; export the model with float32 input")
        dims = [
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in entry.type.tensor_type.shape.dim
        ]
        if len(dims) != 4 or any(size is None or size < 1 for size in dims[1:]):
            shown = [size if size is not None else "?" for size in dims]
            raise ModelError(
                f"input '{entry.name}' has shape {shown}; needed are 4 dimensions (batch, "
                "channels, height, width), all but the batch fixed when exporting"
            )
        if dims[0] not in (None, 1):
            raise ModelError(
                f"input '{entry.name}' has batch size {dims[0]}; export with batch size 1 or a "
                "symbolic one"
            )
        channels, height, width = (int(size or 0) for size in dims[1:])
        self.shapes[entry.name] = (channels, height, width)
        self.alias[entry.name] = entry.name
        self.taken.add(entry.name)
        return str(entry.name)

    # What handlers work with.

    def constant(self, node: Node, index: int, role: str) -> Array:
        """Input ``index`` as finite float64 constant."""
        name = node.input(index)
        if name not in self.constants:
            node.refuse(
                f"its {role} '{name}' is not a constant; export with weights as initializers "
                "and constant folding on"
            )
        array = np.asarray(self.constants[name], dtype=np.float64)
        if not np.isfinite(array).all():
            node.refuse(f"its {role} '{name}' holds NaN or infinity; train or export it again")
        return array

    def tensor(self, node: Node, index: int = 0) -> str:
        """Input ``index`` as a tensor of the float graph."""
        name = node.input(index)
        if name not in self.alias:
            node.refuse(
                f"its input '{name}' is not computed from the image; fold constants when exporting"
            )
        return self.alias[name]

    def rename(self, node: Node) -> None:
        """The node's output is its first input under another name."""
        name, output = node.input(0), node.outputs[0]
        self.alias[output] = self.tensor(node)
        self.uses[output] += self.uses[name] - 1  # the other readers read the same tensor

    def unique(self, name: str) -> str:
        """``name``, or with a number behind it where another layer has it already."""
        candidate, number = name, 2
        while candidate in self.taken:
            candidate, number = f"{name}_{number}", number + 1
        self.taken.add(candidate)
        return candidate

    def append(self, node: Node, op: FloatOp, shape: ChannelsFirst) -> None:
        """Adds ``op`` as the maker of the node's output."""
        self.ops[op.output] = op
        self.shapes[op.output] = shape
        self.alias[node.outputs[0]] = op.output

    def producer(self, node: Node, index: int = 0) -> FloatOp:
        """The operation before the node, to be changed in place: nothing else may read it."""
        name = node.input(index)
        maker = self.ops.get(self.tensor(node, index))
        if maker is None:
            node.refuse("works on the model's input; put it behind a Conv or Add")
        if maker.output in self.codings:
            node.refuse(
                f"comes behind the QuantizeLinear of '{maker.name}'; quantize after it instead"
            )
        if self.uses[name] > 1:
            node.refuse(
                f"its input '{name}' is also read elsewhere, so the node can't be folded into "
                f"'{maker.name}'; let every reader use the output of '{node.name}'"
            )
        return maker

    def replace(self, node: Node, op: FloatOp) -> None:
        """Puts a changed operation in the place of the one that made its output."""
        self.ops[op.output] = op
        self.alias[node.outputs[0]] = op.output


def named_nodes(graph: onnx.GraphProto) -> list[Node]:
    """All nodes, each with a name: its own, or one made of operator and place."""
    nodes = []
    for index, proto in enumerate(graph.node):
        domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}."
        nodes.append(
            Node(
                proto.name or f"{proto.op_type.lower()}_{index}",
                domain + proto.op_type,
                tuple(proto.input),
                tuple(proto.output),
                {entry.name: _attribute(entry) for entry in proto.attribute},
            )
        )
    return nodes


def _attribute(entry: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(entry)
    return value.decode(errors="replace") if isinstance(value, bytes) else value
