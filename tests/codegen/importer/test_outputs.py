"""Files of several outputs: which one is trained, and what is left out."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from codegen.errors import ModelError
from codegen.graph.floats import FloatConv, FloatGraph, FloatHead
from codegen.importer.model import import_proto
from codegen.operators.execution import evaluate
from tests.codegen.dense_network import dense_network
from tests.codegen.int8_network import int8_outputs
from tests.codegen.onnxruntime_oracle import run

ML = "ai.onnx.ml"


def with_outputs(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], outputs: list[str], **constants: np.ndarray
) -> onnx.ModelProto:
    """``model`` with more nodes, and ``outputs`` of its own or of theirs."""
    graph = model.graph
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    del graph.output[:]
    for name in outputs:
        if name == "map":
            one = helper.make_map_type_proto(
                TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
            )
            graph.output.append(helper.make_value_info(name, helper.make_sequence_type_proto(one)))
        else:
            kind, shape = (TensorProto.INT64, ["n"]) if name == "label" else (1, ["n", "c"])
            graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    model.opset_import.append(helper.make_opsetid(ML, 3))
    return model


def imported(model: onnx.ModelProto, output: str | None = None) -> FloatGraph:
    return import_proto(model, "net", output=output)


def label_of(scores: str) -> list[onnx.NodeProto]:
    """A label as sklearn's converter writes it."""
    return [
        helper.make_node("ArgMax", [scores], ["k"], axis=1, keepdims=0),
        helper.make_node("ArrayFeatureExtractor", ["names", "k"], ["name"], domain=ML),
        helper.make_node("Cast", ["name"], ["label"], to=TensorProto.INT64),
    ]


NAMES = {"names": np.array([7, 8, 9])}
ZIP_MAP = {"domain": ML, "classlabels_int64s": [7, 8, 9]}


@pytest.mark.parametrize("first", ["label", "Softmax"])
def test_a_label_beside_probabilities_is_left_out(first: str) -> None:
    outputs = [first, "Softmax" if first == "label" else "label"]
    model = with_outputs(dense_network((3,), 3, "Softmax"), label_of("Softmax"), outputs, **NAMES)
    choice = imported(model).loss_choice
    assert choice is not None
    assert (choice.loss, choice.output) == ("cross-entropy", "Softmax")
    assert choice.output_because == "'label' is made of it"
    assert choice.class_names == ("7", "8", "9")


def test_a_dictionary_of_probabilities_is_read_where_it_comes_from() -> None:
    zip_map = helper.make_node("ZipMap", ["Softmax"], ["map"], **ZIP_MAP)
    model = with_outputs(
        dense_network((3,), 3, "Softmax"),
        [*label_of("Softmax"), zip_map],
        ["label", "map"],
        **NAMES,
    )
    choice = imported(model).loss_choice
    assert choice is not None
    assert (choice.output, choice.output_because) == ("Softmax", "'label', 'map' are made of it")
    assert imported(model, "map").loss_choice.output == "Softmax"
    assert imported(model, "Softmax").loss_choice.class_names == ("7", "8", "9")


def test_a_label_alone_is_trained_by_its_scores() -> None:
    model = with_outputs(dense_network((4,), 3), label_of("scores"), ["label"], **NAMES)
    assert imported(model).loss_choice.output == "scores"


def test_the_name_of_the_largest_class_is_looked_up_in_a_table() -> None:
    nodes = [
        helper.make_node("ArgMax", ["scores"], ["place"], axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "place"], ["name"]),
    ]
    model = with_outputs(dense_network((4,), 3), nodes, ["name"], **NAMES)
    assert imported(model).loss_choice.output == "scores"


def test_probabilities_one_by_one_and_the_largest_of_them_are_made_of_all() -> None:
    ends = {"starts": np.array([1]), "ends": np.array([2])}
    nodes = [
        *label_of("Softmax"),
        helper.make_node("Slice", ["Softmax", "starts", "ends", "starts"], ["part"]),
        helper.make_node("Flatten", ["part"], ["second"]),
        helper.make_node("ReduceMax", ["Softmax"], ["best"], axes=[1]),
    ]
    outputs = ["label", "second", "best"]
    model = with_outputs(dense_network((4,), 3, "Softmax"), nodes, outputs, **ends, **NAMES)
    choice = imported(model).loss_choice
    assert (choice.loss, choice.output) == ("cross-entropy", "Softmax")


def test_the_probabilities_of_no_and_yes_are_one_answer() -> None:
    nodes = [
        helper.make_node("Sub", ["one", "Sigmoid"], ["no"]),
        helper.make_node("Concat", ["no", "Sigmoid"], ["both"], axis=1),
        *label_of("both"),
    ]
    model = with_outputs(
        dense_network((4,), 1, "Sigmoid"), nodes, ["label", "both"],
        one=np.ones(1, np.float32), **NAMES,
    )  # fmt: skip
    graph = imported(model)
    assert graph.head.loss == "binary"
    assert graph.head.bias.size == 1
    assert graph.loss_choice.output == "Sigmoid"


@pytest.mark.parametrize(
    "last",
    [
        helper.make_node("Identity", ["Sigmoid"], ["end"]),
        helper.make_node("CastLike", ["Sigmoid", "x"], ["end"]),
    ],
    ids=lambda node: str(node.op_type),
)
def test_a_sigmoid_is_at_the_end_whatever_its_output_is_called(last: onnx.NodeProto) -> None:
    graph = imported(with_outputs(dense_network((4,), 2, "Sigmoid"), [last], ["end"]))
    assert graph.head.loss == "binary"
    assert [type(op) for op in graph.ops] == [FloatConv, FloatHead]


def test_two_networks_in_a_file_are_asked_about() -> None:
    def model() -> onnx.ModelProto:
        more = [helper.make_node("Gemm", ["r", "second"], ["other"], transB=1)]
        second = np.ones((2, 8), np.float32)
        return with_outputs(dense_network((4,), 3), more, ["scores", "other"], second=second)

    with pytest.raises(ModelError, match="--output scores or --output other"):
        imported(model())
    assert imported(model(), "other").head.bias.size == 2
    assert imported(model(), "scores").head.bias.size == 3
    with pytest.raises(ModelError, match=r"no output 'none'.*'scores', 'other'"):
        imported(model(), "none")


def test_what_leads_nowhere_is_not_looked_at() -> None:
    nodes = [
        helper.make_node("Det", ["r"], ["unused"]),
        helper.make_node("LSTM", ["unused", "names", "names"], ["end"], hidden_size=3),
    ]
    model = with_outputs(dense_network((4,), 3), nodes, ["scores"], **NAMES)
    assert len(imported(model).ops) == 2


def test_a_scaler_of_features_goes_into_the_network() -> None:
    model = dense_network((4,), 3, "Softmax")
    flat = model.graph.node[0]
    offset, scale = [0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.0, 3.0]
    scaler = helper.make_node(
        "Scaler", ["x"], ["scaled"], "scaler", domain=ML, offset=offset, scale=scale
    )
    flat.input[0] = "scaled"
    model.graph.node.insert(0, scaler)
    graph = imported(with_outputs(model, [], ["Softmax"]))
    x = np.random.default_rng(2).normal(size=(5, 4))
    plain = imported(dense_network((4,), 3, "Softmax"))
    scaled = ((x - offset) * scale).reshape(5, 4, 1, 1)
    expected = evaluate(plain, scaled)[plain.head.output]
    got = evaluate(graph, x.reshape(5, 4, 1, 1))[graph.head.output]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "end"),
    [(3, "NONE"), (3, "SOFTMAX"), (2, "NONE"), (2, "LOGISTIC"), (2, "SOFTMAX"), (3, "LOGISTIC")],
)
def test_a_linear_classifier_is_a_layer_with_a_logit_for_each_class(classes: int, end: str) -> None:
    draw = np.random.default_rng(3)
    weight, bias = draw.normal(size=(classes, 8)), draw.normal(size=classes)
    if classes == 2:  # as scikit-learn's converter writes a yes or no
        weight[0], bias[0] = -weight[1], -bias[1]
    nodes = [
        helper.make_node(
            "LinearClassifier", ["r"], ["label", "raw"], "linear", domain=ML, post_transform=end,
            coefficients=weight.reshape(-1), intercepts=bias, classlabels_ints=range(classes),
        ),
        helper.make_node("Normalizer", ["raw"], ["probabilities"], domain=ML, norm="L1"),
    ]  # fmt: skip
    model = with_outputs(dense_network((4,), 3), nodes, ["label", "probabilities"])
    graph = imported(model)
    assert (graph.head.loss, graph.loss_choice.output) == ("cross-entropy", "raw")
    x = draw.normal(size=(40, 4)).astype(np.float32)
    logits = evaluate(graph, x.reshape(-1, 4, 1, 1))[graph.head.output]
    rows = [run(model, one[np.newaxis], ["label", "raw"]) for one in x]
    label, raw = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    assert np.array_equal(logits.argmax(axis=1), label)
    if end != "NONE" and (classes == 2 or end == "SOFTMAX"):
        logits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if classes == 2 or end != "LOGISTIC":
        np.testing.assert_allclose(logits, raw, atol=1e-5)


def test_a_linear_regressor_is_a_layer_with_a_row_for_each_target() -> None:
    draw = np.random.default_rng(3)
    weight, bias = draw.normal(size=(2, 8)), draw.normal(size=2)
    linear = helper.make_node(
        "LinearRegressor", ["r"], ["values"], "linear", domain=ML, targets=2,
        coefficients=weight.reshape(-1), intercepts=bias,
    )  # fmt: skip
    model = with_outputs(dense_network((4,), 3), [linear], ["values"])
    graph = import_proto(model, "net", "none")
    x = draw.normal(size=(10, 4)).astype(np.float32)
    found = evaluate(graph, x.reshape(-1, 4, 1, 1))[graph.head.output]
    expected = np.concatenate([run(model, one[np.newaxis])[0] for one in x])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"coefficients": [1.0] * 15}, "15 coefficients and 2 intercepts for 2 rows"),
        ({"intercepts": [0.0]}, "16 coefficients and 1 intercepts for 2 rows"),
        ({"coefficients": [math.nan] * 16}, "hold NaN or infinity"),
    ],
)
def test_a_damaged_linear_model_is_refused_by_its_node(
    attributes: dict[str, list[float]], message: str
) -> None:
    whole = {"coefficients": [1.0] * 16, "intercepts": [0.0, 0.0], **attributes}
    linear = helper.make_node(
        "LinearRegressor", ["r"], ["values"], "linear", domain=ML, targets=2, **whole
    )
    model = with_outputs(dense_network((4,), 3), [linear], ["values"])
    with pytest.raises(ModelError, match=rf"'linear' .*{message}"):
        import_proto(model, "net", "none")


def test_classes_that_are_means_of_what_an_activation_made_pass_a_matrix_that_changes_nothing() -> (
    None
):
    """As SqueezeNet ends, and MobileNets whose last convolution has a Relu6."""
    random = np.random.default_rng(8)
    constants = {
        "w": random.normal(0, 0.4, (5, 3, 3, 3)).astype(np.float32),
        "low": np.float32(0), "high": np.float32(6),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], "conv"),
        helper.make_node("Clip", ["conv", "low", "high"], ["active"], "active"),
        helper.make_node("GlobalAveragePool", ["active"], ["mean"], "mean"),
        helper.make_node("Flatten", ["mean"], ["logits"], "flat"),
        helper.make_node("Softmax", ["logits"], ["y"], "softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    made = import_proto(model)
    assert isinstance(made.ending, FloatHead)
    assert np.array_equal(made.ending.weight, np.eye(5))
    x = random.normal(size=(60, 3, 8, 8)).astype(np.float32)
    (expected,) = run(model, x, ["logits"])
    np.testing.assert_allclose(evaluate(made, x)[made.ending.output], expected, atol=1e-5)
    got = int8_outputs(made, x)
    assert np.abs(got - expected).max() < 0.02 * expected.max()
    assert made.loss_choice.loss == "cross-entropy"
