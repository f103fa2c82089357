"""Keras' recurrent layers, of which tf2onnx makes a Loop, against onnxruntime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from codegen.errors import ModelError
from codegen.importer.model import import_proto
from codegen.operators.gru import FloatGru
from tests.codegen.exported import MODELS
from tests.codegen.importer.test_recurrent import assert_as_onnxruntime, windows
from tests.codegen.int8_network import int8_outputs
from tests.codegen.onnxruntime_oracle import agreement, outputs


def keras(name: str) -> onnx.ModelProto:
    return onnx.load(MODELS / f"keras_{name}.onnx")


def loop_of(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = (node for node in model.graph.node if node.op_type == "Loop")
    return node


def body_of(model: onnx.ModelProto) -> onnx.GraphProto:
    graph: onnx.GraphProto = loop_of(model).attribute[0].g
    return graph


def set_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    kept = [entry for entry in model.graph.initializer if entry.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(value, name)])


def test_loops_of_gru_are_the_operator() -> None:
    graph = assert_as_onnxruntime(keras("gru"))
    assert [type(op).__name__ for op in graph.ops] == ["FloatConv", "FloatGru", "FloatHead"]
    cell = graph.ops[1]
    assert isinstance(cell, FloatGru)
    assert cell.last
    assert cell.inner_bias is not None


def test_both_directions_all_states_and_either_place_of_the_reset_are_taken() -> None:
    model = keras("gru_both")
    graph = assert_as_onnxruntime(model)
    cells = [op for op in graph.ops if isinstance(op, FloatGru)]
    # Two that are reset before their matrix, and one behind it.
    assert [cell.inner_bias is None for cell in cells] == [True, True, False]
    x = windows(graph, 80)
    expected = outputs(model, x)
    assert len(set(expected.argmax(axis=1))) > 2
    assert agreement(int8_outputs(graph, x, x[:40]), expected) >= 0.95


def other_operator(model: onnx.ModelProto, old: str, new: str) -> None:
    node = next(node for node in body_of(model).node if node.op_type == old)
    node.op_type = new


def starts_elsewhere(model: onnx.ModelProto) -> None:
    set_constant(model, "first", np.full((1, 8), 0.5, np.float32))
    loop_of(model).input[3] = "first"


def ends_early(model: onnx.ModelProto) -> None:
    set_constant(model, loop_of(model).input[0], np.array(7))


def ends_by_itself(model: onnx.ModelProto) -> None:
    body = body_of(model)
    limit = next(entry for entry in body.initializer if entry.name.startswith("const_fold_opt"))
    limit.CopyFrom(numpy_helper.from_array(np.array(7, np.float32), limit.name))


def takes_any_number(model: onnx.ModelProto) -> None:
    set_constant(model, loop_of(model).input[0], np.array(2**63 - 1))


def counts_by_two(model: onnx.ModelProto) -> None:
    body = body_of(model)
    step = next(entry for entry in body.initializer if entry.name.endswith("while/add/y:0"))
    step.CopyFrom(numpy_helper.from_array(np.array(2, np.int32), step.name))


def shows_what_it_adds(model: onnx.ModelProto) -> None:
    body = body_of(model)
    new = next(node for node in body.node if node.op_type == "Tanh")
    body.node.append(helper.make_node("Identity", [new.output[0]], ["shown"]))
    body.output[-1].name = "shown"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: other_operator(model, "Tanh", "Relu"), "a step computes something else"),
        (lambda model: other_operator(model, "Sigmoid", "HardSigmoid"), "something else"),
        (takes_any_number, "how many steps it takes isn't said by a constant"),
        (ends_by_itself, "it may end before its last step"),
        (counts_by_two, "it doesn't count its steps one by one"),
        (shows_what_it_adds, "gives out more than the cell's states"),
    ],
    ids=["tanh", "sigmoid", "any", "end", "count", "more"],
)
def test_a_loop_that_is_no_layer_is_refused_with_its_name_the_reason_and_a_remedy(
    change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = keras("gru")
    change(model)
    with pytest.raises(ModelError, match=rf"while_loop' \(Loop\): .*{message}.*; train GRU or"):
        import_proto(model)
    assert_as_onnxruntime(keras("gru"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (starts_elsewhere, "its initial_h isn't zero"),
        (ends_early, r"sequence_lens are \[7\] of 20"),
    ],
    ids=["state", "steps"],
)
def test_a_loop_from_a_state_or_over_a_part_of_the_steps_is_refused_as_the_operator_is(
    change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = keras("gru")
    change(model)
    with pytest.raises(ModelError, match=rf"while_loop' \(GRU\): .*{message}"):
        import_proto(model)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("masked", "each step reads .* and .*, as behind Masking: leave that out"),
        ("simple", "a SimpleRNN"),
    ],
)
def test_masks_and_plain_recurrent_layers_are_refused_with_the_remedy(
    name: str, message: str
) -> None:
    with pytest.raises(
        ModelError, match=rf"while_loop' \(Loop\): .*{message}.*; train GRU or LSTM"
    ):
        import_proto(keras(name))
    assert_as_onnxruntime(keras("gru"))  # which has no mask, and is a GRU


def test_a_loop_that_no_output_needs_is_left_out() -> None:
    model = keras("simple")
    head = model.graph.output[0].name
    shape = [1, 10 * 6]
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape), "flat"))
    weight = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "straight"))
    model.graph.node.extend(
        [
            helper.make_node("Reshape", [model.graph.input[0].name, "flat"], ["vector"]),
            helper.make_node("MatMul", ["vector", "straight"], ["logits"], "straight"),
        ]
    )
    model.graph.output.append(helper.make_tensor_value_info("logits", 1, [1, 6]))
    with pytest.raises(ModelError, match="--output"):
        import_proto(model)
    graph = import_proto(model, output="logits")
    assert [type(op).__name__ for op in graph.ops] == ["FloatHead"]
    with pytest.raises(ModelError, match="SimpleRNN"):
        import_proto(model, output=head)
