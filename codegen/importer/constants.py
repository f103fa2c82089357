"""Values of a file that depend on constants only, as ONNX's reference implementation has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from codegen.errors import ModelError
from codegen.importer.nodes import Node

_ONNXRUNTIME, _FOUR_BITS = "com.microsoft", 21


def computed(
    node: Node, constants: Mapping[str, NDArray[Any]], opset: int
) -> dict[str, NDArray[Any]]:
    """The node's outputs by name, of inputs that are all in ``constants``."""
    inputs = {name: constants[name] for name in node.inputs if name}
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None)
              for name in inputs]  # fmt: skip
    results = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None)
               for name in node.outputs if name]  # fmt: skip
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    if proto.domain == _ONNXRUNTIME:  # the same as ONNX's own, but it came before that took 4 bits
        proto.domain, opset = "", max(opset, _FOUR_BITS)
    graph = onnx.helper.make_graph([proto], node.name, values, results)
    opsets = [onnx.helper.make_opsetid("", opset)]
    try:
        evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=opsets))
        outputs = [np.asarray(value) for value in evaluator.run(None, inputs)]
    except Exception as error:  # the reference implementation raises whatever numpy does
        node.refuse(f"can't be computed from its constants ({error}); export the model again")
    return {result.name: value for result, value in zip(results, outputs, strict=True)}


class Constants:
    """What is known of names before any shape of an activation is."""

    def __init__(
        self, nodes: Sequence[Node], constants: Mapping[str, NDArray[Any]], opset: int
    ) -> None:
        """Of ``nodes`` in their order."""
        self.opset = opset
        self._values = dict(constants)
        self._makers = {name: node for node in nodes for name in node.outputs if name}
        self._fixed = set(constants)
        for node in nodes:
            names = [name for name in node.inputs if name]
            is_fixed = all(name in self._fixed for name in names)
            if (names or node.operator == "Constant") and is_fixed and not node.subgraphs:
                self._fixed.update(node.outputs)

    def value(self, name: str) -> NDArray[Any] | None:
        """The constant that ``name`` is, None where it isn't one."""
        if name not in self._values and name in self._fixed:
            node = self._makers[name]
            inputs = {source: self.value(source) for source in node.inputs if source}
            known = {source: value for source, value in inputs.items() if value is not None}
            if len(known) < len(inputs):
                return None
            try:
                self._values.update(computed(node, known, self.opset))
            except ModelError:  # said where the network needs it
                self._fixed.difference_update(node.outputs)
        return self._values.get(name)

    def is_zero(self, name: str) -> bool:
        """Whether ``name`` is zeros, of any shape; also where that is an activation's."""
        value = self.value(name)
        node = self._makers.get(name)
        if value is None and node is not None:
            if node.operator in ("Expand", "Identity", "Cast", "Tile"):
                return self.is_zero(node.input(0))
            if node.operator == "ConstantOfShape":
                filled = node.attributes.get("value")
                value = np.zeros(1) if filled is None else numpy_helper.to_array(filled)
        return value is not None and not value.any()
