"""The importer against onnxruntime, and against models it must refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from codegen.errors import ModelError
from codegen.graph.floats import FloatConv, parameter_count
from codegen.importer.model import import_model, import_proto
from codegen.operators.execution import evaluate
from tests.codegen import onnxruntime_oracle
from tests.conftest import examples

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"

Constants = dict[str, NDArray[np.float32]]


def model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray] | None = None,
    *,
    shape: tuple[object, ...] = ("batch", 3, 7, 6),
    output: str = "logits",
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None, None])],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = 8
    return proto


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def head(source: str, channels: int) -> tuple[list[onnx.NodeProto], Constants]:
    """Pool, flatten and Gemm behind ``source``."""
    nodes = [
        helper.make_node("GlobalAveragePool", [source], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "hw", "hb"], ["logits"], "head", transB=1),
    ]
    return nodes, {"hw": normal(4, channels, seed=8), "hb": normal(4, seed=9)}


def with_head(
    nodes: list[onnx.NodeProto], constants: Constants, source: str, channels: int, **options: object
) -> onnx.ModelProto:
    more, weights = head(source, channels)
    return model([*nodes, *more], {**constants, **weights}, **options)  # type: ignore[arg-type]


def assert_equals_onnxruntime(proto: onnx.ModelProto) -> None:
    graph = import_proto(proto)
    shape = graph.shapes[graph.input]
    fixed = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    x = normal(1 if fixed else 5, *shape, seed=42)
    expected = onnxruntime_oracle.run(proto, x)[0]
    np.testing.assert_allclose(evaluate(graph, x)[graph.head.output], expected, atol=1e-4)


def test_the_digit_model_evaluates_as_onnxruntime_does() -> None:
    assert_equals_onnxruntime(onnx.load(DIGITS))


def test_the_digit_model_keeps_to_its_budgets() -> None:
    graph = import_model(DIGITS)
    assert DIGITS.stat().st_size <= 200_000
    assert parameter_count(graph) < 40_000
    assert all(shape[0] % 4 == 0 for name, shape in graph.shapes.items() if name != graph.input)


def test_layers_carry_the_names_of_the_conv_nodes() -> None:
    graph = import_model(DIGITS)
    names = [op.name for op in graph.ops if isinstance(op, FloatConv)]
    assert names[:4] == ["stem", "b1_pw1", "b1_dw", "b1_pw2"]
    assert names[-1] == "last"


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 0, 2, 1], "strides": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
        {"kernel_shape": [3, 2], "dilations": [1, 1]},
    ],
)
def test_convolutions_pad_and_stride_as_onnxruntime_does(attributes: dict[str, object]) -> None:
    conv = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", **attributes)
    assert_equals_onnxruntime(with_head([conv], {"w": normal(8, 3, 3, 2), "b": normal(8)}, "y", 8))


def test_depthwise_convolutions_evaluate_as_onnxruntime_does() -> None:
    conv = helper.make_node("Conv", ["x", "w"], ["y"], "dw", group=3, pads=[1, 1, 1, 1])
    assert_equals_onnxruntime(with_head([conv], {"w": normal(3, 1, 3, 3)}, "y", 3))


def test_batch_normalization_and_activations_are_folded_into_the_convolution() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "conv"),
        helper.make_node("BatchNormalization", ["a", "g", "s", "m", "v"], ["n"], epsilon=0.01),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Clip", ["r", "", "high"], ["y"]),
    ]
    constants = {
        "w": normal(4, 3, 2, 2), "b": normal(4), "g": normal(4, seed=1), "s": normal(4, seed=2),
        "m": normal(4, seed=3), "v": np.abs(normal(4, seed=4)), "high": np.float32([0.5])[0:1],
    }  # fmt: skip
    constants["high"] = np.array(0.5, dtype=np.float32)
    proto = with_head(nodes, constants, "y", 4)
    assert_equals_onnxruntime(proto)
    assert [op.name for op in import_proto(proto).ops] == ["conv", "pool", "head"]


@pytest.mark.parametrize(("low", "high"), [(0.0, np.inf), (-np.inf, 0.5)])
def test_a_clip_may_say_infinity_for_an_end_it_does_not_have(low: float, high: float) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Clip", ["a", "low", "high"], ["y"]),
    ]
    ends = {"low": np.array(low, np.float32), "high": np.array(high, np.float32)}
    assert_equals_onnxruntime(with_head(nodes, {"w": normal(4, 3, 2, 2), **ends}, "y", 4))


def residual_nodes() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "first"),
        helper.make_node("Identity", ["a"], ["same"]),
        helper.make_node("Conv", ["same", "w2"], ["c"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "a"], ["sum"], "join"),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]


RESIDUAL = {"w": normal(4, 3, 1, 1), "b": normal(4), "w2": normal(4, 4, 3, 3)}


def test_residual_sums_with_an_activation_evaluate_as_onnxruntime_does() -> None:
    assert_equals_onnxruntime(with_head(residual_nodes(), RESIDUAL, "y", 4))


def test_an_activation_on_a_tensor_read_elsewhere_stays_an_operation_of_its_own() -> None:
    # Relu sees 'same', which is 'a' under another name; the sum reads 'a' without Relu.
    nodes = residual_nodes()
    nodes[2] = helper.make_node("Relu", ["same"], ["c"], "bend")
    proto = with_head(nodes, RESIDUAL, "y", 4)
    assert_equals_onnxruntime(proto)
    assert [op.name for op in import_proto(proto).ops] == ["first", "bend", "join", "pool", "head"]


def classifier(tail: list[onnx.NodeProto], **constants: NDArray) -> onnx.ModelProto:
    conv = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    return model([conv, *tail], {"w": normal(6, 3, 2, 2), **constants})


SHAPE = np.array([0, -1], dtype=np.int64)


@pytest.mark.parametrize(
    "proto",
    [
        classifier(
            [
                helper.make_node("ReduceMean", ["y"], ["p"], axes=[-1, 2], keepdims=0),
                helper.make_node("MatMul", ["p", "m"], ["l"]),
                helper.make_node("Add", ["bias", "l"], ["z"]),
                helper.make_node("Softmax", ["z"], ["logits"]),
            ],
            m=normal(6, 5),
            bias=normal(5),
        ),
        classifier(
            [
                helper.make_node("GlobalAveragePool", ["y"], ["p"]),
                helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(SHAPE)),
                helper.make_node("Reshape", ["p", "shape"], ["f"]),
                helper.make_node("Dropout", ["f"], ["d"]),
                helper.make_node("Gemm", ["d", "m"], ["l"], alpha=0.5),
                helper.make_node("Identity", ["l"], ["logits"]),
            ],
            m=normal(6, 5),
        ),
        classifier(
            [
                helper.make_node("GlobalAveragePool", ["y"], ["p"]),
                helper.make_node("Squeeze", ["p", "axes"], ["f"]),
                helper.make_node("Gemm", ["f", "m", "c"], ["logits"], beta=2.0, transB=1),
            ],
            axes=np.array([2, 3], dtype=np.int64),
            m=normal(5, 6),
            c=normal(1, 5),
        ),
        classifier(
            [
                helper.make_node("Add", ["y", "shift"], ["s"]),
                helper.make_node("Clip", ["s", "low", "high"], ["r"]),
                helper.make_node("GlobalAveragePool", ["r"], ["p"]),
                helper.make_node("Flatten", ["p"], ["f"]),
                helper.make_node("MatMul", ["f", "m"], ["logits"]),
            ],
            shift=normal(6, 1, 1),
            low=np.array(-0.5, dtype=np.float32),
            high=np.array(0.7, dtype=np.float32),
            m=normal(6, 5),
        ),
    ],
    ids=[
        "mean-matmul-add-softmax",
        "reshape-dropout-gemm",
        "squeeze-gemm",
        "bias-as-add",
    ],
)
def test_every_way_to_write_the_classifier_evaluates_as_onnxruntime_does(
    proto: onnx.ModelProto,
) -> None:
    graph = import_proto(proto)
    x = normal(3, 3, 7, 6)
    expected = onnxruntime_oracle.run(proto, x)[0]
    logits = evaluate(graph, x)[graph.head.output]
    if proto.graph.node[-1].op_type == "Softmax":
        logits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_nodes_without_a_name_get_distinct_ones() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["a", "w2"], ["y"]),
    ]
    graph = import_proto(with_head(nodes, {"w": normal(4, 3, 1, 1), "w2": normal(4, 4, 1, 1)},
                                   "y", 4))  # fmt: skip
    names = [op.name for op in graph.ops]
    assert len(set(names)) == len(names)


def test_two_layers_of_one_name_are_told_apart() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "twin"),
        helper.make_node("Conv", ["a", "w2"], ["y"], "twin"),
    ]
    graph = import_proto(with_head(nodes, {"w": normal(4, 3, 1, 1), "w2": normal(4, 4, 1, 1)},
                                   "y", 4))  # fmt: skip
    assert [op.name for op in graph.ops[:2]] == ["twin", "twin_2"]


W = normal(4, 3, 3, 3)
CONV = helper.make_node("Conv", ["x", "w"], ["y"], "conv")


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (with_head([helper.make_node("LpPool", ["x"], ["y"], "norm", kernel_shape=[2, 2])], {}, "y",
                   3), r"'norm' \(LpPool\).*not supported; change the model"),
        (with_head([helper.make_node("MaxPool", ["x"], ["y"], "mp", kernel_shape=[9, 2])], {}, "y",
                   3), r"'mp' \(MaxPool\).*9x2 window is larger"),
        (with_head([helper.make_node("MaxPool", ["x"], ["y"], "wide", kernel_shape=[2, 2],
                                     dilations=[2, 2])], {}, "y", 3),
         r"'wide' \(MaxPool\): attribute dilations = \[2, 2\].*window of 3x3 without"),
        (with_head([helper.make_node("Conv", ["x", "w"], ["y"], "grouped", group=2)],
                   {"w": normal(7, 2, 3, 3)}, "y", 7, shape=(1, 4, 8, 8)),
         r"'grouped'.*group 2 doesn't fit"),
        (with_head([CONV, helper.make_node("Mul", ["y", "c"], ["r"], "rows")],
                   {"w": W, "c": normal(6, 1)}, "r", 4), "'rows'.*size 1 or the tensor's"),
        (with_head([CONV, helper.make_node("Transpose", ["y"], ["r"], "turn", perm=[1, 0, 2, 3]),
                    helper.make_node("Conv", ["r", "w2"], ["z"], "second")],
                   {"w": W, "w2": normal(4, 1, 1, 1)}, "z", 4),
         r"^node 'turn' \(Transpose\): mixes the dimensions of what node 'second' \(Conv\) reads"),
        (with_head([CONV, helper.make_node("Reshape", ["y", "s"], ["r"]),
                    helper.make_node("Transpose", ["r"], ["t"], "mix", perm=[1, 0, 2, 3, 4]),
                    helper.make_node("Reshape", ["t", "s2"], ["z"]),
                    helper.make_node("Conv", ["z", "w2"], ["q"], "shuffled")],
                   {"w": W, "s": np.array([1, 2, 2, 5, 4]), "s2": np.array([2, 2, 5, 4]),
                    "w2": normal(4, 2, 1, 1)}, "q", 4), "^node 'mix'.*mixes .* node 'shuffled'"),
        (with_head([CONV, helper.make_node("Pad", ["y", "p", "", "a"], ["r"], "widen")],
                   {"w": W, "p": np.array([1, 1]), "a": np.array([4])}, "r", 4, opset=18),
         "'widen'.*axis 4 of 4"),
        (with_head([CONV, helper.make_node("ReduceMean", ["y"], ["r"], "squash")], {"w": W}, "r",
                   4), "'squash'.*the batch as well; name height and width"),
        (with_head([CONV, helper.make_node("Clip", ["y", "one", "one"], ["r"], "flat")],
                   {"w": W, "one": np.array(1, np.float32)}, "r", 4), "'flat'.*leave it out"),
        (with_head([CONV, helper.make_node("ReduceSum", ["y"], ["r"], "sum")], {"w": W}, "r", 4),
         r"'sum' \(ReduceSum\).*the batch as well; name height and width"),
        (with_head([CONV], {"w": np.full_like(W, np.nan)}, "y", 4), "'conv'.*NaN"),
        (with_head([CONV], {"w": normal(4, 3, 9, 9)}, "y", 4), "'conv'.*larger than the padded"),
        (with_head([CONV], {"w": normal(4, 5, 3, 3)}, "y", 4), "'conv'.*doesn't fit.*3 channels"),
        (with_head([CONV], {"w": W}, "y", 4, shape=(8, 3, 7, 6)), "batch size 8"),
        (with_head([CONV], {"w": W}, "y", 4, shape=("n", 3, "h", 6)), "all but the batch fixed"),
        (model([CONV, helper.make_node("Flatten", ["y"], ["f"], "flat"),
                helper.make_node("MatMul", ["f", "m"], ["logits"], "head")],
               {"w": W, "m": normal(79, 5)}), "'head'.*79 inputs on a tensor of shape"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_refused_with_node_and_remedy(
    proto: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        import_proto(proto)


def test_what_normalizes_the_input_along_another_dimension_is_taken() -> None:
    constants = {name: np.abs(normal(6, seed=seed)) for seed, name in enumerate("sbmv")}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], "there", perm=[0, 3, 2, 1]),
        helper.make_node("BatchNormalization", ["t", *"sbmv"], ["n"], "by_column"),
        helper.make_node("Transpose", ["n"], ["u"], "back", perm=[0, 3, 2, 1]),
        helper.make_node("Conv", ["u", "w"], ["y"], "conv"),
    ]
    assert_equals_onnxruntime(with_head(nodes, {"w": W, **constants}, "y", 4))


def test_a_pool_with_dilations_can_be_replaced_as_the_message_says() -> None:
    pool = helper.make_node("MaxPool", ["x"], ["y"], "wide", kernel_shape=[3, 3])
    assert_equals_onnxruntime(with_head([pool], {}, "y", 3))


def test_a_transpose_that_stands_in_the_way_can_be_left_out_as_the_message_says() -> None:
    second = helper.make_node("Conv", ["y", "w2"], ["z"], "second")
    assert_equals_onnxruntime(with_head([CONV, second], {"w": W, "w2": normal(4, 4, 1, 1)}, "z", 4))


def test_weights_in_a_file_that_is_gone_are_asked_for_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    proto = with_head([CONV], {"w": W}, "y", 4)
    onnx.save(proto, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    wanted = import_model(path)
    moved = tmp_path / "elsewhere" / "model.onnx"
    moved.parent.mkdir()
    path.rename(moved)
    with pytest.raises(ModelError, match=r"in model.onnx.data, which isn't beside .* put it there"):
        import_model(moved)
    (tmp_path / "model.onnx.data").rename(moved.parent / "model.onnx.data")
    assert parameter_count(import_model(moved)) == parameter_count(wanted)


def test_an_activation_behind_the_classifier_is_refused_with_the_remedy() -> None:
    nodes, constants = head("x", 3)
    nodes.append(helper.make_node("Relu", ["logits"], ["more"], "extra"))
    proto = model(nodes, constants, output="more")
    with pytest.raises(
        ModelError, match=r"'head', with an activation.*makes its tensor with --out"
    ):
        import_proto(proto)
    assert import_proto(proto, output="logits").head.name == "head"
    nodes[-1] = helper.make_node("Tanh", ["logits"], ["more"], "extra")
    proto = model(nodes, constants, output="more")
    with pytest.raises(ModelError, match=r"made by 'extra'; a model must end in a Gemm.*--output"):
        import_proto(proto)
    assert import_proto(proto, output="logits").head.name == "head"


def test_what_follows_a_softmax_is_refused() -> None:
    nodes, constants = head("x", 3)
    nodes.append(helper.make_node("Softmax", ["logits"], ["p"], "soft"))
    nodes.append(helper.make_node("MatMul", ["p", "m"], ["more"], "extra"))
    proto = model(nodes, {**constants, "m": normal(4, 4)}, output="more")
    with pytest.raises(ModelError, match=r"'extra'.*only reshapes are supported.*--output p;"):
        import_proto(proto)
    assert import_proto(proto, output="p").ending.loss == "cross-entropy"


def test_a_gate_by_softmax_is_refused_and_one_by_sigmoid_taken() -> None:
    gated, constants = head("scaled", 3)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat_x"]),
        helper.make_node("Gemm", ["flat_x", "g"], ["gates"], "gates", transB=1),
        helper.make_node("Softmax", ["gates"], ["gate"], "gate"),
        helper.make_node("Mul", ["flat_x", "gate"], ["product"], "product"),
        helper.make_node("Reshape", ["product", "shape"], ["scaled"]),
    ]
    all_of_them = {**constants, "g": normal(3, 3), "shape": np.array([-1, 3, 1, 1])}
    with pytest.raises(ModelError, match=r"'product'.*a Softmax.*a Sigmoid in its place"):
        import_proto(model([*nodes, *gated], all_of_them, shape=("batch", 3, 1, 1)))
    nodes[2] = helper.make_node("Sigmoid", ["gates"], ["gate"], "gate")
    assert_equals_onnxruntime(model([*nodes, *gated], all_of_them, shape=("batch", 3, 1, 1)))


def test_a_softmax_of_one_value_says_nothing_and_a_sigmoid_in_its_place_does() -> None:
    nodes, constants = head("x", 3)
    constants |= {"hw": constants["hw"][:1], "hb": constants["hb"][:1]}
    nodes.append(helper.make_node("Softmax", ["logits"], ["p"], "soft"))
    proto = model(nodes, constants, output="p")
    with pytest.raises(ModelError, match=r"'soft'.*1 whatever .* a Sigmoid.*--output logits"):
        import_proto(proto)
    assert import_proto(proto, loss="binary", output="logits").ending.loss == "binary"
    nodes[-1] = helper.make_node("Sigmoid", ["logits"], ["p"], "sigmoid")
    assert import_proto(model(nodes, constants, output="p")).ending.loss == "binary"


@pytest.mark.parametrize("operator", ["Flatten", "Identity", "Squeeze"])
def test_reshapes_may_follow_a_softmax(operator: str) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Conv", ["pooled", "w"], ["logits"], "head"),
        helper.make_node("Softmax", ["logits"], ["p"], "soft", axis=1),
        helper.make_node(operator, ["p"], ["shaped"]),
    ]
    graph = import_proto(model(nodes, {"w": normal(4, 3, 1, 1)}, output="shaped"))
    assert [op.name for op in graph.ops] == ["globalaveragepool_0", "head"]


def test_an_operator_of_another_domain_is_refused_even_of_constants() -> None:
    nodes = [
        helper.make_node("Gelu", ["c"], ["d"], "bend", domain="com.microsoft"),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    proto = with_head(nodes, {"c": normal(1)}, "y", 3)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(ModelError, match=r"'bend' \(com.microsoft.Gelu\): operator not supported"):
        import_proto(proto)


def test_constants_cast_to_the_type_of_an_activation_keep_their_values() -> None:
    # PyTorch's exporter writes Relu6 so when it doesn't optimize.
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("CastLike", ["one", "a"], ["high"]),
        helper.make_node("Clip", ["a", "", "high"], ["y"]),
    ]
    proto = with_head(nodes, {"w": normal(4, 3, 2, 2), "one": np.array(1)}, "y", 4)
    assert_equals_onnxruntime(proto)


def test_a_product_of_two_activations_is_called_so() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["scores"], "attend"),
    ]
    with pytest.raises(ModelError, match=r"'attend' \(MatMul\): multiplies two activations"):
        import_proto(with_head(nodes, {}, "scores", 3))


def autoencoder(*tail: onnx.NodeProto, **constants: NDArray) -> onnx.ModelProto:
    """From (2, 3) by 4 numbers to 6, which ``tail`` brings into shape."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "e"], ["code"], "encoder"),
        helper.make_node("MatMul", ["code", "d"], ["values"], "decoder"),
    ]
    weights = {"e": normal(6, 4), "d": normal(4, 6)}
    last = tail[-1].output[0] if tail else "values"
    return model([*nodes, *tail], {**weights, **constants}, shape=(1, 2, 3), output=last)


@pytest.mark.parametrize(
    "proto",
    [
        autoencoder(),
        autoencoder(helper.make_node("Reshape", ["values", "s"], ["y"]), s=np.array([1, 2, 3])),
        autoencoder(
            helper.make_node("Reshape", ["values", "s"], ["r"]),
            helper.make_node("Transpose", ["r"], ["y"], perm=[0, 2, 1]),
            s=np.array([1, 3, 2]),
        ),
    ],
    ids=["flat", "shaped", "transposed"],
)
def test_an_output_with_the_values_of_the_input_reconstructs_it_in_its_order(
    proto: onnx.ModelProto,
) -> None:
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    for _ in range(2 if proto.graph.node[-1].op_type == "MatMul" else 3):
        proto.graph.output[0].type.tensor_type.shape.dim.add()
    flat = proto.graph.node[-1].op_type == "MatMul"
    graph = import_proto(proto, loss="mse" if flat else None)
    assert graph.head.loss == "mse"
    x = normal(1, 2, 3, seed=4)
    expected = onnxruntime_oracle.run(proto, x)[0]
    got = evaluate(graph, graph.arrange(x))[graph.head.output]
    wanted = graph.arrange(expected.reshape(1, 2, 3)).reshape(1, -1)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_an_output_that_is_neither_classes_nor_the_input_is_refused() -> None:
    proto = autoencoder(helper.make_node("Reshape", ["values", "s"], ["y"]), s=np.array([1, 3, 2]))
    with pytest.raises(
        ModelError,
        match=r"output 'y' has 3 x 2 values, and no labels 'y' beside samples say what for",
    ):
        import_proto(proto)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "no ONNX opset"),
        (b"\xff\xff\xff not an onnx file", "not a readable ONNX file"),
        (b"\x1c\0\0\0TFL3", r"TFLite model: convert it with python -m tf2onnx\.convert"),
        (b"PK\x03\x04", "PyTorch or Keras: export it from there"),
        (DIGITS.read_bytes()[:50_000], "not a readable ONNX file|breaks the ONNX rules"),
    ],
    ids=["missing", "empty", "garbage", "TFLite", "an archive", "cut off"],
)
def test_a_damaged_file_gives_one_clear_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        import_model(path)


def test_a_file_of_another_kind_is_refused_whatever_its_name(tmp_path: Path) -> None:
    for name in ("plans.json", "model.textproto", "labels.txt"):
        (tmp_path / name).write_text('{"plans": {}}')
        with pytest.raises(ModelError, match=rf"{name}: not a readable ONNX file"):
            import_model(tmp_path / name)


def test_a_file_with_flipped_bytes_is_imported_or_refused_but_nothing_else(tmp_path: Path) -> None:
    content = DIGITS.read_bytes()
    structure = sum(node.ByteSize() + 3 for node in onnx.load(DIGITS).graph.node)
    random = np.random.default_rng(11)
    path = tmp_path / "flipped.onnx"
    refused = 0
    for _ in range(1000):
        flipped = bytearray(content)
        for place in random.integers(0, structure, size=2):
            flipped[place] = random.integers(256)
        path.write_bytes(flipped)
        try:
            import_model(path)
        except ModelError:
            refused += 1
    assert refused > 0


@given(seed=st.integers(0, 100_000))
@examples(60)
def test_any_way_to_move_dimensions_about_evaluates_as_onnxruntime_does(seed: int) -> None:
    """Samples of some shape become a picture, and the picture a vector, in many ways."""
    rng = np.random.default_rng(seed)
    picture = [int(size) for size in rng.integers(1, 6, 3)]
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray] = {}

    def node(kind: str, source: str, *shape: int, **attributes: object) -> str:
        inputs = [source]
        if shape:
            inputs.append(f"s{len(nodes)}")
            constants[inputs[1]] = np.array(shape, dtype=np.int64)
        output = f"t{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    # The file's input: the picture's axes in any order, in runs; then back to the picture.
    order = [0, *(int(axis) + 1 for axis in rng.permutation(3))]
    turned = [([1, *picture])[axis] for axis in order]
    form = int(rng.integers(0, 3))
    flat = {0: turned[1:], 1: [int(np.prod(turned))], 2: [turned[1] * turned[2], turned[3]]}[form]
    last = "x"
    if form:
        last = node("Reshape", last, -1, *turned[1:])
    last = node("Transpose", last, perm=[order.index(axis) for axis in range(4)])
    nodes.append(helper.make_node("Conv", [last, "w"], ["y"], "conv"))
    constants["w"] = normal(4, picture[0], 1, 1, seed=seed)
    # The picture as a vector, with its dimensions in any order.
    end = [0, *(int(axis) + 1 for axis in rng.permutation(3))]
    last = node("Transpose", "y", perm=end)
    if rng.random() < 0.5:
        last = node("Unsqueeze", last, int(rng.integers(1, 5)))
    last = node("Flatten", last) if rng.random() < 0.5 else node("Reshape", last, 1, -1)
    nodes.append(helper.make_node("MatMul", [last, "m"], ["logits"], "head"))
    constants["m"] = normal(4 * picture[1] * picture[2], 5, seed=seed)
    proto = model(nodes, constants, shape=(1, *flat))
    graph = import_proto(proto, loss="cross-entropy")  # at times as many values as the input
    x = normal(1, *flat, seed=seed + 1)
    expected = onnxruntime_oracle.run(proto, x)[0]
    got = evaluate(graph, graph.arrange(x))[graph.head.output]
    np.testing.assert_allclose(got, expected, atol=1e-4)
