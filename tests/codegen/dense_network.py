"""Small networks of fully connected layers, as files."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def dense_network(shape: tuple[int, ...], outputs: int, *tail: str, form: tuple[int, ...] = ()
            ) -> onnx.ModelProto:  # fmt: skip
    """Flatten, hidden layer, Relu, as many outputs as asked for; ``tail`` are operators behind."""
    random = np.random.default_rng(1)
    size = int(np.prod(shape))
    constants = {
        "a": random.normal(size=(8, size)),
        "b": random.normal(size=(outputs, 8)),
    }
    tensors = {name: value.astype(np.float32) for name, value in constants.items()}
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Gemm", ["flat", "a"], ["h"], "hidden", transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b"], ["scores"], "scores", transB=1),
    ]
    if form:
        tensors["form"] = np.array([1, *form])
        nodes.append(helper.make_node("Reshape", ["scores", "form"], ["formed"]))
    for kind in tail:
        nodes.append(helper.make_node(kind, [nodes[-1].output[0]], [kind]))
    last = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, *(form or (outputs,))])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model
