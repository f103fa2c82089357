"""QONNX's Quant, against its specification spelled in operators that onnxruntime has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from codegen.errors import ModelError
from codegen.graph.floats import FloatConv
from codegen.importer.model import import_proto
from tests.codegen.int8_network import int8_outputs
from tests.codegen.onnxruntime_oracle import agreement, run

BREVITAS, QONNX = "onnx.brevitas", "qonnx.custom_op.general"


def quant(
    source: str, output: str, code: str, *, bits: int, domain: str = QONNX, **attributes: object
) -> NodeProto:
    """As exporters write it; ``code`` begins the names of scale and zero point."""
    inputs = [source, f"{code}.s", f"{code}.z", f"bits{bits}"]
    name = f"quant_{output}"
    return helper.make_node("Quant", inputs, [output], name, domain=domain, **attributes)


def spelled(node: NodeProto) -> tuple[list[NodeProto], dict[str, Any]]:
    """The same in ONNX's own operators."""
    source, scale, zero, width = node.input
    said = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    bits = int(width.removeprefix("bits"))
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if said["signed"] else (0, 2**bits - 1)
    low, high = (low + 1, high) if said["signed"] and said["narrow"] else (low, high)
    name = node.output[0]
    steps = [("Div", [source, scale]), ("Add", [zero]), ("Clip", [f"{name}.l", f"{name}.h"]),
             ("Round", []), ("Sub", [zero]), ("Mul", [scale])]  # fmt: skip
    made: list[NodeProto] = []
    for place, (operator, inputs) in enumerate(steps):
        given = inputs if place == 0 else [made[-1].output[0], *inputs]
        output = name if place == len(steps) - 1 else f"{name}.{place}"
        made.append(helper.make_node(operator, given, [output]))
    return made, {f"{name}.l": low, f"{name}.h": high}


def model(bits: int, domain: str = QONNX, **of_activation: object) -> onnx.ModelProto:
    """A convolution and a classifier, all whose tensors have ``bits``."""
    random = np.random.default_rng(4)
    top = 2 ** (bits - 1) - 1
    w = random.normal(size=(6, 3, 3, 3))
    constants: dict[str, Any] = {
        "w": w, "w.s": np.abs(w).max(axis=(1, 2, 3), keepdims=True) / top, "w.z": 0,
        "m": random.normal(size=(6, 5)), "m.s": 2.5 / top, "m.z": 0,
        "b": random.normal(size=6), "b.s": 1 / 4096, "b.z": 0,
        "in.s": 3 / 127, "in.z": 0, "mid.s": 24 / (2**bits - 1), "mid.z": 0,
        f"bits{bits}": bits, "bits8": 8, "bits16": 16,
    }  # fmt: skip
    weight = {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}
    activation = {"signed": 0, "narrow": 0, "rounding_mode": "ROUND", **of_activation}
    nodes = [
        quant("x", "x.q", "in", bits=8, domain=domain, **{**weight, "narrow": 0}),
        quant("w", "w.q", "w", bits=bits, domain=domain, **weight),
        quant("b", "b.q", "b", bits=16, domain=domain, **weight),
        quant("m", "m.q", "m", bits=bits, domain=domain, **weight),
        helper.make_node("Conv", ["x.q", "w.q", "b.q"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        quant("r", "r.q", "mid", bits=bits, domain=domain, **activation),
        helper.make_node("MaxPool", ["r.q"], ["p"], "pool", kernel_shape=[4, 3]),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "m.q"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "qonnx",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(np.array(v, np.float32), name) for name, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    proto.ir_version = 8
    return proto


def in_own_operators(proto: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    del made.graph.node[:]
    for node in proto.graph.node:
        nodes, constants = spelled(node) if node.op_type == "Quant" else ([node], {})
        made.graph.node.extend(nodes)
        made.graph.initializer.extend(
            numpy_helper.from_array(np.array(value, np.float32), name)
            for name, value in constants.items()
        )
    return made


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("domain", [BREVITAS, QONNX])
def test_a_quantized_network_gives_the_classes_of_its_specification(bits: int, domain: str) -> None:
    proto = model(bits, domain)
    graph = import_proto(proto, loss="cross-entropy")
    x: NDArray[np.float32] = np.random.default_rng(1).normal(size=(200, 3, 6, 5)).astype(np.float32)
    oracle = in_own_operators(proto)
    expected = np.concatenate([run(oracle, sample[None])[0] for sample in x])
    got = int8_outputs(graph, x)
    assert len(np.unique(expected.argmax(axis=1))) >= 3
    assert agreement(got, expected) >= 0.99
    assert np.abs(got - expected).mean() < 0.01 * np.ptp(expected)


def test_weights_keep_their_integers() -> None:
    proto = model(4)
    given = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    (conv,) = (op for op in import_proto(proto, loss="none").ops if isinstance(op, FloatConv))
    assert conv.stored is not None
    steps = np.rint(np.clip(given["w"] / given["w.s"], -7, 7))
    np.testing.assert_array_equal(conv.stored.weight, steps)


@pytest.mark.parametrize(
    ("bits", "attributes", "message"),
    [
        (4, {"rounding_mode": "FLOOR"}, r"'quant_r\.q' .*rounding_mode = FLOOR; train with ROUND"),
        (12, {}, r"'quant_r\.q' .*in 12 bits; train it with 8 or fewer"),
    ],
)
def test_what_codes_cannot_say_is_refused(
    bits: int, attributes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        import_proto(model(bits, **attributes))
