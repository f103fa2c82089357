"""Normalizations of each sample against onnxruntime, in every spelling that exporters have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from codegen.errors import ModelError
from codegen.graph.floats import FloatGraph
from codegen.importer.model import import_model, import_proto
from codegen.operators.execution import evaluate
from codegen.operators.layer_normalization import FloatLayerNormalization
from codegen.quantization.calibration import uncoded
from tests.codegen.importer.test_model import Constants, model, normal, with_head
from tests.codegen.importer.test_selections import conv, ints, node
from tests.codegen.int8_network import int8_outputs
from tests.codegen.onnxruntime_oracle import agreement, outputs, quantize_file

Nodes = list[onnx.NodeProto]
SPELLINGS = ("one", "torch", "products", "reciprocal", "keras", "offset", "bare")
ROOT_SPELLINGS = ("one", "torch", "llama", "divided", "together")


def spelled(kind: str, axis: int, source: str = "y", to: str = "n") -> tuple[Nodes, Constants]:
    """A normalization of ``source`` along one axis, of which it has 6 entries."""
    shape = (6, 1, 1) if axis == 1 else (6,)
    constants = {
        "gain": normal(*shape, seed=1) + 1, "bias": normal(*shape, seed=2),
        "eps": np.array(1e-3, np.float32), "two": np.array(2.0, np.float32),
        "one": np.array([1.0], np.float32),
    }  # fmt: skip
    if kind == "one":
        names = f"{source} gain bias"
        return [node("LayerNormalization", names, to, axis=axis, epsilon=1e-3)], constants
    square = "c c" if kind in ("products", "keras") else "c two"
    nodes = [
        node("ReduceMean", source, "m", axes=[axis]),
        node("Sub", f"{source} m", "c"),
        node("Mul" if square == "c c" else "Pow", square, "s"),
        node("ReduceMean", "s", "v", axes=[axis]),
        node("Add", "eps v" if kind == "keras" else "v eps", "e"),
        node("Sqrt", "e", "d"),
    ]
    scaled = [node("Reciprocal", "d", "r"), node("Mul", "r gain", "g")]
    times = [*scaled, node("Mul", f"{source} g", "xg")]
    end = {
        "torch": [node("Div", "c d", "z"), node("Mul", "z gain", "zg"), node("Add", "zg bias", to)],
        "products": [*scaled, node("Mul", "g c", "cg"), node("Add", "cg bias", to)],
        "reciprocal": [node("Div", "one d", "r"), node("Mul", "c r", to)],
        "keras": [
            *times, node("Neg", "m", "m_"), node("Mul", "m_ g", "mg"), node("Add", "mg bias", "b_"),
            node("Add", "xg b_", to),
        ],
        "offset": [
            *times, node("Mul", "m g", "mg"), node("Sub", "bias mg", "b_"), node("Add", "b_ xg", to)
        ],
        "bare": [*times, node("Mul", "g m", "mg"), node("Sub", "xg mg", to)],
    }  # fmt: skip
    return [*nodes, *end[kind]], constants


def spelled_root(kind: str, axis: int) -> tuple[Nodes, Constants]:
    """The same by the root of the mean square, with the mean left in."""
    _, constants = spelled("one", axis)
    if kind == "one":
        return [node("RMSNormalization", "y gain", "n", axis=axis, epsilon=1e-3)], constants
    square = node("Mul", "y y", "s") if kind == "divided" else node("Pow", "y two", "s")
    nodes = [
        square,
        node("ReduceMean", "s", "v", axes=[axis]),
        node("Add", "v eps", "e"),
        node("Sqrt", "e", "d"),
    ]
    inverse = node("Reciprocal", "d", "r")
    end = {
        "torch": [inverse, node("Mul", "y r", "z"), node("Mul", "z gain", "n")],
        "llama": [node("Div", "one d", "r"), node("Mul", "r y", "z"), node("Mul", "gain z", "n")],
        "divided": [node("Div", "y d", "z"), node("Mul", "z gain", "n")],
        "together": [inverse, node("Mul", "r gain", "g"), node("Mul", "y g", "n")],
    }  # fmt: skip
    return [*nodes, *end[kind]], constants


def signal(kind: str, *, centred: bool = True) -> onnx.ModelProto:
    """Of a sequence (length, features), whose features are normalized."""
    nodes, constants = spelled(kind, -1) if centred else spelled_root(kind, -1)
    ends = [
        node("ReduceMean", "n", "mean", axes=[1], keepdims=0),
        node("Gemm", "mean hw", "logits"),
    ]
    weights = {"w": normal(4, 6), "hw": normal(6, 4)}
    opset = 23 if nodes[0].op_type == "RMSNormalization" else 17
    if opset == 23:
        ends[0] = node("ReduceMean", "n one_axis", "mean", keepdims=0)
        weights["one_axis"] = ints(1)
    return model(
        [node("MatMul", "x w", "y"), *nodes, *ends],
        constants | weights,
        shape=("batch", 9, 4),
        opset=opset,
    )


def picture(kind: str) -> onnx.ModelProto:
    """Of a picture, whose channels come first."""
    stem, weights = conv("x", "y", 3, 6)
    nodes, constants = spelled(kind, 1)
    return with_head([stem, *nodes], constants | weights, "n", 6)


def normalizations(graph: FloatGraph) -> list[FloatLayerNormalization]:
    return [op for op in graph.ops if isinstance(op, FloatLayerNormalization)]


def assert_agrees(proto: onnx.ModelProto) -> FloatGraph:
    """In real numbers, and in int8 for 95 of 100 samples; returns the graph."""
    graph = import_proto(proto, loss="cross-entropy")
    x = normal(120, *graph.sample_shape) + normal(120, *[1] * len(graph.sample_shape))
    expected = outputs(proto, x)
    found = evaluate(graph, graph.arrange(x))[graph.head.output]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert agreement(int8_outputs(graph, x), expected) >= 0.95
    return graph


@pytest.mark.parametrize("kind", SPELLINGS)
def test_a_normalization_of_features_is_one_operation_however_it_is_spelled(kind: str) -> None:
    graph = assert_agrees(signal(kind))
    assert [len(op.gain) for op in normalizations(graph)] == [6]
    assert len(graph.ops) == 4


@pytest.mark.parametrize("kind", SPELLINGS[1:])
def test_a_normalization_of_a_pictures_channels_is_one_operation_as_well(kind: str) -> None:
    graph = assert_agrees(picture(kind))
    assert [len(op.gain) for op in normalizations(graph)] == [6]
    assert len(graph.ops) == 4


@pytest.mark.parametrize("kind", ROOT_SPELLINGS)
def test_a_normalization_by_the_root_of_the_mean_square_is_one_operation(kind: str) -> None:
    graph = assert_agrees(signal(kind, centred=False))
    (op,) = normalizations(graph)
    assert not op.centred
    assert len(op.gain) == 6
    assert len(graph.ops) == 4


@pytest.mark.parametrize("kind", ROOT_SPELLINGS[1:])
def test_a_pictures_channels_are_divided_by_their_root_mean_square_as_well(kind: str) -> None:
    stem, weights = conv("x", "y", 3, 6)
    nodes, constants = spelled_root(kind, 1)
    graph = assert_agrees(with_head([stem, *nodes], constants | weights, "n", 6))
    assert [op.centred for op in normalizations(graph)] == [False]
    assert len(graph.ops) == 4


def test_a_scale_that_is_repeated_for_each_group_is_one_for_all() -> None:
    """As PyTorch writes an RMSNorm without weight: ones in the shape of the tensor."""
    proto = signal("one", centred=False)
    (scale,) = (entry for entry in proto.graph.initializer if entry.name == "gain")
    ones = np.ones((1, 9, 6), np.float32)
    scale.CopyFrom(onnx.numpy_helper.from_array(ones, "gain"))
    (op,) = normalizations(assert_agrees(proto))
    assert np.array_equal(op.gain, np.ones(6))
    ones[0, 4, 2] = 2.0
    scale.CopyFrom(onnx.numpy_helper.from_array(ones, "gain"))
    with pytest.raises(
        ModelError, match=r"\(RMSNormalization\): its constant of shape \[1, 9, 6\]"
    ):
        import_proto(proto)


def whole(operator: str, **attributes: object) -> onnx.ModelProto:
    """A picture of 6 by 7 by 6 that is normalized as a whole, if that is what ``operator`` does."""
    stem, weights = conv("x", "y", 3, 6)
    groups = int(attributes.get("num_groups", 1))
    shape = (6, 7, 6) if operator == "LayerNormalization" else (6,)
    constants = {"gain": normal(*shape, seed=1) + 1, "bias": normal(*shape, seed=2)}
    if operator != "InstanceNormalization":
        nodes = [node(operator, "y gain bias", "n", **attributes)]
        return with_head([stem, *nodes], constants | weights, "n", 6, opset=21)
    nodes = [
        node("Reshape", "y long", "f"),
        node("InstanceNormalization", "f ones zeros", "z"),
        node("Reshape", "z deep", "zz"),
        node("Mul", "zz gain", "zg"),
        node("Add", "zg bias", "n"),
    ]
    more = {
        "long": ints(0, groups, -1), "deep": ints(0, 6, 7, 6), "ones": np.ones(groups, np.float32),
        "zeros": np.zeros(groups, np.float32),
        **{name: values.reshape(6, 1, 1) for name, values in constants.items()},
    }  # fmt: skip
    return with_head([stem, *nodes], more | weights, "n", 6)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("LayerNormalization", {"axis": 1}),
        ("InstanceNormalization", {"num_groups": 1}),
        ("GroupNormalization", {"num_groups": 1}),
    ],
)
def test_a_whole_picture_is_normalized(operator: str, attributes: dict[str, object]) -> None:
    graph = assert_agrees(whole(operator, **attributes))
    assert [len(op.gain) for op in normalizations(graph)] == [252]


def first(operator: str, **attributes: object) -> onnx.ModelProto:
    """The same, of the model's input; a convolution reads what is normalized."""
    stem, weights = conv("n", "y", 3, 6)
    shape = (3, 7, 6) if operator == "LayerNormalization" else (3,)
    constants = {"gain": normal(*shape, seed=1) + 1, "bias": normal(*shape, seed=2)}
    if operator != "InstanceNormalization":
        nodes = [node(operator, "x gain bias", "n", **attributes)]
        return with_head([*nodes, stem], constants | weights, "y", 6, opset=21)
    nodes = [
        node("Reshape", "x long", "f"),
        node("InstanceNormalization", "f one zero", "z"),
        node("Reshape", "z deep", "zz"),
        node("Mul", "zz gain", "zg"),
        node("Add", "zg bias", "n"),
    ]
    more = {
        "long": ints(0, 1, -1), "deep": ints(0, 3, 7, 6), "one": np.ones(1, np.float32),
        "zero": np.zeros(1, np.float32),
        **{name: values.reshape(3, 1, 1) for name, values in constants.items()},
    }  # fmt: skip
    return with_head([*nodes, stem], more | weights, "y", 6)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("LayerNormalization", {"axis": 1}),
        ("InstanceNormalization", {}),
        ("GroupNormalization", {"num_groups": 1}),
    ],
)
def test_the_input_is_normalized_before_anything_says_what_its_axes_are(
    operator: str, attributes: dict[str, object]
) -> None:
    graph = assert_agrees(first(operator, **attributes))
    assert [len(op.gain) for op in normalizations(graph)] == [126]
    assert len(graph.ops) == 4


def test_an_input_with_its_channels_last_is_normalized_as_a_whole() -> None:
    stem, weights = conv("t", "y", 3, 6)
    constants = {"gain": normal(7, 6, 3, seed=1) + 1, "bias": normal(7, 6, 3, seed=2)}
    nodes = [
        node("LayerNormalization", "x gain bias", "n", axis=1),
        node("Transpose", "n", "t", perm=[0, 3, 1, 2]),
    ]
    proto = with_head([*nodes, stem], constants | weights, "y", 6, shape=("batch", 7, 6, 3))
    assert [len(op.gain) for op in normalizations(assert_agrees(proto))] == [126]


def test_the_last_dimension_of_the_input_that_is_normalized_is_its_channels() -> None:
    """Nothing but the normalization says so: (time, features), of which the mean over time."""
    nodes, constants = spelled("one", -1, "x")
    nodes += [
        node("ReduceMean", "n", "mean", axes=[1], keepdims=0),
        node("Gemm", "mean hw", "logits"),
    ]
    proto = model(nodes, constants | {"hw": normal(6, 4)}, shape=("batch", 9, 6))
    assert_agrees(proto)


def test_rows_of_the_input_are_refused_by_what_normalizes_them() -> None:
    """The convolution behind says that the last dimension isn't the channels."""
    stem, weights = conv("n", "y", 3, 6)
    gains = {"gain": normal(6), "bias": normal(6)}
    row = node("LayerNormalization", "x gain bias", "n", axis=-1)
    with pytest.raises(ModelError, match=r"'n' \(LayerN.*last dimension .* behind the first layer"):
        import_proto(with_head([row, stem], weights | gains, "y", 6))
    stem, weights = conv("x", "y", 3, 6)
    row = node("LayerNormalization", "y gain bias", "n", axis=-1)
    assert_agrees(with_head([stem, row], weights | gains, "n", 6))


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("operator", ["InstanceNormalization", "GroupNormalization"])
def test_groups_of_channels_are_normalized_behind_a_transpose(operator: str, groups: int) -> None:
    graph = assert_agrees(whole(operator, num_groups=groups))
    assert [len(op.gain) for op in normalizations(graph)] == [252 // groups]


@pytest.mark.parametrize(("axis", "count"), [(-1, 6), (2, 42)])
def test_rows_and_pixels_of_each_channel_are_normalized_behind_a_transpose(
    axis: int, count: int
) -> None:
    stem, weights = conv("x", "y", 3, 6)
    shape = (6,) if axis == -1 else (7, 6)
    weights |= {"gain": normal(*shape, seed=1) + 1, "bias": normal(*shape, seed=2)}
    each = node("LayerNormalization", "y gain bias", "n", axis=axis)
    graph = assert_agrees(with_head([stem, each], weights, "n", 6))
    assert [len(op.gain) for op in normalizations(graph)] == [count]


def test_the_pixels_of_the_inputs_channels_are_normalized() -> None:
    stem, weights = conv("n", "y", 3, 6)
    weights |= {"gain": normal(3, seed=1) + 1, "bias": normal(3, seed=2)}
    each = node("InstanceNormalization", "x gain bias", "n")
    graph = assert_agrees(with_head([each, stem], weights, "y", 6))
    assert [len(op.gain) for op in normalizations(graph)] == [42]


def test_features_are_normalized_in_groups() -> None:
    """What a matrix makes has no pixels between the channels of a group; constants stand behind.

    Before opset 21 the node had other constants: the way out is a later one.
    """
    nodes = [
        node("Gemm", "x w", "y"),
        node("GroupNormalization", "y gain bias", "n", num_groups=3),
        node("Gemm", "n hw", "logits"),
    ]
    constants = {
        "gain": normal(12, seed=1) + 1, "bias": normal(12, seed=2),
        "w": normal(9, 12), "hw": normal(12, 4),
    }  # fmt: skip
    with pytest.raises(ModelError, match=r"GroupNormalization.*again with a later opset \(21\)"):
        import_proto(model(nodes, constants, shape=("batch", 9), opset=18))
    graph = assert_agrees(model(nodes, constants, shape=("batch", 9), opset=21))
    assert [len(op.gain) for op in normalizations(graph)] == [4]


def test_a_dimension_that_is_not_there_is_refused() -> None:
    stem, weights = conv("x", "y", 3, 6)
    weights |= {"gain": normal(6), "bias": normal(6)}
    normal_of_5 = node("LayerNormalization", "y gain bias", "n", axis=5)
    with pytest.raises(ModelError, match=r"'n' \(LayerNormalization\): names axis 5 of 4"):
        import_proto(with_head([stem, normal_of_5], weights, "n", 6))


def test_what_is_less_the_mean_of_another_tensor_keeps_a_mean_of_its_own() -> None:
    nodes, constants = spelled("torch", 1)
    nodes[0] = node("ReduceMean", "other", "m", axes=[1])
    stem, weights = conv("x", "y", 3, 6)
    other, more = conv("x", "other", 3, 6)
    graph = assert_agrees(with_head([stem, other, *nodes], constants | weights | more, "n", 6))
    assert [op.centred for op in normalizations(graph)] == [False]


@pytest.mark.parametrize("place", [0, 3])
def test_a_mean_without_its_dimension_is_that_of_other_entries(place: int) -> None:
    """Of 6 times 6 entries it can be taken from others than it is of."""
    nodes, constants = spelled("torch", -1)
    before = node("MatMul", "x w", "y")
    ends = [
        node("ReduceMean", "n", "mean", axes=[1], keepdims=0),
        node("Gemm", "mean hw", "logits"),
    ]
    weights = constants | {"w": normal(4, 6), "hw": normal(6, 4)}
    assert_agrees(model([before, *nodes, *ends], weights, shape=(1, 6, 4)))
    nodes[place].attribute.append(helper.make_attribute("keepdims", 0))
    with pytest.raises(ModelError, match=r"node .*; "):
        import_proto(model([before, *nodes, *ends], weights, shape=(1, 6, 4)))


def test_a_quantized_normalization_keeps_its_codes(tmp_path: Path) -> None:
    """onnxruntime knows the node, not what spells it: that is refused with the way out."""
    x = normal(150, 9, 4) + normal(150, 1, 1)
    one, many = (tmp_path / f"{kind}.onnx" for kind in ("one", "torch"))
    for path in (one, many):
        onnx.save(signal(path.stem), path)
        quantize_file(path, path, x[:60])
    with pytest.raises(ModelError, match=r"'d' \(Sqrt\).*one node \(opset 17 or later, or"):
        import_model(many, loss="cross-entropy")
    graph = import_model(one, loss="cross-entropy")
    assert len(normalizations(graph)) == 1
    assert not uncoded(graph)
    assert agreement(int8_outputs(graph, x), outputs(onnx.load(one), x)) >= 0.98


def test_a_normalization_that_leads_to_one_of_two_layers_stays_as_it_is() -> None:
    stem, weights = conv("x", "y", 3, 6)
    nodes, constants = spelled("torch", 1)
    nodes += [node("Relu", "zg", "bent"), node("Add", "bent n", "sum")]
    graph = assert_agrees(with_head([stem, *nodes], constants | weights, "sum", 6))
    (op,) = normalizations(graph)
    assert np.ptp(op.shift) == 0.0
