"""Zeros around a picture or a signal, wherever its channels are, against onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from codegen.errors import ModelError
from codegen.graph.floats import FloatConv, FloatGraph
from codegen.graph.ir import Padding
from codegen.importer.model import import_proto
from codegen.operators.max_pool import MaxPool
from codegen.operators.rearrange import Rearrange
from codegen.quantization.quantize import quantize
from tests.codegen.importer.test_model import Constants, model, normal
from tests.codegen.importer.test_normalization import assert_agrees
from tests.codegen.importer.test_selections import ints, node

NHWC, NLC = ("batch", 8, 7, 3), ("batch", 20, 3)


def ended(
    nodes: list[onnx.NodeProto], constants: Constants, shape: tuple[object, ...]
) -> FloatGraph:
    """``nodes`` make 'y', whose mean a Gemm classifies; as in onnxruntime."""
    axes = list(range(2, len(shape)))
    ends = [
        node("Relu", "y", "bent"),
        node("ReduceMean", "bent", "mean", axes=axes, keepdims=0),
        node("Gemm", "mean hw", "logits"),
    ]
    return assert_agrees(model([*nodes, *ends], {"hw": normal(8, 5), **constants}, shape=shape))


def paddings(graph: FloatGraph) -> list[Padding]:
    assert not any(op.output.endswith("_padded") for op in graph.ops)
    return [
        op.padding for op in graph.ops if isinstance(op, FloatConv) and op.weight[0, 0].size > 1
    ]


def test_a_picture_whose_channels_are_last_is_padded_by_its_convolution() -> None:
    nodes = [
        node("Sub", "x by", "centred"),
        node("Div", "centred by", "normal"),
        node("Pad", "normal pads", "padded"),
        node("Transpose", "padded", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first w", "y", strides=[2, 2]),
    ]
    constants = {
        "by": np.abs(normal(1, 1, 1, 3)) + 0.3, "pads": ints(0, 0, 1, 0, 0, 1, 2, 0),
        "w": normal(8, 3, 3, 3),
    }  # fmt: skip
    graph = ended(nodes, constants, NHWC)
    assert graph.shapes[graph.input] == (3, 8, 7)
    assert paddings(graph) == [Padding(0, 1, 1, 2)]


def test_a_signal_is_padded_on_the_left_alone_before_each_layer() -> None:
    nodes = [
        node("Pad", "x early", "padded"),
        node("Unsqueeze", "padded one", "deep"),
        node("Transpose", "deep", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first w", "a"),
        node("Squeeze", "a two", "short"),
        node("Relu", "short", "b"),
        node("Pad", "b late", "again"),
        node("Unsqueeze", "again two", "wide"),
        node("Conv", "wide v", "c", dilations=[1, 2]),
        node("Squeeze", "c two", "y"),
    ]
    constants = {
        "early": ints(0, 2, 0, 0, 0, 0), "late": ints(0, 0, 4, 0, 0, 0), "one": ints(1),
        "two": ints(2), "w": normal(6, 3, 1, 3), "v": normal(8, 6, 1, 3),
    }  # fmt: skip
    graph = ended(nodes, constants, NLC)
    assert paddings(graph)[0] == Padding(0, 2, 0, 0)


def test_a_signal_whose_layers_have_one_dimension_is_padded_as_well() -> None:
    nodes = [
        node("Pad", "x early", "padded"),
        node("Transpose", "padded", "first", perm=[0, 2, 1]),
        node("Conv", "first w", "y"),
    ]
    graph = ended(nodes, {"early": ints(0, 4, 0, 0, 0, 0), "w": normal(8, 3, 3)}, NLC)
    assert paddings(graph) == [Padding(0, 4, 0, 0)]


@pytest.mark.parametrize("height", [1, 4])
def test_what_is_padded_with_its_channels_last_can_be_read_as_it_is(height: int) -> None:
    nodes = [
        node("Transpose", "x", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first w", "a"),
        node("Transpose", "a", "last", perm=[0, 2, 3, 1]),
        node("Pad", "last pads", "padded"),
        node("Pad", "padded more", "twice"),
        node("Add", "twice by", "raised"),
        node("Transpose", "raised", "y", perm=[0, 3, 1, 2]),
    ]
    constants = {
        "w": normal(8, 3, 1, 1), "pads": ints(0, 1, 0, 0, 0, 0, 2, 0),
        "more": ints(0, 0, 1, 0, 0, 0, 0, 0), "by": np.abs(normal(8)),
    }  # fmt: skip
    graph = ended(nodes, constants, ("batch", height, 7, 3))
    (zeros,) = (op for op in graph.ops if isinstance(op, Rearrange))
    assert zeros.size == (height + 1, 10)


def test_zeros_around_what_a_max_pool_reads_are_copied_with_its_codes() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Pad", "a pads", "padded"),
        node("MaxPool", "padded", "y", kernel_shape=[3, 3], strides=[2, 2]),
    ]
    constants = {"w": normal(8, 3, 1, 1), "pads": ints(0, 0, 3, 1, 0, 0, 3, 1)}
    graph = ended(nodes, constants, ("batch", 3, 8, 7))
    made = quantize(graph, normal(20, 3, 8, 7))
    (zeros,) = (op for op in made.ops if isinstance(op, Rearrange))
    of, padded = made.tensors[zeros.input], made.tensors[zeros.output]
    assert (padded.scale, padded.zero_point) == (of.scale, of.zero_point)


@pytest.mark.parametrize("pads", [(0, 1, 0, 0, 0, 2, 0, 0), (0, 0, 1, 0, 0, 3, 0, 2)])
def test_more_channels_are_a_shortcut_without_weights_of_its_own(pads: tuple[int, ...]) -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Slice", "a from to axes by", "half"),
        node("Pad", "half pads", "p"),
        node("Conv", "p v", "y", pads=[1, 1, 1, 1]),
    ]
    constants = {
        "w": normal(5, 3, 1, 1), "v": normal(8, 8, 3, 3), "pads": ints(*pads),
        "from": ints(0, 0), "to": ints(9, 9), "axes": ints(2, 3), "by": ints(2, 2),
    }  # fmt: skip
    ended(nodes, constants, ("batch", 3, 8, 7))


@pytest.mark.parametrize("pads", [(0, 0, 1, 1, 0, 0, 0, 2), (0, 0, -1, 1, 0, 0, 2, -2)])
@pytest.mark.parametrize("value", [0.0, 1.5, -0.5])
def test_any_number_is_put_around_a_picture_and_what_is_less_than_nothing_is_cut(
    pads: tuple[int, ...], value: float
) -> None:
    nodes = [
        node("Conv", "x w", "a"), node("Pad", "a pads value", "p"), node("Conv", "p v", "y"),
    ]  # fmt: skip
    constants = {
        "w": normal(5, 3, 1, 1), "v": normal(8, 5, 3, 3), "pads": ints(*pads),
        "value": np.array(value, np.float32),
    }  # fmt: skip
    ended(nodes, constants, ("batch", 3, 8, 7))


def lowest(**attributes: object) -> tuple[list[onnx.NodeProto], Constants]:
    """As timm pads before a max pool."""
    nodes = [
        node("Conv", "x w", "a"),
        node("Pad", "a pads value", "p"),
        node("MaxPool", "p", "y", kernel_shape=[3, 3], strides=[2, 2], **attributes),
    ]
    value = np.array(-np.inf, np.float32)
    return nodes, {
        "w": normal(8, 3, 1, 1), "pads": ints(0, 0, 0, 1, 0, 0, 1, 1), "value": value
    }  # fmt: skip


def test_what_is_below_all_numbers_is_the_padding_of_a_max_pool() -> None:
    graph = ended(*lowest(), ("batch", 3, 8, 7))
    (pool,) = (op for op in graph.ops if isinstance(op, MaxPool))
    assert pool.padding == Padding(0, 1, 1, 1)
    nodes, constants = lowest(ceil_mode=1)
    with pytest.raises(ModelError, match=r"'p' \(Pad\): .* -inf, .*use their own pads"):
        import_proto(model(nodes, constants, shape=("batch", 3, 8, 7), output="y"))
    del nodes[1]
    nodes[1] = node(
        "MaxPool", "a", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[0, 1, 1, 1]
    )
    ended(nodes, constants, ("batch", 3, 8, 7))


def test_a_pool_that_rounds_up_sees_the_zeros_of_a_pad_as_pixels() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Pad", "a pads", "p"),
        node("AveragePool", "p", "y", kernel_shape=[2, 2], strides=[1, 2], pads=[1, 0, 0, 0],
             ceil_mode=1, count_include_pad=1),
    ]  # fmt: skip
    constants = {"w": normal(8, 3, 1, 1), "pads": ints(0, 0, 0, 1, 0, 0, 2, 1)}
    ended(nodes, constants, ("batch", 3, 1, 7))


def test_zeros_around_a_picture_can_be_read_in_any_order() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Pad", "a pads", "p"),
        node("Transpose", "p", "turned", perm=[0, 3, 1, 2]),
        node("Softplus", "turned", "y"),
        node("Reshape", "y flat", "row"),
        node("Gemm", "row hw", "logits"),
    ]
    constants = {
        "w": normal(2, 3, 1, 1), "pads": ints(0, 0, 1, 0, 0, 0, 0, 2), "flat": ints(0, -1),
        "hw": normal(2 * 9 * 9, 5),
    }  # fmt: skip
    assert_agrees(model(nodes, constants, shape=("batch", 3, 8, 7)))


@pytest.mark.parametrize("order", ["a places", "places a", "row a a places"])
def test_a_constant_that_is_concatenated_is_added_where_zeros_are(order: str) -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Concat", order, "b", axis=1),
        node("Conv", "b v", "y", pads=[1, 1, 1, 1]),
    ]
    sizes = {"a": 4, "places": 2, "row": 1}
    constants = {
        "w": normal(4, 3, 1, 1), "places": normal(1, 2, 8, 7), "row": normal(1, 1, 8, 7),
        "v": normal(8, sum(sizes[name] for name in order.split()), 3, 3),
    }  # fmt: skip
    ended(nodes, constants, (1, 3, 8, 7))


def test_a_constant_between_tensors_is_refused_until_it_stands_behind_them() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Concat", "a places a", "b", axis=1),
        node("Conv", "b v", "y"),
    ]
    constants = {"w": normal(4, 3, 1, 1), "places": normal(1, 2, 8, 7), "v": normal(8, 10, 1, 1)}
    with pytest.raises(ModelError, match=r"'b' \(Concat\): has a constant between two tensors"):
        import_proto(model(nodes, constants, shape=(1, 3, 8, 7), output="y"))
    nodes[1] = node("Concat", "a a places", "b", axis=1)
    ended(nodes, constants, (1, 3, 8, 7))


def test_a_pad_of_the_batch_or_of_all_there_is_is_refused() -> None:
    for pads, reason in (
        (ints(0, 0, 0, 0, 1, 0, 0, 0), "the batch can't be padded"),
        (ints(0, 0, -5, 0, 0, 0, -3, 0), r"dimension 2 by \[-5, -3\], which leaves nothing"),
    ):
        nodes = [node("Conv", "x w", "a"), node("Pad", "a pads", "p"), node("Conv", "p w", "y")]
        proto = model(nodes, {"pads": pads, "w": normal(3, 3, 1, 1)}, output="y",
                      shape=("batch", 3, 8, 7))  # fmt: skip
        with pytest.raises(ModelError, match=rf"'p' \(Pad\): .*{reason}"):
            import_proto(proto)


def test_a_layer_of_batch_and_time_together_works_along_the_features() -> None:
    nodes = [
        node("Reshape", "x both", "flat"),
        node("MatMul", "flat w", "a"),
        node("Reshape", "a apart", "b"),
        node("Transpose", "b", "y", perm=[0, 2, 1]),
    ]
    constants = {"both": ints(-1, 3), "apart": ints(-1, 20, 8), "w": normal(3, 8)}
    graph = ended(nodes, constants, NLC)
    assert graph.shapes[graph.input] == (3, 1, 20)


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_a_picture_and_a_signal_are_padded_with_copies_of_their_own(mode: str) -> None:
    constants = {"w": normal(8, 3, 2, 2), "pads": ints(0, 0, 1, 2, 0, 0, 2, 3)}
    nodes = [node("Pad", "x pads", "padded", mode=mode), node("Conv", "padded w", "y")]
    ended(nodes, constants, ("batch", 3, 8, 7))
    constants = {"w": normal(8, 3, 5), "pads": ints(0, 4, 0, 0, 0, 0)}
    nodes = [
        node("Pad", "x pads", "padded", mode=mode),
        node("Transpose", "padded", "first", perm=[0, 2, 1]),
        node("Conv", "first w", "y"),
    ]
    ended(nodes, constants, NLC)


@pytest.mark.parametrize(
    ("mode", "pads", "reason"),
    [
        ("reflect", (0, 0, 8, 0, 0, 0, 0, 0), r"dimension 2 by \[8, 0\].*reflect pads 8.*to 7"),
        ("wrap", (0, 0, 0, 0, 0, 0, 0, 8), r"dimension 3 by \[0, 8\].*wrap pads 7.*to 7"),
        ("edge", (0, 0, -1, 0, 0, 0, 0, 0), r"by \[-1, 0\]; mode edge pads 8 entries by 0 or more"),
        ("twice", (0, 0, 1, 0, 0, 0, 0, 0), "mode = twice is unknown; use constant, edge"),
    ],
)
def test_more_copies_than_there_can_be_are_refused(
    mode: str, pads: tuple[int, ...], reason: str
) -> None:
    nodes = [
        onnx.helper.make_node("Pad", ["x", "pads"], ["padded"], "around", mode=mode),
        node("Conv", "padded w", "logits"),
    ]
    proto = model(nodes, {"w": normal(8, 3, 3, 3), "pads": ints(*pads)}, shape=("batch", 3, 8, 7))
    with pytest.raises(ModelError, match=f"node 'around'.*{reason}"):
        import_proto(proto)
