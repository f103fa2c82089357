"""What Keras writes by itself and what through a SavedModel (tests/codegen/models)."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from codegen.errors import ModelError
from codegen.importer.model import import_model, import_proto
from codegen.operators.execution import evaluate
from tests.codegen.exported import MODELS
from tests.codegen.importer.test_recurrent import windows
from tests.codegen.int8_network import int8_outputs
from tests.codegen.onnxruntime_oracle import outputs


def without_constants(model: onnx.ModelProto, nodes: int) -> onnx.ModelProto:
    """``model`` as Keras 3.15 exports one: constants of the first ``nodes`` nodes are inputs."""
    kept = {entry.name: entry for entry in model.graph.initializer}
    for node in model.graph.node[:nodes]:
        constant = kept[node.input[1]]
        model.graph.initializer.remove(constant)
        node.input[1] = f"sequential/normalization/{node.op_type}:0"
        model.graph.input.append(
            onnx.helper.make_tensor_value_info(node.input[1], constant.data_type, constant.dims)
        )
    return model


def test_lost_constants_are_found_in_a_model_that_went_through_a_saved_model() -> None:
    path = MODELS / "keras_signals.onnx"
    assert import_model(path).sample_shape == (48, 6)
    broken = without_constants(onnx.load(path), 2)
    message = r"3 inputs, .*'sequential/normalization/Sub:0'.* are constants .*--saved-model FOLDER"
    with pytest.raises(ModelError, match=message):
        import_proto(broken)


def test_two_inputs_of_a_user_are_named() -> None:
    model = onnx.load(MODELS / "keras_pictures.onnx")
    model.graph.input.append(onnx.helper.make_tensor_value_info("angle", 1, [1, 3]))
    with pytest.raises(ModelError, match=r"2 inputs, 'keras_tensor', 'angle'; export a network"):
        import_proto(model)


FORMS = {
    "picture_autoencoder": "FloatConv MaxPool FloatConv Rearrange FloatConv Lookup "
    "FloatTensorOutput",
    "signal_autoencoder": "FloatConv FloatLstm Expand FloatConv FloatLstm FloatConv "
    "FloatTensorOutput",
    "upsampled": "FloatConv MaxPool FloatConv Rearrange Concat FloatConv GlobalAveragePool "
    "FloatHead",
}


@pytest.mark.parametrize("name", FORMS)
def test_what_keras_spells_in_copies_and_steps_is_few_operations(name: str) -> None:
    model = onnx.load(MODELS / f"keras_{name}.onnx")
    graph = import_proto(model)
    assert [type(op).__name__ for op in graph.ops] == FORMS[name].split()
    x = windows(graph, 5)
    expected = outputs(model, x)
    if graph.ending.loss == "mse":
        expected = graph.arrange(expected)
    got = evaluate(graph, graph.arrange(x))[graph.ending.output]
    np.testing.assert_allclose(got.reshape(5, -1), expected.reshape(5, -1), atol=1e-5)


def test_repeated_signals_agree_with_onnxruntime_in_int8() -> None:
    model = onnx.load(MODELS / "keras_upsampled.onnx")
    graph = import_proto(model)
    x = windows(graph, 120)
    got, expected = (each - each.mean(axis=0) for each in (
        int8_outputs(graph, x, x[:40]).astype(np.float64), outputs(model, x)
    ))  # fmt: skip
    assert np.corrcoef(got.reshape(-1), expected.reshape(-1))[0, 1] > 0.99


def cropped(axes: list[int], rows: tuple[int, int]) -> onnx.ModelProto:
    """An input (9, 5) whose channels are last, cropped before a transposed convolution reads it."""
    draw = np.random.default_rng(0)
    constants = {
        "starts": np.array([rows[0]]), "ends": np.array([rows[1]]), "axes": np.array(axes),
        "w": draw.normal(size=(6, 5, 3)).astype(np.float32),
        "m": draw.normal(size=(6, 4)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["part"], "crop"),
        helper.make_node("Transpose", ["part"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["t", "w"], ["c"], "conv"),
        helper.make_node("ReduceMean", ["c"], ["mean"], axes=[2], keepdims=0),
        helper.make_node("MatMul", ["mean", "m"], ["logits"], "head"),
    ]
    graph = helper.make_graph(
        nodes, "cropped", [helper.make_tensor_value_info("x", 1, [1, 9, 5])],
        [helper.make_tensor_value_info("logits", 1, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def test_an_input_whose_channels_are_last_may_be_cropped_first() -> None:
    model = cropped([1], (2, 8))
    graph = import_proto(model)
    assert graph.shapes["x"] == (5, 1, 9)
    x = windows(graph, 4)
    got = evaluate(graph, graph.arrange(x))[graph.head.output]
    np.testing.assert_allclose(got, outputs(model, x), atol=1e-5)


def test_of_both_orders_of_the_input_the_refusal_is_that_which_came_further() -> None:
    model = cropped([1], (2, 8))
    model.graph.node[3].op_type = "ReduceL1"
    with pytest.raises(ModelError, match="ReduceL1"):  # not how the crop lies
        import_proto(model)


def test_what_is_done_to_each_step_by_itself_may_be_stacked_behind_a_flatten() -> None:
    """As TimeDistributed layers of pictures end, before a recurrent layer."""
    draw = np.random.default_rng(0)
    floats = {"w": draw.normal(size=(2, 3, 2)), "m": draw.normal(size=(4 * 2 * 5, 4))}
    integers = {"flat": np.array([1, 10]), "all": np.array([1, 40]), "zero": np.array([0])}
    nodes = []
    for step in range(4):
        names = {key: f"{key}{step}" for key in ("at", "in", "c", "t", "v", "u")}
        integers[names["at"]] = np.array(step)
        nodes += [
            helper.make_node("Gather", ["x", names["at"]], [names["in"]], axis=2),
            helper.make_node("Conv", [names["in"], "w"], [names["c"]]),
            helper.make_node("Transpose", [names["c"]], [names["t"]], perm=[0, 2, 1]),
            helper.make_node("Reshape", [names["t"], "flat"], [names["v"]]),
            helper.make_node("Unsqueeze", [names["v"], "zero"], [names["u"]]),
        ]
    nodes += [
        helper.make_node("Concat", [f"u{step}" for step in range(4)], ["steps"], axis=0),
        helper.make_node("Reshape", ["steps", "all"], ["vector"]),
        helper.make_node("MatMul", ["vector", "m"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "steps", [helper.make_tensor_value_info("x", 1, [1, 3, 4, 6])],
        [helper.make_tensor_value_info("logits", 1, [1, 4])],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in floats.items()]
        + [numpy_helper.from_array(v, name) for name, v in integers.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    imported = import_proto(model)
    x = windows(imported, 4)
    got = evaluate(imported, imported.arrange(x))[imported.head.output]
    np.testing.assert_allclose(got, outputs(model, x), atol=1e-5)
