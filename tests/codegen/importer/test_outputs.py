"""Files of several outputs: which one is trained, and what is left out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from codegen.errors import ModelError
from codegen.graph.floats import FloatConv, FloatGraph, FloatHead
from codegen.importer.model import import_proto
from codegen.operators.execution import evaluate
from tests.codegen.dense_network import dense_network

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


def test_a_linear_classifier_is_refused_by_its_own_name() -> None:
    nodes = [
        helper.make_node(
            "LinearClassifier", ["r"], ["label", "raw"], "linear", domain=ML,
            coefficients=[0.5] * 24, intercepts=[0.0] * 3, classlabels_ints=[0, 1, 2],
        ),
        helper.make_node("Normalizer", ["raw"], ["probabilities"], domain=ML, norm="L1"),
    ]  # fmt: skip
    model = with_outputs(dense_network((4,), 3), nodes, ["label", "probabilities"])
    with pytest.raises(ModelError, match=r"node 'linear' \(ai.onnx.ml.LinearClassifier\): .*Gemm"):
        imported(model)
