"""Recurrent layers that a file spells step by step, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from codegen.operators.gru import FloatGru
from codegen.operators.recurrence import FloatRecurrence
from tests.codegen.exported import MODELS
from tests.codegen.importer.test_recurrent import assert_as_onnxruntime

Spelling = Callable[[str, str, str, str], list[onnx.NodeProto]]
"""Of a step's prefix, z, n and the state before it: nodes that make the state after it."""

STEPS, FEATURES, UNITS = 4, 3, 5


def test_what_keras_unrolls_is_one_operator_for_each_direction() -> None:
    graph = assert_as_onnxruntime(onnx.load(MODELS / "keras_unrolled.onnx"))
    assert [type(op).__name__ for op in graph.ops if isinstance(op, FloatRecurrence)] == [
        "FloatLstm", "FloatLstm", "FloatGru"
    ]  # fmt: skip
    assert not [op for op in graph.ops if type(op).__name__ in ("Lookup", "FloatProduct")]


def unrolled(
    *, first: str, order: list[int], weights: list[str], spelled: Spelling
) -> onnx.ModelProto:
    """A GRU of ``spelled`` steps over entries ``order`` of x (1, STEPS, FEATURES), in which step
    i has the recurrent ``weights``, from ``first``."""
    draw = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "W": draw.normal(size=(3 * UNITS, FEATURES)),
        "R": draw.normal(size=(3 * UNITS, UNITS)),
        "Q": draw.normal(size=(3 * UNITS, UNITS)),
        "b": draw.normal(size=3 * UNITS),
        "c": draw.normal(size=3 * UNITS),
        "one": np.array(1.0),
        "zero": np.array(0.0),
        "head": draw.normal(size=(UNITS, 4)),
    }
    integers = {f"at{i}": np.array(i) for i in range(STEPS)} | {
        "shape": np.array([1, UNITS]), "thirds": np.array([UNITS] * 3), "batch": np.array([0]),
        "end": np.array([1]), "units": np.array([UNITS]),
    }  # fmt: skip
    nodes = []
    if first == "of shape":  # as Keras writes zeros for any batch
        nodes += [
            helper.make_node("Shape", ["x"], ["sizes"]),
            helper.make_node("Slice", ["sizes", "batch", "end", "batch"], ["count"]),
            helper.make_node("Concat", ["count", "units"], ["shape_"], axis=0),
            helper.make_node("Expand", ["zero", "shape_"], ["h"]),
        ]
    else:
        nodes.append(helper.make_node("Expand", [first, "shape"], ["h"]))
    state = "h"
    for step, (index, weight) in enumerate(zip(order, weights, strict=True)):
        s = f"{step}."
        parts = [[f"{s}{side}{gate}" for gate in "rzn"] for side in "xh"]
        z, n = f"{s}z", f"{s}n"
        nodes += [
            helper.make_node("Gather", ["x", f"at{index}"], [f"{s}in"], axis=1),
            helper.make_node("Gemm", [f"{s}in", "W", "b"], [f"{s}x"], transB=1),
            helper.make_node("Gemm", [state, weight, "c"], [f"{s}h"], transB=1),
            helper.make_node("Split", [f"{s}x", "thirds"], parts[0], axis=1),
            helper.make_node("Split", [f"{s}h", "thirds"], parts[1], axis=1),
            helper.make_node("Add", [parts[0][0], parts[1][0]], [f"{s}ra"]),
            helper.make_node("Sigmoid", [f"{s}ra"], [f"{s}r"]),
            helper.make_node("Add", [parts[1][1], parts[0][1]], [f"{s}za"]),
            helper.make_node("Sigmoid", [f"{s}za"], [z]),
            helper.make_node("Mul", [f"{s}r", parts[1][2]], [f"{s}rn"]),
            helper.make_node("Add", [parts[0][2], f"{s}rn"], [f"{s}na"]),
            helper.make_node("Tanh", [f"{s}na"], [n]),
        ]
        nodes += spelled(s, z, n, state)
        state = f"{s}state"
    nodes.append(helper.make_node("MatMul", [state, "head"], ["logits"], "head"))
    graph = helper.make_graph(
        nodes, "unrolled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, STEPS, FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in constants.items()]
        + [numpy_helper.from_array(v.astype(np.int64), name) for name, v in integers.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def node(operator: str, inputs: str, output: str) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output])


def as_keras(s: str, z: str, n: str, h: str) -> list[onnx.NodeProto]:
    return [
        node("Mul", f"{z} {h}", f"{s}kept"), node("Sub", f"one {z}", f"{s}rest"),
        node("Mul", f"{s}rest {n}", f"{s}new"), node("Add", f"{s}kept {s}new", f"{s}state"),
    ]  # fmt: skip


def as_torch(s: str, z: str, n: str, h: str) -> list[onnx.NodeProto]:
    return [
        node("Sub", f"{h} {n}", f"{s}gap"), node("Mul", f"{s}gap {z}", f"{s}part"),
        node("Add", f"{s}part {n}", f"{s}state"),
    ]  # fmt: skip


def as_in_the_first_paper(s: str, z: str, n: str, h: str) -> list[onnx.NodeProto]:
    """Where z says how much is new."""
    return [
        node("Mul", f"{z} {n}", f"{s}new"), node("Sub", f"one {z}", f"{s}rest"),
        node("Mul", f"{h} {s}rest", f"{s}kept"), node("Add", f"{s}new {s}kept", f"{s}state"),
    ]  # fmt: skip


FORWARDS = list(range(STEPS))


@pytest.mark.parametrize("spelled", [as_keras, as_torch, as_in_the_first_paper])
@pytest.mark.parametrize("order", [FORWARDS, FORWARDS[::-1]], ids=["forwards", "backwards"])
@pytest.mark.parametrize("first", ["zero", "of shape"])
def test_steps_of_one_cell_are_that_cell_however_they_are_spelled(
    spelled: Spelling, order: list[int], first: str
) -> None:
    model = unrolled(first=first, order=order, weights=["R"] * STEPS, spelled=spelled)
    graph = assert_as_onnxruntime(model)
    cells = [op for op in graph.ops if isinstance(op, FloatRecurrence)]
    assert [type(cell) for cell in cells] == [FloatGru]
    assert cells[0].last


@pytest.mark.parametrize(
    ("weights", "order", "first", "layers"),
    [
        (["R", "R", "Q", "R"], FORWARDS, "zero", 1),  # the first two steps
        (["R"] * STEPS, [0, 2, 1, 3], "zero", 0),
        (["R"] * STEPS, FORWARDS, "one", 0),
    ],
    ids=["other weights", "other order", "another state"],
)
def test_steps_that_are_no_layer_stay_what_they_are(
    weights: list[str], order: list[int], first: str, layers: int
) -> None:
    model = unrolled(first=first, order=order, weights=weights, spelled=as_keras)
    graph = assert_as_onnxruntime(model)
    assert sum(isinstance(op, FloatRecurrence) for op in graph.ops) == layers
