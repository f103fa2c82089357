"""GRU and LSTM of ONNX, in the spellings of several exporters, against onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from codegen.errors import ModelError
from codegen.graph.floats import FloatConv, FloatGraph
from codegen.importer.model import import_proto
from codegen.operators.execution import evaluate
from codegen.operators.recurrence import FloatRecurrence
from codegen.quantization.quantize import quantize
from tests.codegen.exported import MODELS, exported
from tests.codegen.int8_network import int8_outputs
from tests.codegen.onnxruntime_oracle import agreement, outputs

FEATURES, CLASSES = 6, 5


def recurrent_model(
    operator: str,
    *,
    steps: int = 7,
    units: int = 9,
    directions: int = 1,
    read: str = "Y_h",
    bias: bool = True,
    constants: dict[int, np.ndarray] | None = None,
    made: Sequence[str] = ("Y", "Y_h"),
    seed: int = 0,
    **attributes: Any,
) -> onnx.ModelProto:
    """(batch, steps, features) → transposed → ``operator`` → what is ``read`` → classes.

    ``constants`` are further inputs of the operator, by place; ``made`` its outputs' names.
    """
    draw = np.random.default_rng(seed)
    rows = (3 if operator == "GRU" else 4) * units
    values: dict[str, np.ndarray] = {
        "W": draw.normal(0, 0.5, (directions, rows, FEATURES)),
        "R": draw.normal(0, 1.2 / np.sqrt(units), (directions, rows, units)),
    }
    inputs = ["steps", "W", "R"]
    if bias:
        values["B"] = draw.normal(0, 0.4, (directions, 2 * rows))
        inputs.append("B")
    for place, value in (constants or {}).items():
        inputs += [""] * (place + 1 - len(inputs))
        inputs[place] = f"constant{place}"
        values[inputs[place]] = value
    hidden = directions * units
    values["head"] = draw.normal(0, 1 / np.sqrt(hidden), (hidden, CLASSES))
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(operator, inputs, list(made), "cell", hidden_size=units, **attributes),
    ]
    shapes = {"flat": [1, hidden]}
    source = read
    if read == "Y":  # (steps, directions, batch, units) → the mean over all steps
        shapes["every"] = [steps, 1, hidden]
        nodes += [
            helper.make_node("Transpose", ["Y"], ["Y.batch"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", ["Y.batch", "every"], ["states"]),
            helper.make_node("ReduceMean", ["states"], ["mean"], axes=[0], keepdims=1),
        ]
        source = "mean"
    elif directions == 2:
        nodes.append(helper.make_node("Transpose", [read], ["both"], perm=[1, 0, 2]))
        source = "both"
    nodes += [
        helper.make_node("Reshape", [source, "flat"], ["vector"]),
        helper.make_node("MatMul", ["vector", "head"], ["logits"], "head"),
    ]
    integers = {name: np.array(shape, np.int64) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "recurrent",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, steps, FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])],
        [
            numpy_helper.from_array(
                value if value.dtype == np.int32 else value.astype(np.float32), name
            )
            for name, value in values.items()
        ]
        + [numpy_helper.from_array(value, name) for name, value in integers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def windows(graph: FloatGraph, count: int, seed: int = 3) -> np.ndarray:
    """Samples that wander, as signals do."""
    draw = np.random.default_rng(seed)
    shape = (count, *graph.sample_shape)
    return (0.4 * draw.normal(size=shape).cumsum(axis=1) + draw.normal(size=shape)).astype(
        np.float32
    )


def assert_as_onnxruntime(model: onnx.ModelProto) -> FloatGraph:
    graph = import_proto(model)
    x = windows(graph, 5)
    expected = outputs(model, x)
    got = evaluate(graph, graph.arrange(x))[graph.head.output]
    np.testing.assert_allclose(got, expected, atol=2e-6 * np.abs(expected).max() + 1e-6)
    return graph


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("read", ["Y", "Y_h"])
@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("GRU", {"linear_before_reset": 1}), ("GRU", {}), ("LSTM", {})],
    ids=["gru", "reset-first", "lstm"],
)
def test_every_direction_and_output_is_that_of_onnxruntime(
    operator: str, attributes: dict[str, int], read: str, direction: str
) -> None:
    directions = 2 if direction == "bidirectional" else 1
    model = recurrent_model(
        operator, read=read, directions=directions, direction=direction, **attributes
    )
    graph = assert_as_onnxruntime(model)
    cells = [op for op in graph.ops if isinstance(op, FloatRecurrence)]
    assert len(cells) == directions
    assert all(cell.last == (read == "Y_h") for cell in cells)


def test_the_first_state_of_a_window_read_backwards_is_the_last_that_is_made() -> None:
    model = recurrent_model("LSTM", direction="reverse", read="first")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    model.graph.node.insert(2, helper.make_node("Gather", ["Y", "zero"], ["first"], axis=0))
    cells = [op for op in assert_as_onnxruntime(model).ops if isinstance(op, FloatRecurrence)]
    assert [cell.last for cell in cells] == [True]


@pytest.mark.parametrize("operator", ["GRU", "LSTM"])
@pytest.mark.parametrize("sizes", [{"steps": 1}, {"units": 1}, {"bias": False}])
def test_small_cells_and_those_without_bias_are_taken(operator: str, sizes: dict[str, Any]) -> None:
    assert_as_onnxruntime(recurrent_model(operator, **sizes))


@pytest.mark.parametrize("operator", ["GRU", "LSTM"])
def test_a_length_of_all_steps_and_a_state_of_zeros_say_nothing(operator: str) -> None:
    zeros = {4: np.array([7], np.int32), 5: np.zeros((1, 1, 9))}
    assert_as_onnxruntime(recurrent_model(operator, constants=zeros))


def test_features_of_a_step_are_a_kernel_as_high_as_the_maps() -> None:
    graph = exported("gru_keywords_dynamo.onnx")
    gates = next(op for op in graph.ops if op.output.endswith("_input"))
    assert isinstance(gates, FloatConv)
    assert gates.weight.shape[2:] == (1, 4)
    assert [type(op).__name__ for op in graph.ops] == [
        "FloatConv", "FloatConv", "FloatGru", "FloatHead"
    ]  # fmt: skip


@pytest.mark.parametrize("steps", [49, 98])
@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("GRU", {"linear_before_reset": 1}), ("GRU", {}), ("LSTM", {})],
    ids=["gru", "reset-first", "lstm"],
)
def test_the_devices_integers_agree_with_onnxruntime_over_long_windows(
    operator: str, attributes: dict[str, int], steps: int
) -> None:
    model = recurrent_model(operator, steps=steps, units=32, seed=1, **attributes)
    graph = import_proto(model)
    x = windows(graph, 100)
    expected = outputs(model, x)
    assert len(set(expected.argmax(axis=1))) > 2
    assert agreement(int8_outputs(graph, x, x[:40]), expected) >= 0.95


KEPT: dict[str, Any] = {}
REFUSED: list[tuple[str, str, dict[str, Any], dict[str, Any], str]] = [
    ("activation", "GRU", {"activations": ["HardSigmoid", "Tanh"]},
     {"activations": ["Sigmoid", "Tanh"]}, "train the layer with sigmoid gates"),
    ("clip", "LSTM", {"clip": 3.0}, KEPT, "export the layer without it"),
    ("layout", "GRU", {"layout": 1}, {"layout": 0}, "export with layout = 0"),
    ("coupled", "LSTM", {"input_forget": 1}, {"input_forget": 0}, "weights of their own"),
    ("peepholes", "LSTM", {"constants": {7: np.ones((1, 27))}}, KEPT, "train an LSTM without them"),
    ("state", "GRU", {"constants": {5: np.ones((1, 1, 9))}}, KEPT, "without a state"),
    ("cell", "LSTM", {"constants": {6: np.ones((1, 1, 9))}}, KEPT, "without a state"),
    ("length", "GRU", {"constants": {4: np.array([5], np.int32)}}, KEPT, "windows of one length"),
    ("read", "LSTM", {"read": "Y_c", "made": ("Y", "Y_h", "Y_c")},
     {"made": ("Y", "Y_h", "Y_c")}, "read its hidden state Y or Y_h instead"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "refused", "remedied", "remedy"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_what_a_cell_does_not_do_is_refused_with_a_remedy_that_works(
    operator: str, refused: dict[str, Any], remedied: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ModelError, match=rf"node 'cell' \({operator}\): .*{remedy}"):
        import_proto(recurrent_model(operator, **refused))
    assert_as_onnxruntime(recurrent_model(operator, **remedied))


def test_a_state_of_more_units_than_sums_fit_is_refused_with_a_remedy_that_works() -> None:
    def quantized(units: int) -> None:
        graph = import_proto(recurrent_model("GRU", units=units, steps=2))
        quantize(graph, graph.arrange(windows(graph, 4)))

    with pytest.raises(ModelError, match=r"a state of 513 is more than 512.*use a smaller cell"):
        quantized(513)
    quantized(512)


def test_batches_before_steps_are_refused_with_a_remedy_that_works() -> None:
    model = recurrent_model("GRU")
    del model.graph.node[0]
    model.graph.node[0].input[0] = "x"
    with pytest.raises(ModelError, match=r"node 'cell' \(GRU\): its input has shape .*transpose"):
        import_proto(model)
    assert_as_onnxruntime(recurrent_model("GRU"))


def test_what_tf2onnx_makes_of_an_lstm_is_taken() -> None:
    graph = assert_as_onnxruntime(onnx.load(MODELS / "keras_lstm.onnx"))
    assert sum(isinstance(op, FloatRecurrence) for op in graph.ops) == 3
